"""OpenVINO GenAI: its continuous-batching pipeline, stepped by hand, prefix cache on so that a batch shares the prompt it decodes behind."""

import subprocess
import sys
from pathlib import Path

import numpy

import protocol


class OpenVino:
    """16-bit weights as fp16 (which of bf16 and f32 they are computed in, the plugin chooses by the machine), or int8 as nncf makes it."""

    @staticmethod
    def convert(checkpoint: Path, weights: str, out: Path) -> None:
        command = [Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", checkpoint,
                   "--task", "text-generation-with-past", "--weight-format", {"bf16": "fp16", "int8": "int8"}[weights], out]
        subprocess.run(command, check=True)

    def __init__(self, options):
        import openvino
        import openvino_genai
        self.openvino, self.genai, self.weights = openvino, openvino_genai, options.weights
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = max(512, options.max_tokens)
        scheduler.max_num_seqs = options.max_batch
        scheduler.cache_size = 4
        scheduler.enable_prefix_caching = True
        self.properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": options.threads}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", self.properties)
        self.num_requests = 0

    def facts(self) -> dict:
        core = self.openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        computed = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        return {"version": f"openvino-genai {self.genai.__version__}",
                "weights": f"{ {'bf16': 'fp16', 'int8': 'int8'}[self.weights]}, computed in {computed}",
                "kv": core.get_property("CPU", "KV_CACHE_PRECISION").get_type_name(),
                "settings": f"{self.properties}, CPU has {' '.join(capabilities)}"}

    def add(self, prompt: list[int], num_tokens: int):
        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = num_tokens, True, False
        self.num_requests += 1
        return self.pipeline.add_request(self.num_requests, self.openvino.Tensor(numpy.array([prompt], numpy.int64)), config)

    def prefill(self, prompt: list[int]) -> int:
        handle = self.add(prompt, 1)
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        token = handle.read_all()[0].generated_ids[0]
        # One token behind the prompt: when that fills its last block, all of it is found in the prefix cache.
        self.behind = [*prompt, token]
        return token

    def decode(self, batch, num_steps, step_done) -> None:
        # Requests start one after the other; tokens beyond the counted ones keep the first alive until the last has started.
        handles = [self.add(self.behind, num_steps + batch + 2) for _ in range(batch)]
        counting = False
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            if counting and step_done():
                break
            counting = counting or all(handle.can_read() for handle in handles)
        for handle in handles:
            handle.cancel()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()


if __name__ == "__main__":
    protocol.main(OpenVino)
