"""Mistakes on the command line: exit status 2, one line naming what, expected, got; no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from seekernel.cli.main import run
from tests.checkpoint_files import edit_json, write_checkpoint

PROMPT = ("--prompt", "It was", "--max_tokens", "2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must be refused, and return its line."""
    capsys.readouterr()
    status = run(list(args))
    captured = capsys.readouterr()
    assert status == 2, captured.err
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "Traceback" not in line
    return line.removeprefix("seekernel: error: ")


def change_weight(folder: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    state = load_file(folder / "model.safetensors")
    state[name] = change(state[name])
    save_file(state, folder / "model.safetensors")


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def cut(folder: Path, name: str, size: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


NORM = "model.layers.1.input_layernorm.weight"
V32 = {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"}
DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("no_config", lambda d: (d / "config.json").unlink(), "config.json: expected a config.json, found none"),
    ("config_no_json", lambda d: write(d, "config.json", "{"), "config.json: not readable as JSON"),
    ("config_list", lambda d: write(d, "config.json", "[]"), "config.json: expected a JSON object, got list"),
    ("architecture", lambda d: edit_json(d / "config.json", architectures=["LlamaForCausalLM"]),
     "architectures: expected one of ['DeepseekV3ForCausalLM'], got 'LlamaForCausalLM'"),
    ("v32", lambda d: edit_json(d / "config.json", **V32), "got 'DeepseekV32ForCausalLM'"),
    ("hidden_size", lambda d: edit_json(d / "config.json", hidden_size=-4),
     "config.json: hidden_size: expected an integer from 1 to"),
    ("other_size", lambda d: edit_json(d / "config.json", hidden_size=72), "expected shape ["),
    ("truncated", lambda d: cut(d, "model.safetensors", 90_000), "expected data_offsets of"),
    ("truncated_header", lambda d: cut(d, "model.safetensors", 99), "model.safetensors: truncated"),
    ("empty_weights", lambda d: cut(d, "model.safetensors", 0), "model.safetensors"),
    ("no_weights", lambda d: (d / "model.safetensors").unlink(),
     "expected model.safetensors or model.safetensors.index.json, found neither"),
    ("dtype", lambda d: change_weight(d, NORM, lambda w: w.double()),
     f"{NORM}: expected dtype F8_E4M3, BF16 or F32, got F64"),
    ("shape", lambda d: change_weight(d, NORM, lambda w: w[:9].clone()), f"{NORM}: expected shape [64], got [9]"),
    ("no_tokenizer", lambda d: (d / "tokenizer.json").unlink(),
     "tokenizer.json: expected a tokenizer.json, found none"),
    ("tokenizer", lambda d: cut(d, "tokenizer.json", 500), "tokenizer.json: not a usable tokenizer"),
    ("vocab_size", lambda d: edit_json(d / "config.json", vocab_size=200),
     "expected token ids below the model's vocab_size 200, got"),
    ("template", lambda d: edit_json(d / "tokenizer_config.json", chat_template="{{ a.b.c }}"),
     "chat template: UndefinedError"),
    ("endless_template", lambda d: edit_json(d / "tokenizer_config.json", chat_template=(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")),
     "chat template: not done after 2 s"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "message"), [row[1:] for row in DAMAGE], ids=[r[0] for r in DAMAGE]
)
def test_damaged_checkpoint(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    damage(folder)
    assert message in refusal(capsys, "generate", "--model_dir", str(folder), "--chat", *PROMPT)


OPTIONS: list[tuple[list[str], str]] = [
    (["--max_tokens", "0"], "max_tokens: expected an integer from 1 to 2147483647, got 0"),
    (["--max_tokens", "-3"], "max_tokens: expected an integer from 1 to 2147483647, got -3"),
    (["--max_tokens", "3.5"], "Invalid value for '--max_tokens': '3.5' is not a valid integer"),
    (["--temperature", "nan"], "temperature: expected a number from 0 to 100, got nan"),
    (["--temperature", "-1"], "temperature: expected a number from 0 to 100, got -1.0"),
    (["--temperature", "hot"], "Invalid value for '--temperature': 'hot' is not a valid float"),
    (["--top_p", "0"], "top_p: expected a number above 0, at most 1, got 0.0"),
    (["--top_k", "-1"], "top_k: expected an integer from 0"),
    (["--min_p", "2"], "min_p: expected a number from 0 to 1, got 2.0"),
    (["--n", "129"], "n: expected an integer from 1 to 128, got 129"),
    (["--seed", "99999999999999999999999"], "seed: expected an integer from"),
    (["--stop", ""], "stop: expected strings of 1 to 1024 characters, got ''"),
    (["--repetition_penalty", "inf"], "repetition_penalty: expected a number from 0 to 100, got inf"),
    (["--prompt", ""], "prompt: expected some text, got an empty string"),
    (["--prompt", "dog " * 5000], "prompt 1: expected at most 4095 tokens"),
    (["--max_seq_len", "2"], "prompt 0: expected at most 1 tokens"),
    (["--max_seq_len", "5000"], "max_seq_len: expected at most the model's 4096, got 5000"),
    (["--kv_cache_dtype", "int3"], "kv_cache_dtype: expected one of auto, bfloat16, float32, fp8, fp8_per_tensor, got 'int3'"),
    (["--load_format", "pickle"], "load_format: expected one of auto, dummy, got 'pickle'"),
    (["--dtype", "float8"], "dtype: expected one of auto, bfloat16, float32, got 'float8'"),
    (["--tp_size", "2"], "No such option '--tp_size'"),
    (["--max_token", "2"], "No such option '--max_token'"),
    (["stray"], "Got unexpected extra argument"),
    (["--prompt"], "Option '--prompt' requires an argument"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"), OPTIONS, ids=[" ".join(row[0])[:40] for row in OPTIONS]
)
def test_bad_options(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert message in refusal(capsys, "generate", "--model_dir", str(checkpoint), *PROMPT, *args)


@pytest.mark.parametrize("command", ["generate", "info"])
def test_directory_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for path in ("/nowhere/at all", str(tmp_path / "a\nb"), str(tmp_path / "file"), "\x00"):
        (tmp_path / "file").write_text("x")
        line = refusal(capsys, command, "--model_dir", path)
        assert line.startswith("model_dir: expected a directory with a config.json, got '")
    line = refusal(capsys, command, "--model_dir", str(tmp_path))
    assert line.endswith("config.json: expected a config.json, found none")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--debug", "info"], ["info", "--debug"]):
        assert run([*args, "--model_dir", "/nowhere"]) == 2
        text = capsys.readouterr().err
        assert "Traceback" in text
        assert text.splitlines()[-1].startswith("seekernel: error: model_dir: expected a directory")


def test_special_files_do_not_hang(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        "tokenizer_config.json",
        "generation_config.json",
        "tokenizer.json",
        "config.json",
    ):
        kept = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        line = refusal(capsys, "generate", "--model_dir", str(folder), *PROMPT)
        assert f"{name}: expected a" in line
        (folder / name).unlink()
        if kept is not None:
            (folder / name).write_bytes(kept)


@pytest.mark.parametrize("name", ["SEEKERNEL_CPU_ISA", "SEEKERNEL_JIT_CACHE_MAX_MB"])
def test_bad_environment_is_named(checkpoint: Path, name: str) -> None:
    args = ["generate", "--model_dir", str(checkpoint)] if name.endswith("ISA") else ["jit", "ls"]
    result = subprocess.run(
        [sys.executable, "-m", "seekernel", *args],
        env={**os.environ, name: "foo"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(rf"seekernel: error: {name}: expected .*, got 'foo'\n", result.stderr)


def test_process_exit_status(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=0)
    command = [sys.executable, "-m", "seekernel", "generate", "--model_dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(
        r"seekernel: error: .*config\.json: vocab_size: expected an integer from 1 to \d+, got 0\n",
        result.stderr,
    )


def test_the_undamaged_checkpoint_works(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "--model_dir", str(checkpoint), "--chat", "--json", *PROMPT]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"][0]["token_ids"]
