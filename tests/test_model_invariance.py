"""Forms and batches that must agree: absorbed and naive, pieces and whole, batch and one by one."""

from __future__ import annotations

import pytest
import torch

from seekernel.model import DeepseekV3ForCausalLM
from seekernel.model import batch as batch_module
from tests.model_testing import SHAPES, Runner, Shape, make_checkpoint, random_prompt

# float32 throughout: sums of at most a few thousand terms, in another order, through three layers.
BOUND = 2e-5


@pytest.fixture(scope="module", params=[SHAPES[2], SHAPES[4], SHAPES[5]], ids=str)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DeepseekV3ForCausalLM:
    shape: Shape = request.param
    folder = tmp_path_factory.mktemp(shape.name)
    make_checkpoint(shape, folder)
    return DeepseekV3ForCausalLM.from_pretrained(folder)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    error = float((got - want).abs().max() / want.abs().max())
    assert error < BOUND, f"relative error {error:.2e}"


def test_absorbed_equals_naive(
    model: DeepseekV3ForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = random_prompt(model.config.vocab_size, 60)
    monkeypatch.setattr(batch_module, "MAX_ABSORBED_TOKENS", 0)
    naive = Runner(model).logits({0: prompt})
    monkeypatch.setattr(batch_module, "MAX_ABSORBED_TOKENS", 1000)
    close(Runner(model).logits({0: prompt}), naive)


def test_pieces_equal_whole(model: DeepseekV3ForCausalLM) -> None:
    prompt = random_prompt(model.config.vocab_size, 90)
    whole = Runner(model).logits({0: prompt})
    runner = Runner(model)
    pieces = [runner.logits({0: prompt[a:b]}) for a, b in ((0, 33), (33, 34), (34, 70), (70, 90))]
    close(torch.cat(pieces), whole)


def test_batch_equals_one_by_one(model: DeepseekV3ForCausalLM) -> None:
    lengths = [1, 40, 3, 17, 64, 2]
    prompts = {i: random_prompt(model.config.vocab_size, n, i) for i, n in enumerate(lengths)}
    together = Runner(model).logits(prompts).split(lengths)
    for key, prompt in prompts.items():
        close(together[key], Runner(model).logits({key: prompt}))


def test_same_bits_twice(model: DeepseekV3ForCausalLM) -> None:
    prompts = {
        0: random_prompt(model.config.vocab_size, 50),
        1: random_prompt(model.config.vocab_size, 5),
    }
    assert torch.equal(Runner(model).logits(prompts), Runner(model).logits(prompts))
