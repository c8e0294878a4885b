"""Conversion of checkpoints between formats: `seekernel quantize`, `dequantize`, `verify`."""

from seekernel.quantize.act_scales import read_act_scales
from seekernel.quantize.convert import Conversion
from seekernel.quantize.fp8 import plan_dequantize, plan_fp8, plan_nvfp4
from seekernel.quantize.shard_writer import QuantizeError
from seekernel.quantize.verify import Difference, verify
from seekernel.quantize.w4afp8 import plan_w4afp8

__all__ = [
    "Conversion",
    "Difference",
    "QuantizeError",
    "plan_dequantize",
    "plan_fp8",
    "plan_nvfp4",
    "plan_w4afp8",
    "read_act_scales",
    "verify",
]
