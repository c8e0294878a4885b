"""Conversion of checkpoints: bytes against a few lines of numpy, interruptions, damaged and missing input."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from seekernel.cli.main import cli
from seekernel.model.errors import WeightError
from seekernel.quantize import (
    QuantizeError,
    formats,
    plan_dequantize,
    plan_fp8,
    plan_nvfp4,
    plan_w4afp8,
    read_act_scales,
    shard_writer,
    verify,
)
from seekernel.quantize.act_scales import wanted_names
from seekernel.quantize.source import SourceCheckpoint
from tests.checkpoint_files import edit_json, write_checkpoint

SIZES = {
    "hidden_size": 256,
    "moe_intermediate_size": 128,
    "intermediate_size": 128,
    "num_nextn_predict_layers": 1,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers and an MTP module, FP8, four experts; with activation scales beside it."""
    folder = write_checkpoint(tmp_path_factory.mktemp("v3"), **SIZES)
    write_scales(folder)
    return folder


def write_scales(folder: Path, drop: str = "") -> Path:
    names = wanted_names(SourceCheckpoint(folder))
    scales = {n: torch.tensor([0.01 + i / 1000]) for i, n in enumerate(names) if n != drop}
    target = folder.parent / f"act_scales-{folder.name}{'-less' if drop else ''}.st"
    save_file(scales, target)
    return target


def scales_path(checkpoint: Path) -> Path:
    return checkpoint.parent / f"act_scales-{checkpoint.name}.st"


def dequantized(tensors: dict[str, Tensor], name: str) -> np.ndarray:
    scale = tensors[name + "_scale_inv"].numpy()
    w = tensors[name].float().numpy()
    rows, columns = (np.arange(size) // 128 for size in w.shape)
    return np.asarray(w * scale[rows][:, columns])


def numpy_int4(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    groups = w.astype(np.float32).reshape(len(w), -1, 128)
    absmax = np.abs(groups).max(-1)
    scale = np.where(absmax > 0, absmax / np.float32(7), np.float32(1)).astype(np.float32)
    q = np.clip(np.rint(groups / scale[..., None]), -8, 7).astype(np.int8).reshape(w.shape)
    return (q[:, 0::2] & 15) | (q[:, 1::2] << 4), scale


def test_int4_is_the_formula() -> None:
    w = torch.randn(6, 384, generator=torch.Generator().manual_seed(0))
    w[1, 128:256] = 0
    packed, scale = formats.quantize_int4_g128(w)
    want, want_scale = numpy_int4(w.numpy())
    assert np.array_equal(packed.numpy(), want)
    assert np.array_equal(scale.numpy(), want_scale)


def test_all_fifteen_int4_values_survive() -> None:
    values = torch.arange(-7, 8).repeat(9)[:128].float()
    w = torch.stack([values * 0.5, values * 3e-5])
    packed, scale = formats.quantize_int4_g128(w)
    torch.testing.assert_close(formats.dequantize_int4_g128(packed, scale), w, rtol=1e-6, atol=0)


def test_all_e2m1_codes_survive_and_ties_go_to_even() -> None:
    values = torch.tensor([*formats.E2M1_VALUES, *(-v for v in formats.E2M1_VALUES)])
    w = torch.stack([values * 448, values])
    packed, scale, global_scale = formats.quantize_nvfp4(w)
    assert torch.equal(formats.dequantize_nvfp4(packed, scale, global_scale), w)
    ties = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0] * 2])
    got = formats.dequantize_nvfp4(*formats.quantize_nvfp4(ties))
    assert got[0, :8].tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]


def test_nvfp4_of_zeros_and_of_tiny_groups() -> None:
    assert not formats.dequantize_nvfp4(*formats.quantize_nvfp4(torch.zeros(2, 32))).any()
    w = torch.cat([torch.full((1, 16), 1e6), torch.full((1, 16), 1e-6)], dim=1)
    got = formats.dequantize_nvfp4(*formats.quantize_nvfp4(w))
    assert torch.isfinite(got).all()
    assert abs(got[0, 0] / 1e6 - 1) < 1e-6


@pytest.mark.parametrize("quantize", [formats.quantize_int4_g128, formats.quantize_nvfp4])
def test_formats_refuse_odd_groups_and_nan(quantize: Callable[[Tensor], object]) -> None:
    with pytest.raises(WeightError, match="k a multiple of"):
        quantize(torch.ones(2, 100))
    with pytest.raises(WeightError, match="finite"):
        quantize(torch.full((2, 128), float("nan")))


def test_w4afp8_bytes(checkpoint: Path, tmp_path: Path) -> None:
    assert plan_w4afp8(checkpoint, tmp_path, scales_path(checkpoint), 1).write()
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(tmp_path / "model-00000-of-00001.safetensors")
    experts = [n for n in before if ".mlp.experts." in n and n.endswith(".weight")]
    assert any(".layers.2." in name for name in experts), "the MTP layer has experts"
    for name in experts:
        wide = torch.from_numpy(dequantized(before, name)).to(torch.bfloat16).float().numpy()
        packed, scale = numpy_int4(wide)
        assert np.array_equal(after[name].numpy(), packed), name
        assert np.array_equal(after[name + "_scale_inv"].numpy(), scale), name
    kept = [n for n in before if ".mlp.experts." not in n]
    assert all(torch.equal(before[n].view(torch.uint8), after[n].view(torch.uint8)) for n in kept)
    assert set(after) == set(before)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    scales = load_file(tmp_path / "act_scales.safetensors")
    assert set(index) == set(after) | set(scales)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    layers = json.loads((tmp_path / "quant_cfg.json").read_text())["quantized_layers"]
    assert layers["model.layers.1.mlp.experts"] == {"quant_algo": "W4A8_AWQ"}
    assert layers["model.layers.0.mlp.down_proj"] == {"quant_algo": "FP8_BLOCK_SCALES"}


def test_parts_written_one_by_one_are_the_whole(checkpoint: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    plan_w4afp8(checkpoint, one, scales_path(checkpoint), 1).write()
    for rank in (2, 0, 1):
        assert not (many / "model.safetensors.index.json").exists(), "loadable too early"
        result = CliRunner().invoke(
            cli,
            ["quantize", "w4afp8", "--model_dir", str(checkpoint), "--output_dir", str(many),
             "--act_scales", str(scales_path(checkpoint)), "--parts", "3", "--rank", str(rank)],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    names = json.loads((many / "model.safetensors.index.json").read_text())["weight_map"]
    whole = load_file(one / "model-00000-of-00001.safetensors")
    parts = {k: v for path in many.glob("model-*.safetensors") for k, v in load_file(path).items()}
    assert set(parts) == set(whole) <= set(names)
    assert all(torch.equal(parts[n].view(torch.uint8), whole[n].view(torch.uint8)) for n in whole)
    assert {path.name for path in many.glob("model-*")} == {
        f"model-0000{rank}-of-00003.safetensors" for rank in range(3)
    }


_KILLED = """
import os, signal, sys
from pathlib import Path
from seekernel.quantize import plan_w4afp8, shard_writer
shard_writer.JOURNAL_BYTES = 1
source, target, scales, after = sys.argv[1:]
left = int(after)
def count(num_bytes):
    global left
    left -= num_bytes > 0
    if left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
plan_w4afp8(Path(source), Path(target), Path(scales), 1).write(progress=count)
"""


@pytest.mark.parametrize("after", [1, 7, 40])
def test_killed_and_resumed_gives_the_same_bytes(
    after: int, checkpoint: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    plan_w4afp8(checkpoint, whole, scales_path(checkpoint), 1).write()
    command = [sys.executable, "-c", _KILLED, checkpoint, killed, scales_path(checkpoint), after]
    done = subprocess.run([str(word) for word in command], timeout=120)
    assert done.returncode == -signal.SIGKILL
    name = "model-00000-of-00001.safetensors"
    assert not (killed / name).exists(), "half-written under its final name"
    partial = (killed / (name + ".partial")).stat().st_size
    seen: list[int] = []
    conversion = plan_w4afp8(checkpoint, killed, scales_path(checkpoint), 1)
    assert conversion.write(progress=seen.append)
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sum(seen) == conversion.num_bytes
    if after > 1:
        assert partial > 8
        assert seen[0] > 0, "nothing was resumed"
    assert not list(killed.glob("*.partial")) + list(killed.glob("*.journal"))


def test_a_damaged_partial_file_starts_anew(checkpoint: Path, tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    plan_w4afp8(checkpoint, whole, scales_path(checkpoint), 1).write()
    name = "model-00000-of-00001.safetensors"
    other.mkdir()
    (other / (name + ".partial")).write_bytes(b"\0" * 5000)
    (other / (name + ".journal")).write_text(
        '{"fingerprint": "x", "num_tensors": 3, "num_bytes": 9}'
    )
    plan_w4afp8(checkpoint, other, scales_path(checkpoint), 1).write()
    assert (other / name).read_bytes() == (whole / name).read_bytes()


def test_other_input_is_not_taken_for_the_same(checkpoint: Path, tmp_path: Path) -> None:
    plan_w4afp8(checkpoint, tmp_path, scales_path(checkpoint), 1).write()
    written = (tmp_path / "model-00000-of-00001.safetensors").stat().st_mtime_ns
    assert plan_w4afp8(checkpoint, tmp_path, scales_path(checkpoint), 1).write()
    assert (tmp_path / "model-00000-of-00001.safetensors").stat().st_mtime_ns == written
    changed = tmp_path / "scales.st"
    scales = {n: t * 2 for n, t in load_file(scales_path(checkpoint)).items()}
    save_file(scales, changed)
    with pytest.raises(QuantizeError, match="other inputs or options; remove it"):
        plan_w4afp8(checkpoint, tmp_path, changed, 1).write()


def test_a_full_disk_is_said_and_resumed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "JOURNAL_BYTES", 1)
    conversion = plan_w4afp8(checkpoint, tmp_path, scales_path(checkpoint), 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(QuantizeError, match="make room and run the same command"):
            conversion.write(only=["model-00000-of-00001.safetensors"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert conversion.write()

    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(QuantizeError, match=r"expected \d+ bytes free on its disk, got 0"):
        plan_w4afp8(checkpoint, tmp_path / "b", scales_path(checkpoint), 1).write()


def test_bad_input_is_named(checkpoint: Path, tmp_path: Path) -> None:
    scales = scales_path(checkpoint)
    for parts in (0, 4):
        with pytest.raises(QuantizeError, match="parts: expected 1 to 3"):
            plan_w4afp8(checkpoint, tmp_path, scales, parts)
    lost = "model.layers.1.mlp.experts.2.w3.input_scale"
    with pytest.raises(QuantizeError, match=f"no {lost}; `seekernel calibrate` makes them"):
        plan_w4afp8(checkpoint, tmp_path, write_scales(checkpoint, drop=lost), 1)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        bad = {**load_file(scales), lost: torch.tensor([value])}
        save_file(bad, tmp_path / "bad.st")
        with pytest.raises(QuantizeError, match=rf"{lost}: expected a positive number"):
            plan_w4afp8(checkpoint, tmp_path, tmp_path / "bad.st", 1)
    result = CliRunner().invoke(
        cli,
        ["quantize", "w4afp8", "--model_dir", str(checkpoint), "--output_dir", str(tmp_path),
         "--act_scales", str(scales), "--parts", "2", "--rank", "2"],
    )  # fmt: skip
    assert "rank: expected 0 to 1 (parts is 2), got 2" in str(result.exception)
    with pytest.raises(QuantizeError, match="expected amax_dict_rank"):
        read_act_scales(tmp_path, [])
    with pytest.raises(WeightError, match="found none"):
        plan_w4afp8(tmp_path / "nowhere", tmp_path, scales, 1)


def test_a_truncated_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in checkpoint.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(
        WeightError, match=r"model\.safetensors: model\.layers.*expected data_offsets"
    ):
        plan_w4afp8(source, tmp_path / "out", scales_path(checkpoint), 1)


def test_modelopt_folders_give_the_maximum_over_ranks(tmp_path: Path) -> None:
    key = "layers.3.ffn.experts.{}.{}.input_quantizer._amax"
    torch.save({key.format(0, "w1"): torch.tensor(4.48), key.format(0, "w2"): torch.tensor(0.0)},
               tmp_path / "amax_dict_rank0-mp8.pt")  # fmt: skip
    torch.save({key.format(0, "w1"): torch.tensor(44.8), key.format(0, "w3"): torch.tensor(89.6)},
               tmp_path / "amax_dict_rank1-mp8.pt")  # fmt: skip
    names = [f"model.layers.3.mlp.experts.0.w{i}.input_scale" for i in (1, 2, 3)]
    scales = read_act_scales(tmp_path, names)
    assert [round(float(scales[name]), 6) for name in names] == [0.2, round(1 / 448, 6), 0.2]
    (tmp_path / "amax_dict_rank2-mp8.pt").write_bytes(b"not a file of torch")
    with pytest.raises(QuantizeError, match=r"rank2-mp8\.pt: not readable as tensors"):
        read_act_scales(tmp_path, names)


def test_dequantize_fp8_verify(checkpoint: Path, tmp_path: Path) -> None:
    plain, again, four = tmp_path / "plain", tmp_path / "fp8", tmp_path / "nvfp4"
    assert plan_dequantize(checkpoint, plain, max_shard_bytes=300_000).write(jobs=2)
    assert len(list(plain.glob("*.safetensors"))) > 3
    assert plan_fp8(plain, again).write()
    assert plan_nvfp4(plain, four).write()
    for a, b, limit in ((checkpoint, checkpoint, 0.0), (checkpoint, plain, 2**-8),
                        (plain, again, 2**-4), (plain, four, 0.12)):  # fmt: skip
        rows = list(verify(a, b))
        assert len(rows) == len(list(verify(checkpoint, checkpoint)))
        assert max(row.relative for row in rows) <= limit
    assert max(row.relative for row in verify(plain, four)) > 0.01, "nothing was quantised"
    changed = {row.name for row in verify(plain, four) if row.relative > 0}
    assert all(".mlp.experts." in name for name in changed)
    config = json.loads((again / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]


def test_verify_names_what_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(QuantizeError, match=r"model\.norm\.weight: missing from"):
        list(verify(checkpoint, tmp_path))


def test_verify_and_fp8_by_command(checkpoint: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    plain = tmp_path / "plain"
    commands = [
        ["dequantize", "--model_dir", str(checkpoint), "--output_dir", str(plain)],
        ["quantize", "fp8", "--model_dir", str(plain), "--output_dir", str(tmp_path / "fp8")],
        ["verify", str(checkpoint), str(tmp_path / "fp8"), "--plot", str(tmp_path / "a.png")],
    ]
    for command in commands:
        result = runner.invoke(cli, command)
        assert result.exit_code == 0, (result.output, result.exception)
    assert "F8_E4M3 -> F8_E4M3" in result.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_memory_stays_flat_at_true_sizes(tmp_path: Path) -> None:
    """An embedding of 1.85 GB and experts of V3's size, converted in less than 2 GB."""
    source = tmp_path / "v3"
    source.mkdir()
    layer = "model.layers.0.mlp.experts"
    tensors = {"model.embed_tokens.weight": torch.zeros(129280, 7168, dtype=torch.bfloat16)}
    for expert in range(4):
        for name, shape in (("gate", (2048, 7168)), ("up", (2048, 7168)), ("down", (7168, 2048))):
            tensors[f"{layer}.{expert}.{name}_proj.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, source / "model.safetensors")
    edit_json(source / "config.json", num_hidden_layers=1)
    child = (
        "import resource, sys; from pathlib import Path; from seekernel.quantize import plan_w4afp8;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "plan_w4afp8(*map(Path, sys.argv[1:]), 1).write();"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [
        sys.executable,
        "-c",
        child,
        str(source),
        str(tmp_path / "out"),
        str(write_scales(source)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    assert int(done.stdout) < 2000, f"{done.stdout.strip()} MiB"
