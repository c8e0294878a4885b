"""The command line: what it prints, how options are spelled, what it costs to ask for help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from seekernel import __version__
from seekernel.cli import main as main_module
from seekernel.cli.generate import DEFAULT_PROMPTS
from seekernel.cli.main import COMMANDS, run
from seekernel.engine.checkpoint import default_model_dir
from tests.checkpoint_files import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint")))


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "args", [["--help"], ["generate", "--help"], ["info", "-h"], ["jit", "--help"], ["--version"]]
)
def test_help_imports_no_torch(args: list[str]) -> None:
    script = (
        "import sys; from seekernel.cli.main import run; status = run(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'tokenizers', 'jinja2', 'seekernel.ops'} & sys.modules.keys(); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    result = python("-c", script, *args)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--prompt" in result.stdout if args[0] == "generate" else True


def test_package_attributes_load_on_use() -> None:
    script = (
        "import os, sys, seekernel; assert 'torch' not in sys.modules; "
        "assert os.environ['GOMP_SPINCOUNT'], 'must be set before torch is loaded'; "
        "seekernel.ops.rms_norm; assert 'torch' in sys.modules; "
        "assert 'LLM' in dir(seekernel); seekernel.nothing"
    )
    result = python("-c", script)
    assert "AttributeError: module 'seekernel' has no attribute 'nothing'" in result.stderr


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_in_the_table_exists(name: str) -> None:
    module, attribute = COMMANDS[name][0].split(":")
    command = getattr(import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert COMMANDS[name][1].endswith(".")


def test_generate_prints_prompts_and_texts(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["generate", "--model_dir", checkpoint, "--max_tokens", "4", "--ignore_eos"]
    assert run([*args, "--prompt", "It's a", "--prompt", "dog"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"""\[0\] Prompt: "It's a", Generated text: ['"].*['"]""", lines[0])
    assert re.fullmatch(r"""\[1\] Prompt: 'dog', Generated text: ['"].*['"]""", lines[1])
    assert "Processed requests: 100%" in captured.err


def test_dashes_underscores_and_environment(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(*args: str) -> int:
        assert run(["generate", "--json", "--prompt", "a", "--ignore-eos", *args]) == 0
        return len(json.loads(capsys.readouterr().out)["outputs"][0]["token_ids"])

    assert count("--model_dir", checkpoint, "--max_tokens", "3") == 3
    assert count("--model-dir", checkpoint, "--max-tokens=4") == 4
    monkeypatch.setenv("SEEKERNEL_GENERATE_MAX_TOKENS", "5")
    assert count("--model-dir", checkpoint) == 5
    assert count("--model-dir", checkpoint, "--max_tokens", "2") == 2


def test_json_has_everything(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--chat", "--logprobs", "1", "--n", "2", "--temperature", "1", "--seed", "5"]
    assert run(["generate", "--model_dir", checkpoint, "--json", "--prompt", "é", *args]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert report["prompt"] == "<|begin|><|user|>é<|assistant|>"
    assert [sample["index"] for sample in report["outputs"]] == [0, 1]
    sample = report["outputs"][0]
    assert len(sample["logprobs"]) == len(sample["token_ids"])
    assert {"text", "finish_reason", "stop_reason", "cumulative_logprob"} <= sample.keys()


def test_engine_options_reach_the_engine(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["generate", "--model_dir", checkpoint, "--prompt", "a b c d", "--json", "--ignore_eos"]
    limits = ["--max_seq_len", "12", "--max_num_tokens", "3", "--max_batch_size", "1"]
    kinds = ["--kv_cache_dtype", "float32", "--dtype", "bfloat16", "--load_format", "dummy"]
    assert run([*args, *limits, *kinds, "--kv_cache_bytes", "1M"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["prompt_token_ids"]) + len(report["outputs"][0]["token_ids"]) == 12
    assert run([*args, "--kv_cache_bytes", "1K"]) == 2
    assert "kv_cache_bytes: one request" in capsys.readouterr().err
    assert run([*args, "--kv_cache_bytes", "many"]) == 2
    assert "expected a number of bytes such as 512M or 2G, got 'many'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["max_batch_size", "max_num_tokens", "max_seq_len"])
def test_engine_limits_are_checked(
    checkpoint: str, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(["generate", "--model_dir", checkpoint, f"--{name}", "0"]) == 2
    assert f"{name}: expected an integer of at least" in capsys.readouterr().err


def test_failed_request_is_exit_status_1(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from seekernel.model import DeepseekV3ForCausalLM

    def broken(self: DeepseekV3ForCausalLM, hidden: torch.Tensor) -> torch.Tensor:
        return torch.full((hidden.shape[0], self.config.vocab_size), float("nan"))

    monkeypatch.setattr(DeepseekV3ForCausalLM, "compute_logits", broken)
    assert run(["generate", "--model_dir", checkpoint, "--prompt", "a"]) == 1
    assert "error: [0] the model gave NaN or infinite logits" in capsys.readouterr().err


def test_defects_are_exit_status_1_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(model_dir: object) -> None:
        raise KeyError("planted\nhere")

    monkeypatch.setattr("seekernel.cli.info.checkpoint", planted)
    assert run(["info"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        r"seekernel: error: KeyError: 'planted\nhere' (--debug shows where)"
    ]
    assert run(["info", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(model_dir: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("seekernel.cli.info.checkpoint", interrupted)
    assert run(["info"]) == 130
    assert capsys.readouterr().err.endswith("seekernel: error: interrupted\n")


def test_info(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--model_dir", checkpoint]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"^  seekernel +{re.escape(__version__)}$", text, re.MULTILINE)
    assert re.search(r"^  cpu_isa +(baseline|avx2|avx512)$", text, re.MULTILINE)
    assert run(["info", "--model_dir", checkpoint, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["checkpoint"]["vocab_size"] == 320
    assert report["checkpoint"]["weights"] == "fp8 blocks"
    assert report["cpu"]["threads"] >= 1
    assert isinstance(report["gpus"], list)


def test_info_on_ops(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("seekernel.ops.paths.capability", lambda device: ((9, 0), (8, 0))[device])
    monkeypatch.setenv("TRTLLM_DG_ENABLED", "0")
    monkeypatch.setattr("seekernel.ops.paths.build_info", lambda: {"cuda_version": "13.0"})
    assert run(["info", "--ops", "--json"]) == 0
    ops = json.loads(capsys.readouterr().out)["ops"]
    assert ops["fp8_gemm_nt"] == (
        "cpu: compiled, cuda:0: aot (jit: TRTLLM_DG_ENABLED=0), cuda:1: reference "
        "(jit: compute capability 8.0, the kernels need 9.0; "
        "aot: compute capability 8.0, the kernels need 9.0)"
    )
    assert ops["mla_prepare"].startswith("cpu: compiled, ")
    assert run(["info", "--json"]) == 0
    assert "ops" not in json.loads(capsys.readouterr().out)


def test_info_without_bundled_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seekernel.engine.checkpoint.files", lambda package: Path("/nowhere"))
    assert run(["info", "--json"]) == 0
    message = "model_dir: this installation has no bundled checkpoint; name a directory"
    assert json.loads(capsys.readouterr().out)["checkpoint"] == {"error": message}
    assert run(["generate"]) == 2
    assert capsys.readouterr().err == f"seekernel: error: {message}\n"


def test_bundled_checkpoint_answers_the_default_prompts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (default_model_dir() / "config.json").is_file()
    assert run(["generate", "--max_tokens", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(DEFAULT_PROMPTS)
    for index, (line, prompt) in enumerate(zip(lines, DEFAULT_PROMPTS, strict=True)):
        assert line.startswith(f"[{index}] Prompt: {prompt!r}, Generated text: ")
        text = line.split("Generated text: ")[1]
        assert len(re.findall(r"[a-z]{2,}", text)) >= 3, f"not words: {text}"


def test_module_and_exit_status() -> None:
    result = python("-m", "seekernel", "--version")
    assert (result.returncode, result.stdout) == (0, f"seekernel, version {__version__}\n")
    result = python("-m", "seekernel", "nothing")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "seekernel: error: No such command 'nothing'.\n"


def test_closed_pipe_is_quiet(checkpoint: str) -> None:
    script = f"{sys.executable} -m seekernel info --json --model_dir {checkpoint} | true"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300)
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


def test_main_ends_the_process() -> None:
    with pytest.raises(SystemExit) as caught:
        main_module.main(["nothing"])
    assert caught.value.code == 2
