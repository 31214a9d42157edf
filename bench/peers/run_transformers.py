"""Hugging Face transformers on PyTorch: the loop of `generate` by hand, since `generate` cannot be timed step by step."""

import copy
from pathlib import Path

import torch
import transformers

import protocol


class Transformers:
    """Reads the checkpoint as it is."""

    @staticmethod
    def convert(checkpoint: Path, weights: str, out: Path) -> None:
        if weights != "bf16":
            raise SystemExit("transformers has no int8 linears for CPUs of its own")
        out.symlink_to(checkpoint.resolve())

    def __init__(self, options):
        torch.set_num_threads(options.threads)
        torch.set_grad_enabled(False)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    def facts(self) -> dict:
        return {"version": f"transformers {transformers.__version__}, torch {torch.__version__}", "weights": "bf16", "kv": "bf16",
                "settings": "sdpa, DynamicCache, eager"}

    def forward(self, ids: torch.Tensor, cache) -> torch.Tensor:
        """The next token of each row, `[batch, 1]`; logits only for the last position."""
        return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)

    def prefill(self, prompt: list[int]) -> int:
        self.cache = transformers.DynamicCache(config=self.model.config)
        self.token = self.forward(torch.tensor([prompt]), self.cache)
        return self.token.item()

    def decode(self, batch, num_steps, step_done) -> None:
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(batch)
        tokens = self.token.expand(batch, 1)
        for _ in range(num_steps):
            tokens = self.forward(tokens, cache)
            if step_done():
                return


if __name__ == "__main__":
    protocol.main(Transformers)
