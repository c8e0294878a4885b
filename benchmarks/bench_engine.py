"""What the engine adds to the model: host time per step, prefix reuse, drafts, batched throughput.

    python -m benchmarks.bench_engine [--model_dir DIR] [--only overhead,reuse,mtp,throughput]
    python -m benchmarks.bench_engine --only throughput --config medium --peer llama_cpp=PYTHON

overhead    host time per decode step at batch 64, everything but the model's forward, by stage
reuse       time to first token of a long prompt, first and second time, interleaved
mtp         acceptance and tokens per step for 0 to 4 drafts; the tokens are checked to be the same
throughput  decode tokens/s of whole engines at batch 8, 16, 32 (peers: llama.cpp's batched decode)

Every part compares what was generated before it prints a time. Medians with p20-p80.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_cpu_model import Worker
from benchmarks.model_configs import CONFIGS, make_checkpoints
from seekernel import LLM, SamplingParams
from seekernel.engine.checkpoint import default_model_dir

PARTS = ("overhead", "reuse", "mtp", "throughput")
TEXTS = (
    "Hello, my name is", "The president of the United States is", "The capital of France is",
    "The future of AI is", "Once upon a time", "Tom has 7 apples and buys 5 more. How many",
)  # fmt: skip
NEW_TOKENS = 48


def spread(values: list[float]) -> str:
    low, high = (sorted(values)[int(len(values) * q)] for q in (0.2, 0.8))
    return f"{statistics.median(values):9.1f} {low:9.1f} {high:9.1f}"


def greedy(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=count, ignore_eos=True)


class Stopwatch:
    """Sums the time spent in wrapped functions, step by step."""

    def __init__(self) -> None:
        self.step: dict[str, float] = defaultdict(float)
        self._depth = 0

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.step[name] += (time.perf_counter() - begin) * 1e6

        setattr(owner, attribute, timed)


def overhead(folder: Path, batch: int = 64, steps: int = 100) -> None:
    """Time one decode step of a full batch and what of it is the model's."""
    with LLM(folder, max_batch_size=batch, max_seq_len=512) as llm:
        core = llm._live_core()
        watch = Stopwatch()
        watch.wrap(core.runner.model, "forward", "model")
        watch.wrap(core.runner.model, "compute_logits", "model")
        watch.wrap(core.scheduler, "schedule", "schedule")
        watch.wrap(core, "_take", "process")
        watch.wrap(core.runner, "begin", "device")
        watch.wrap(core, "step", "whole")
        rows: dict[str, list[float]] = defaultdict(list)
        step = core.step

        def recorded() -> Any:
            watch.step.clear()
            result = step()
            if watch.step["whole"] and core.scheduler.num_running == batch:
                now = dict(watch.step)
                rows["model forward, head"].append(now["model"])
                rows["schedule"].append(now["schedule"])
                rows["layout, choice, buffers"].append(now["device"] - now["model"])
                rows["tokens to text and stops"].append(now["process"])
                rows["engine in all"].append(now["whole"] - now["model"])
            return result

        core.step = recorded  # type: ignore[method-assign]
        prompts = [[1, 2, 3, 4 + index] for index in range(batch)]
        outputs = llm.generate(prompts, greedy(steps), use_tqdm=False)
        if any(len(output.outputs[0].token_ids) != steps for output in outputs):
            raise SystemExit("overhead: a request did not get its tokens")
    print(f"overhead: batch {batch}, us per step over {len(rows['schedule'])} steps")
    print(f"{'':28s} {'median':>9s} {'p20':>9s} {'p80':>9s}")
    for name, values in rows.items():
        print(f"{name:28s} {spread(values[2:])}")


def reuse(folder: Path, length: int = 4000, rounds: int = 5) -> None:
    """Time to the first token of new prompts and of the same ones again."""
    times: dict[str, list[float]] = {"first time": [], "second time": []}
    generator = torch.Generator().manual_seed(0)
    with LLM(folder, max_batch_size=2, max_seq_len=length + 64) as llm:
        vocab_size = llm.config.vocab_size
        for _ in range(rounds):
            prompt = torch.randint(2, vocab_size, (length,), generator=generator).tolist()
            answers = []
            for name in times:
                output = llm.generate(prompt, greedy(4), use_tqdm=False)
                times[name].append((output.timing.first_token or 0.0) * 1e3)
                answers.append(output.outputs[0].token_ids)
                if name == "second time" and output.cached_tokens < length - 64:
                    raise SystemExit(f"reuse: only {output.cached_tokens} tokens were known")
    print(f"reuse: {length} tokens, ms to the first token, {rounds} prompts")
    for name, values in times.items():
        print(f"{name:28s} {spread(values)}")
    ratio = statistics.median(times["first time"]) / statistics.median(times["second time"])
    print(f"{'ratio':28s} {ratio:9.1f}")


def mtp(folder: Path) -> None:
    """Acceptance of the MTP module's drafts; the text is the same with any number of them."""
    print("mtp: greedy, batch invariant")
    print(f"{'drafts':>6s} {'accepted':>9s} {'tokens/step':>12s} {'steps':>6s} {'s':>7s}")
    want: list[list[int]] | None = None
    for nextn in range(5):
        options = {"spec_decode_algo": "MTP", "spec_decode_nextn": nextn}
        with LLM(folder, max_seq_len=512, batch_invariant=True, **options) as llm:
            begin = time.perf_counter()
            outputs = llm.generate(list(TEXTS), greedy(NEW_TOKENS), use_tqdm=False)
            seconds = time.perf_counter() - begin
        got = [output.outputs[0].token_ids for output in outputs]
        if want is not None and got != want:
            raise SystemExit(f"mtp: other tokens with {nextn} drafts")
        want = got
        stats = [output.outputs[0].speculation for output in outputs]
        steps = sum(item.num_steps for item in stats if item) or len(TEXTS) * (NEW_TOKENS - 1)
        stood = sum(item.num_accepted for item in stats if item)
        drafted = sum(item.num_drafted for item in stats if item)
        rate = f"{100 * stood / drafted:8.1f}%" if drafted else "        -"
        print(f"{nextn:6d} {rate} {(steps + stood) / steps:12.2f} {steps:6d} {seconds:7.2f}")


def throughput(folder: Path, peers: list[Worker], rounds: int = 3, tokens: int = 32) -> None:
    """Decode tokens/s of the whole engine, and of peers' batched decode, alternating."""
    with LLM(folder, max_batch_size=32, max_seq_len=256, enable_block_reuse=False) as llm:
        vocab_size = llm.config.vocab_size
        rates: dict[tuple[str, int], list[float]] = defaultdict(list)
        for batch in (8, 16, 32):
            generator = torch.Generator().manual_seed(batch)
            prompts = torch.randint(2, vocab_size, (batch, 32), generator=generator).tolist()
            for _ in range(rounds):
                outputs = llm.generate(prompts, greedy(tokens), use_tqdm=False)
                spans = [
                    (output.timing.finished or 0.0) - (output.timing.first_token or 0.0)
                    for output in outputs
                ]
                rates["seekernel engine", batch].append(batch * (tokens - 1) / max(spans))
                for peer in peers:
                    peer.do(do="prefill", prompts=prompts)
                    done = peer.do(do="decode", steps=tokens)
                    rates[f"{peer.name} {peer.version}", batch].append(
                        batch * tokens / done["seconds"]
                    )
                    ours = [output.outputs[0].token_ids[0] for output in outputs]
                    same = sum(a == b[0] for a, b in zip(ours, done["tokens"], strict=True))
                    if same < batch * 0.9 and not peer.name.endswith("_q8_0"):
                        raise SystemExit(f"{peer.name}: {same} of {batch} first tokens as ours")
    print("throughput: decode tokens/s")
    for (name, batch), values in rates.items():
        print(f"{name:24s} b{batch:<3d} {spread(values)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model_dir", type=Path, default=None)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--config", choices=CONFIGS, help="random weights for the throughput part")
    parser.add_argument("--checkpoints", type=Path, help="folder to keep the random weights in")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: expected some of {PARTS}, got {sorted(unknown)}")
    folder = args.model_dir or default_model_dir()
    print(f"# {folder}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for part, run in (("overhead", overhead), ("reuse", reuse), ("mtp", mtp)):
        if part in parts:
            run(folder)
    if "throughput" in parts:
        peers = []
        if args.config is not None:
            keep = args.checkpoints or Path(tempfile.mkdtemp(prefix="seekernel-bench-"))
            folder, float32 = make_checkpoints(args.config, keep)
            for peer in args.peer:
                name, _, interpreter = peer.partition("=")
                threads = torch.get_num_threads()
                peers.append(Worker(name, interpreter or sys.executable, float32, threads))
        try:
            throughput(folder, peers)
        finally:
            for worker in peers:
                worker.close()
    print(f"# load average at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
