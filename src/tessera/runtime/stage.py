"""The entry point of every stage: validate, guard inputs, take the scratch, run, and say in one line what is wrong.

python -m stages.tokenizer            python -m stages.diagnostics usage
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tessera.core import seams
from tessera.core.errors import InputError, NonFiniteError
from tessera.core.params import CHOOSES, Params, read
from tessera.core.run import Run
from tessera.runtime import process
from tessera.runtime.devices import Runtime
from tessera.runtime.inputs import Declared, Inputs, declared
from tessera.runtime.scratch import Scratch, root

process.prepare()


def enter(
    main: Callable[[Run], None],
    *,
    trains: bool = False,
    after_training: Callable[[Params], tuple[str, ...]] = lambda params: (),
) -> None:
    """Run a stage's `main`. `trains`: it has a scratch, and as many processes as `runtime.processes` asks for.
    `after_training`: singular sections of params.yaml that training does not depend on, only what follows it."""
    stage = Path(sys.argv[0]).stem
    key = sys.argv[1] if len(sys.argv) > 1 else None
    try:
        _require_own_code()
        _run(main, stage, key, Params(_validated()), trains, after_training)
    except (InputError, NonFiniteError) as error:
        sys.exit(f"error in {stage}{'@' + key if key else ''}: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _run(
    main: Callable[[Run], None], stage: str, key: str | None, params: Params, trains: bool, after_training: Callable
) -> None:
    """Ranks of a training are started from inside the guard and the lock of the process that DVC started."""
    what = declared(stage, key, params.raw)
    inputs = Inputs(what) if what is not None else None
    rank_of_many = "WORLD_SIZE" in os.environ
    with contextlib.ExitStack() as stack:
        scratch = None
        if trains and inputs is not None:
            belongs = inputs.fingerprint(without=after_training(params))
            scratch = Scratch(stage, belongs, params.runtime.keep_scratch, inputs.fingerprint())
        if scratch is not None and not rank_of_many:
            stack.enter_context(scratch)
        if trains and params.runtime.processes > 1 and not rank_of_many:
            _launch(stage, key, params.runtime.processes)
        else:
            runtime = Runtime(params.runtime, scratch)
            stack.enter_context(_signals(runtime) if trains else contextlib.nullcontext())
            main(Run(params.restrict(what.sections) if what else params, key, runtime, params))
        if inputs is not None and not rank_of_many:
            inputs.require_unchanged()
    if what is not None:
        _require_declared_imports(what)
        _name_unread(params, what)


def _require_own_code() -> None:
    """An experiment in a temporary folder must run the code of that folder, not of the repository it was started from."""
    here = Path("src/tessera").resolve()
    if here.is_dir() and seams.PACKAGE.resolve() != here:
        raise InputError(
            f"the stage would run the code in {os.path.relpath(seams.PACKAGE)}, not that in src/tessera. "
            "Start it as dvc.yaml does: python -m stages.<stage>"
        )


def _validated() -> dict[str, Any]:
    """params.yaml, validated whole. That imports every plug-in (seconds), so it is done in a process of its own, and once
    for each version of file and code: a file found good is remembered in the scratch."""
    digest = hashlib.sha256(Path("params.yaml").read_bytes() if Path("params.yaml").exists() else b"")
    for file in sorted(seams.PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(seams.PACKAGE).as_posix().encode() + file.read_bytes())
    good = root() / "valid" / digest.hexdigest()[:24]
    if not good.exists():
        environment = {**os.environ, "PYTHONPATH": str(seams.PACKAGE.parent)}
        check = subprocess.run(
            [sys.executable, "-m", "tessera.core.params"], stdout=subprocess.DEVNULL, env=environment, check=False
        )
        if check.returncode:
            sys.exit(check.returncode)
        good.parent.mkdir(parents=True, exist_ok=True)
        good.touch()
    return read()


def _launch(stage: str, key: str | None, processes: int) -> None:
    """Run the stage as `processes` ranks. The launcher stays out of dvc.yaml, whose `cmd` is part of a stage's identity."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    ranks = subprocess.Popen([*launcher, "-m", f"stages.{stage}", *([key] if key else [])])
    # told to stop, this process tells the ranks, and keeps the lock until they have saved and ended
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: ranks.send_signal(received))
    if ranks.wait():
        sys.exit(ranks.returncode if ranks.returncode > 0 else 128 - ranks.returncode)


@contextlib.contextmanager
def _signals(runtime: Runtime) -> Iterator[None]:
    """INT and TERM let the running step end and its state be saved; a second one stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if runtime.stopping:
            raise KeyboardInterrupt
        runtime.stopping = number

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _require_declared_imports(what: Declared) -> None:
    """DVC does not look into imports: a module that is used but not declared would give stale results after an edit."""
    roots = [Path(dep).resolve() for dep in what.deps]
    free = [(seams.PACKAGE / "runtime").resolve()]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not name.startswith("tessera.") or file is None or Path(file).name == "__init__.py":
            continue
        path = Path(file).resolve()
        covered = any(path == where or where in path.parents for where in [*roots, *free])
        assert covered, f"{what.name} uses {name}, but dvc.yaml does not list its file among the deps"


def _name_unread(params: Params, what: Declared) -> None:
    for section in CHOOSES:
        if f"{section}.name" in what.params and (unread := params.unread(section)):
            chosen = params.raw[section]["name"]
            print(f"{what.name}: {', '.join(unread)} is not read by {section}.name = {chosen}", flush=True)
