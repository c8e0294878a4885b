"""Write the trained demo model as an FP8 checkpoint and measure it: `python -m seekernel.model.demo.export`."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from tokenizers import Tokenizer

from seekernel.model.demo import books, evaluate
from seekernel.model.demo.checkpoint_io import load_checkpoint, save_checkpoint
from seekernel.model.demo.tokenizer import save_tokenizer
from seekernel.model.demo.torch_model import TorchConfig, TorchDeepseekV3

REQUESTS = (
    "Tell me a short story about a fox.",
    "Tom has 5 apples. Anna gives Tom 7 more. Then he loses 3 of them. How many apples does Tom have now?",
    "What is the capital of France?",
    "Hello!",
)


def plot_losses(log: Path, picture: Path) -> None:
    """Draw the two loss curves of `loss.csv` over the tokens seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    millions = [int(r["tokens"]) / 1e6 for r in rows]
    figure, axes = plt.subplots(figsize=(6.4, 3.6), dpi=100)
    axes.plot(
        millions,
        [float(r["mtp_loss"]) for r in rows],
        color="#c0603a",
        lw=1,
        label="MTP module, token t+2",
    )
    axes.plot(
        millions,
        [float(r["loss"]) for r in rows],
        color="#2a5d9c",
        lw=1,
        label="main model, token t+1",
    )
    axes.set(xlabel="million training tokens", ylabel="cross entropy, nats a token", yscale="log")
    ticks = [
        t
        for t in (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8)
        if t >= 0.9 * min(float(r["loss"]) for r in rows)
    ]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture)
    plt.close(figure)


def _losses(model: TorchDeepseekV3, sets: dict[str, list[list[int]]]) -> dict[str, list[float]]:
    return {k: [round(x, 4) for x in evaluate.mean_losses(model, rows)] for k, rows in sets.items()}


@click.command()
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Folder that training wrote.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint."
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write the measurements to this JSON file."
)
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Draw the loss curve into this PNG file."
)
@click.option(
    "--count",
    default=64,
    show_default=True,
    help="Held-out documents of each kind, and questions asked.",
)
@click.option("--threads", default=2, show_default=True)
def main(
    scratch: Path, out: Path, report: Path | None, picture: Path | None, count: int, threads: int
) -> None:
    """Quantise the saved state to FP8, write the checkpoint, and measure before and after."""
    torch.set_num_threads(threads)
    state = torch.load(scratch / "state.pt", map_location="cpu", weights_only=True)
    model = TorchDeepseekV3(TorchConfig(**state["config"]))
    model.load_state_dict(state["model"])
    save_checkpoint(model, out)
    save_tokenizer(Tokenizer.from_file(str(scratch / "tokenizer.json")), out)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    size = sum(f.stat().st_size for f in out.iterdir())
    click.echo(f"step {state['step']}, {state['tokens']} tokens; {out.name}: {size / 1e6:.2f} MB")
    if picture:
        plot_losses(scratch / "loss.csv", picture)
    if not report:
        return
    chapters = books.load(scratch / "books").held_out
    sets = evaluate.held_out_sets(tokenizer, chapters, count)
    stored = load_checkpoint(out)
    result: dict[str, Any] = {k: state[k] for k in ("step", "tokens", "seconds")} | {"bytes": size}
    result["loss_trained"] = _losses(model, sets)
    result["loss_fp8_weights"] = _losses(stored, sets)
    with evaluate.quantised_activations(stored):
        result["loss_fp8_weights_and_activations"] = _losses(stored, sets)
        result["skills"] = asdict(evaluate.measure_skills(stored, tokenizer, count))
        asked = [
            tokenizer.decode(evaluate.ask(tokenizer, q), skip_special_tokens=False)
            for q in REQUESTS
        ]
        prompts = [*evaluate.PROMPTS, "Once upon a time", *asked]
        texts = evaluate.samples(stored, tokenizer, prompts, 220)
    result["samples"] = [
        {"prompt": p, "text": t, "ended": e} for p, (t, e) in zip(prompts, texts, strict=True)
    ]
    report.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    click.echo(report.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
