"""Train the demo model: `python -m seekernel.model.demo.train --help`.

AdamW, a cosine schedule, the MTP module trained beside the main model, and the router balanced by
its selection bias alone. The state is saved every few minutes, and `--resume` goes on from it.
"""

from __future__ import annotations

import csv
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import Tokenizer
from torch import Tensor

from seekernel.model.demo import books, data
from seekernel.model.demo.muon import Muon
from seekernel.model.demo.tokenizer import save_tokenizer, train_tokenizer
from seekernel.model.demo.torch_model import Gate, TorchConfig, TorchDeepseekV3

SHORT, LONG = 256, 768
MTP_WEIGHT = 0.3
BIAS_SPEED = 1e-3
DECAY_FROM = 0.75
LOSS_ROWS = 512
"""Rows of logits computed at a time, so that they stay in the cache instead of in memory."""


class _HeadLoss(torch.autograd.Function):
    """Sum of the cross entropies of head(x), with gradients made on the way, a few rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x, grad_head = torch.empty_like(x), torch.zeros_like(head)
        narrow = head.to(x.dtype)
        for begin in range(0, x.shape[0], LOSS_ROWS):
            rows, want = x[begin : begin + LOSS_ROWS], target[begin : begin + LOSS_ROWS]
            log_probs = (rows @ narrow.t()).float().log_softmax(-1)
            total -= log_probs.gather(1, want.unsqueeze(1)).sum()
            delta = log_probs.exp_()
            delta[torch.arange(len(want), device=x.device), want] -= 1
            delta_narrow = delta.to(x.dtype)
            grad_x[begin : begin + LOSS_ROWS] = delta_narrow @ narrow
            grad_head += delta_narrow.t() @ rows
        ctx.save_for_backward(grad_x, grad_head)
        return total

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grad[0].to(grad_x.dtype), grad_head * grad[0], None


def _mean_loss(model: TorchDeepseekV3, hidden: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean cross entropy over the places where `valid`."""
    picked = hidden[valid]
    if torch.is_autocast_enabled(hidden.device.type):
        picked = picked.to(torch.bfloat16)
    total: Tensor = _HeadLoss.apply(picked, model.lm_head.weight, target[valid])  # type: ignore[no-untyped-call]
    return total / picked.shape[0]


def losses(model: TorchDeepseekV3, batch: data.Batch) -> tuple[Tensor, Tensor]:
    """Main and MTP cross entropy, nats a token, over targets inside the same document."""
    ids, seg = batch.ids, batch.segments
    hidden = model(ids[:, :-2], seg[:, :-2])
    main = _mean_loss(model, hidden, ids[:, 1:-1], seg[:, 1:-1] == seg[:, :-2])
    if model.config.num_nextn_predict_layers == 0:
        return main, torch.zeros_like(main)
    draft = model.mtp_hidden(hidden, ids[:, 1:-1], seg[:, :-2])
    return main, _mean_loss(model, draft, ids[:, 2:], seg[:, 2:] == seg[:, :-2])


def learning_rate(peak: float, done: float, warm: float) -> float:
    """Linear warm-up over the first `warm` of the run, flat to DECAY_FROM, then a cosine to 1%."""
    if done < warm:
        return peak * max(done, 1e-3) / warm
    fall = min(max(done - DECAY_FROM, 0.0) / (1 - DECAY_FROM), 1.0)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def _optimizers(model: TorchDeepseekV3, muon: bool) -> list[torch.optim.Optimizer]:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if muon and n.endswith("_proj.weight")]
    taken = {id(p) for p in matrices}
    decay = [p for _, p in named if p.dim() >= 2 and id(p) not in taken]
    plain = [p for _, p in named if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-9, foreach=True)
    return [adamw, Muon(matrices)] if matrices else [adamw]


def _load_tokenizer(
    scratch: Path, vocab_size: int, novels: dict[str, list[str]], seed: int
) -> Tokenizer:
    path = scratch / "tokenizer.json"
    if not path.is_file():
        save_tokenizer(
            train_tokenizer(data.tokenizer_texts(novels, seed, 3000), vocab_size), scratch
        )
    tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.get_vocab_size() != vocab_size:
        raise click.ClickException(
            f"{path}: expected {vocab_size} tokens, got {tokenizer.get_vocab_size()}"
        )
    return tokenizer


def _forget_after(log: Path, step: int) -> None:
    """Drop the log's lines of steps that are done again, because they came after the last save."""
    head, *lines = log.read_text().splitlines()
    kept = [line for line in lines if int(line.split(",")[0]) <= step]
    log.write_text("\n".join([head, *kept]) + "\n")


def _save(path: Path, state: dict[str, Any]) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


@click.command()
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the novels, the tokenizer, the state and the log; outside the repository.",
)
@click.option("--steps", default=0, help="Stop after this many steps; 0: by --minutes.")
@click.option(
    "--minutes",
    default=60.0,
    show_default=True,
    help="Length of the whole run, over all its resumes.",
)
@click.option("--resume", is_flag=True, help="Go on from the saved state, if there is one.")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp32"]),
    default="bf16",
    show_default=True,
    help="Of the matrix products; bf16 is slow on CPUs without AVX512-BF16 or AMX.",
)
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--optimizer", type=click.Choice(["muon", "adamw"]), default="muon", show_default=True
)
@click.option("--rows", default=8, show_default=True, help="Rows of 256 tokens in a step.")
@click.option("--peak_lr", default=3e-3, show_default=True)
@click.option("--save_minutes", default=4.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(scratch: Path, steps: int, minutes: float, resume: bool, device: str, dtype: str, threads: int,
         optimizer: str, rows: int, peak_lr: float, save_minutes: float, seed: int) -> None:  # fmt: skip
    """Train the demo model; every twelfth step uses rows of 768 tokens instead of 256."""
    torch.set_num_threads(threads)
    books.fetch(scratch / "books")
    novels = books.load(scratch / "books").train
    config = TorchConfig()
    tokenizer = _load_tokenizer(scratch, config.vocab_size, novels, seed)
    mix = data.Mix(tokenizer, novels, seed)
    model = TorchDeepseekV3(config)
    model.init_weights(seed)
    model.to(device)
    optimizers = _optimizers(model, optimizer == "muon")
    gates = [m for m in model.modules() if isinstance(m, Gate)]
    state_path, log_path = scratch / "state.pt", scratch / "loss.csv"
    step, tokens, spent = 0, 0, 0.0
    if resume and state_path.is_file():
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for o, saved in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(saved)
        step, tokens, spent = state["step"], state["tokens"], state["seconds"]
        _forget_after(log_path, step)
        click.echo(f"resumed at step {step}, {tokens} tokens, {spent:.0f} s")
    else:
        log_path.write_text("step,tokens,seconds,lr,loss,mtp_loss\n")
    click.echo(
        f"{sum(p.numel() for p in model.parameters())} parameters, {mix.novel_tokens} tokens of novels"
    )
    started, last_save = time.monotonic() - spent, time.monotonic()
    sums, count = [0.0, 0.0], 0
    while True:
        seconds = time.monotonic() - started
        done = step / steps if steps else seconds / (60 * minutes)
        finished = done >= 1
        if finished or time.monotonic() - last_save > 60 * save_minutes:
            last_save = time.monotonic()
            _save(state_path, {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step,
                               "tokens": tokens, "seconds": seconds, "config": asdict(config)})  # fmt: skip
        if finished:
            break
        length = LONG if step % 12 == 11 else SHORT
        batch = mix.batch(step, rows * SHORT // length, length)
        batch = data.Batch(batch.ids.to(device), batch.segments.to(device))
        rate = learning_rate(peak_lr, done, 0.03)
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = rate
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            loss, mtp_loss = losses(model, batch)
        torch.autograd.backward(loss + MTP_WEIGHT * mtp_loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
        model.zero_grad(set_to_none=False)
        for gate in gates:
            gate.update_bias(BIAS_SPEED)
        step, tokens = step + 1, tokens + batch.ids[:, 2:].numel()
        sums, count = [sums[0] + loss.item(), sums[1] + mtp_loss.item()], count + 1
        if step % 20 == 0:
            row = [
                step,
                tokens,
                round(seconds, 1),
                f"{rate:.3e}",
                f"{sums[0] / count:.4f}",
                f"{sums[1] / count:.4f}",
            ]
            with log_path.open("a", newline="") as file:
                csv.writer(file).writerow(row)
            click.echo(f"{row} {tokens / max(seconds, 1):.0f} tokens/s")
            sums, count = [0.0, 0.0], 0


if __name__ == "__main__":
    main()
