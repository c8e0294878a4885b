"""Where the model comes from: a directory the user names, or the checkpoint in the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from seekernel.errors import OptionError


def default_model_dir() -> Path:
    """Return the bundled checkpoint's directory. Errors: OptionError if it was not installed."""
    try:
        folder = Path(str(files("seekernel.model.demo") / "checkpoint"))
    except ModuleNotFoundError:
        folder = Path()
    if not (folder / "config.json").is_file():
        raise OptionError(
            "model_dir: this installation has no bundled checkpoint; name a directory"
        )
    return folder


def resolve_model_dir(model: str | Path | None) -> Path:
    """Return the directory of `model`, by default the bundled one. Errors: OptionError."""
    if model is None:
        return default_model_dir()
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise OptionError.expected("model_dir", "a directory with a config.json", str(model))
    return folder
