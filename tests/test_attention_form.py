"""Which form of attention does less work: by counting the products of both."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seekernel.model import ModelConfig
from seekernel.model.attention import absorbed_break_even, absorbed_does_less


def config(**changes: int) -> ModelConfig:
    shape = dict(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        max_position_embeddings=8,
    )  # fmt: skip
    return ModelConfig(**{**shape, **changes})


def counted(model: ModelConfig, num_new: int, num_cached: int) -> tuple[int, int]:
    """FLOPs of one head's products, (absorbed, expanded); query i is a call of its own: it sees i + 1 new keys."""
    latent, rope = model.kv_lora_rank, model.qk_rope_head_dim
    nope, v = model.qk_nope_head_dim, model.v_head_dim
    keys = torch.zeros(num_cached + num_new, latent + rope)
    w_uk, w_uv = torch.zeros(nope, latent), torch.zeros(latent, v)
    with FlopCounterMode(display=False) as absorbed:
        query = torch.zeros(num_new, nope) @ w_uk
        for i in range(num_new):
            seen = keys[: num_cached + i + 1]
            scores = torch.cat([query[i : i + 1], torch.zeros(1, rope)], -1) @ seen.T
            scores @ seen[:, :latent] @ w_uv
    with FlopCounterMode(display=False) as expanded:
        k_nope, values = keys[:, :latent] @ w_uk.T, keys[:, :latent] @ w_uv
        k = torch.cat([k_nope, keys[:, latent:]], -1)
        for i in range(num_new):
            seen = slice(num_cached + i + 1)
            torch.zeros(1, nope + rope) @ k[seen].T @ values[seen]
    return absorbed.get_total_flops(), expanded.get_total_flops()


@pytest.mark.parametrize("num_cached", [0, 7, 300, 4000])
@pytest.mark.parametrize("num_new", [1, 2, 30, 100, 171, 200])
@pytest.mark.parametrize("changes", [{}, {"kv_lora_rank": 64}], ids=str)
def test_the_choice_is_that_of_the_count(
    changes: dict[str, int], num_new: int, num_cached: int
) -> None:
    model = config(**changes)
    absorbed, expanded = counted(model, num_new, num_cached)
    assert absorbed_does_less(model, num_new, num_cached) == (absorbed < expanded)


def test_break_even_of_deepseek_v3() -> None:
    assert math.ceil(absorbed_break_even(config())) == 171
    assert absorbed_does_less(config(), 170, 10**7)
    assert not absorbed_does_less(config(), 171, 10**7)
    assert absorbed_break_even(config(kv_lora_rank=64, qk_nope_head_dim=128)) == math.inf
