"""CTranslate2: its generator, timed by the callback that it makes for each token."""

import json
from pathlib import Path

import protocol


class CTranslate2:
    """int8 as int8; what it computes bf16 weights in is for it to say (float32 on CPUs without bf16 units)."""

    @staticmethod
    def convert(checkpoint: Path, weights: str, out: Path) -> None:
        import ctranslate2
        converter = ctranslate2.converters.TransformersConverter(str(checkpoint), low_cpu_mem_usage=True)
        converter.convert(str(out), quantization={"bf16": "bfloat16", "int8": "int8"}[weights])

    def __init__(self, options):
        global ctranslate2
        import ctranslate2
        self.generator = ctranslate2.Generator(str(options.model), device="cpu", compute_type="default", inter_threads=1,
                                               intra_threads=options.threads)
        self.text = json.loads((options.model / "vocabulary.json").read_text())

    def facts(self) -> dict:
        return {"version": f"ctranslate2 {ctranslate2.__version__}", "weights": self.generator.compute_type, "kv": "float32",
                "settings": f"supports {', '.join(sorted(ctranslate2.get_supported_compute_types('cpu')))}"}

    def generate(self, batch: int, num_tokens: int, callback=None) -> list:
        """`batch` sequences behind the prompt. All of it but its last token is a static prompt: computed once, kept for the next call."""
        return self.generator.generate_batch([self.prompt[-1:]] * batch, static_prompt=self.prompt[:-1], cache_static_prompt=True,
                                             max_length=num_tokens, min_length=num_tokens, beam_size=1, sampling_topk=1,
                                             include_prompt_in_result=False, callback=callback)

    def prefill(self, prompt: list[int]) -> int:
        self.prompt = [self.text[token] for token in prompt]
        return self.generate(1, 1)[0].sequences_ids[0][0]

    def decode(self, batch, num_steps, step_done) -> None:
        seen, done = -1, False

        def callback(result) -> bool:
            # Called once for each sequence; the first call of a step says that the step was computed.
            nonlocal seen, done
            if result.step > seen:
                seen = result.step
                done = step_done()
            return done

        self.generate(batch, num_steps, callback)


if __name__ == "__main__":
    protocol.main(CTranslate2)
