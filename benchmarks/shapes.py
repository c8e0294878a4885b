"""The sizes that DeepSeek-V3/R1 (671B) asks of every kernel, in one place."""

from __future__ import annotations

from dataclasses import dataclass

HIDDEN, INTERMEDIATE, MOE_INTERMEDIATE = 7168, 18432, 2048
NUM_EXPERTS, TOP_K, NUM_GROUPS, TOPK_GROUPS = 256, 8, 8, 4
NUM_HEADS, Q_LORA_RANK, KV_LORA_RANK = 128, 1536, 512
QK_NOPE_HEAD_DIM, QK_ROPE_HEAD_DIM, V_HEAD_DIM = 128, 64, 128
D_QK, D_V = KV_LORA_RANK + QK_ROPE_HEAD_DIM, KV_LORA_RANK
NUM_LAYERS, NUM_DENSE_LAYERS, VOCABULARY = 61, 3, 129280


@dataclass(frozen=True)
class Linear:
    """One weight matrix [n, k]."""

    name: str
    n: int
    k: int


DENSE = (
    Linear("qkv_a", 2112, 7168),
    Linear("q_b", 24576, 1536),
    Linear("kv_b", 32768, 512),
    Linear("o", 7168, 16384),
    Linear("dense_gate_up", 36864, 7168),
    Linear("dense_down", 7168, 18432),
    Linear("shared_gate_up", 4096, 7168),
    Linear("shared_down", 7168, 2048),
    Linear("kv_a", 576, 7168),
)
"""FP8 weight matrices of one card that holds them whole."""

DENSE_TP8 = (
    Linear("q_b_tp8", 3072, 1536),
    Linear("kv_b_tp8", 4096, 512),
    Linear("o_tp8", 7168, 2048),
    Linear("dense_gate_up_tp8", 4608, 7168),
    Linear("dense_down_tp8", 7168, 2304),
)
"""The same, one of eight tensor-parallel slices."""

EXPERTS = (Linear("fc1", 4096, 7168), Linear("fc2", 7168, 2048))
"""Grouped, per expert: gate and up together, down."""

DECODE_M = (1, 2, 4, 8, 16, 32, 64, 96, 128)
PREFILL_M = (1024, 4096)

MLA_BATCHES = (1, 4, 16, 64, 128, 256)
MLA_LENGTHS = (512, 1024, 2048, 4096, 8192, 32768, 131072)
MLA_HEADS = (16, 32, 64, 128)
MLA_S_Q = (1, 2, 4)

MOE_TOKENS = (1, 16, 64, 128, 1024, 4096)
