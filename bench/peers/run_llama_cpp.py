"""llama.cpp through llama-cpp-python, built for this machine: its C interface, called as llama-bench and batched-bench call it."""

import importlib.metadata
import json
from pathlib import Path

import numpy

import protocol

# Rows of one step.
STEP_TOKENS = 512


class LlamaCpp:
    """BF16 or Q8_0 as GGUF; one stream of the cache for each sequence."""

    @staticmethod
    def convert(checkpoint: Path, weights: str, out: Path) -> None:
        out.mkdir()
        write_gguf(checkpoint, weights, out / "model.gguf")

    def __init__(self, options):
        global llama_cpp
        import llama_cpp
        llama_cpp.llama_backend_init()
        self.weights = options.weights
        model_params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(options.model / "model.gguf").encode(), model_params)
        if not self.model:
            raise RuntimeError("llama.cpp could not load the model")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        # Streams are padded to a multiple of 256 cells.
        stream_tokens = -(-options.max_tokens // 256) * 256
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = stream_tokens * options.max_batch, options.max_batch, False
        params.n_batch = params.n_ubatch = STEP_TOKENS
        params.n_threads = params.n_threads_batch = options.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(STEP_TOKENS, 0, 1)

    def facts(self) -> dict:
        system = llama_cpp.llama_print_system_info().decode().strip()
        return {"version": f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}",
                "weights": {"bf16": "BF16", "int8": "Q8_0"}[self.weights], "kv": "f16", "settings": f"ubatch {STEP_TOKENS}, {system}"}

    def forward(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Computes rows of (token, position, sequence, wants logits); the greedy token of each row that wants logits."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wants) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wants
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        if status := llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        wanted = [index for index, row in enumerate(rows) if row[3]]
        return [int(numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, index), (self.vocab_size,)).argmax())
                for index in wanted]

    def prefill(self, prompt: list[int]) -> int:
        llama_cpp.llama_memory_clear(self.memory, True)
        for begin in range(0, len(prompt), STEP_TOKENS):
            part = prompt[begin:begin + STEP_TOKENS]
            tokens = self.forward([(token, begin + index, 0, begin + index + 1 == len(prompt)) for index, token in enumerate(part)])
        self.num_prompt_tokens, self.token = len(prompt), tokens[0]
        return self.token

    def decode(self, batch, num_steps, step_done) -> None:
        # What an earlier case generated goes; the copies are made when the first step begins.
        llama_cpp.llama_memory_seq_rm(self.memory, 0, self.num_prompt_tokens, -1)
        for sequence in range(1, batch):
            llama_cpp.llama_memory_seq_rm(self.memory, sequence, -1, -1)
            llama_cpp.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        tokens = [self.token] * batch
        for step in range(num_steps):
            position = self.num_prompt_tokens + step
            tokens = self.forward([(token, position, sequence, True) for sequence, token in enumerate(tokens)])
            if step_done():
                return


def write_gguf(checkpoint: Path, weights: str, path: Path) -> None:
    """A Llama or Qwen2 checkpoint as GGUF, without a vocabulary: prompts are token ids."""
    import gguf
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = {"llama": "llama", "qwen2": "qwen2"}[config["model_type"]]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("none")
    writer.add_file_type({"bf16": gguf.LlamaFileType.MOSTLY_BF16, "int8": gguf.LlamaFileType.MOSTLY_Q8_0}[weights])
    matrix_type = {"bf16": gguf.GGMLQuantizationType.BF16, "int8": gguf.GGMLQuantizationType.Q8_0}[weights]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if architecture == "llama" else gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for name, values in tensors(checkpoint):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        # llama.cpp turns neighbouring pairs where the checkpoint's rope turns halves, so the rows of each head are reordered.
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            num = heads if name.endswith("q_proj.weight") else kv_heads
            values = values.reshape(num, 2, values.shape[0] // num // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if values.ndim == 1:
            writer.add_tensor(gguf_name, values)
        else:
            writer.add_tensor(gguf_name, gguf.quants.quantize(values, matrix_type), raw_dtype=matrix_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(checkpoint: Path):
    """Names and float32 values of the bfloat16 tensors of a checkpoint."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        data = numpy.memmap(path, numpy.uint8, "r")
        begin = 8 + int(data[:8].view("<u8")[0])
        for name, entry in json.loads(data[8:begin].tobytes()).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{name} is {entry['dtype']}, expected BF16")
            first, last = entry["data_offsets"]
            bits = data[begin + first:begin + last].view("<u2").astype(numpy.uint32) << 16
            yield name, bits.view(numpy.float32).reshape(entry["shape"])


if __name__ == "__main__":
    protocol.main(LlamaCpp)
