"""Requests from outside: streams, aborts, failures. Nobody waits for ever, nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seekernel import LLM, SamplingParams
from seekernel.engine.handle import RequestHandle
from seekernel.errors import CapacityError, RequestError
from tests.checkpoint_files import write_checkpoint

LIMIT = 120  # seconds that nothing here should need


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), num_nextn_predict_layers=1)


@pytest.fixture(scope="module", params=["plain", "overlap_mtp"])
def llm(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[LLM]:
    options: dict[str, Any] = {"kv_cache_bytes": 32 << 20, "batch_invariant": True}
    if request.param == "overlap_mtp":
        options |= {"disable_overlap_scheduler": False, "spec_decode_algo": "MTP"}
    with LLM(checkpoint, **options) as llm:
        yield llm


def greedy(count: int, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=count, ignore_eos=True, **fields)


def settled(llm: LLM) -> bool:
    """Whether all pages come back and nothing runs, at the latest after the step under way."""
    core = llm._live_core()
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if not core.has_work and core.pool.num_free == core.pool.num_pages:
            return True
        time.sleep(0.01)
    return False


def test_streams_grow_to_what_generate_gives(llm: LLM) -> None:
    prompts = ["It was", "a", "dog dog", "sunny"]
    want = [llm.generate(p, greedy(20, logprobs=1), use_tqdm=False).outputs[0] for p in prompts]

    async def follow(prompt: str) -> Any:
        seen: list[int] = []
        text = ""
        handle = llm.generate_async(prompt, greedy(20, logprobs=1))
        async for output in handle:
            (sample,) = output.outputs
            assert sample.token_ids[: len(seen)] == seen
            assert sample.text.startswith(text)
            seen, text = sample.token_ids, sample.text
        assert output.finished
        assert output.timing.scheduled is not None
        assert output.timing.first_token is not None
        assert output.timing.finished is not None
        assert 0 <= output.timing.scheduled <= output.timing.first_token <= output.timing.finished
        assert (await handle).outputs == output.outputs
        return sample

    async def all_of_them() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*map(follow, prompts)), LIMIT)

    assert asyncio.run(all_of_them()) == want
    steps = list(llm.generate_async("It was", greedy(20)))
    assert steps[-1].outputs[0].token_ids == want[0].token_ids
    assert settled(llm)


def test_abort_frees_at_once(llm: LLM) -> None:
    handles = [llm.generate_async("It was", greedy(3000)) for _ in range(3)]
    queued = llm.generate_async("a", greedy(3000, n=3))
    next(iter(handles[0]))
    for handle in (*handles, queued):
        llm.abort(handle)
        handle.abort()
    for handle in (*handles, queued):
        output = handle.result(LIMIT)
        assert {sample.finish_reason for sample in output.outputs} == {"abort"}
        assert all(len(sample.token_ids) < 3000 for sample in output.outputs)
    assert settled(llm)
    handles[0].abort()  # of what has ended, it does nothing
    assert llm.generate("a", greedy(3), use_tqdm=False).finished


def test_a_reader_that_leaves_does_no_harm(llm: LLM) -> None:
    async def leave() -> None:
        handle = llm.generate_async("It was", greedy(3000))
        async for _ in handle:
            break
        handle.abort()

    for _ in range(20):
        asyncio.run(asyncio.wait_for(leave(), LIMIT))
    assert settled(llm)


def test_one_bad_request_ends_alone(llm: LLM) -> None:
    running = llm.generate_async("It was", greedy(40))
    with pytest.raises(RequestError, match="token ids from 0 to 319"):
        llm.generate_async([1, 5000], greedy(3))
    with pytest.raises(CapacityError, match="expected at most"):
        llm.generate_async([1] * 5000, greedy(3))
    assert running.result(LIMIT).outputs[0].finish_reason == "length"
    with pytest.raises(TimeoutError, match="did not end in 0"):
        (handle := llm.generate_async("a", greedy(3000))).result(0)
    handle.abort()
    assert settled(llm)


def test_a_fatal_error_ends_all_and_leaves_nobody_waiting(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = llm._live_core().runner
    begin, calls = runner.begin, iter(range(1000))

    def failing(step: Any) -> Any:
        if next(calls) >= 5:
            raise RuntimeError("planted")
        return begin(step)

    errors: list[str] = []

    def wait(handle: RequestHandle) -> None:
        try:
            handle.result(LIMIT)
        except RuntimeError as error:
            errors.append(str(error))

    with monkeypatch.context() as patch:
        patch.setattr(runner, "begin", failing)
        handles = [llm.generate_async("It was", greedy(100)) for _ in range(5)]
        threads = [threading.Thread(target=wait, args=(handle,)) for handle in handles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)

        async def stream() -> None:
            async for _ in llm.generate_async("a", greedy(100)):
                pass

        with pytest.raises(RuntimeError, match="planted"):
            asyncio.run(asyncio.wait_for(stream(), LIMIT))
    assert errors == ["planted"] * 5
    assert settled(llm)
    assert llm.generate("a", greedy(3), use_tqdm=False).finished


def test_shutdown_ends_what_runs(checkpoint: Path) -> None:
    llm = LLM(checkpoint, kv_cache_bytes=8 << 20)
    handle = llm.generate_async("It was", greedy(3000))
    next(iter(handle))
    llm.shutdown()
    assert handle.result(LIMIT).outputs[0].finish_reason == "abort"
    with pytest.raises(RuntimeError, match="shut down"):
        llm.generate_async("a")
    assert not [t for t in threading.enumerate() if t.name.startswith("seekernel") and not t.daemon]


def test_best_of_and_prompt_logprobs(llm: LLM) -> None:
    params = greedy(8, temperature=1.0, seed=4, n=2, best_of=6)
    best = llm.generate("It was", params, use_tqdm=False).outputs
    every = llm.generate(
        "It was", greedy(8, temperature=1.0, seed=4, n=6, logprobs=0), use_tqdm=False
    ).outputs
    every.sort(key=lambda item: -(item.cumulative_logprob or 0.0))
    assert [item.token_ids for item in best] == [item.token_ids for item in every[:2]]
    assert [(item.index, item.logprobs) for item in best] == [(0, None), (1, None)]
    prompt = [1, 5, 9, 200, 7, 30]
    output = llm.generate(prompt, greedy(2, prompt_logprobs=2), use_tqdm=False)
    scores = output.prompt_logprobs
    assert scores is not None
    assert scores[0] is None
    assert len(scores) == len(prompt)
    for index in range(1, len(prompt)):
        entry = scores[index]
        assert entry is not None
        ahead = llm.generate(
            prompt[:index], greedy(1, logprobs=2, logit_bias={prompt[index]: 100.0}), use_tqdm=False
        )
        (given,) = ahead.outputs[0].logprobs or []
        assert entry[prompt[index]].logprob == pytest.approx(given[prompt[index]].logprob, abs=1e-5)
        assert {i.rank for i in entry.values()} >= {1, 2}


def test_metrics_count(llm: LLM) -> None:
    def values() -> dict[tuple[str, Any], float]:
        return {(sample.name, sample.labels): sample.value for sample in llm.metrics()}

    before = values()
    prompt = [9] * 130
    for _ in range(2):
        llm.generate(prompt, greedy(5), use_tqdm=False)
    after = values()
    grown = {name[0]: after[name] - before[name] for name in after if not name[1]}
    assert grown["seekernel_generated_tokens_total"] == 10
    assert grown["seekernel_prompt_tokens_total"] == 260
    assert grown["seekernel_reused_tokens_total"] + grown["seekernel_prefilled_tokens_total"] == 260
    assert grown["seekernel_reused_tokens_total"] >= 128
    ended = ("seekernel_requests_finished_total", (("reason", "length"),))
    assert after[ended] - before[ended] == 2
    names = [(sample.name, sample.labels) for sample in llm.metrics()]
    assert len(set(names)) == len(names)
    assert after["seekernel_kv_pages_used", ()] == 0
