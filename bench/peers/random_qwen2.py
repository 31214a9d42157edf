#!/usr/bin/env python3
"""Writes a checkpoint of the shape of Qwen2.5-0.5B with random weights: bench/random_checkpoint.py with biases and a tied head.

    python3 bench/peers/random_qwen2.py qwen2.5-0.5b OUT
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import random_checkpoint

llama_tensors = random_checkpoint.tensors


def tensors(shape: dict) -> dict[str, tuple[int, ...]]:
    """Those of a llama, without a head, with biases where the queries, keys and values are made."""
    names = {}
    for name, size in llama_tensors(shape).items():
        if name == "lm_head.weight":
            continue
        names[name] = size
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            names[name.removesuffix("weight") + "bias"] = size[:1]
    return names


random_checkpoint.tensors = tensors
random_checkpoint.SHAPES = {
    "qwen2.5-0.5b": dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=151936, hidden_size=896, num_hidden_layers=24,
                         num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864, max_position_embeddings=32768,
                         rms_norm_eps=1e-6, rope_theta=1_000_000.0, tie_word_embeddings=True),
}

if __name__ == "__main__":
    random_checkpoint.main()
