"""Drafts: which stand, that they change nothing but the speed, and that all features go together."""

from __future__ import annotations

import itertools
import random
from typing import Any, NamedTuple

import pytest
import torch

from seekernel.engine.acceptance import Relaxed, accept, accept_relaxed, thinks, update_deltas
from seekernel.engine.checkpoint import default_model_dir
from seekernel.engine.core import EngineCore
from seekernel.engine.request import TokenSequence
from seekernel.model import DeepseekV3ForCausalLM
from seekernel.tokenizer import Tokenizer
from tests.engine_testing import make_core, make_sequence, model_dir, run_core

RULE = Relaxed(top_k=4, delta=0.2, begin=2, end=3)


def oracle_strict(tokens: list[int], drafts: list[int]) -> int:
    count = 1
    for token, draft in zip(tokens, drafts, strict=False):
        if token != draft:
            break
        count += 1
    return count


def oracle_relaxed(logits: torch.Tensor, drafts: list[int], delta: float, k: int) -> list[int]:
    """The rule in words, one row at a time: [1 + n, vocab] logits, n drafts -> emitted tokens."""
    emitted = []
    for row, draft in zip(logits.tolist(), [*drafts, None], strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        p = torch.softmax(torch.tensor(row), 0).tolist()
        allowed = {order[0]}
        if delta > 0:
            allowed |= {i for i in order[:k] if p[i] >= p[order[0]] - delta}
        if draft is None or draft not in allowed:
            emitted.append(order[0])
            break
        emitted.append(draft)
    return emitted


@pytest.mark.parametrize("num_drafts", [1, 2, 5])
def test_acceptance_is_the_rule(num_drafts: int) -> None:
    generator = torch.Generator().manual_seed(num_drafts)
    lengths = set()
    for _ in range(30):
        logits = torch.randn(16, 1 + num_drafts, 7, generator=generator) * 2
        drafts = torch.randint(7, (16, num_drafts), generator=generator)
        # Most drafts are good ones, so that runs of every length occur.
        good = torch.rand(16, num_drafts, generator=generator) < 0.6
        drafts = torch.where(good, logits[:, :-1].argmax(-1), drafts)
        deltas = torch.tensor([0.0, 0.1, 0.5, 1.0] * 4)
        best = logits.argmax(-1)
        counts = accept(best, drafts)
        tokens, num_new = accept_relaxed(logits, drafts, deltas, RULE.top_k)
        for row in range(16):
            assert int(counts[row]) == oracle_strict(best[row].tolist(), drafts[row].tolist())
            want = oracle_relaxed(logits[row], drafts[row].tolist(), float(deltas[row]), RULE.top_k)
            assert tokens[row, : int(num_new[row])].tolist() == want
            if deltas[row] == 0:
                assert int(num_new[row]) == int(counts[row])
            lengths.add(len(want))
    assert lengths == set(range(1, num_drafts + 2))


def test_thinking_follows_the_markers() -> None:
    deltas = torch.tensor([0.0, 0.0, 0.2, 0.2, 0.2, 0.0])
    tokens = torch.tensor([[2, 5, 5], [2, 3, 5], [5, 3, 2], [5, 3, 5], [5, 5, 3], [5, 5, 2]])
    num_new = torch.tensor([1, 3, 3, 2, 2, 2])
    got = update_deltas(deltas, tokens, num_new, RULE)
    assert got.tolist() == pytest.approx([0.2, 0.0, 0.2, 0.0, 0.2, 0.0])
    assert [thinks(ids, RULE) for ids in ([], [5], [2], [2, 3], [3, 2, 5], [2, 3, 9])] == [
        False, False, True, False, True, False,
    ]  # fmt: skip


class Small(NamedTuple):
    model: DeepseekV3ForCausalLM
    tokenizer: Tokenizer
    prompts: list[list[int]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = model_dir("fp8_blocks", tmp_path_factory.mktemp("small"))
    model = DeepseekV3ForCausalLM.from_pretrained(folder)
    tokenizer = Tokenizer.from_dir(folder, model.config.vocab_size, model.config.eos_token_ids)
    rng, think = random.Random(8), tokenizer.token_id("<think>")
    stem = [rng.randrange(300) for _ in range(90)]
    assert think is not None
    prompts = [
        [*stem[: rng.choice([3, 30, 64, 90])], *([think] if i % 2 else []), rng.randrange(300)]
        for i in range(12)
    ]
    return Small(model, tokenizer, prompts)


MTP = {"spec_decode_algo": "MTP", "spec_decode_nextn": 3}
RELAXED = {
    **MTP, "use_relaxed_acceptance_for_thinking": True, "relaxed_topk": 320, "relaxed_delta": 0.9,
}  # fmt: skip
# What is switched on, over a plain engine without reuse. sampled is a matter of the requests.
FEATURES: dict[str, dict[str, Any]] = {
    "mtp": MTP,
    "sampled": {},
    "reuse": {"enable_block_reuse": True},
    "chunks": {"max_num_tokens": 40},
    "fp8": {"kv_cache_dtype": "fp8"},
    "fp8_per_tensor": {"kv_cache_dtype": "fp8_per_tensor"},
    "overlap": {"disable_overlap_scheduler": False},
    "graphs": {"use_cuda_graph": True, "cuda_graph_padding_enabled": True,
               "cuda_graph_batch_sizes": [2, 5, 12]},
    "preempt": {"scheduler_policy": "max_utilization", "kv_cache_max_tokens": 144},
    "moe_rounds": {"moe_max_num_tokens": 5},
}  # fmt: skip
CHANGES_TOKENS = ("sampled", "fp8", "fp8_per_tensor")


def run(small: Small, features: set[str], **more: Any) -> tuple[EngineCore, list[TokenSequence]]:
    options: dict[str, Any] = {"enable_block_reuse": False}
    for name in sorted(features):
        options.update(FEATURES[name])
    params: dict[str, Any] = {"logprobs": 1}
    if "sampled" in features:
        params = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1, "logprobs": 1}
    relaxed = "use_relaxed_acceptance_for_thinking" in more
    if relaxed or ("graphs" in features and "sampled" not in features):
        params = {}  # so that the choice is the device's, part of the graph
    small.model.set_moe_max_num_tokens(options.get("moe_max_num_tokens"))
    core = make_core(
        small.model, small.tokenizer, batch_invariant=True, max_batch_size=12, page_size=16,
        max_seq_len=128, **options, **more,
    )  # fmt: skip
    sequences = [
        make_sequence(prompt, 10 + 3 * (index % 5), seed=index, **params)
        for index, prompt in enumerate(small.prompts)
    ]
    try:
        run_core(core, sequences[:6])
        run_core(core, sequences[6:])
    finally:
        core.close()
    assert core.pool.num_free == core.pool.num_pages
    return core, sequences


BASES: dict[frozenset[str], list[TokenSequence]] = {}


def base(small: Small, features: set[str]) -> list[TokenSequence]:
    key = frozenset(features & set(CHANGES_TOKENS))
    if key not in BASES:
        BASES[key] = run(small, set(key))[1]
    return BASES[key]


@pytest.mark.parametrize(
    "pair", list(itertools.combinations(FEATURES, 2)), ids=lambda pair: "-".join(pair)
)
def test_every_pair_of_features(small: Small, pair: tuple[str, str]) -> None:
    """Tokens and log-probabilities are those of the engine with nothing but what changes them."""
    features = set(pair)
    if features == {"fp8", "fp8_per_tensor"}:
        pytest.skip("one cache has one format")
    core, sequences = run(small, features)
    for got, want in zip(sequences, base(small, features), strict=True):
        assert got.output.token_ids == want.output.token_ids
        if got.output.logprobs is not None:
            assert got.output.logprobs == want.output.logprobs
    assert (core.scheduler.num_preempted > 0) == ("preempt" in features)
    assert (core.kv.stats.reused_tokens > 0) == ("reuse" in features)
    assert (core.metrics.drafted_tokens > 0) == ("mtp" in features)
    if "graphs" in features:
        assert core.runner.graphs is not None
        assert core.runner.graphs.num_replays > 0


@pytest.mark.parametrize("feature", ["reuse", "chunks", "overlap", "graphs", "moe_rounds"])
@pytest.mark.parametrize("cache", ["bfloat16", "fp8"])
def test_relaxed_acceptance_with_every_feature(small: Small, feature: str, cache: str) -> None:
    """Drafts are the same whatever the batch, so relaxed output is too."""
    key = frozenset(["relaxed", cache])
    more = {**RELAXED, "kv_cache_dtype": cache}
    if key not in BASES:
        BASES[key] = run(small, set(), **more)[1]
    _, sequences = run(small, {feature}, **more)
    for got, want in zip(sequences, BASES[key], strict=True):
        assert got.output.token_ids == want.output.token_ids
    strict = base(small, {"fp8"} if cache == "fp8" else set())
    assert any(
        got.output.token_ids != plain.output.token_ids
        for got, plain in zip(sequences, strict, strict=True)
    ), "nothing was relaxed"


def test_relaxed_never_accepts_outside_its_rule() -> None:
    """On the bundled checkpoint: each token is the best, or near it within thinking."""
    folder = default_model_dir()
    model = DeepseekV3ForCausalLM.from_pretrained(folder)
    tokenizer = Tokenizer.from_dir(folder, model.config.vocab_size, model.config.eos_token_ids)
    rule = {**RELAXED, "relaxed_topk": 5, "relaxed_delta": 0.7}
    texts = ["<think>Once upon a time", "<think>I am", "<think>Once upon a time</think>It was", "I"]
    core = make_core(model, tokenizer, batch_invariant=True, max_seq_len=128, **rule)
    sequences = [make_sequence(tokenizer.encode(text), 30) for text in texts]
    run_core(core, sequences)
    begin, end = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    probe = make_core(model, max_seq_len=128, batch_invariant=True)
    scored = [make_sequence(sequence.tokens, 1, prompt_logprobs=5) for sequence in sequences]
    run_core(probe, scored)
    near = 0
    for sequence, scores in zip(sequences, scored, strict=True):
        assert scores.prompt_logprobs is not None
        for position in range(len(sequence.prompt_token_ids), len(sequence.tokens)):
            before, token = sequence.tokens[:position], sequence.tokens[position]
            entry = scores.prompt_logprobs[position - 1]
            if entry[token].rank == 1:
                continue
            thinking = [t for t in before if t in (begin, end)][-1:] == [begin]
            best = max(item.logprob for item in entry.values())
            p, p_best = torch.tensor([entry[token].logprob, best]).exp().tolist()
            assert thinking, f"{sequence.tokens}: not the best token outside of thinking"
            assert entry[token].rank <= 5
            assert p >= p_best - 0.7 - 1e-5
            near += 1
    assert near > 0, "nothing was relaxed"


def test_the_bundled_module_is_worth_its_time() -> None:
    """Its first draft stands far more often than one in 3584 by chance."""
    folder = default_model_dir()
    model = DeepseekV3ForCausalLM.from_pretrained(folder)
    tokenizer = Tokenizer.from_dir(folder, model.config.vocab_size, model.config.eos_token_ids)
    texts = ["Hello, my name is", "The president of the United States is", "The future of AI is"]
    per_step = []
    for nextn in (1, 2, 4):
        core = make_core(
            model, tokenizer, max_seq_len=128, spec_decode_algo="MTP", spec_decode_nextn=nextn
        )
        sequences = [make_sequence(tokenizer.encode(text), 24) for text in texts]
        run_core(core, sequences)
        stats = [sequence.output.speculation for sequence in sequences]
        steps = sum(item.num_steps for item in stats if item is not None)
        stood = sum(item.num_accepted for item in stats if item is not None)
        if nextn == 1:
            assert stood / steps > 0.5
        per_step.append((steps + stood) / steps)
    assert 1.5 < per_step[0] < per_step[1] <= 3.0
    assert per_step[1] < per_step[2] <= 5.0
