"""`seekernel generate`: complete prompts and print them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from seekernel.cli.engine_options import engine_options, given_options
from seekernel.errors import OptionError

DEFAULT_PROMPTS = (
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
)
MAX_NEW_TOKENS = 64
SAMPLING = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "stop", "min_tokens", "ignore_eos"),
    *("n", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "logprobs"),
    *("best_of", "prompt_logprobs"),
)


@click.command()
@click.option(
    "--model_dir", metavar="DIR", help="Checkpoint directory.  [default: the bundled one]"
)
@click.option(
    "--prompt", "prompts", multiple=True, help="May be repeated.  [default: four of ours]"
)
@click.option(
    "--apply_chat_template", "--chat", "chat", is_flag=True, help="Treat prompts as user messages."
)
@click.option("--max_tokens", type=int, default=MAX_NEW_TOKENS, show_default=True)
@click.option("--temperature", type=float, help="0 is greedy.  [default: greedy, or 1 with top_*]")
@click.option("--top_k", type=int, default=0, help="Keep the K likeliest tokens; 0 keeps all.")
@click.option("--top_p", type=float, default=1.0, help="Keep the likeliest that reach P together.")
@click.option("--min_p", type=float, default=0.0, help="Keep tokens P times as likely as the top.")
@click.option("--stop", multiple=True, help="End at this text. May be repeated.")
@click.option("--min_tokens", type=int, default=0, help="Do not end before.")
@click.option("--ignore_eos", is_flag=True, help="Go on after the end-of-sequence token.")
@click.option("--n", type=int, default=1, help="Samples per prompt.")
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--repetition_penalty", type=float, default=1.0)
@click.option("--presence_penalty", type=float, default=0.0)
@click.option("--frequency_penalty", type=float, default=0.0)
@click.option("--logprobs", type=int, help="With --json: log-probabilities of so many tokens.")
@click.option("--best_of", type=int, help="Samples to make, the N best of which are given.")
@click.option("--prompt_logprobs", type=int, help="With --json: the same for the prompt's tokens.")
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per prompt.")
def generate(
    model_dir: str | None, prompts: tuple[str, ...], chat: bool, as_json: bool, **options: Any
) -> int:
    """Complete prompts with a checkpoint and print the text."""
    from seekernel.engine import LLM, SamplingParams

    params = SamplingParams(**{name: options.pop(name) for name in SAMPLING})
    texts = list(prompts or DEFAULT_PROMPTS)
    for text in texts:
        if not text:
            raise OptionError("prompt: expected some text, got an empty string")
    with LLM(model_dir, **given_options(options)) as llm:
        if chat:
            messages = [[{"role": "user", "content": text}] for text in texts]
            outputs = llm.chat(messages, params)
        else:
            outputs = llm.generate(texts, params)
    for index, (text, output) in enumerate(zip(texts, outputs, strict=True)):
        if as_json:
            click.echo(json.dumps(asdict(output), ensure_ascii=False))
            continue
        for sample in output.outputs:
            click.echo(f"[{index}] Prompt: {text!r}, Generated text: {sample.text!r}")
    failures = [
        f"[{index}] {sample.error}"
        for index, output in enumerate(outputs)
        for sample in output.outputs
        if sample.error is not None
    ]
    for line in failures:
        click.echo(f"seekernel: error: {line}", err=True)
    return 1 if failures else 0
