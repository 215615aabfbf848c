"""The entry point of every stage: validate, guard inputs, take the scratch, run, and say in one line what is wrong.

python -m stages.tokenizer            python -m stages.diagnostics usage
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
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
from tessera.core.params import CHOOSES, Params, load, read
from tessera.core.run import Run
from tessera.runtime import process, ranks
from tessera.runtime.devices import Runtime
from tessera.runtime.inputs import Declared, Inputs, declared
from tessera.runtime.scratch import Scratch, root

process.prepare()


def enter(
    main: Callable[[Run], None],
    *,
    shares: bool = False,
    trains: bool = False,
    after_training: Callable[[Params], tuple[str, ...]] = lambda params: (),
) -> None:
    """Run a stage's `main`. `shares`: as many processes as `runtime.devices` and `runtime.nodes` ask for share the work.
    `trains`: it does, and it has a scratch. `after_training`: singular sections of params.yaml that training does not
    depend on, only what follows it."""
    stage = Path(sys.argv[0]).stem
    key = sys.argv[1] if len(sys.argv) > 1 else None
    try:
        _require_own_code()
        if ranks.is_rank() and not (shares or trains):
            raise InputError(f"this stage is the work of one process: start it by python -m stages.{stage}")
        params = Params(read() if ranks.follows() else _validated())
        _run(main, stage, key, params, shares, trains, after_training)
    except (InputError, NonFiniteError) as error:
        sys.exit(f"error in {stage}{'@' + key if key else ''}: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _run(
    main: Callable[[Run], None], stage: str, key: str | None, params: Params, shares: bool, trains: bool,
    after_training: Callable,
) -> None:  # fmt: skip
    """Ranks are started from inside the guard and the lock of the process that DVC started."""
    what, settings = declared(stage, key, params.raw), params.runtime
    inputs = Inputs(what) if what is not None and ranks.leads(settings) else None
    with contextlib.ExitStack() as stack:
        scratch = None
        if trains and inputs is not None:
            belongs = inputs.fingerprint(without=after_training(params))
            scratch = stack.enter_context(Scratch(stage, belongs, settings.keep_scratch, inputs.fingerprint()))
        if (shares or trains) and settings.devices * settings.nodes > 1 and not ranks.is_rank():
            ranks.launch(stage, key, settings, scratch.folder.name if scratch is not None else "")
        else:
            runtime = Runtime(settings, scratch)
            stack.enter_context(_signals(runtime) if trains else contextlib.nullcontext())
            runtime.join(stage)
            main(Run(params.restrict(what.sections) if what else params, key, runtime, params))
            runtime.leave()
        if inputs is not None:
            inputs.require_unchanged()
    if what is not None:
        _require_declared_imports(what)
        if inputs is not None:
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
    """params.yaml, validated whole, once for each version of file and code: one found good is remembered in the scratch."""
    digest = hashlib.sha256(Path("params.yaml").read_bytes() if Path("params.yaml").exists() else b"")
    for file in sorted(seams.PACKAGE.rglob("*.py")):
        digest.update(file.relative_to(seams.PACKAGE).as_posix().encode() + file.read_bytes())
    good = root() / "valid" / digest.hexdigest()[:24]
    if not good.exists():
        code = _check()
        if code < 0:
            raise InputError(
                f"the process that validates params.yaml was killed by signal {-code}, for want of memory perhaps; "
                "free some, or see what `python -m tessera.core.params` says"
            )
        if code:
            sys.exit(code)  # it has said what is wrong
        good.parent.mkdir(parents=True, exist_ok=True)
        good.touch()
    return read()


def _check() -> int:
    """Exit status of the validation of params.yaml, negative for a signal. It imports every plug-in, which this process must
    not have done (see `_require_declared_imports`), so another does it: a fork, where forks are safe, which need not import
    torch again."""
    if sys.platform == "linux":
        fork = multiprocessing.get_context("fork").Process(target=_load)
        fork.start()
        fork.join()
        return fork.exitcode
    paths = [str(seams.PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "tessera.core.params"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=False).returncode


def _load() -> None:
    try:
        load("params.yaml")
    except InputError as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def _signals(runtime: Runtime) -> Iterator[None]:
    """INT and TERM let the running step end and its state be saved; a second one stops at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if runtime.stopping:
            raise KeyboardInterrupt
        runtime.stopping = number

    with ranks.handling(stop):
        yield


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
