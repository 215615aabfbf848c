"""Python programs in forks of a process that has loaded torch, and none of our code: as new ones, but for the four seconds
that each of those takes to load it. What Python itself does at its start is not their subject."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "accelerate", "pandas"]
)  # the first is loaded with the first optimizer


class Program(NamedTuple):
    process: Any
    output: Path  # what it has printed


def start(*words: str, **environment: str) -> Program:
    """As `python WORDS` in this folder, with that alone as its environment; words are `-c CODE` or `-m MODULE`, and arguments."""
    kept = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the process that is forked, which starts now if it has not yet
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("OMP_NUM_THREADS") if kept is None else os.environ.update(OMP_NUM_THREADS=kept)
    handle, output = tempfile.mkstemp(prefix="tessera-output-")
    os.close(handle)
    process = CONTEXT.Process(target=_run, args=(words, environment, os.getcwd(), output))
    process.start()
    return Program(process, Path(output))


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


def _run(words: tuple[str, ...], environment: dict[str, str], folder: str, output: str) -> None:
    with open(output, "wb") as stream:
        for standard in (1, 2):
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
