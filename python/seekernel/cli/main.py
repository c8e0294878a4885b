"""`seekernel`: the table of commands, and what becomes of their errors.

Exit status: 0 done, 1 a defect of ours or a request that failed, 2 a mistake in what was asked for.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from seekernel._version import __version__
from seekernel.errors import SeekernelError

# name: (module:attribute, help line). The module is imported when the command runs.
COMMANDS = {
    "generate": ("seekernel.cli.generate:generate", "Complete prompts with a checkpoint."),
    "info": ("seekernel.cli.info:info", "Show versions, hardware and checkpoint, for a report."),
    "quantize": (
        "seekernel.cli.quantize:quantize",
        "Convert a checkpoint to FP8, W4AFP8 or NVFP4.",
    ),
    "dequantize": (
        "seekernel.cli.quantize:dequantize",
        "Convert a quantised checkpoint to bfloat16.",
    ),
    "verify": ("seekernel.cli.quantize:verify", "Compare two checkpoints tensor by tensor."),
    "jit": ("seekernel.cli.jit:jit", "List, clear or fill the cache of compiled kernels."),
}


class CommandTable(click.Group):
    """A group that knows its commands' names and help lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name) or COMMANDS.get(cmd_name.replace("_", "-"))
        if entry is None:
            return None
        module, attribute = entry[0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[1]) for name, entry in COMMANDS.items()])


def same_spelling(name: str) -> str:
    """Make --max-tokens and --max_tokens the same option."""
    return name.replace("-", "_")


@click.group(
    cls=CommandTable,
    context_settings={
        "token_normalize_func": same_spelling,
        "auto_envvar_prefix": "SEEKERNEL",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, package_name="seekernel")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """DeepSeek-V3/R1 inference: run `seekernel COMMAND --help` for the options of a command.

    Options can be spelled with - or _, and set by environment: SEEKERNEL_GENERATE_MAX_TOKENS=64.
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its status."""
    arguments = list(sys.argv[1:] if args is None else args)
    status = run(arguments)
    sys.stdout.flush()
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run a command, print the line of its error if it fails, and return the exit status."""
    debug = "--debug" in arguments
    # The flag belongs to no command in particular: take it wherever it stands.
    arguments = [item for item in arguments if item != "--debug"]
    try:
        result = cli.main(arguments, prog_name="seekernel", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except SeekernelError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = sys.stderr
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
            return 1
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)


def _fail(message: str, status: int) -> int:
    print("seekernel: error: " + " ".join(message.split()), file=sys.stderr)
    return status
