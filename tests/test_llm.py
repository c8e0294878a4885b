"""LLM: the engine's text is that of plain generation, in any batch, and it keeps its promises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seekernel import LLM, RequestOutput, SamplingParams
from seekernel.engine.core import EngineCore
from seekernel.errors import CapacityError, ChatTemplateError, OptionError, RequestError
from seekernel.model import DeepseekV3ForCausalLM
from tests.checkpoint_files import edit_json, write_checkpoint
from tests.model_testing import Runner, random_prompt

PROMPTS = [
    "The quick brown fox",
    "It was",
    "a",
    "dog " * 30,
    "\u00e9\U0001f600",
    "lazy sunny day, and",
]
# Logits nearer than this may swap when tokens are summed in another order (another batch).
NEAR_TIE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def make(checkpoint: Path, **options: Any) -> LLM:
    return LLM(checkpoint, **{"kv_cache_dtype": "float32", "kv_cache_bytes": 32 << 20, **options})


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with make(checkpoint) as llm:
        yield llm


def core_of(llm: LLM) -> EngineCore:
    return llm._live_core()


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def greedy(count: int = 12, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": count, "ignore_eos": True, **fields})


def assert_naive_greedy(checkpoint: Path, outputs: list[RequestOutput]) -> None:
    """Fail unless each output is the model's own greedy continuation, near-ties excepted."""
    model = DeepseekV3ForCausalLM.from_pretrained(checkpoint)
    compared = 0
    for output in outputs:
        got = output.outputs[0].token_ids
        want, margins = Runner(model).greedy(0, output.prompt_token_ids, len(got))
        for a, b, margin in zip(got, want, margins, strict=True):
            if a != b:
                assert margin < NEAR_TIE, f"token {a}, expected {b}, margin {margin:.1e}"
                break
            compared += 1
    assert compared > len(outputs) * 3, "too few tokens compared"


def test_greedy_batch_is_naive_generation(checkpoint: Path, llm: LLM) -> None:
    outputs = llm.generate(PROMPTS, greedy(), use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    assert [output.request_id for output in outputs] == sorted(o.request_id for o in outputs)
    for output in outputs:
        (sample,) = output.outputs
        assert (sample.finish_reason, sample.stop_reason, sample.error) == ("length", None, None)
        assert output.finished
        assert output.prompt_token_ids == llm.tokenizer.encode(output.prompt or "")
        assert sample.text == llm.tokenizer.decode(sample.token_ids)
        assert (sample.logprobs, sample.cumulative_logprob) == (None, None)
    assert_naive_greedy(checkpoint, outputs)


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_tokens": 7}, {"max_num_tokens": 1}, {"max_batch_size": 1}, {"page_size": 16},
        {"max_batch_size": 2, "max_num_tokens": 33}, {"kv_cache_bytes": 3 * 2 * 64 * 80 * 4},
    ],
    ids=str,
)  # fmt: skip
def test_limits_do_not_change_the_text(checkpoint: Path, options: dict[str, Any]) -> None:
    """Chunked prefill, small batches, and a cache of three pages that makes requests wait."""
    with make(checkpoint, **options) as llm:
        outputs = llm.generate(PROMPTS * 2, greedy(8), use_tqdm=False)
        assert core_of(llm).pool.num_free == core_of(llm).pool.num_pages
        assert_naive_greedy(checkpoint, outputs)


def test_single_and_list_and_token_ids(llm: LLM) -> None:
    one = llm.generate("It was", greedy(4), use_tqdm=False)
    assert isinstance(one, RequestOutput)
    ids = llm.generate(one.prompt_token_ids, greedy(4), use_tqdm=False)
    many = llm.generate([one.prompt_token_ids, one.prompt_token_ids], greedy(4), use_tqdm=False)
    prompts: list[str | list[int]] = ["It was", one.prompt_token_ids]
    mixed = llm.generate(prompts, greedy(4), use_tqdm=False)
    assert ids.prompt is None
    for output in (ids, *many, *mixed):
        assert output.outputs == one.outputs
    assert len(llm.generate([], greedy(4))) == 0


def test_params_per_prompt(llm: LLM) -> None:
    outputs = llm.generate(PROMPTS[:3], [greedy(1), greedy(5), greedy(2)], use_tqdm=False)
    assert [len(ids) for ids in tokens_of(outputs)] == [1, 5, 2]
    with pytest.raises(RequestError, match="one SamplingParams, or 3 of them"):
        llm.generate(PROMPTS[:3], [greedy(1)] * 2, use_tqdm=False)


def test_same_seed_same_text_in_any_batch(checkpoint: Path, llm: LLM) -> None:
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=7, max_tokens=10, ignore_eos=True)
    first = llm.generate("It was", params, use_tqdm=False).outputs[0].token_ids
    crowd = llm.generate([*PROMPTS, "It was"], params, use_tqdm=False)
    assert crowd[-1].outputs[0].token_ids == first
    other = SamplingParams(temperature=0.8, top_p=0.95, seed=8, max_tokens=10, ignore_eos=True)
    assert llm.generate("It was", other, use_tqdm=False).outputs[0].token_ids != first


def test_engine_seed_reproduces_a_session(checkpoint: Path) -> None:
    def session(seed: int) -> list[list[int]]:
        params = SamplingParams(temperature=1.0, max_tokens=6, ignore_eos=True)
        with make(checkpoint, seed=seed) as llm:
            return tokens_of(llm.generate(["It was"] * 3, params, use_tqdm=False))

    first = session(1)
    assert session(1) == first
    assert session(2) != first
    assert len(set(map(tuple, first))) == 3, "requests share their randomness"


def test_n_samples(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, n=4, seed=3, max_tokens=6, ignore_eos=True)
    output = llm.generate("It was", params, use_tqdm=False)
    assert [sample.index for sample in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(sample.token_ids) for sample in output.outputs}) == 4
    again = llm.generate(["a", "It was"], params, use_tqdm=False)[1]
    assert again.outputs == output.outputs


def test_stops(llm: LLM) -> None:
    plain = llm.generate("It was", greedy(16), use_tqdm=False).outputs[0]
    stop = plain.text[4:7]
    position = plain.text.index(stop)
    cut = llm.generate("It was", greedy(16, stop=["\x00", stop]), use_tqdm=False).outputs[0]
    assert (cut.text, cut.finish_reason, cut.stop_reason) == (plain.text[:position], "stop", stop)
    assert cut.token_ids == plain.token_ids[: len(cut.token_ids)]
    assert stop in llm.tokenizer.decode(cut.token_ids)

    token = plain.token_ids[5]
    first = plain.token_ids.index(token)
    ended = llm.generate("It was", greedy(16, stop_token_ids=[token]), use_tqdm=False).outputs[0]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", token)
    assert ended.token_ids == plain.token_ids[: first + 1]
    assert ended.text == llm.tokenizer.decode(plain.token_ids[:first])

    late = greedy(16, stop_token_ids=[token], min_tokens=14)
    barred = llm.generate("It was", late, use_tqdm=False).outputs[0]
    assert token not in barred.token_ids[:14]


def test_end_of_sequence(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with make(checkpoint) as llm:
        plain = llm.generate("It was", greedy(16), use_tqdm=False).outputs[0]
    token = plain.token_ids[6]
    edit_json(tmp_path / "generation_config.json", eos_token_id=[300, token])
    with make(tmp_path) as llm:
        ended = llm.generate("It was", greedy(16, ignore_eos=False), use_tqdm=False).outputs[0]
        ignored = llm.generate("It was", greedy(16), use_tqdm=False).outputs[0]
    assert (ended.finish_reason, ended.stop_reason) == ("stop", None)
    assert ended.token_ids == plain.token_ids[: plain.token_ids.index(token) + 1]
    assert ignored.token_ids == plain.token_ids


def test_logprobs(checkpoint: Path, llm: LLM) -> None:
    output = llm.generate("It was", greedy(5, logprobs=2), use_tqdm=False)
    (sample,) = output.outputs
    assert sample.logprobs is not None
    runner = Runner(DeepseekV3ForCausalLM.from_pretrained(checkpoint))
    step, total = output.prompt_token_ids, 0.0
    for token, entry in zip(sample.token_ids, sample.logprobs, strict=True):
        want = torch.log_softmax(runner.logits({0: step})[-1].double(), -1)
        assert len(entry) == 2
        assert entry[token].rank == 1
        assert entry[token].decoded_token == llm.tokenizer.decode([token], False)
        for index, logprob in entry.items():
            assert logprob.logprob == pytest.approx(float(want[index]), abs=1e-3)
        total += entry[token].logprob
        step = [token]
    assert sample.cumulative_logprob == pytest.approx(total)


def test_max_seq_len(checkpoint: Path) -> None:
    with make(checkpoint, max_seq_len=20) as llm:
        assert llm.max_seq_len == 20
        output = llm.generate(random_prompt(300, 15), greedy(1000), use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 5
        assert output.outputs[0].finish_reason == "length"
        message = (
            "prompt 1: expected at most 19 tokens, to leave one of max_seq_len 20 for the answer"
        )
        with pytest.raises(CapacityError, match=message + ", got 20"):
            llm.generate([[1], random_prompt(300, 20)], greedy(1), use_tqdm=False)
        assert not core_of(llm).has_work


def test_prompt_that_can_never_fit(checkpoint: Path) -> None:
    page = 2 * 64 * 80 * 4  # layers, page size, latent_dim, bytes of a float32
    with pytest.raises(
        CapacityError, match=r"one request of 300 tokens needs 5 pages of 64, 0\.2 MiB"
    ):
        make(checkpoint, kv_cache_bytes=4 * page, max_seq_len=300)
    with make(checkpoint, kv_cache_bytes=2 * page) as llm:
        assert llm.max_seq_len == 128
    with pytest.raises(CapacityError, match="kv_cache_bytes: one request"):
        make(checkpoint, kv_cache_bytes=100)
    with pytest.raises(
        OptionError, match="max_seq_len: expected at most the model's 4096, got 4097"
    ):
        make(checkpoint, max_seq_len=4097)


BAD_PROMPTS: list[tuple[Any, str]] = [
    ("", "prompt: expected some text, got an empty string"),
    (["a", ""], "prompt 1: expected some text"),
    ([[]], "prompt 0: expected at least one token, got none"),
    ([[1], [320]], "prompt 1: expected token ids from 0 to 319, got 320"),
    ([[-1]], "prompt 0: expected token ids from 0 to 319, got -1"),
    ([[1, "a"]], "prompt 0: expected token ids from 0 to 319, got 'a'"),
    ([None], "prompt 0: expected a string or token ids, got None"),
    ([b"abc"], "prompt 0: expected a string or token ids, got b'abc'"),
    ([{"prompt": "a"}], "prompt 0: expected a string or token ids"),
    ("\ud800", "prompt: expected valid Unicode text"),
    (7, "prompts: expected a string, token ids, or a list of them, got 7"),
    (None, "prompts: expected a string, token ids, or a list of them, got None"),
]


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS)
def test_bad_prompts_are_refused_before_any_runs(llm: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        llm.generate(prompt, greedy(2), use_tqdm=False)
    assert not core_of(llm).has_work
    with pytest.raises(RequestError, match="stop_token_ids: expected ids below vocab_size 320"):
        llm.generate("a", greedy(2, stop_token_ids=[320]), use_tqdm=False)


def test_unknown_option_names_the_nearest(checkpoint: Path) -> None:
    with pytest.raises(
        OptionError, match="max_batchsize: no such option; did you mean max_batch_size"
    ):
        LLM(checkpoint, max_batchsize=3)


def test_chat(llm: LLM) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "It was"}]
    one = llm.chat(messages, greedy(4), use_tqdm=False)
    assert one.prompt == "<|begin|><|user|>It was<|assistant|>"
    assert one.prompt_token_ids == llm.tokenizer.encode(one.prompt, add_special_tokens=False)
    assert one.prompt_token_ids[:2] == [
        llm.tokenizer.special.bos_token_id, llm.tokenizer.token_id("<|user|>")
    ]  # fmt: skip
    two = llm.chat([messages, messages], greedy(4), use_tqdm=False)
    assert [output.outputs for output in two] == [one.outputs] * 2
    with pytest.raises(RequestError, match="messages: expected"):
        llm.chat([])


def test_chat_without_template(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit_json(tmp_path / "tokenizer_config.json", chat_template=...)
    with make(tmp_path) as llm, pytest.raises(ChatTemplateError, match="the checkpoint has none"):
        llm.chat([{"role": "user", "content": "a"}])


def test_nan_ends_one_sequence_and_leaves_the_others(checkpoint: Path) -> None:
    with make(checkpoint) as llm:
        prompts = [random_prompt(300, 9, seed) for seed in range(4)]
        want = tokens_of(llm.generate(prompts, greedy(6), use_tqdm=False))
        # A token that neither the other prompts nor their answers hold.
        poisoned = min({*range(300)}.difference(*prompts, *want))
        core_of(llm)._model.embed_tokens[poisoned] = float("nan")
        broken = [*prompts[:2], [1, poisoned, 2], *prompts[2:]]
        outputs = llm.generate(broken, greedy(6), use_tqdm=False)
        failed = outputs.pop(2).outputs[0]
        assert (failed.finish_reason, failed.token_ids) == ("error", [])
        assert failed.error == "the model gave NaN or infinite logits"
        assert tokens_of(outputs) == want
        # The pages that held NaN are used again.
        assert tokens_of(llm.generate(prompts, greedy(6), use_tqdm=False)) == want


def test_failed_step_frees_everything(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_of(llm)
    begin, calls = core.runner.begin, iter(range(100))

    def failing(step: Any) -> Any:
        if next(calls) == 3:
            raise RuntimeError("planted")
        return begin(step)

    want = tokens_of(llm.generate(PROMPTS, greedy(8), use_tqdm=False))
    with monkeypatch.context() as patch:
        patch.setattr(core.runner, "begin", failing)
        with pytest.raises(RuntimeError, match="planted"):
            llm.generate(PROMPTS, greedy(8), use_tqdm=False)
    assert not core.has_work
    assert core.pool.num_free == core.pool.num_pages
    assert tokens_of(llm.generate(PROMPTS, greedy(8), use_tqdm=False)) == want


def test_shutdown(checkpoint: Path) -> None:
    with make(checkpoint) as llm:
        pass
    llm.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        llm.generate("a")


def test_dummy_weights_and_no_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with make(tmp_path, load_format="dummy", skip_tokenizer_init=True) as llm:
        output = llm.generate([3, 4, 5], greedy(4), use_tqdm=False)
        assert (len(output.outputs[0].token_ids), output.outputs[0].text) == (4, "")
        with pytest.raises(OptionError, match="this LLM has no tokenizer"):
            llm.generate("text")
        with pytest.raises(RequestError, match="stop: stop strings need a tokenizer"):
            llm.generate([1], SamplingParams(stop="a"))
    with pytest.raises(OptionError, match="load_format: expected one of auto, dummy, got 'npz'"):
        make(tmp_path, load_format="npz")


def test_progress_bar(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS[:2], greedy(2))
    assert "Processed requests: 100%" in capsys.readouterr().err
    llm.generate(PROMPTS[:2], greedy(2), use_tqdm=False)
    assert capsys.readouterr().err == ""
