"""Train the demo model from scratch on a CPU, by the clock.

The learning rate follows the elapsed time and reaches zero at `--minutes`, so the run
ends when it has to, on whatever machine.  Three phases: general text in windows of 256
tokens, whole files in windows of 2048, so that every position of the context is learnt, and
at last, while the rate reaches zero, small functions in windows of 512.

Hidden matrices use Muon (momentum orthogonalised by Newton-Schulz), which needs clearly
fewer tokens than AdamW; embeddings and norms use AdamW.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclasses.dataclass
class Config:
    """Architecture; the names follow Hugging Face's LlamaConfig."""
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope_table(cfg: Config):
    """cos and sin per position, in the half-split ('neox') layout of Hugging Face's Llama."""
    inv = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2).float() / cfg.head_dim)
    angle = torch.outer(torch.arange(cfg.max_position_embeddings).float(), inv)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        c = self.c
        q = rotate(self.q_proj(x).view(b, t, -1, c.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(b, t, -1, c.head_dim).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, t, -1, c.head_dim).transpose(1, 2)
        rep = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The parameter names equal those of LlamaForCausalLM without the `model.` prefix."""

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        cos, sin = rope_table(c)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        for name, p in self.named_parameters():
            if p.ndim == 2 and "embed" not in name:
                # Each block starts as the identity.
                if "o_proj" in name or "down_proj" in name:
                    nn.init.zeros_(p)
                else:
                    nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def hidden(self, ids):
        t = ids.shape[1]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return self.norm(x)

    def forward(self, ids):
        return self.hidden(ids) @ self.embed_tokens.weight.T

    def loss(self, ids, targets):
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())


def orthogonalise(g, steps: int = 5):
    """Newton-Schulz iteration towards the nearest (semi-)orthogonal matrices of a batch."""
    wide = g.shape[-2] > g.shape[-1]
    x = g.mT if wide else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if wide else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; matrices of one shape are handled as one batch."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes: dict = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for shape, ps in shapes.items():
                updates = []
                for p in ps:
                    buf = self.state[p].setdefault("m", torch.zeros_like(p))
                    buf.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buf, group["momentum"]))
                updates = orthogonalise(torch.stack(updates))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(ps, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * scale)


class Windows:
    """Consecutive windows of a token stream, one epoch after the other, in shuffled order."""

    def __init__(self, path: str, length: int, batch: int, seed: int):
        self.data = np.memmap(path, dtype=np.uint16, mode="r")
        self.length, self.batch, self.seed, self.pos, self.epoch = length, batch, seed, 0, -1
        self.order = np.zeros(0, dtype=np.int64)

    def next(self):
        if self.pos + self.batch > len(self.order):
            self.epoch += 1
            rng = np.random.default_rng(self.seed + self.epoch)
            shift = int(rng.integers(self.length))  # other cuts in the next epoch
            n = (len(self.data) - shift - 1) // self.length
            self.order, self.pos = shift + rng.permutation(n) * self.length, 0
        starts = self.order[self.pos:self.pos + self.batch]
        self.pos += self.batch
        rows = np.stack([self.data[s:s + self.length + 1] for s in starts]).astype(np.int64)
        rows = torch.from_numpy(rows)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


@torch.no_grad()
def bits_per_byte(model, docs_ids, docs_bytes, context: int, limit: int | None = None) -> float:
    """Held-out bits per byte; each file is cut into windows of `context` tokens after an end-of-text.

    Within a window the model sees only that window, so a longer context helps a little.
    """
    nats = n_bytes = 0.0
    for ids, size in zip(docs_ids, docs_bytes):
        for i in range(0, len(ids), context):
            seg = [0] + ids[i:i + context]
            x = torch.tensor([seg[:-1]])
            y = torch.tensor([seg[1:]])
            nats += F.cross_entropy(model(x)[0], y[0], reduction="sum").item()
        n_bytes += size
        if limit and n_bytes > limit:
            break
    return nats / math.log(2) / n_bytes


def load_heldout(data: str, lang: str):
    """Token ids and byte sizes of the held-out files of one language."""
    from tokenizers import Tokenizer
    tok = Tokenizer.from_file(os.path.join(HERE, "tokenizer.json"))
    with open(os.path.join(data, "heldout.jsonl")) as f:
        docs = [d for d in map(json.loads, f) if d["lang"] == lang]
    return [tok.encode(d["text"]).ids for d in docs], [len(d["text"].encode()) for d in docs]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", default="demo-data", help="directory with the token files of corpus.py")
    ap.add_argument("--out", default="demo-run", help="directory for checkpoints and the log")
    ap.add_argument("--minutes", type=float, default=90, help="wall-clock length of the run")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--tokens-per-step", type=int, default=8192)
    ap.add_argument("--lr", type=float, default=0.02, help="peak learning rate of Muon")
    ap.add_argument("--adam-lr", type=float, default=0.003, help="peak learning rate of AdamW")
    ap.add_argument("--long", type=float, default=0.08, help="part of the time after that, at context 2048")
    ap.add_argument("--general", type=float, default=0.6,
                    help="first part of the time, at context 256 and half the tokens per step")
    ap.add_argument("--decay", type=float, default=0.4, help="last part of the time, in which the rate falls")
    ap.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    ap.add_argument("--compile", action="store_true")
    ap.add_argument("--resume", action="store_true")
    ap.add_argument("--max-steps", type=int, default=0, help="stop early (for timing)")
    a = ap.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    torch.set_flush_denormal(True)
    os.makedirs(a.out, exist_ok=True)

    model = Llama(Config())
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    opts = [Muon(hidden, lr=a.lr, weight_decay=0.02),
            torch.optim.AdamW(others, lr=a.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    print(f"{sum(p.numel() for p in model.parameters())/1e6:.2f} M parameters", flush=True)

    phases = [("general", 256, a.tokens_per_step // 512, 5), ("functions", 512, a.tokens_per_step // 512, 10),
              ("long", 2048, a.tokens_per_step // 2048, 20)]
    streams = {name: Windows(os.path.join(a.data, name + ".bin"), context, batch, seed)
               for name, context, batch, seed in phases}
    held_ids, held_bytes = load_heldout(a.data, "python")
    loss_fn = torch.compile(model.loss, dynamic=False) if a.compile else model.loss

    step = tokens = 0
    before = 0.0  # seconds of earlier runs
    ckpt, log_path = os.path.join(a.out, "ckpt.pt"), os.path.join(a.out, "training_log.csv")
    if a.resume and os.path.exists(ckpt):
        state = torch.load(ckpt, weights_only=False)
        model.load_state_dict(state["model"])
        for o, s in zip(opts, state["opts"]):
            o.load_state_dict(s)
        step, tokens, before = state["step"], state["tokens"], state["elapsed"]
        for k, (pos, epoch, order) in state["streams"].items():
            streams[k].pos, streams[k].epoch, streams[k].order = pos, epoch, order
    log = open(log_path, "a" if step else "w", newline="")
    writer = csv.writer(log)
    if not step:
        writer.writerow(["step", "tokens", "minutes", "lr_factor", "context", "train_loss", "heldout_bpb"])

    start, total = time.monotonic() - before, a.minutes * 60
    elapsed, last_save, recent, marks = before, before, [], []

    def save():
        """Write to the side first: a kill in the middle must not lose the previous checkpoint."""
        torch.save({"model": model.state_dict(), "opts": [o.state_dict() for o in opts], "step": step,
                    "tokens": tokens, "elapsed": elapsed,
                    "streams": {k: (s.pos, s.epoch, s.order) for k, s in streams.items()}}, ckpt + ".new")
        os.replace(ckpt + ".new", ckpt)

    while elapsed < total and not (a.max_steps and step >= a.max_steps):
        done = elapsed / total
        stream = streams["general" if done < a.general else "long" if done < a.general + a.long else "functions"]
        factor = min(1.0, (step + 1) / 80, max(0.0, (1 - done) / a.decay))
        for o in opts:
            for g in o.param_groups:
                g["lr"] = factor * (a.lr if o is opts[0] else a.adam_lr)
        opts[0].param_groups[0]["momentum"] = min(0.95, 0.85 + 0.1 * step / 200)
        x, y = stream.next()
        loss = loss_fn(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        tokens += x.numel()
        recent.append(loss.item())
        elapsed = time.monotonic() - start
        marks = (marks + [(elapsed, tokens)])[-20:]
        if step % 20 == 0 or step == 3:
            speed = (marks[-1][1] - marks[0][1]) / max(1e-9, marks[-1][0] - marks[0][0])
            bpb = ""
            if elapsed - last_save > a.save_every * 60:
                save()
                last_save = elapsed
                bpb = f"{bits_per_byte(model, held_ids, held_bytes, 512, 60_000):.4f}"
                elapsed = time.monotonic() - start
            mean = sum(recent) / len(recent)
            recent = []
            writer.writerow([step, tokens, f"{elapsed/60:.2f}", f"{factor:.4f}", stream.length, f"{mean:.4f}", bpb])
            log.flush()
            print(f"step {step} tokens {tokens/1e6:.2f}M min {elapsed/60:.1f} lr {factor:.3f} ctx {stream.length} "
                  f"loss {mean:.3f} {speed:.0f} tok/s {'bpb ' + bpb if bpb else ''}", flush=True)
    save()
    print("finished", flush=True)


if __name__ == "__main__":
    main()
