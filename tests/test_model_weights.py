"""Checkpoints: what is missing, surplus, mis-shaped or damaged is named; memory stays bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seekernel.model import DeepseekV3ForCausalLM, WeightError
from seekernel.model.safetensors_file import SafetensorsFile
from tests.model_testing import BASE, SHAPES, Runner, make_checkpoint, random_prompt

pytest.importorskip("transformers", reason="the oracle is not installed")
FP8_SHAPE = next(shape for shape in SHAPES if shape.fp8)
EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp8")
    make_checkpoint(FP8_SHAPE, folder)
    return folder


def changed(checkpoint: Path, folder: Path, tensors: dict[str, Tensor | None]) -> Path:
    """Copy the checkpoint with some tensors replaced, added, or (None) left out."""
    state: dict[str, Tensor | None] = {**load_file(checkpoint / "model.safetensors"), **tensors}
    save_file({k: v for k, v in state.items() if v is not None}, folder / "model.safetensors")
    (folder / "config.json").write_text((checkpoint / "config.json").read_text())
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(WeightError) as caught:
        DeepseekV3ForCausalLM.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing(checkpoint: Path, tmp_path: Path) -> None:
    assert f"{EXPERT}: missing from" in refusal(changed(checkpoint, tmp_path, {EXPERT: None}))


def test_missing_scale(checkpoint: Path, tmp_path: Path) -> None:
    folder = changed(checkpoint, tmp_path, {EXPERT + "_scale_inv": None})
    assert f"{EXPERT}_scale_inv: missing" in refusal(folder)


def test_extra(checkpoint: Path, tmp_path: Path) -> None:
    folder = changed(checkpoint, tmp_path, {"model.layers.7.foo": torch.zeros(1)})
    assert "model.layers.7.foo: not part of the model" in refusal(folder)


def test_wrong_shape(checkpoint: Path, tmp_path: Path) -> None:
    folder = changed(checkpoint, tmp_path, {"model.norm.weight": torch.ones(5)})
    assert "model.norm.weight: expected shape [384], got [5]" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float16])
def test_wrong_dtype(checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = changed(checkpoint, tmp_path, {"model.norm.weight": torch.ones(384, dtype=dtype)})
    assert "model.norm.weight: expected dtype F8_E4M3, BF16 or F32" in refusal(folder)


def test_bf16_beside_scales(checkpoint: Path, tmp_path: Path) -> None:
    weight = load_file(checkpoint / "model.safetensors")["model.layers.0.self_attn.o_proj.weight"]
    name = "model.layers.0.self_attn.o_proj.weight"
    folder = changed(checkpoint, tmp_path, {name: weight.float().bfloat16()})
    assert f"{name}: expected dtype F8_E4M3 beside its scales" in refusal(folder)


def test_nan_scale_and_nan_code(checkpoint: Path, tmp_path: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    scale = state[EXPERT + "_scale_inv"].clone()
    scale[0, 0] = float("nan")
    folder = changed(checkpoint, tmp_path, {EXPERT + "_scale_inv": scale})
    assert f"{EXPERT}_scale_inv: expected finite scales" in refusal(folder)
    codes = state[EXPERT].view(torch.uint8).clone()
    codes[1, 2] = 0xFF
    folder = changed(checkpoint, tmp_path, {EXPERT: codes.view(torch.float8_e4m3fn)})
    assert f"{EXPERT}: expected finite weights, got NaN" in refusal(folder)


def test_shards_with_index(checkpoint: Path, tmp_path: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    names = sorted(state)
    files = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: state[n] for n in names if files[n] == file}, tmp_path / file)
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    prompt = random_prompt(320, 9)
    want = Runner(DeepseekV3ForCausalLM.from_pretrained(checkpoint)).logits({0: prompt})
    got = Runner(DeepseekV3ForCausalLM.from_pretrained(tmp_path)).logits({0: prompt})
    assert torch.equal(got, want)
    index.write_text(json.dumps({"weight_map": {**files, "x": "../model.safetensors"}}))
    assert "expected file names without a folder" in refusal(tmp_path)
    index.write_text(json.dumps({"weight_map": {**files, "x": "gone.safetensors"}}))
    assert "shard gone.safetensors is missing" in refusal(tmp_path)


def test_pickle_is_named_and_not_opened(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert "pytorch_model.bin is a pickle, which is never opened" in refusal(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 200, -1])
def test_truncated(checkpoint: Path, tmp_path: Path, size: int) -> None:
    data = (checkpoint / "model.safetensors").read_bytes()
    changed(checkpoint, tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(data[:size])
    assert "model.safetensors" in refusal(tmp_path)


def test_dummy_weights_need_only_a_config(tmp_path: Path) -> None:
    config = {**BASE, "architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 1,
              "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = DeepseekV3ForCausalLM.from_pretrained(tmp_path, load_format="dummy")
    assert model.mtp is not None
    assert model.layers[1].self_attn.o_proj.weight.dtype == torch.float8_e4m3fn
    runner = Runner(model)
    logits = runner.logits({0: random_prompt(320, 30)})
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 100, "logits of random weights should be neither flat nor wild"


def test_peak_memory(tmp_path: Path) -> None:
    """Loading needs at most the weights' size and a tenth."""
    shape_config = {**BASE, "architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 256,
                    "hidden_size": 1024, "n_routed_experts": 64, "n_group": 1, "topk_group": 1,
                    "moe_intermediate_size": 512, "num_hidden_layers": 4}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape_config))
    script = f"""
import resource, torch
from pathlib import Path
from safetensors.torch import save_file
from seekernel.model import weights
from seekernel.model import DeepseekV3ForCausalLM, ModelConfig
folder = Path({str(tmp_path)!r})
class Recorder(weights.DummySource):
    def __init__(self, *args):
        super().__init__(*args)
        self.tensors = {{}}
    def read_into(self, name, destination):
        super().read_into(name, destination)
        self.tensors[name] = destination.clone()
if not (folder / "model.safetensors").exists():
    recorder = Recorder(ModelConfig.from_dir(folder), torch.device("cpu"))
    DeepseekV3ForCausalLM(recorder_config := ModelConfig.from_dir(folder), recorder)
    save_file(recorder.tensors, folder / "model.safetensors")
else:
    torch.zeros(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = DeepseekV3ForCausalLM.from_pretrained(folder)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = lambda: subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    run()
    growth = int(run()) * 1024
    weights_bytes = (tmp_path / "model.safetensors").stat().st_size
    assert weights_bytes > 300e6, "too small to measure"
    assert growth < 1.1 * weights_bytes, f"{growth / weights_bytes:.2f} times the weights"


def test_file_with_unaligned_data(tmp_path: Path) -> None:
    """A header whose length is no multiple of 4 leaves float data unaligned."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}})
    header += " " * (5 - len(header) % 4)
    values = torch.tensor([1.0, -2.5, 3.0])
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + values.numpy().tobytes())
    out = torch.empty(3)
    SafetensorsFile(path).copy_to("x", out)
    assert torch.equal(out, values)
