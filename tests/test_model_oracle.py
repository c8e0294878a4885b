"""The model against an oracle nobody here wrote: transformers' DeepseekV3ForCausalLM, float32.

transformers (5.20 and later) masks the experts of lost groups with -inf, as we do; older ones used 0,
which differs where a biased score is negative.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seekernel.model import DeepseekV3ForCausalLM
from tests.model_testing import SHAPES, Runner, Shape, make_checkpoint, random_prompt

transformers = pytest.importorskip("transformers", reason="the oracle is not installed")

MAX_RELATIVE_ERROR = 2e-3
NUM_GREEDY = 64


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_and_greedy(shape: Shape, tmp_path: Path) -> None:
    oracle = make_checkpoint(shape, tmp_path)
    model = DeepseekV3ForCausalLM.from_pretrained(tmp_path)
    prompt = random_prompt(model.config.vocab_size, 75)
    with torch.no_grad():
        want = oracle(torch.tensor([prompt])).logits[0]
    got = Runner(model).logits({0: prompt})
    assert relative_error(got, want) < MAX_RELATIVE_ERROR
    # Decode goes through the absorbed form: token by token it must give the same logits.
    runner = Runner(model)
    steps = torch.cat([runner.logits({0: [token]}) for token in prompt[:20]])
    assert relative_error(steps, want[:20]) < MAX_RELATIVE_ERROR

    with torch.no_grad():
        continued = oracle.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NUM_GREEDY, min_new_tokens=NUM_GREEDY, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
    tokens, margins = Runner(model).greedy(0, prompt, NUM_GREEDY)
    tie = MAX_RELATIVE_ERROR * float(want.abs().max())
    for step, (ours, theirs) in enumerate(zip(tokens, continued, strict=True)):
        if ours != theirs:
            assert margins[step] < tie, f"token {step}: {ours} against {theirs}, and no near-tie"
            break  # after a tie the texts may part


def test_yarn_beyond_original_context(tmp_path: Path) -> None:
    # No experts here: among four thousand random tokens one is sure to sit on a routing near-tie.
    shape = Shape("yarn_long", {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2,
                                "num_key_value_heads": 2, "qk_rope_head_dim": 64,
                                "first_k_dense_replace": 2})  # fmt: skip
    oracle = make_checkpoint(shape, tmp_path)
    model = DeepseekV3ForCausalLM.from_pretrained(tmp_path)
    prompt = random_prompt(model.config.vocab_size, 4096 + 150)
    with torch.no_grad():
        want = oracle(torch.tensor([prompt])).logits[0]
    runner = Runner(model, num_pages=280)
    hidden = [runner.hidden({0: prompt[:3000]}), runner.hidden({0: prompt[3000:-3]})]
    hidden += [runner.hidden({0: [token]}) for token in prompt[-3:]]
    got = model.compute_logits(torch.cat(hidden))
    assert relative_error(got, want) < MAX_RELATIVE_ERROR
    # The test must be able to see YaRN: without it the late positions differ.
    from dataclasses import replace

    from seekernel.model.rope import RopeTable

    model.rope = RopeTable(replace(model.config, yarn=None), model.device)
    plain = Runner(model, num_pages=280).logits({0: prompt[-200:]})
    assert plain.shape[0] == 200
    assert relative_error(plain[-100:], want[-100:]) > 10 * MAX_RELATIVE_ERROR
