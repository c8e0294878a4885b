"""The op calls of a decoder layer are pinned: one more is a decision, not an accident."""

from __future__ import annotations

import pytest

from seekernel.cli.main import run
from seekernel.engine.checkpoint import resolve_model_dir
from seekernel.model import ModelConfig
from seekernel.model.op_count import layer_ops

ATTENTION = {
    "fp8_gemm_nt": 4,
    "mla_prepare": 1,
    "rope_interleaved": 1,
    "fp8_bmm_nt": 2,
    "mla_decode": 1,
    "aten::copy_": 1,
    "add_rms_norm_quantize": 1,
}
EXPERTS = {"fp8_grouped_gemm_swiglu_nt": 1, "fp8_grouped_gemm_nt": 1}


def test_layer_ops() -> None:
    counts = layer_ops(ModelConfig.from_dir(resolve_model_dir(None)))
    assert counts["moe"] == {**ATTENTION, **EXPERTS, "moe_route": 1, "moe_finalize": 1}
    dense = {**ATTENTION, **EXPERTS, "add_rms_norm_quantize": 2, "aten::arange": 1, "aten::mul.Tensor": 1}  # fmt: skip
    assert counts["dense"] == dense
    assert sum(counts["moe"].values()) == 15


def test_info_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--layer"]) == 0
    assert "15 calls: " in capsys.readouterr().out
