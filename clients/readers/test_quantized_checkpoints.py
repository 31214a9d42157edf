"""What `pelton quantize` writes, read by the formats' descriptions in NumPy: tensors, layouts and configurations as other programs expect."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

DEMO = Path(__file__).parents[2] / "models" / "demo"
TEXT = DEMO / "heldout.txt"


def quantize(out: Path, *arguments: str) -> None:
    subprocess.run([os.environ["PELTON_BINARY"], "quantize", DEMO, out, "--quiet", *arguments], check=True)


def perplexity(model: Path, folder: Path) -> float:
    """On text that calibration did not see: tests calibrate with the beginning of the file."""
    tail, run = folder / "tail.txt", folder / "run.json"
    tail.write_text(TEXT.read_text()[-12_000:])
    command = [os.environ["PELTON_BINARY"], "eval", "perplexity", "--model-id", model, "--text", tail, "--context", "256", "--quiet", "-o", run]
    subprocess.run(command, check=True)
    return json.loads(run.read_text())["perplexity"]


def originals() -> dict[str, np.ndarray]:
    """The demo model's tensors in float32; NumPy has no bfloat16 of its own."""
    tensors = {}
    with safe_open(DEMO / "model.safetensors", "np") as file:
        header = json.loads((data := (DEMO / "model.safetensors").read_bytes())[8 : 8 + int.from_bytes(data[:8], "little")])
        begin = 8 + int.from_bytes(data[:8], "little")
        for name in file.keys():
            entry = header[name]
            assert entry["dtype"] == "BF16"
            first, end = entry["data_offsets"]
            halves = np.frombuffer(data[begin + first : begin + end], np.uint16)
            tensors[name] = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return tensors


ORIGINALS = originals()
LINEARS = [name.removesuffix(".weight") for name in ORIGINALS if "_proj" in name]
assert len(LINEARS) == 7 * json.loads((DEMO / "config.json").read_text())["num_hidden_layers"]


def nibbles(words: np.ndarray, bits: int) -> np.ndarray:
    """[..., n] words to [..., n, 32 / bits] numbers, lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return words.view(np.uint32)[..., None] >> shifts & ((1 << bits) - 1)


def read_gptq(tensors: dict, module: str, config: dict) -> np.ndarray:
    bits = config["bits"]
    qweight, qzeros, scales = (tensors[f"{module}.{name}"] for name in ("qweight", "qzeros", "scales"))
    codes = nibbles(qweight.T, bits).reshape(qweight.shape[1], -1).T.astype(np.int64)  # [in, out]
    zeros = nibbles(qzeros, bits).reshape(qzeros.shape[0], -1).astype(np.int64) + 1 & ((1 << bits) - 1)  # [groups, out]
    groups = tensors[f"{module}.g_idx"]
    return ((codes - zeros[groups]) * scales.astype(np.float32)[groups]).T


def read_awq(tensors: dict, module: str, config: dict) -> np.ndarray:
    assert config["version"] == "gemm" and config["zero_point"]
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # where a word holds its columns
    columns = lambda words: nibbles(words, 4)[..., order].reshape(words.shape[0], -1).astype(np.int64)
    codes, zeros = columns(tensors[f"{module}.qweight"]), columns(tensors[f"{module}.qzeros"])
    scales = tensors[f"{module}.scales"].astype(np.float32)
    groups = np.arange(codes.shape[0]) // config["group_size"]
    return ((codes - zeros[groups]) * scales[groups]).T


def read_int8(tensors: dict, module: str, config: dict) -> np.ndarray:
    assert config["format"] == "int-quantized"
    return tensors[f"{module}.weight"].astype(np.float32) * tensors[f"{module}.weight_scale"]


def read_int4(tensors: dict, module: str, config: dict) -> np.ndarray:
    assert config["format"] == "pack-quantized"
    rows, columns = tensors[f"{module}.weight_shape"]
    codes = nibbles(tensors[f"{module}.weight_packed"], 4).reshape(rows, -1)[:, :columns].astype(np.int64) - 8
    scales = tensors[f"{module}.weight_scale"].astype(np.float32)
    return codes * np.repeat(scales, columns // scales.shape[1], axis=1)


CASES = {
    "gptq4": (read_gptq, ["--format", "gptq", "--group-size", "64"], 0.3),
    "gptq4_act_order": (read_gptq, ["--format", "gptq", "--group-size", "32", "--act-order"], 0.3),
    "gptq8_rows": (read_gptq, ["--format", "gptq", "--bits", "8", "--group-size", "-1"], 0.02),
    "awq": (read_awq, ["--format", "awq", "--group-size", "64"], None),
    "int8": (read_int8, ["--format", "int8"], 0.01),
    "int4": (read_int4, ["--format", "int4", "--group-size", "32"], 0.12),
}


@pytest.mark.parametrize("case", CASES)
def test_the_written_numbers_are_near_the_original_ones(case, tmp_path):
    read, arguments, bound = CASES[case]
    calibrates = case.startswith(("gptq", "awq"))
    if calibrates:
        arguments = [*arguments, "--calibration", TEXT, "--calibration-tokens", "1024", "--calibration-context", "256"]
    out = tmp_path / "quantized"
    quantize(out, *arguments)
    tensors = load_file_without_bfloat16(out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    # AWQ moves factors from weights into norms: what a norm and the linears behind it do together must be near.
    for module in LINEARS:
        original, written = ORIGINALS[f"{module}.weight"], read(tensors, module, config)
        assert written.shape == original.shape
        if bound is not None:
            error = np.sqrt(np.mean((written - original) ** 2) / np.mean(original**2))
            assert 0 < error < bound, f"{module}: {error}"
    if case == "awq":
        for layer in range(len(LINEARS) // 7):
            norm = f"model.layers.{layer}.input_layernorm.weight"
            q = f"model.layers.{layer}.self_attn.q_proj"
            original, written = ORIGINALS[norm] * ORIGINALS[f"{q}.weight"], tensors[norm] * read(tensors, q, config)
            assert np.sqrt(np.mean((written - original) ** 2) / np.mean(original**2)) < 0.2
    # And pelton reads what it wrote.
    assert perplexity(out, tmp_path) < 1.06 * perplexity(DEMO, tmp_path)


def load_file_without_bfloat16(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64, "I8": np.int8, "U8": np.uint8}
    return {
        name: np.frombuffer(data[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]], kinds[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] in kinds
    }


def test_everything_else_stays(tmp_path):
    out = tmp_path / "quantized"
    quantize(out, "--format", "int8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (DEMO / name).read_bytes()
    with safe_open(out / "model.safetensors", "np") as new:
        assert "model.embed_tokens.weight" in new.keys() and not any(f"{module}.qweight" in new.keys() for module in LINEARS)
    again = subprocess.run([os.environ["PELTON_BINARY"], "quantize", DEMO, out, "--format", "int8"], capture_output=True, text=True)
    assert again.returncode == 1 and "the folder is not empty" in again.stderr
