"""The entry point of every stage: validate params, guard the inputs, lock the scratch, run. Errors are printed without traceback.

python -m stages.tokenizer            python -m stages.diagnostics usage
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tessera.core import files, seams
from tessera.core.errors import InputError, NonFiniteError
from tessera.core.params import PLURAL, Params, read
from tessera.core.run import Run
from tessera.runtime import pipeline, process, provenance, ranks
from tessera.runtime.devices import Runtime, require_precisions
from tessera.runtime.inputs import Declared, Inputs, declared
from tessera.runtime.scratch import Scratch, root
from tessera.runtime.settings import Settings
from tessera.runtime.validation import found_good, record

process.prepare()


def enter(
    main: Callable[[Run], None],
    *,
    distributed: bool = False,
    trains: bool = False,
    after_training: Callable[[Params], tuple[str, ...]] = lambda params: (),
) -> None:
    """Run a stage's `main`.

    Args:
        main: the work of the stage.
        distributed: `runtime.devices` times `runtime.nodes` processes divide the work.
        trains: the same, and the stage has a scratch for checkpoints.
        after_training: singular sections of params.yaml that only the work after training depends on.
    """
    stage = _name(Path(sys.argv[0]))
    key = sys.argv[1] if len(sys.argv) > 1 else None
    title = f"{stage}@{key}" if key else stage
    try:
        _require_own_code()
        if ranks.is_rank() and not (distributed or trains):
            raise InputError(f"this stage is the work of one process: start it by python -m stages.{stage}")
        params = Params(read() if ranks.follows() else _validated())
        _require_key(stage, sys.argv[1:], params)
        require_precisions(params.raw)
        _run(main, stage, key, params, distributed, trains, after_training)
    except (InputError, NonFiniteError) as error:
        sys.exit(f"error in {title}: {error}")
    except KeyboardInterrupt as stop:  # our handler passes the number of the signal, Python's handler nothing
        number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
        if ranks.place()[0] == 0:
            said = f"{title} stopped at once by {number.name}; the same command starts it again, from a checkpoint if there is one"
            print(said, file=sys.stderr, flush=True)
        sys.exit(128 + number)


def _run(
    main: Callable[[Run], None], stage: str, key: str | None, params: Params, distributed: bool, trains: bool,
    after_training: Callable[[Params], tuple[str, ...]],
) -> None:  # fmt: skip
    """Run `main` in this process, or launch ranks from inside the guard and the lock of this process."""
    what, settings = declared(stage, key, params.raw), params.section("runtime", Settings)
    process.use_threads(settings.threads)
    inputs = Inputs(what) if what is not None and ranks.leads(settings) else None
    if inputs is not None:
        provenance.require_consistent(inputs.what.name, inputs.what.deps, inputs.files)
        provenance.require_code(inputs.what.name, inputs.what.deps)
        pipeline.require_up_to_date(inputs.what.name, inputs.what.deps, params.raw)
        provenance.forget(inputs.what.outs)
    with contextlib.ExitStack() as stack:
        scratch = None
        if trains and inputs is not None:
            belongs = inputs.fingerprint(without=after_training(params))
            scratch = stack.enter_context(Scratch(stage, belongs, settings.keep_scratch, inputs.fingerprint()))
        if (distributed or trains) and settings.devices * settings.nodes > 1 and not ranks.is_rank():
            ranks.launch(stage, key, settings, scratch.folder.name if scratch is not None else "")
        else:
            runtime = Runtime(settings, scratch)
            stack.enter_context(_signals(runtime) if trains else contextlib.nullcontext())
            runtime.join(stage)
            main(Run(params.restrict(what.sections) if what else params, key, runtime, params))
            runtime.leave()
        if inputs is not None:
            inputs.require_unchanged()
            provenance.write(inputs.what.outs, inputs.what.deps, inputs.files)
            provenance.write_code(inputs.what.outs)
        if what is not None:
            _require_declared_imports(what)  # before the scratch is marked as finished
    if what is not None and inputs is not None:
        _name_unread(params, what)


def _name(script: Path) -> str:
    """Name of the stage, which is a file or a folder with `__main__.py`."""
    return script.parent.name if script.stem == "__main__" else script.stem


def _require_key(stage: str, given: list[str], params: Params) -> None:
    """Check the arguments: one key of params.yaml if the stage runs one plug-in at a time, otherwise none."""
    got = " ".join(given) or "none"
    if stage not in PLURAL and given:
        raise InputError(f"python -m stages.{stage} takes no argument, got {got}")
    if stage in PLURAL and not (len(given) == 1 and given[0] in params.raw[stage]):
        keys = ", ".join(params.raw[stage])
        raise InputError(
            f"python -m stages.{stage} takes one key of section {stage} of params.yaml ({keys}), got {got}"
        )


def _require_own_code() -> None:
    """An experiment in a temporary folder must run the code of that folder, not that of the repository that started it."""
    here = Path("src/tessera").resolve()
    if here.is_dir() and seams.PACKAGE.resolve() != here:
        raise InputError(
            f"the stage would run the code in {os.path.relpath(seams.PACKAGE)}, not that in src/tessera. "
            "Start it as dvc.yaml does: python -m stages.<stage>"
        )


def _validated() -> dict[str, Any]:
    """params.yaml, validated as a whole, but only once for each version of the file and the code."""
    good = found_good()
    if not good.exists():
        code = _check(good)
        if code < 0:
            raise InputError(
                f"the process that validates params.yaml was killed by signal {-code}, perhaps for lack of memory; "
                "free some, or see what `python -m tessera.runtime.validation` says"
            )
        if code:
            sys.exit(code)  # the process has printed the problems
    return read()


def _check(good: Path) -> int:
    """Exit status of the validation of params.yaml, negative for a signal. Validation imports every plug-in, which this process
    must not have done (see `_require_declared_imports`), so another process does it. Where forks are safe it is a fork,
    which need not import torch again."""
    if sys.platform == "linux":
        fork = multiprocessing.get_context("fork").Process(target=_record, args=(good,))
        fork.start()
        fork.join()
        assert fork.exitcode is not None, "it has ended"
        return fork.exitcode
    paths = [str(seams.PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "tessera.runtime.validation", "--record", str(good)]
    return subprocess.run(command, env=environment, check=False).returncode


def _record(good: Path) -> None:
    try:
        record("params.yaml", good)
    except InputError as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def _signals(runtime: Runtime) -> Iterator[None]:
    """While a training runs, INT and TERM wait for the end of the step and a checkpoint. A second signal, or one outside a
    training, stops the stage at once."""
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a fork that samples a part of a batch: its parent prints the message
            os._exit(128 + number)
        if runtime.stopping or not runtime.training:
            raise KeyboardInterrupt(number)
        runtime.stopping = number

    with ranks.handling(stop):
        yield


def _require_declared_imports(what: Declared) -> None:
    """Check that every loaded module is declared in dvc.yaml or is code of a model. DVC does not look into imports: after an
    edit of an undeclared module it would keep stale results."""
    carried = provenance.code(what.deps)
    roots = [Path(path).resolve() for path in (*what.deps, *carried)]
    free = [(seams.PACKAGE / "runtime").resolve()]
    loaded = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not name.startswith(("tessera.", "stages.")) or file is None or Path(file).name == "__init__.py":
            continue
        path = Path(file).resolve()
        covered = any(path == where or where in path.parents for where in [*roots, *free])
        assert covered or name.startswith("stages."), (
            f"{what.name} uses {name}, but dvc.yaml does not list its file among the deps"
        )
        loaded.append(os.path.relpath(path))
    # shows how much of its dependencies a stage really loads
    files.write_json(root() / "loaded" / f"{what.name}.json", {"loaded": sorted(loaded), "carried": sorted(carried)})


def _name_unread(params: Params, what: Declared) -> None:
    """Print the shared values that the chosen plug-ins do not read. Only validation knows them, because it imports everything."""
    good = found_good()
    for section, values in (files.read_json(good)["unread"] if good.exists() else {}).items():
        if f"{section}.name" in what.params and values:
            chosen = params.value(f"{section}.name")
            print(f"{what.name}: {', '.join(values)} is not read by {section}.name = {chosen}", flush=True)
