#!/usr/bin/env python3
"""Writes a llama checkpoint of a named shape with random weights, for measurements of speed and memory.

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

SHAPES = {
    # TinyLlama/TinyLlama-1.1B: the shape every figure of 1.1 billion parameters in this project refers to.
    "tinyllama-1.1b": dict(vocab_size=32000, hidden_size=2048, num_hidden_layers=22, num_attention_heads=32,
                           num_key_value_heads=4, intermediate_size=5632),
    "llama-160m": dict(vocab_size=32000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                       num_key_value_heads=12, intermediate_size=3072),
}
MAX_SHARD_BYTES = 1_000_000_000
DEMO = Path(__file__).resolve().parent.parent / "models" / "demo"


def tensors(shape: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, in the order in which a decoder reads them."""
    hidden, inner, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    head_dim = hidden // shape["num_attention_heads"]
    kv = head_dim * shape["num_key_value_heads"]
    names = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        names |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (kv, hidden),
            prefix + "self_attn.v_proj.weight": (kv, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    return names | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def values(name: str, shape: tuple[int, ...], rng: numpy.random.Generator) -> bytes:
    """Ones for norms, else normal numbers scaled so that activations keep their size; little-endian bfloat16."""
    if len(shape) == 1:
        floats = numpy.ones(shape, numpy.float32)
    else:
        floats = rng.standard_normal(shape, numpy.float32) * numpy.float32(shape[1] ** -0.5)
    return (floats.view(numpy.uint32) >> 16).astype("<u2").tobytes()


def shards(names: dict[str, tuple[int, ...]]) -> list[list[str]]:
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


def write_shard(path: Path, run: list[str], names: dict[str, tuple[int, ...]], rng: numpy.random.Generator) -> None:
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
    shape = SHAPES[args.shape]
    args.out.mkdir(parents=True, exist_ok=True)
    names, rng = tensors(shape), numpy.random.default_rng(args.seed)
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
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", torch_dtype="bfloat16", hidden_act="silu",
                  rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=2048, tie_word_embeddings=False,
                  bos_token_id=demo.get("bos_token_id"), eos_token_id=demo.get("eos_token_id")) | shape
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    taken = set(tokenizer["model"]["vocab"].values()) | {token["id"] for token in tokenizer["added_tokens"]}
    # "Ġ" is a leading space in a byte-level vocabulary. Without merges these words are never made from text, only decoded to it.
    tokenizer["model"]["vocab"] |= {f"Ġword{id}": id for id in range(shape["vocab_size"]) if id not in taken}
    (args.out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, args.out / name)


if __name__ == "__main__":
    main()
