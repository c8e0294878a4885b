"""Under load the engine's greedy tokens are those of each request alone, without an engine."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest

from seekernel.engine.request import TokenSequence
from seekernel.model import DeepseekV3ForCausalLM
from seekernel.tokenizer import Tokenizer
from tests.engine_testing import MODELS, make_core, make_sequence, model_dir, naive_greedy, run_core

NUM_REQUESTS, NUM_DISTINCT, MAX_NEW = 200, 24, 14
TEXT = (
    "Once upon a time there was a little rabbit called Spot. The capital of France is Paris. "
    "Tom has 7 apples and buys 5 more. How many apples does he have? The president signs the laws. "
)
MTP = {"spec_decode_algo": "MTP"}
# The cache of `small` pages of 16 holds two or three of the longest requests.
CASES: dict[str, dict[str, Any]] = {
    "chunks": {"max_num_tokens": 48},
    "overlap_no_reuse": {"disable_overlap_scheduler": False, "enable_block_reuse": False},
    "preempt": {"scheduler_policy": "max_utilization", "small": 17, "max_num_tokens": 64},
    "preempt_overlap_mtp": {
        "scheduler_policy": "max_utilization", "small": 20, "max_num_tokens": 80, **MTP,
        "spec_decode_nextn": 2, "disable_overlap_scheduler": False,
    },
    "everything": {
        **MTP, "spec_decode_nextn": 3, "disable_overlap_scheduler": False, "max_num_tokens": 100,
        "use_cuda_graph": True, "cuda_graph_padding_enabled": True, "page_size": 32,
        "cuda_graph_batch_sizes": [1, 4, 16],
    },
}  # fmt: skip


class Load(NamedTuple):
    """A model, distinct prompts, and what each gives alone."""

    model: DeepseekV3ForCausalLM
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture(scope="module", params=MODELS)
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = model_dir(request.param, tmp_path_factory.mktemp(request.param))
    model = DeepseekV3ForCausalLM.from_pretrained(folder)
    tokenizer = Tokenizer.from_dir(folder, model.config.vocab_size, model.config.eos_token_ids)
    rng = random.Random(3)
    stem = tokenizer.encode(TEXT * 2)
    prompts = []
    for index in range(NUM_DISTINCT):
        begin = rng.choice([0, 0, 0, 7, 20])
        length = rng.choice([1, 3, 16, 17, 40, 64, 65, 90, 128])
        tail = [rng.randrange(model.config.vocab_size) for _ in range(index % 3)]
        prompts.append(stem[begin : begin + length] + tail)
    answers = [naive_greedy(model, prompt, MAX_NEW) for prompt in prompts]
    assert len({token for answer in answers for token in answer}) > 10, "too uniform to tell apart"
    return Load(model, prompts, answers)


@pytest.mark.parametrize("case", CASES)
def test_tokens_under_load_are_those_of_naive_generation(load: Load, case: str) -> None:
    options = dict(CASES[case])
    small = options.pop("small", None)
    if small is not None:
        options["page_size"] = 16
        page = sum(layer.nbytes for layer in load.model.allocate_kv_cache(1, 16))
        options["kv_cache_bytes"] = small * page
    core = make_core(
        load.model, batch_invariant=True, max_batch_size=16, max_seq_len=160, **options
    )
    rng = random.Random(case)
    picks = [rng.randrange(NUM_DISTINCT) for _ in range(NUM_REQUESTS)]
    sequences: list[TokenSequence] = [
        make_sequence(load.prompts[pick], rng.randint(1, MAX_NEW)) for pick in picks
    ]
    try:
        run_core(core, sequences, rng)
    finally:
        core.close()
    for pick, sequence in zip(picks, sequences, strict=True):
        want = load.answers[pick][: sequence.max_tokens]
        assert sequence.output.token_ids == want, f"prompt {pick}"
        assert sequence.output.finish_reason == "length"
    assert core.pool.num_free == core.pool.num_pages
    # The case is what its name says.
    metrics, kv = core.metrics, core.kv.stats
    assert (core.scheduler.num_preempted > 2) == (small is not None)
    assert (kv.reused_tokens > 500) == options.get("enable_block_reuse", True)
    assert (metrics.drafted_tokens > 0) == ("spec_decode_algo" in options)
    if options.get("use_cuda_graph"):
        assert core.runner.graphs is not None
        assert core.runner.graphs.num_replays > 20
