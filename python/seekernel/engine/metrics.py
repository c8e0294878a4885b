"""What the engine counts, for Prometheus, and its line per iteration."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass

from seekernel.engine.kv_manager import KVManager
from seekernel.engine.scheduler import Scheduler, StepPlan

STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Sample:
    """One value as Prometheus wants it; labels are pairs of name and value."""

    name: str
    kind: str  # counter or gauge
    help: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


class EngineMetrics:
    """Counters since the start, and the state of the last step. Written by the engine's thread."""

    def __init__(self, num_pages: int, print_iter_log: bool = False) -> None:
        self.num_pages = num_pages
        self.iterations = 0
        self.generated_tokens = 0
        self.context_tokens = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.finished: Counter[str] = Counter()
        self.step_seconds = 0.0
        self.step_buckets = [0] * (len(STEP_BUCKETS) + 1)
        self._print = print_iter_log

    def count_tokens(self, count: int) -> None:
        self.generated_tokens += count

    def count_drafts(self, drafted: int, accepted: int) -> None:
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted

    def count_finished(self, reason: str) -> None:
        self.finished[reason] += 1

    def iteration(
        self,
        plan: StepPlan,
        scheduler: Scheduler,
        kv: KVManager,
        tokens_per_decode: int,
        seconds: float,
    ) -> None:
        """Note one step, and print its line if that was asked for."""
        self.iterations += 1
        self.context_tokens += plan.num_context_tokens
        self.step_seconds += seconds
        index = sum(seconds > bound for bound in STEP_BUCKETS)
        self.step_buckets[index] += 1
        if self._print:
            print(
                iteration_line(
                    self.iterations,
                    scheduler.num_running,
                    scheduler.max_running,
                    seconds,
                    time.localtime(),
                    plan,
                    tokens_per_decode,
                ),
                file=sys.stdout,
                flush=True,
            )

    def samples(self, scheduler: Scheduler, kv: KVManager) -> list[Sample]:
        """Return all values under their Prometheus names."""
        stats = kv.stats
        counters = [
            ("iterations_total", "Steps of the engine.", self.iterations),
            ("generated_tokens_total", "Tokens given to requests.", self.generated_tokens),
            ("prompt_tokens_total", "Tokens of admitted sequences.", stats.prompt_tokens),
            ("prefilled_tokens_total", "Known tokens run through the model.", self.context_tokens),
            ("reused_tokens_total", "Tokens whose pages were known.", stats.reused_tokens),
            ("draft_tokens_total", "Tokens drafted.", self.drafted_tokens),
            ("accepted_draft_tokens_total", "Drafts that stood.", self.accepted_tokens),
            ("preemptions_total", "Sequences sent back to wait.", scheduler.num_preempted),
            ("kv_pages_evicted_total", "Idle pages taken again.", kv.pool.num_evicted),
            ("step_seconds_total", "Time spent in steps.", self.step_seconds),
        ]
        used = kv.pool.num_pages - kv.pool.num_free
        gauges = [
            ("requests_running", "Sequences that run.", scheduler.num_running),
            ("requests_waiting", "Sequences that wait.", scheduler.num_waiting),
            ("kv_pages", "Pages of the KV cache.", kv.pool.num_pages),
            ("kv_pages_used", "Pages held by sequences.", used),
            ("kv_pages_idle", "Pages kept for reuse.", kv.pool.num_idle),
        ]
        samples = [Sample("seekernel_" + n, "counter", h, float(v)) for n, h, v in counters]
        samples += [Sample("seekernel_" + n, "gauge", h, float(v)) for n, h, v in gauges]
        for reason in ("stop", "length", "abort", "error"):
            samples.append(
                Sample(
                    "seekernel_requests_finished_total", "counter", "Sequences that ended.",
                    float(self.finished[reason]), (("reason", reason),),
                )
            )  # fmt: skip
        return samples


def iteration_line(
    iteration: int,
    num_running: int,
    max_running: int,
    seconds: float,
    now: time.struct_time,
    plan: StepPlan,
    tokens_per_decode: int,
) -> str:
    """Return the line of one step in TensorRT-LLM's format, which people parse."""
    states = {
        "num_ctx_requests": len(plan.chunks),
        "num_ctx_tokens": plan.num_context_tokens,
        "num_generation_tokens": len(plan.decodes) * tokens_per_decode,
    }
    return (
        f"iter = {iteration}, global_rank = 0, rank = 0, "
        f"currank_total_requests = {num_running}/{max_running}, elapsed_time = {seconds}s, "
        f"timestamp = {time.strftime('%Y-%m-%d %H:%M:%S', now)}, "
        f"num_scheduled_requests: {len(plan.decodes) + len(plan.chunks)}, states = {states}"
    )
