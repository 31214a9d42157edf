"""Export a checkpoint of train.py in Hugging Face layout, and check, measure and sample it.

  export    write config.json, generation_config.json, tokenizer_config.json, model.safetensors (bf16)
  check     compare the exported files, run by transformers, with the model of train.py
  evaluate  held-out bits per byte, and whether the model uses the suffix when it fills in
  samples   completions as they come, greedy and with a fixed seed
  plot      loss curve of training_log.csv as an SVG
  heldout   write heldout.txt from the held-out files of the standard library
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re

import torch
import torch.nn.functional as F

from corpus import EOT, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, SPECIALS, python_files
from train import HERE, Config, Llama, bits_per_byte, load_heldout

# The model never saw a chat.  Messages become comment lines and answers plain code, which
# is the form in which its corpus talks about code.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ message['content'] | trim }}{{ '\\n\\n' }}"
    "{%- else -%}"
    "{{ '# ' }}{{ message['content'] | trim | replace('\\n', '\\n# ') }}{{ '\\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '' }}{%- endif -%}")


def write_json(name: str, value) -> None:
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def write_configs() -> None:
    """Everything besides the weights and tokenizer.json."""
    c = Config()
    eot = SPECIALS.index(EOT)
    write_json("config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": c.vocab_size, "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim, "hidden_act": "silu", "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta, "rope_scaling": None,
        "max_position_embeddings": c.max_position_embeddings,
        "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
        "initializer_range": 0.02, "pretraining_tp": 1, "tie_word_embeddings": True,
        "bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot,
        "torch_dtype": "bfloat16", "use_cache": True})
    write_json("generation_config.json",
               {"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot})
    write_json("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(i): {"content": s, "lstrip": False, "normalized": False,
                                          "rstrip": False, "single_word": False, "special": True}
                                 for i, s in enumerate(SPECIALS)},
        "bos_token": EOT, "eos_token": EOT, "pad_token": EOT, "unk_token": None,
        "additional_special_tokens": SPECIALS[1:], "add_bos_token": False, "add_eos_token": False,
        "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "model_max_length": c.max_position_embeddings, "chat_template": CHAT_TEMPLATE})


def export(ckpt: str) -> None:
    """Write the weights in bf16 under the names of LlamaForCausalLM; lm_head is tied, so absent."""
    from safetensors.torch import save_file
    state = torch.load(ckpt, weights_only=False, map_location="cpu")
    tensors = {"model." + k: v.to(torch.bfloat16).contiguous() for k, v in state["model"].items()}
    save_file(tensors, os.path.join(HERE, "model.safetensors"), metadata={"format": "pt"})
    write_configs()
    print(f"step {state['step']}, {state['tokens']} tokens, "
          f"{sum(t.numel() for t in tensors.values())} parameters exported")


def exported_model() -> Llama:
    """The model of train.py with the exported (bf16-rounded) weights, in f32."""
    from safetensors.torch import load_file
    model = Llama(Config())
    weights = load_file(os.path.join(HERE, "model.safetensors"))
    model.load_state_dict({k.removeprefix("model."): v.float() for k, v in weights.items()})
    return model.eval()


def transformers_model():
    from transformers import AutoModelForCausalLM, AutoTokenizer
    return (AutoModelForCausalLM.from_pretrained(HERE, torch_dtype=torch.float32).eval(),
            AutoTokenizer.from_pretrained(HERE))


@torch.no_grad()
def check() -> None:
    """transformers must give the same logits (f32, 1e-4) at every position of the context."""
    ours, (theirs, tok) = exported_model(), transformers_model()
    text = open(os.path.join(HERE, "corpus.py")).read()
    ids = torch.tensor([tok(text)["input_ids"][:2048]])
    diff = (ours(ids) - theirs(ids).logits).abs().max().item()
    print(f"{ids.shape[1]} positions, largest difference of a logit {diff:.2e}")
    assert diff < 1e-4
    assert theirs.lm_head.weight.data_ptr() == theirs.model.embed_tokens.weight.data_ptr()
    probe = "    naïve ☃\r\n\t日本語 \x00  " + text
    assert tok.decode(tok(probe)["input_ids"], clean_up_tokenization_spaces=False) == probe
    chat = [{"role": "system", "content": "Plain Python."},
            {"role": "user", "content": "Two lines\nof a question"},
            {"role": "assistant", "content": "x = 1\n"}, {"role": "user", "content": "more"}]
    got = tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert got == "# Plain Python.\n# Two lines\n# of a question\nx = 1\n\n# more\n", got
    assert [tok.convert_tokens_to_ids(s) for s in SPECIALS] == list(range(len(SPECIALS)))
    print("check passed")


@torch.no_grad()
def evaluate(data: str) -> None:
    """Bits per byte per language and context; then fill-in-the-middle against plain continuation."""
    from tokenizers import Tokenizer
    model = exported_model()
    for lang in ("python", "rust"):
        ids, sizes = load_heldout(data, lang)
        n_tokens = sum(map(len, ids))
        for context in (512, 2048):
            bpb = bits_per_byte(model, ids, sizes, context)
            print(f"{lang} context {context}: {bpb:.4f} bits per byte, "
                  f"{bpb * math.log(2) * sum(sizes) / n_tokens:.4f} nats per token, "
                  f"{len(ids)} files {sum(sizes)} bytes", flush=True)
    tok = Tokenizer.from_file(os.path.join(HERE, "tokenizer.json"))
    rng = random.Random(5)
    with open(os.path.join(data, "heldout.jsonl")) as f:
        texts = [d["text"] for d in map(json.loads, f) if d["lang"] == "python"]
    plain = filled = n_bytes = exact = ended = 0.0
    n = 0
    for text in texts:
        lines = text.splitlines(keepends=True)
        for _ in range(12):
            # one whole non-empty line in the middle of about 24 lines
            i = rng.randrange(12, len(lines) - 12) if len(lines) > 40 else 0
            if not i or len(lines[i].strip()) < 4:
                continue
            indent = len(lines[i]) - len(lines[i].lstrip())
            before = "".join(lines[i - 12:i]) + lines[i][:indent]
            middle, after = lines[i][indent:].rstrip("\n"), "\n" + "".join(lines[i + 1:i + 13])
            m = tok.encode(middle + "\n").ids
            p = tok.encode(EOT + before).ids
            q = tok.encode(FIM_PREFIX + before + FIM_SUFFIX + after + FIM_MIDDLE).ids
            m_fim = tok.encode(middle + EOT).ids
            if max(len(p), len(q)) > 900:
                continue
            for head, tail, is_fim in ((p, m, False), (q, m_fim, True)):
                logits = model(torch.tensor([head + tail[:-1]]))[0, len(head) - 1:]
                nats = F.cross_entropy(logits, torch.tensor(tail), reduction="sum").item()
                if is_fim:
                    filled += nats
                    best = logits.argmax(-1).tolist()
                    exact += best == tail
                    ended += best[-1] == tail[-1]
                else:
                    plain += nats
            n_bytes += len(middle) + 1
            n += 1
    bits = 1 / math.log(2) / n_bytes
    print(f"fim: {n} held-out Python lines; bits per byte of the line (with its end): "
          f"plain continuation {plain * bits:.4f}, with the suffix {filled * bits:.4f}; "
          f"greedy fill equals the line {100 * exact / n:.1f} %, "
          f"after the true line the most likely token is the end of text in {100 * ended / n:.1f} %")


PROMPTS = [
    "def fibonacci(n):",
    "def fibonacci(n):\n",
    "def is_prime(n):\n    \"\"\"Return True if n is a prime number.\"\"\"\n",
    "def binary_search(arr, target):\n",
    "import os\nimport sys\n\n\ndef main():\n",
    "class Stack:\n    def __init__(self):\n",
    "for i in range(10):\n",
    "# read a JSON file and return its contents\ndef ",
    "fn main() {\n    let",
    "impl Iterator for",
    FIM_PREFIX + "def mean(values):\n    total = 0\n    for v in values:\n        " + FIM_SUFFIX
    + "\n    return total / len(values)\n" + FIM_MIDDLE,
]


@torch.no_grad()
def samples(max_new: int, prompts: list[str] | None) -> None:
    """Print greedy and seeded samples without any selection, in the form of the card."""
    model, tok = transformers_model()
    for prompt in prompts or PROMPTS:
        ids = torch.tensor([tok(prompt)["input_ids"]])
        for how in (None, (0.2, 1), (0.5, 2), (0.8, 3)):
            if how is None:
                out, label = model.generate(ids, do_sample=False, max_new_tokens=max_new), "greedy"
            else:
                torch.manual_seed(how[1])
                out = model.generate(ids, do_sample=True, temperature=how[0], top_p=0.95, top_k=0,
                                     max_new_tokens=max_new)
                label = f"temperature {how[0]}, top-p 0.95, seed {how[1]}"
            new = out[0, ids.shape[1]:].tolist()
            ended = "ended by itself" if new[-1] == 0 else f"cut at {max_new} tokens"
            text = prompt + "▌" + tok.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            print(f"{label}, {ended}:\n\n```text\n{text.rstrip()}\n```\n", flush=True)


def plot() -> None:
    import csv
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "demo"
    import matplotlib.pyplot as plt
    rows = list(csv.DictReader(open(os.path.join(HERE, "training_log.csv"))))
    fig, ax = plt.subplots(figsize=(7, 3.6))
    x = [int(r["tokens"]) / 1e6 for r in rows]
    ax.plot(x, [float(r["train_loss"]) for r in rows], lw=0.8, label="training loss (nats per token)")
    ax.set(xlabel="million tokens", ylabel="nats per token", ylim=(1.0, 6.0))
    right = ax.twinx()
    held = [(a, float(r["heldout_bpb"])) for a, r in zip(x, rows) if r["heldout_bpb"]]
    right.plot(*zip(*held), "o-", color="tab:red", ms=3, lw=0.8, label="held-out Python (bits per byte)")
    right.set(ylabel="bits per byte", ylim=(0.6, 3.2))
    for a, b in zip(rows, rows[1:]):
        if a["context"] != b["context"]:
            ax.axvline(int(b["tokens"]) / 1e6, color="gray", lw=0.6, ls=":")
            ax.text(int(b["tokens"]) / 1e6, 5.7, " context " + b["context"], fontsize=7, color="gray")
    fig.legend(loc="upper right", bbox_to_anchor=(0.88, 0.8), fontsize=8)
    fig.tight_layout()
    fig.savefig(os.path.join(HERE, "training_loss.svg"), metadata={"Date": None})


def heldout(data: str) -> None:
    """A text for quality tests of the engine: standard library only, no file of the training set.

    The held-out files of the standard library are few, so files of idlelib are added, which
    corpus.py leaves out as a whole.
    """
    with open(os.path.join(data, "heldout.jsonl")) as f:
        docs = [(d["path"], d["text"]) for d in map(json.loads, f) if d["source"] == "python-stdlib"]
    docs.sort()
    size = sum(len(t.encode()) for _, t in docs)
    idle = [(p, raw.decode()) for p, raw in python_files(data, "python-stdlib", "")
            if re.fullmatch(r"idlelib/[a-z]+\.py", p)]
    for path, text in sorted(idle, key=lambda d: hashlib.sha256(d[0].encode()).digest()):
        if size + len(text.encode()) <= 150_000:
            docs.append((path, text))
            size += len(text.encode())
    with open(os.path.join(HERE, "heldout.txt"), "w") as f:
        f.write("# Files of the Python standard library, not seen in training:\n"
                + "".join(f"#   {p}\n" for p, _ in docs)
                + "# Copyright Python Software Foundation, licence PSF-2.0.\n\n")
        f.writelines(t for _, t in docs)
    print(len(docs), "files", size, "bytes")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("action", choices=["export", "check", "evaluate", "samples", "plot", "heldout"])
    ap.add_argument("--ckpt", default="demo-run/ckpt.pt")
    ap.add_argument("--data", default="demo-data")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--max-new", type=int, default=120)
    ap.add_argument("--prompt", action="append", help="sample these prompts instead of the fixed ones")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    if a.action == "export":
        export(a.ckpt)
    elif a.action == "check":
        check()
    elif a.action == "evaluate":
        evaluate(a.data)
    elif a.action == "samples":
        samples(a.max_new, a.prompt)
    elif a.action == "plot":
        plot()
    else:
        heldout(a.data)
