"""Options of the engine: spellings, sections, files, precedence, and errors that name the nearest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from seekernel import LLM, SamplingParams
from seekernel.cli.main import run
from seekernel.engine.checkpoint import checkpoint_kv_cache_dtype
from seekernel.engine.option_names import read_options_file
from seekernel.engine.options import EngineOptions
from seekernel.errors import OptionError
from tests.checkpoint_files import edit_json, write_checkpoint

GUIDE = """
pytorch_backend_config:
  enable_overlap_scheduler: true
  use_cuda_graph: true
  cuda_graph_padding_enabled: true
  cuda_graph_batch_sizes: [1, 2, 4, 8, 16, 32, 64, 128, 256, 384]
  print_iter_log: true
  kv_cache_dtype: fp8
  moe_max_num_tokens: 16384
speculative_config:
  decoding_type: MTP
  num_nextn_predict_layers: 3
  use_relaxed_acceptance_for_thinking: true
  relaxed_topk: 10
  relaxed_delta: 0.6
kv_cache_config:
  enable_block_reuse: false
  free_gpu_memory_fraction: 0.8
scheduler_config:
  capacity_scheduler_policy: MAX_UTILIZATION
"""


def test_file_of_the_guide(tmp_path: Path) -> None:
    path = tmp_path / "extra.yml"
    path.write_text(GUIDE)
    options = EngineOptions.from_keywords(read_options_file(path))
    assert options == EngineOptions(
        disable_overlap_scheduler=False, use_cuda_graph=True, cuda_graph_padding_enabled=True,
        cuda_graph_batch_sizes=[1, 2, 4, 8, 16, 32, 64, 128, 256, 384], print_iter_log=True,
        kv_cache_dtype="fp8", moe_max_num_tokens=16384, spec_decode_algo="MTP",
        spec_decode_nextn=3, use_relaxed_acceptance_for_thinking=True, relaxed_topk=10,
        relaxed_delta=0.6, enable_block_reuse=False, kv_cache_free_gpu_memory_fraction=0.8,
        scheduler_policy="max_utilization",
    )  # fmt: skip
    assert options.num_drafts == 3


def test_flat_and_later_sections_say_the_same() -> None:
    nested = {
        "cuda_graph_config": {"enable_padding": True, "batch_sizes": [4, 1]},
        "moe_config": {"max_num_tokens": 5},
        "kv_cache_config": {"dtype": "fp8", "max_tokens": 640, "tokens_per_block": 32},
    }
    flat = {
        "use_cuda_graph": True, "cuda_graph_padding_enabled": True,
        "cuda_graph_batch_sizes": [1, 4], "moe_max_num_tokens": 5, "kv_cache_dtype": "fp8",
        "kv_cache_max_tokens": 640, "page_size": 32,
    }  # fmt: skip
    assert EngineOptions.from_keywords(nested) == EngineOptions.from_keywords(flat)
    assert EngineOptions.from_keywords({"cuda_graph_config": None}) == EngineOptions()
    off = EngineOptions(spec_decode_algo="MTP", spec_decode_nextn=0)
    assert off.num_drafts == EngineOptions().num_drafts == 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_batchsize": 3}, "max_batchsize: no such option; did you mean max_batch_size?"),
    ({"kv_cache_confg": {}}, "kv_cache_confg: no such option; did you mean kv_cache_config?"),
    (
        {"pytorch_backend_config": {"use_cuda_graphs": True}},
        "use_cuda_graphs: no such option; did you mean use_cuda_graph?",
    ),
    (
        {"kv_cache_config": {"enable_block_reus": True}},
        "kv_cache_config.enable_block_reus: no such option; did you mean enable_block_reuse?",
    ),
    ({"zzz": 1}, "zzz: no such option"),
    ({"kv_cache_config": 3}, "kv_cache_config: expected a mapping of options, got 3"),
    (
        {"kv_cache_dtype": "fp8", "pytorch_backend_config": {"kv_cache_dtype": "bfloat16"}},
        "pytorch_backend_config.kv_cache_dtype: kv_cache_dtype is given twice, as 'fp8' and 'bfloat16'",
    ),
    ({"enable_overlap_scheduler": 1}, "enable_overlap_scheduler: expected true or false, got 1"),
    ({"spec_decode_algo": "EAGLE"}, "spec_decode_algo: expected one of None, MTP, got 'EAGLE'"),
    ({"spec_decode_nextn": 16}, "spec_decode_nextn: expected at most 15, got 16"),
    ({"spec_decode_nextn": -1}, "spec_decode_nextn: expected an integer of at least 0, got -1"),
    ({"relaxed_delta": 1.5}, "relaxed_delta: expected a number from 0 to 1, got 1.5"),
    ({"relaxed_topk": 0}, "relaxed_topk: expected an integer of at least 1, got 0"),
    ({"use_cuda_graph": 1}, "use_cuda_graph: expected one of True, False, got 1"),
    ({"cuda_graph_batch_sizes": [0]}, "cuda_graph_batch_sizes: expected an integer of at least 1"),
    ({"cuda_graph_batch_sizes": []}, "cuda_graph_batch_sizes: expected batch sizes, got []"),
    ({"cuda_graph_batch_sizes": "4"}, "cuda_graph_batch_sizes: expected batch sizes, got '4'"),
    (
        {"scheduler_policy": "static_batch"},
        "scheduler_policy: expected one of guaranteed_no_evict, max_utilization",
    ),
    (
        {"spec_decode_algo": "MTP", "spec_decode_nextn": 3, "max_num_tokens": 3},
        "max_num_tokens: expected at least 4, the tokens of one decode with spec_decode_nextn 3",
    ),
    ({"kv_cache_dtype": "int8"}, "kv_cache_dtype: expected one of auto, bfloat16, float32, fp8"),
    (
        {"kv_cache_free_gpu_memory_fraction": 2},
        "kv_cache_free_gpu_memory_fraction: expected a number from 0 to 1, got 2",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        EngineOptions.from_keywords(options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n- 2\n", "expected options by name, got [1, 2]"),
        (b"a: [1\n", "no YAML: while parsing"),
        (b"\xff\xfe\x00", "no YAML:"),
        (b"!!python/object/apply:os.system ['true']", "no YAML: could not determine a constructor"),
        (b"x" * (2 << 20), "more than 1048576 bytes"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yml"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=re.escape(message)):
        read_options_file(path)
    assert read_options_file_of(tmp_path, b"") == {}
    with pytest.raises(OptionError, match="No such file"):
        read_options_file(tmp_path / "none.yml")


def read_options_file_of(folder: Path, content: bytes) -> dict[str, Any]:
    (folder / "some.yml").write_bytes(content)
    return read_options_file(folder / "some.yml")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_checkpoint(folder, num_nextn_predict_layers=1)


def test_flags_and_file_reach_the_engine(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["generate", "--model_dir", str(checkpoint), "--prompt", "It was", "--ignore_eos"]
    path = tmp_path / "extra.yml"
    path.write_text("pytorch_backend_config: {print_iter_log: true}\nmax_seq_len: 24\n")
    flags = [
        "--spec_decode_algo", "MTP", "--spec_decode_nextn", "2", "--use_cuda_graph",
        "--cuda_graph_padding_enabled", "--cuda_graph_batch_sizes", "1,2", "--max_batch_size", "2",
        "--scheduler_policy", "max_utilization", "--kv_cache_dtype", "fp8", "--batch_invariant",
        "--enable_overlap_scheduler", "--disable_kv_cache_reuse", "--max_seq_len", "1000",
        "--moe_max_num_tokens", "7", "--kv_cache_bytes", "8M",
    ]  # fmt: skip
    assert run([*args, *flags, "--extra_llm_api_options", str(path), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert len(report["prompt_token_ids"]) + len(report["outputs"][0]["token_ids"]) == 24
    assert report["outputs"][0]["speculation"]["num_drafted"] > 0
    pattern = (
        r"iter = \d+, global_rank = 0, rank = 0, currank_total_requests = \d+/2, "
        r"elapsed_time = [\d.e-]+s, timestamp = \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, "
        r"num_scheduled_requests: 1, states = \{'num_ctx_requests': [01], "
        r"'num_ctx_tokens': \d+, 'num_generation_tokens': [03]\}"
    )
    assert len(lines) > 3
    for line in lines[:-1]:
        assert re.fullmatch(pattern, line), line
    path.write_text("max_seqlen: 24\n")
    assert run([*args, "--extra_llm_api_options", str(path)]) == 2
    assert "max_seqlen: no such option; did you mean max_seq_len?" in capsys.readouterr().err


def test_mtp_needs_a_module(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    with pytest.raises(OptionError, match="spec_decode_algo: MTP needs a module"):
        LLM(folder, spec_decode_algo="MTP")
    LLM(folder, spec_decode_algo="MTP", spec_decode_nextn=0).shutdown()


def test_relaxed_acceptance_needs_the_markers(checkpoint: Path) -> None:
    relaxed = {"spec_decode_algo": "MTP", "use_relaxed_acceptance_for_thinking": True}
    with pytest.raises(OptionError, match="the tokenizer has no token <think>"):
        LLM(checkpoint, **relaxed)
    with pytest.raises(OptionError, match="needs a tokenizer"):
        LLM(checkpoint, **relaxed, skip_tokenizer_init=True)


def quant_config(folder: Path, algorithm: object, **more: Any) -> None:
    edit_json(
        folder / "hf_quant_config.json",
        quantization={"quant_algo": "FP8_BLOCK_SCALES", "kv_cache_quant_algo": algorithm, **more},
    )


def test_checkpoint_asks_for_fp8(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert checkpoint_kv_cache_dtype(tmp_path) == "auto"
    quant_config(tmp_path, None)
    assert checkpoint_kv_cache_dtype(tmp_path) == "auto"
    quant_config(tmp_path, "FP8")
    with LLM(tmp_path, kv_cache_bytes=8 << 20) as llm:
        assert llm.options.kv_cache_dtype == "fp8"
        assert llm._live_core().runner.kv_cache[0].itemsize == 1
        assert llm.generate("a", SamplingParams(max_tokens=2), use_tqdm=False).finished
    with LLM(tmp_path, kv_cache_dtype="bfloat16", kv_cache_bytes=8 << 20) as llm:
        assert llm._live_core().runner.kv_cache[0].itemsize == 2
    quant_config(tmp_path, "INT8")
    with pytest.raises(OptionError, match=r"hf_quant_config.json: kv_cache_quant_algo: expected"):
        LLM(tmp_path)
    quant_config(tmp_path, "FP8", quant_algo="MIXED_PRECISION")
    edit_json(tmp_path / "quant_cfg.json", kv_cache_quant_algo=None)
    with pytest.raises(OptionError, match=r"quant_cfg.json: kv_cache_quant_algo: expected 'FP8'"):
        LLM(tmp_path)
    edit_json(tmp_path / "quant_cfg.json", kv_cache_quant_algo="FP8")
    assert checkpoint_kv_cache_dtype(tmp_path) == "fp8"
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(OptionError, match="no JSON"):
        LLM(tmp_path)
