"""Whole-model speed on a CPU, peers interleaved in one run.

    python -m benchmarks.bench_cpu_model --config medium --peer transformers --peer llama_cpp=PYTHON

Every engine loads the same random weights (ours as FP8 blocks, peers dequantised to float32, or
their own 8-bit form where named so), greedy tokens are compared first, then rounds of prefill b1/b8
(512-token prompts) and decode b1/b8 alternate between engines. Printed: median tokens/s with
p20-p80, and the ratio to ours. A peer runs in the interpreter given after "=", ours by default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.model_configs import CONFIGS, make_checkpoints

PEERS = ("transformers", "llama_cpp", "llama_cpp_q8_0", "vllm")
PROMPT_LENGTH, DECODE_STEPS, CHECKED_TOKENS = 512, 32, 8


class Worker:
    """A running engine process."""

    def __init__(self, name: str, interpreter: str, checkpoint: Path, threads: int) -> None:
        self.name = name
        module = name.removesuffix("_q8_0")
        root = Path(__file__).resolve().parent.parent
        arguments = [str(checkpoint), str(threads), *(["q8_0"] if name.endswith("_q8_0") else [])]
        self._process = subprocess.Popen(
            [interpreter, "-m", f"benchmarks.workers.{module}_worker", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(root)},
        )  # fmt: skip
        self.version = self._answer()["version"]

    def _answer(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise RuntimeError(f"{self.name}: no output pipe")
        for line in self._process.stdout:
            if line.startswith("{"):  # an engine may log to standard output while it starts
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"{self.name}: worker ended with status {self._process.wait()}")

    def do(self, **command: Any) -> dict[str, Any]:
        if self._process.stdin is None:
            raise RuntimeError(f"{self.name}: no input pipe")
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=30)


def prompts(batch: int, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(batch)
    rows = torch.randint(2, vocab_size, (batch, PROMPT_LENGTH), generator=generator)
    result: list[list[int]] = rows.tolist()
    return result


def check(workers: list[Worker], vocab_size: int) -> None:
    """Compare the first greedy tokens; only an 8-bit peer may differ."""
    tokens = {}
    for worker in workers:
        worker.do(do="prefill", prompts=prompts(1, vocab_size))
        tokens[worker.name] = worker.do(do="decode", steps=CHECKED_TOKENS)["tokens"][0]
    want = tokens[workers[0].name]
    for name, got in tokens.items():
        same = sum(a == b for a, b in zip(want, got, strict=True))
        print(f"# {name}: {same}/{CHECKED_TOKENS} first greedy tokens as ours: {got}")
        if got[0] != want[0] and not name.endswith("_q8_0"):
            raise SystemExit(
                f"{name}: first greedy token {got[0]}, ours {want[0]}: not the same model"
            )


def measure(
    workers: list[Worker], vocab_size: int, rounds: int
) -> dict[tuple[str, str], list[float]]:
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for batch in (1, 8):
            for worker in workers:
                done = worker.do(do="prefill", prompts=prompts(batch, vocab_size))
                rate = batch * PROMPT_LENGTH / done["seconds"]
                rates.setdefault((worker.name, f"prefill b{batch}"), []).append(rate)
                done = worker.do(do="decode", steps=DECODE_STEPS)
                rate = batch * DECODE_STEPS / done["seconds"]
                rates.setdefault((worker.name, f"decode b{batch}"), []).append(rate)
    return rates


def sgemm_gflops(threads: int) -> float:
    """The machine's own float32 matrix rate, best of five."""
    torch.set_num_threads(threads)
    a, best = torch.randn(2048, 2048), 0.0
    import time

    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start) / 1e9)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", choices=CONFIGS, default="medium")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME[=PYTHON]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--checkpoints", type=Path, help="folder to keep the random weights in")
    parser.add_argument("--json", type=Path, help="write all samples there")
    args = parser.parse_args()
    folder = args.checkpoints or Path(tempfile.mkdtemp(prefix="seekernel-bench-"))
    fp8, float32 = make_checkpoints(args.config, folder)
    vocab_size = CONFIGS[args.config]["vocab_size"]
    print(f"# sgemm 2048^3: {sgemm_gflops(args.threads):.1f} GFLOP/s with {args.threads} threads")
    workers = [Worker("seekernel", sys.executable, fp8, args.threads)]
    for peer in args.peer:
        name, _, interpreter = peer.partition("=")
        if name not in PEERS:
            parser.error(f"--peer: expected one of {PEERS}, got {name!r}")
        workers.append(Worker(name, interpreter or sys.executable, float32, args.threads))
    try:
        check(workers, vocab_size)
        rates = measure(workers, vocab_size, args.rounds)
    finally:
        for worker in workers:
            worker.close()
    print(f"# load average at the end: {os.getloadavg()[0]:.1f}")
    print(f"{'engine':24s} {'what':12s} {'tok/s':>8s} {'p20':>8s} {'p80':>8s} {'ours/it':>8s}")
    versions = {worker.name: worker.version for worker in workers}
    for (name, what), values in sorted(rates.items(), key=lambda item: item[0][1]):
        median = statistics.median(values)
        low, high = (sorted(values)[int(len(values) * q)] for q in (0.2, 0.8))
        ours = statistics.median(rates["seekernel", what]) / median
        print(
            f"{name + ' ' + versions[name]:24s} {what:12s} {median:8.1f} {low:8.1f} {high:8.1f} {ours:8.2f}"
        )
    if args.json:
        rows = [{"engine": n, "what": w, "tok_s": v} for (n, w), v in rates.items()]
        args.json.write_text(json.dumps({"config": args.config, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
