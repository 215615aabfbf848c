"""Stages as forks of a process that has loaded the libraries; `tessera.runtime.command` lets DVC start them so.

DVC starts a new interpreter for each of some forty stages, and each loads torch, pandas and what else it needs: two to seven
seconds on one core, in sum a fifth of the default run. A fork of a process that has loaded them begins at once. It is a
process of its own all the same, with the folder, the environment and the arguments that DVC gives; it loads our code itself, so
that an edit during a run counts as ever; and libraries know nothing of params.yaml before they compute. What runs first is
started as DVC starts it, for the libraries are being loaded meanwhile. Only on Linux: elsewhere forks of such a process may fail.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tessera.runtime import process

# What stages load, and how: none of these looks for a GPU, which its forks could then not use
LIBRARIES = (
    "pandas",
    "torch",
    "torch._dynamo",
    "timm",
    "scipy.stats",
    "seaborn",
    "skimage.metrics",
    "sklearn.linear_model",
)
STAGE = re.compile(r"python -m (stages\.\w+)((?: [\w.-]+)*)")
Start = Callable[..., None]  # executable, command, and the words of subprocess.Popen -> the command has ended well


def starting(others: Start) -> Start:
    """DVC's `_run`, which runs the command of a stage, with forks for what it would start as `python -m stages.<stage>`;
    `others` is DVC's own."""
    context = multiprocessing.get_context("forkserver") if sys.platform == "linux" else None
    begun = False

    def start(executable: str | None, command: str, **given: Any) -> None:
        nonlocal begun
        found = STAGE.fullmatch(command)
        if context is None or found is None or not _is_ours(given["env"]):
            return others(executable, command, **given)
        if not begun:
            begun = True
            process.prepare()  # the environment in which the libraries are loaded
            context.set_forkserver_preload(list(LIBRARIES))
            with _without_interrupts():
                forkserver.ensure_running()
            return others(executable, command, **given)
        module, arguments = found[1], found[2].split()
        interrupted = signal.getsignal(signal.SIGINT) != signal.SIG_IGN  # not so in the background of a script
        where = given["env"], os.path.abspath(given["cwd"])
        fork = context.Process(target=_stage, args=(module, arguments, *where, interrupted))
        with _without_interrupts():
            fork.start()
            fork.join()
        if fork.exitcode:
            from dvc.stage.exceptions import StageCmdFailedError

            raise StageCmdFailedError(command, fork.exitcode)

    return start


def _is_ours(environment: Mapping[str, str]) -> bool:
    """Whether `python` in this environment is the interpreter of this process."""
    python = shutil.which("python", path=environment.get("PATH", os.defpath))
    return python is not None and Path(python).parent == Path(sys.executable).parent


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal, and is the affair of the stage alone. Processes that begin here begin so too."""
    if threading.current_thread() is not threading.main_thread():  # as in DVC: others cannot set signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stage(module: str, arguments: list[str], environment: dict[str, str], folder: str, interrupted: bool) -> None:
    """Be `python -m module arguments` in this folder and environment. `interrupted`: by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler if interrupted else signal.SIG_IGN)
    multiprocessing.set_start_method(None, force=True)  # it would be that of the process which asked
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tessera", "stages")]:
        del sys.modules[name]  # what multiprocessing has loaded of the process that asked; its folder may be another
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
