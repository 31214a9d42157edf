#!/usr/bin/env python3
"""Writes a checkpoint of a named shape with random weights, for measurements of speed and memory.

    python3 bench/random_checkpoint.py tinyllama-1.1b OUT

Only NumPy is needed. The tokenizer is the demo model's, filled up with made-up words so that each id has a text: text in and out is
meaningless, sizes and speed are what the shape makes them.
Weights are bfloat16 (the upper half of a float32), in shards of at most 1 GB, in the layout that transformers writes.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy

MAX_SHARD_BYTES = 1_000_000_000
DEMO = Path(__file__).resolve().parent.parent / "models" / "demo"

Tensors = dict[str, tuple[int, ...]]


def module(name: str, rows: int, columns: int, bias: bool) -> Tensors:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def norm(name: str, width: int, bias: bool) -> Tensors:
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def llama(config: dict, qkv_bias: bool = False) -> Tensors:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    names = module("model.embed_tokens", vocab, hidden, False)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        names |= norm(at + "input_layernorm", hidden, False)
        for part, rows in (("q", hidden), ("k", kv), ("v", kv)):
            names |= module(f"{at}self_attn.{part}_proj", rows, hidden, qkv_bias)
        names |= module(at + "self_attn.o_proj", hidden, hidden, False)
        names |= norm(at + "post_attention_layernorm", hidden, False)
        names |= module(at + "mlp.gate_proj", inner, hidden, False) | module(at + "mlp.up_proj", inner, hidden, False)
        names |= module(at + "mlp.down_proj", hidden, inner, False)
    names |= norm("model.norm", hidden, False)
    return names if config["tie_word_embeddings"] else names | module("lm_head", vocab, hidden, False)


def qwen2(config: dict) -> Tensors:
    return llama(config, qkv_bias=True)


def gptj(config: dict) -> Tensors:
    hidden, vocab = config["n_embd"], config["vocab_size"]
    names = module("transformer.wte", vocab, hidden, False)
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}."
        names |= norm(at + "ln_1", hidden, True)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            names |= module(at + "attn." + part, hidden, hidden, False)
        names |= module(at + "mlp.fc_in", 4 * hidden, hidden, True) | module(at + "mlp.fc_out", hidden, 4 * hidden, True)
    return names | norm("transformer.ln_f", hidden, True) | module("lm_head", vocab, hidden, True)


def gpt_bigcode(config: dict) -> Tensors:
    hidden, inner = config["n_embd"], config["n_inner"]
    head_dim = hidden // config["n_head"]
    names = module("transformer.wte", config["vocab_size"], hidden, False)
    names |= module("transformer.wpe", config["n_positions"], hidden, False)
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}."
        names |= norm(at + "ln_1", hidden, True) | module(at + "attn.c_attn", hidden + 2 * head_dim, hidden, True)
        names |= module(at + "attn.c_proj", hidden, hidden, True) | norm(at + "ln_2", hidden, True)
        names |= module(at + "mlp.c_fc", inner, hidden, True) | module(at + "mlp.c_proj", hidden, inner, True)
    return names | norm("transformer.ln_f", hidden, True)


LLAMA = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0,
             max_position_embeddings=2048, tie_word_embeddings=False)
QWEN2 = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1_000_000.0,
             vocab_size=151936, hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
             intermediate_size=4864, max_position_embeddings=32768, tie_word_embeddings=True)

# Name to the tensors in the order in which a decoder reads them, and the configuration. Sizes are those of the released models.
SHAPES = {
    # TinyLlama/TinyLlama-1.1B: the shape every figure of 1.1 billion parameters in this project refers to.
    "tinyllama-1.1b": (llama, LLAMA | dict(vocab_size=32000, hidden_size=2048, num_hidden_layers=22, num_attention_heads=32,
                                           num_key_value_heads=4, intermediate_size=5632)),
    "llama-160m": (llama, LLAMA | dict(vocab_size=32000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                                       num_key_value_heads=12, intermediate_size=3072)),
    "qwen2.5-0.5b": (qwen2, QWEN2),
    "qwen2.5-coder-0.5b": (qwen2, QWEN2),
    # Salesforce/codegen-350M-*, as it is converted to GPT-J.
    "codegen-350m": (gptj, dict(architectures=["GPTJForCausalLM"], model_type="gptj", vocab_size=51200, n_embd=1024, n_layer=20,
                                n_head=16, rotary_dim=32, n_positions=2048, activation_function="gelu_new", layer_norm_epsilon=1e-5,
                                tie_word_embeddings=False)),
    "starcoderbase-1b": (gpt_bigcode, dict(architectures=["GPTBigCodeForCausalLM"], model_type="gpt_bigcode", vocab_size=49152,
                                           n_embd=2048, n_layer=24, n_head=16, n_inner=8192, n_positions=8192, multi_query=True,
                                           activation_function="gelu_pytorch_tanh", layer_norm_epsilon=1e-5, tie_word_embeddings=True)),
}


def values(name: str, shape: tuple[int, ...], rng: numpy.random.Generator) -> bytes:
    """Ones for norms, zeros for biases, else normal numbers scaled so that activations keep their size; little-endian bfloat16."""
    if len(shape) == 1:
        floats = numpy.full(shape, 0.0 if name.endswith("bias") else 1.0, numpy.float32)
    else:
        floats = rng.standard_normal(shape, numpy.float32) * numpy.float32(shape[1] ** -0.5)
    return (floats.view(numpy.uint32) >> 16).astype("<u2").tobytes()


def shards(names: Tensors) -> list[list[str]]:
    """Cuts the tensors into runs of at most `MAX_SHARD_BYTES`."""
    runs, size = [[]], 0
    for name, shape in names.items():
        num_bytes = 2 * int(numpy.prod(shape))
        if runs[-1] and size + num_bytes > MAX_SHARD_BYTES:
            runs.append([])
            size = 0
        runs[-1].append(name)
        size += num_bytes
    return runs


def write_shard(path: Path, run: list[str], names: Tensors, rng: numpy.random.Generator) -> None:
    """One safetensors file: the header's length, the header, then the bytes of each tensor."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in run:
        num_bytes = 2 * int(numpy.prod(names[name]))
        header[name] = dict(dtype="BF16", shape=list(names[name]), data_offsets=[offset, offset + num_bytes])
        offset += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in run:
            file.write(values(name, names[name], rng))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_tensors, config = SHAPES[args.shape]
    args.out.mkdir(parents=True, exist_ok=True)
    names, rng = make_tensors(config), numpy.random.default_rng(args.seed)
    runs = shards(names)
    weight_map = {}
    for index, run in enumerate(runs):
        file = f"model-{index + 1:05}-of-{len(runs):05}.safetensors"
        write_shard(args.out / file, run, names, rng)
        weight_map |= dict.fromkeys(run, file)
        print(f"wrote {file}", file=sys.stderr)
    total = sum(2 * int(numpy.prod(size)) for size in names.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    demo = json.loads((DEMO / "config.json").read_text())
    ends = {key: demo.get(key) for key in ("bos_token_id", "eos_token_id")}
    config = config | ends | dict(torch_dtype="bfloat16")
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    taken = set(tokenizer["model"]["vocab"].values()) | {token["id"] for token in tokenizer["added_tokens"]}
    # "Ġ" is a leading space in a byte-level vocabulary. Without merges these words are never made from text, only decoded to it.
    tokenizer["model"]["vocab"] |= {f"Ġword{id}": id for id in range(config["vocab_size"]) if id not in taken}
    (args.out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, args.out / name)


if __name__ == "__main__":
    main()
