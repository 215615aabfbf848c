"""Python programs in forks of a process that has loaded torch and DVC, and none of our code: as new ones, but for the four
seconds that each of those takes to load torch. What Python itself does at its start is not their subject."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "accelerate", "pandas", "dvc.cli.parser", "dvc.repo.experiments"]
)  # the first is loaded with the first optimizer


class Program(NamedTuple):
    process: Any
    output: Path  # what it has printed
    errors: Path  # the same file, unless what it prints to stderr is kept apart


def start(*words: str, apart: bool = False, **environment: str) -> Program:
    """As `python WORDS` in this folder, with that alone as its environment; words are `-c CODE` or `-m MODULE`, and arguments."""
    kept = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the process that is forked, which starts now if it has not yet
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("OMP_NUM_THREADS") if kept is None else os.environ.update(OMP_NUM_THREADS=kept)
    output = _empty_file()
    errors = _empty_file() if apart else output
    process = CONTEXT.Process(target=_run, args=(words, environment, os.getcwd(), output, errors))
    process.start()
    return Program(process, output, errors)


def _empty_file() -> Path:
    handle, path = tempfile.mkstemp(prefix="tessera-output-")
    os.close(handle)
    return Path(path)


def ended(*programs: Program, timeout: float = 200) -> list[str]:
    """What each has printed, once all have ended well."""
    for program in programs:
        program.process.join(timeout)
        if program.process.exitcode is None:
            program.process.kill()
            program.process.join()
    printed = [program.output.read_text() for program in programs]
    for program in programs:
        program.output.unlink()
    assert [program.process.exitcode for program in programs] == [0] * len(programs), "\n".join(printed)
    return printed


def run(
    command: Sequence[str], *, env: Mapping[str, str], check: bool, cwd: str | Path = ".", capture_output: bool = False,
    text: bool = True, timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """In the place of `subprocess.run`, for commands of this interpreter and of `dvc`."""
    assert command[0] in (sys.executable, "dvc")
    assert text
    assert not check
    with contextlib.chdir(cwd):
        program = start(*(("-m", "dvc") if command[0] == "dvc" else ()), *command[1:], apart=True, **env)
    program.process.join(timeout)
    if program.process.exitcode is None:
        program.process.kill()
        raise subprocess.TimeoutExpired(command, timeout)
    printed = [path.read_text() for path in (program.output, program.errors)]
    program.output.unlink()
    program.errors.unlink()
    if not capture_output:
        sys.stdout.write(printed[0])
        sys.stderr.write(printed[1])
    return subprocess.CompletedProcess(command, program.process.exitcode, *printed)


def _run(words: tuple[str, ...], environment: dict[str, str], folder: str, output: Path, errors: Path) -> None:
    for standard, path in ((1, output), (2, errors)):
        with open(path, "ab") as stream:  # at its end, wherever that is: both may be the same file
            os.dup2(stream.fileno(), standard)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [folder, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    kind, what, *arguments = words
    sys.argv = [kind, *arguments]
    ours = [name for name in sys.modules if name.partition(".")[0] in ("tessera", "stages")]
    assert not ours, f"{ours} were loaded before the program began"
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, kind, "exec"), {"__name__": "__main__"})
