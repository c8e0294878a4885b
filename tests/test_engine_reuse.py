"""Prefix reuse: what is known is not run again, and long contexts stay within bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from seekernel.model import DeepseekV3ForCausalLM
from tests.checkpoint_files import write_checkpoint
from tests.engine_testing import make_core, make_sequence, model_dir, run_core
from tests.model_testing import random_prompt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeepseekV3ForCausalLM:
    return DeepseekV3ForCausalLM.from_pretrained(
        model_dir("fp8_blocks", tmp_path_factory.mktemp("reuse"))
    )


@pytest.mark.parametrize("nextn", [0, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "fp8_per_tensor"])
def test_second_4k_prompt_runs_at_most_one_page(
    model: DeepseekV3ForCausalLM, dtype: str, nextn: int
) -> None:
    core = make_core(
        model, max_seq_len=4090, kv_cache_dtype=dtype, max_num_tokens=1024, max_batch_size=4,
        spec_decode_algo="MTP", spec_decode_nextn=nextn,
    )  # fmt: skip
    prompt = random_prompt(300, 4000)
    ran = []
    answers = []
    for tail in ([], [], [7, 8]):
        before = core.metrics.context_tokens
        run_core(core, [sequence := make_sequence(prompt + tail, 4)])
        ran.append(core.metrics.context_tokens - before)
        answers.append(sequence.output.token_ids)
    assert ran[0] == 4000
    assert ran[1] <= 64
    assert ran[2] <= 64 + 2
    assert answers[1] == answers[0]
    assert core.kv.stats.reused_tokens == 3 * 4000 + 2 - sum(ran)


def test_no_reuse_where_it_is_off(model: DeepseekV3ForCausalLM) -> None:
    core = make_core(model, max_seq_len=512, enable_block_reuse=False)
    for _ in range(2):
        run_core(core, [make_sequence(random_prompt(300, 300), 2)])
    assert core.metrics.context_tokens == 600
    assert core.pool.num_idle == 0


def test_whole_pages_only_without_partial_reuse(model: DeepseekV3ForCausalLM) -> None:
    core = make_core(model, max_seq_len=512, enable_partial_reuse=False, page_size=16)
    for _ in range(2):
        run_core(core, [make_sequence(random_prompt(300, 40), 2)])
    assert core.metrics.context_tokens == 40 + 8
    assert core.kv.stats.partial_copies == 0


def test_what_a_failed_sequence_left_is_not_reused(tmp_path: Path) -> None:
    model = DeepseekV3ForCausalLM.from_pretrained(write_checkpoint(tmp_path))
    core = make_core(model, max_seq_len=512, page_size=16)
    prompt = random_prompt(300, 100)
    run_core(core, [good := make_sequence(prompt, 4)])
    core.kv.clear()
    healthy = model.embed_tokens[prompt[50]].clone()
    model.embed_tokens[prompt[50]] = float("nan")
    run_core(core, [bad := make_sequence(prompt, 4)])
    assert bad.output.finish_reason == "error"
    model.embed_tokens[prompt[50]] = healthy
    run_core(core, [again := make_sequence(prompt, 4)])
    assert again.output.token_ids == good.output.token_ids
    assert core.pool.num_free == core.pool.num_pages


CHILD = """
import json, resource, sys, time
from seekernel import LLM, SamplingParams
folder, length, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
with LLM(folder, skip_tokenizer_init=True, **options) as llm:
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prompt = [(i * i + 7 * i) % 300 for i in range(length)]
    output = llm.generate(prompt, SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    core = llm._live_core()
    print(json.dumps({"tokens": output.outputs[0].token_ids, "error": output.outputs[0].error,
                      "grown_mib": (peak - start) / 1024, "iterations": core.metrics.iterations}))
"""


def long_prompt(folder: Path, length: int, **options: Any) -> dict[str, Any]:
    write_checkpoint(
        folder, max_position_embeddings=163840, num_hidden_layers=2, num_nextn_predict_layers=1
    )
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(length), json.dumps(options)],
        capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


# The cache of the largest: 131076 rows of 80 values in bfloat16, 3 layers: 60 MiB. What is left is
# for one step of 8192 tokens and for one expansion of 16384 + 8192 latents.
@pytest.mark.parametrize(
    ("length", "options"),
    [
        (16384, {"max_num_tokens": 4096, "max_seq_len": 16400, "max_batch_size": 1}),
        pytest.param(
            65536, {"max_num_tokens": 8192, "max_seq_len": 65536 + 1024, "max_batch_size": 12},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            131072, {"max_num_tokens": 8192, "max_seq_len": 131072 + 1024, "max_batch_size": 2,
                     "kv_cache_dtype": "fp8", "moe_max_num_tokens": 4096},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            131072, {"max_num_tokens": 8192, "max_seq_len": 131072 + 1024, "max_batch_size": 2,
                     "spec_decode_algo": "MTP", "spec_decode_nextn": 3},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["16k", "64k", "128k_fp8", "128k_mtp"],
)  # fmt: skip
def test_long_prompts_in_bounded_memory(
    tmp_path: Path, length: int, options: dict[str, Any]
) -> None:
    report = long_prompt(tmp_path, length, **options)
    assert report["error"] is None
    assert len(report["tokens"]) == 4
    assert report["iterations"] >= length // options["max_num_tokens"]
    assert report["grown_mib"] < 400, report


def test_pieces_of_a_long_context_are_merged(
    model: DeepseekV3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The naive form over merged pieces gives what it gives over all keys at once."""
    from seekernel.model import Batch
    from seekernel.model import attention as attention_module

    def hidden(limit: int) -> torch.Tensor:
        monkeypatch.setattr(attention_module, "MAX_EXPANDED", limit)
        cache = model.allocate_kv_cache(40, 16, "float32")
        outputs = []
        prompt = torch.tensor(random_prompt(300, 600))
        for begin, end in ((0, 200), (200, 420), (420, 600)):
            batch = Batch.build("cpu", 16, [list(range(40))], [begin], [end - begin])
            outputs.append(model.forward(prompt[begin:end], batch, cache))
        return torch.cat(outputs)

    whole, pieces = hidden(10_000), hidden(64)
    assert float((pieces - whole).abs().max() / whole.abs().max()) < 2e-5
