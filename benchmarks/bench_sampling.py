"""One decode step's sampling at DeepSeek-V3's vocabulary: each filter, log-probabilities, draft verification.

    python -m benchmarks.bench_sampling [--quick] [--device cpu] [--rows 1 16] [--out sampling.csv]

Baselines: torch eager (sort, cumulative sum, multinomial by exponentials), the same under torch.compile, and
FlashInfer's sampling kernels where it can be imported. Ours is checked against the CPU op, bit for bit, and each
baseline against the set of tokens that the filters leave, before anything is timed. Logits are normal with a standard
deviation of 3 (`wide`: a nucleus of hundreds) or of 6 (`peaked`: a handful). `roof` is the time to read the logits
once at the bandwidth of a large copy, measured here; bytes are those of the logits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import VOCABULARY
from benchmarks.timing import Call, Table, copies_beyond_cache, measure, roofs
from seekernel import ops


@dataclass(frozen=True)
class Setting:
    """One row's parameters, the same for every sequence."""

    name: str
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    spread: float = 3.0


SETTINGS = (
    Setting("greedy", temperature=0.0),
    Setting("temperature"),
    Setting("top_k 50", top_k=50),
    Setting("top_p 0.95 wide", temperature=0.6, top_p=0.95),
    Setting("top_p 0.95 peaked", temperature=0.6, top_p=0.95, spread=6.0),
    Setting("top_k 50 top_p 0.95", top_k=50, top_p=0.95),
    Setting("min_p 0.05", min_p=0.05),
)


class Inputs:
    """Logits in as many copies as outgrow the cache, and the parameter columns."""

    def __init__(self, rows: int, v: int, setting: Setting, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(rows)
        base = torch.randn(rows, v, generator=generator) * setting.spread
        copies = copies_beyond_cache(base.nbytes, device, limit=16)
        self.on_cpu = base
        self.logits = [base.roll(i, 1).to(device) for i in range(copies)]
        column: Callable[[float, torch.dtype], Tensor] = lambda value, dtype: torch.full(
            (rows,), value, dtype=dtype
        )
        self.columns_on_cpu: tuple[Any, ...] = (
            column(setting.temperature, torch.float32),
            column(setting.top_k, torch.int32),
            column(setting.top_p, torch.float32),
            column(setting.min_p, torch.float32),
            torch.arange(rows),
            torch.arange(rows) * 3,
        )
        self.columns: tuple[Any, ...] = tuple(c.to(device) for c in self.columns_on_cpu)
        self.ids, self.status = (torch.empty(rows, dtype=torch.int32, device=device) for _ in "is")


def eager_sample(logits: Tensor, s: Setting) -> Tensor:
    """Plain torch: no host synchronisation, so that it can be captured."""
    if s.temperature == 0.0:
        return logits.argmax(-1)
    probs = torch.softmax(logits / s.temperature, -1)
    if s.min_p > 0.0:
        probs = probs.masked_fill(probs < s.min_p * probs.amax(-1, keepdim=True), 0.0)
    if s.top_k > 0 or s.top_p < 1.0:
        values, order = probs.sort(-1, descending=True)
        if s.top_k > 0:
            values[:, s.top_k :] = 0.0
        if s.top_p < 1.0:
            before = values.cumsum(-1) - values
            values = values.masked_fill(before >= s.top_p * values.sum(-1, keepdim=True), 0.0)
        # The largest of p / Exp(1) is a draw by p.
        place = (values / torch.empty_like(values).exponential_()).argmax(-1, keepdim=True)
        return order.gather(-1, place).squeeze(-1)
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


@cache
def compiled(s: Setting) -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda logits: eager_sample(logits, s), dynamic=False)


def flashinfer_sample(s: Setting) -> Callable[[Tensor], Tensor] | None:
    """FlashInfer's fused sampler for a setting, or None where there is none or no FlashInfer."""
    try:
        import flashinfer
    except ImportError:
        return None
    sampling: Any = flashinfer.sampling
    probs: Callable[[Tensor], Tensor] = lambda logits: torch.softmax(logits / s.temperature, -1)
    if s.temperature == 0.0:
        return None
    if s.top_k and s.top_p < 1.0:
        return lambda x: sampling.top_k_top_p_sampling_from_probs(probs(x), s.top_k, s.top_p)
    if s.top_k:
        return lambda x: sampling.top_k_sampling_from_probs(probs(x), s.top_k)
    if s.top_p < 1.0:
        return lambda x: sampling.top_p_sampling_from_probs(probs(x), s.top_p)
    if s.min_p > 0.0:
        return lambda x: sampling.min_p_sampling_from_probs(probs(x), s.min_p)
    return lambda x: sampling.sampling_from_probs(probs(x))


def check_support(name: str, ids: Tensor, probs: Tensor) -> None:
    """Fail if a token was drawn that the filters do not leave (with room for ties in float32)."""
    chosen = probs.gather(1, ids.cpu().long()[:, None])[:, 0]
    outside = int((chosen == 0).sum())
    if outside > max(1, len(chosen) // 50):  # at a boundary float32 sums may differ by a token
        raise AssertionError(f"{name}: {outside} of {len(chosen)} tokens are outside the support")


def sample_variants(rows: int, v: int, s: Setting, device: torch.device) -> dict[str, list[Call]]:
    inputs = Inputs(rows, v, s, device)
    probs = torch.empty(rows, v)
    sample: Any = ops.sample
    want, _ = sample(inputs.on_cpu, *inputs.columns_on_cpu, probs=probs)
    got, _ = sample(inputs.logits[0], *inputs.columns)
    if not torch.equal(got.cpu(), want):
        raise AssertionError(f"{s.name}: another token than on the CPU")
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda x: sample(x, *inputs.columns, ids=inputs.ids, status=inputs.status)[0],
        "eager": lambda x: eager_sample(x, s),
    }
    if device.type == "cuda":
        functions["compiled"] = compiled(s)
    fused = flashinfer_sample(s) if device.type == "cuda" else None
    if fused is not None:
        functions["flashinfer"] = fused
    for name in list(functions):
        try:
            check_support(name, functions[name](inputs.logits[0]), probs)
        except Exception as error:  # a baseline that cannot run here leaves its column empty
            if name == "ours" or isinstance(error, AssertionError):
                raise
            print(f"# {name} {s.name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            del functions[name]
    return {
        name: [partial(function, x) for x in inputs.logits] for name, function in functions.items()
    }


def logprob_variants(rows: int, v: int, top: int, device: torch.device) -> dict[str, list[Call]]:
    inputs = Inputs(rows, v, Setting("logprobs"), device)
    ids = torch.arange(rows, dtype=torch.int32, device=device)
    out = ops.token_logprobs(inputs.logits[0], ids, top)
    want = ops.token_logprobs(inputs.on_cpu, ids.cpu(), top)
    if not all(torch.equal(a.cpu(), b) for a, b in zip(out, want, strict=True)):
        raise AssertionError("token_logprobs: another result than on the CPU")

    def eager(x: Tensor) -> object:
        logprobs = torch.log_softmax(x, -1)
        chosen = logprobs.gather(1, ids.long()[:, None])
        return chosen, (logprobs > chosen).sum(-1), logprobs.topk(max(top, 1), -1)

    return {
        "ours": [partial(ops.token_logprobs, x, ids, top, out) for x in inputs.logits],
        "eager": [partial(eager, x) for x in inputs.logits],
    }


def rejection_variants(b: int, v: int, device: torch.device) -> dict[str, list[Call]]:
    n = 3
    generator = torch.Generator().manual_seed(b)
    logits = torch.randn(b, n + 1, v, generator=generator) * 3
    p = torch.softmax(logits, -1)
    q = torch.softmax(logits[:, :n] + torch.randn(b, n, v, generator=generator), -1)
    drafts = torch.multinomial(q.reshape(b * n, v), 1, generator=generator).reshape(b, n).int()
    arguments = (p, q, drafts, torch.arange(b), torch.arange(b) * 7)
    on_device: tuple[Any, ...] = tuple(t.to(device) for t in arguments)
    verify: Any = ops.mtp_verify_rejection
    out = verify(*on_device)
    want = ops.mtp_verify_rejection(*arguments)
    if not all(torch.equal(x.cpu(), y) for x, y in zip(out, want, strict=True)):
        raise AssertionError("mtp_verify_rejection: another result than on the CPU")
    p, q, drafts = on_device[:3]

    def eager() -> object:
        index = drafts.long()[..., None]
        at_p, at_q = p[:, :n].gather(2, index)[..., 0], q.gather(2, index)[..., 0]
        accepted = (torch.rand_like(at_p) * at_q < at_p).int().cumprod(1).sum(1)
        padded = torch.cat((q, torch.zeros_like(q[:, :1])), 1)
        rest = (p - padded).clamp(min=0)[torch.arange(b, device=device), accepted]
        return accepted, (rest / torch.empty_like(rest).exponential_()).argmax(-1)

    return {
        "ours": [partial(verify, *on_device, *out)],
        "eager": [eager],
    }


def count_variants(rows: int, v: int, device: torch.device) -> dict[str, list[Call]]:
    """Four tokens a row, each row with a slot of its own; the eager form adds by index."""
    generator = torch.Generator().manual_seed(rows)
    counts = torch.zeros(rows, v, dtype=torch.int32, device=device)
    plain = counts.clone()
    slots = torch.randperm(rows, generator=generator).int().to(device)
    ids = torch.randint(0, v, (rows, 4), generator=generator).int().to(device)
    flat = (slots[:, None] * v + ids).flatten().long()
    twos = torch.full_like(flat, 2, dtype=torch.int32)

    def eager() -> object:
        return plain.view(-1).index_add_(0, flat, twos)

    ops.add_token_counts(counts, slots, ids)
    eager()
    if not torch.equal(counts, plain):
        raise AssertionError("add_token_counts: another result than torch's")
    return {"ours": [partial(ops.add_token_counts, counts, slots, ids)], "eager": [eager]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--quick", action="store_true", help="few rounds, two batch sizes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    v = VOCABULARY if device.type == "cuda" else VOCABULARY // 8
    batches = arguments.rows[:2] if arguments.quick else arguments.rows
    rounds = 5 if arguments.quick else 15
    rate = roofs(device.type).bytes_per_us
    table = Table(
        ("op", "rows", "v", "ours_us", "eager_us", "compiled_us", "flashinfer_us", "roof_us", "of_roof_%")
    )  # fmt: skip

    def add(op: str, rows: int, num_bytes: int, variants: dict[str, list[Call]]) -> None:
        times = measure(variants, device, rounds=rounds)
        roof = num_bytes / rate
        cells = [times.get(name, "-") for name in ("ours", "eager", "compiled", "flashinfer")]
        table.add(op, rows, v, *cells, roof, 100 * roof / times["ours"].median_us)

    for rows in batches:
        for setting in SETTINGS:
            variants = sample_variants(rows, v, setting, device)
            add(f"sample {setting.name}", rows, 4 * rows * v, variants)
        for top in (0, 20):
            add(
                f"token_logprobs top {top}",
                rows,
                4 * rows * v,
                logprob_variants(rows, v, top, device),
            )
        add("add_token_counts n 4", rows, 12 * rows * 4, count_variants(rows, v, device))
        if rows <= 64:
            # The accepted prefix is not known beforehand: one row of p and one of q are read.
            add("mtp_verify_rejection n 3", rows, 8 * rows * v, rejection_variants(rows, v, device))
    if arguments.out is not None:
        table.write(arguments.out)


if __name__ == "__main__":
    main()
