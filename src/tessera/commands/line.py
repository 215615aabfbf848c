"""The command line of trained models: arguments with bounds, errors without traceback, progress on long work."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tessera.core.errors import InputError
from tessera.runtime import process

QUIET = 1.0  # seconds of work that show no progress bar


class Parser(argparse.ArgumentParser):
    """`--help` is the docstring of the command, then its options with their defaults. Options are written out in full: an
    abbreviation could come to mean another one."""

    def __init__(self, command: str, text: str | None) -> None:
        super().__init__(
            prog=f"python -m tessera.{command}", description=text, formatter_class=Help, allow_abbrev=False
        )


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults, and the text as it was written."""


def enter(parser: Parser, work: Callable[[argparse.Namespace], None], given: Sequence[str] | None) -> int:
    """Parse the arguments (`given`; None: those of the process) and do the work.

    Returns:
        The exit status: 0; 1 after a bad input, which is named without a traceback; 130 where Ctrl-C stopped it. Bad
        arguments end the process with status 2, as `argparse` does.
    """
    options = parser.parse_args(given)
    process.prepare()
    try:
        work(options)
    except InputError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 128 + signal.SIGINT
    return 0


def say(text: str) -> None:
    """A line for people; what a command prints on stdout is its result."""
    print(text, file=sys.stderr, flush=True)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of an argument that is a whole number within bounds."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"must be {_bounds(least, most)}, got {number}")
        return number

    return read


def number(least: float, most: float = math.inf, *, above: bool = False) -> Callable[[str], float]:
    """The type of an argument that is a finite number within bounds. `above`: the lower bound itself is refused."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
        if not math.isfinite(value) or value < least or (above and value == least) or value > most:
            bounds = f"above {least:g}" if above else f"at least {least:g}"
            bounds += f" and at most {most:g}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {text}")
        return value

    return read


def _bounds(least: int, most: int | None) -> str:
    return f"at least {least}" if most is None else f"from {least} to {most}"


def ending(*allowed: str) -> Callable[[str], Path]:
    """The type of an argument that is a file to be written; its name must end in one of `allowed`, as `.png`."""

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in allowed:
            raise argparse.ArgumentTypeError(f"must end in {' or '.join(allowed)}, got {text!r}")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"must be a file, and {text!r} is a folder")
        return path

    return read


def progress(total: int, title: str, unit: str) -> Any:
    """A progress bar on stderr with `update(n)`, as a context. Work of less than a second shows none; outside a terminal it
    updates only every 15 seconds."""
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 15
    return tqdm(total=total, desc=title, unit=unit, mininterval=interval, delay=QUIET, dynamic_ncols=True, leave=False)
