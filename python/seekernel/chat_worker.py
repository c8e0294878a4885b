"""The process that renders chat templates: one JSON job a line in, one JSON answer a line out."""

from __future__ import annotations

import datetime
import functools
import json
import resource
import sys
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_LIMIT_BYTES = 1 << 30
MAX_OUTPUT_CHARACTERS = 8 << 20


def main() -> None:
    """Answer jobs until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer({"ready": True})
    for line in sys.stdin.buffer:
        job = json.loads(line)
        try:
            answer({"text": render(job["source"], job["context"])})
        except Exception as error:
            text = " ".join(str(error).split()) or "no message"
            answer({"error": f"{type(error).__name__}: {text:.500}"})


def answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def render(source: str, context: dict[str, Any]) -> str:
    """Return the rendered text. Errors: whatever the template raises, ValueError if too long."""
    pieces: list[str] = []
    length = 0
    for piece in compile_template(source).generate(context):
        length += len(piece)
        if length > MAX_OUTPUT_CHARACTERS:
            raise ValueError(f"expected at most {MAX_OUTPUT_CHARACTERS} characters of output")
        pieces.append(piece)
    return "".join(pieces)


@functools.lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON with its characters as they are: jinja2's own escapes for HTML, which models never saw."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def raise_exception(message: str) -> None:
    """Let a template refuse a conversation, by the name templates call."""
    raise jinja2.TemplateError(message)
