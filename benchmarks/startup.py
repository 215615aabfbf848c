"""What is not training in `make repro`: `python -m benchmarks.startup`, after `dvc repro`.

Runs the instances of the stages one by one in a copy of the repository and of its artefacts, and prints the CPU seconds of each:
of the interpreter; of imports, and of these torch; of the guard around the work (params, digests of inputs and outputs); of the
work itself. Last comes what DVC takes beside the stages, for the whole pipeline: by itself, and as `make repro` starts it.
Several repositories take turns, so that two versions can be compared; of `--rounds` the cheapest run counts. CPU seconds, since
others on the machine lengthen wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from tessera.core.errors import InputError
from tessera.core.params import read
from tessera.runtime import pipeline
from tessera.studies.pages import markdown

TRAINED = ("tokenizer", "prior")  # left out unless they are named
FIRST = ("tessera.runtime.validation", "tessera.runtime.lockfile")  # what `make repro` runs before DVC
LEFT = shutil.ignore_patterns(".git", ".venv", ".scratch", ".dvc", "docs", "tests", "__pycache__", ".*_cache")
COMMANDS = {"dvc repro": "dvc.cli", "make repro": "tessera.runtime.command"}
DVC = """
import json, resource, sys, time
begun = time.perf_counter()
from {module} import main
code = main(sys.argv[2:])
usage = resource.getrusage(resource.RUSAGE_SELF)  # without the commands that it starts
cpu = usage.ru_utime + usage.ru_stime
json.dump(dict(work=cpu, cpu=cpu, wall=time.perf_counter() - begun), open(sys.argv[1], "w"))
sys.exit(code)
"""
WRITTEN = ("artifacts", "metrics", "plots", "report.html")  # what the stages write
PARTS = ["interpreter", "imports", "torch", "guard", "work", "cpu", "wall"]


def run(command: Sequence[str], folder: Path) -> dict[str, float]:
    """CPU and wall seconds of a command, started in `folder`.

    Raises:
        InputError: the command fails.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(folder / place) for place in ("src", "."))}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": wall}


def interpreter(folder: Path) -> float:
    return min(run([sys.executable, "-c", "pass"], folder)["cpu"] for _ in range(5))


def module(name: str, arguments: Sequence[str], folder: Path, empty: float) -> dict[str, float]:
    """`PARTS` of one `python -m NAME ARGUMENTS`; of one that is no stage, the guard is all that is no import."""
    clock, found = Path(__file__).with_name("clock.py"), folder / ".scratch" / "clock.json"
    found.parent.mkdir(exist_ok=True)
    seconds = run([sys.executable, str(clock), str(found), name, *arguments], folder)
    parts = json.loads(found.read_text())
    guard = seconds["cpu"] - empty - parts["imports"] - parts["work"]
    return {"interpreter": empty, **parts, "guard": guard, **seconds}


def dvc(command: str, folder: Path, names: Sequence[str]) -> dict[str, float]:
    """What DVC itself takes, started by the `main` of a module, to run the whole pipeline anew, or the stages of these names. Each
    command is replaced by one that puts back what DVC removed."""
    scratch, pipe = folder / ".scratch", folder / "dvc.yaml"
    shutil.rmtree(scratch / "kept", ignore_errors=True)
    (scratch / "kept").mkdir()
    there = [name for name in WRITTEN if (folder / name).exists()]
    run(["cp", "-r", *there, ".scratch/kept"], folder)
    (scratch / "put_back").write_text("exec cp -rn .scratch/kept/* .\n")
    committed = pipe.read_text()
    pipe.write_text(committed.replace("cmd: python ", "cmd: sh .scratch/put_back "))
    shutil.rmtree(folder / ".dvc", ignore_errors=True)  # without what DVC remembers of an earlier run
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")  # as `dvc init --no-scm` does
    targets = ["--single-item", *names] if names else []
    run(
        [sys.executable, "-c", DVC.format(module=command), str(scratch / "dvc.json"), "repro", "--force", *targets],
        folder,
    )
    pipe.write_text(committed)
    return dict.fromkeys(PARTS, 0.0) | json.loads((scratch / "dvc.json").read_text())


def rows(folder: Path, names: Sequence[str]) -> Iterator[dict[str, str | float]]:
    """One row for each instance in a copy of the repository, in the order in which DVC runs them."""
    shutil.rmtree(folder / ".scratch", ignore_errors=True)
    empty = interpreter(folder)
    for name in FIRST:
        yield {"stage": name.rpartition(".")[2], **module(name, (), folder, empty)}
    for stage in chosen(folder, names):
        arguments = [stage.key] if stage.key else []
        yield {"stage": stage.name, **module(f"stages.{stage.stage}", arguments, folder, empty)}
    for title, command in COMMANDS.items():
        yield {"stage": title, **dvc(command, folder, names)}


def chosen(folder: Path, names: Sequence[str]) -> list[pipeline.Stage]:
    """The instances of these names; without names, all but those that train.

    Raises:
        InputError: there is no such stage.
    """
    known = list(pipeline.instances(read(folder / "params.yaml"), folder))
    if unknown := set(names) - {name for stage in known for name in (stage.name, stage.stage)}:
        there = ", ".join(stage.name for stage in known)
        raise InputError(f"--stages: dvc.yaml has no stage {', '.join(sorted(unknown))}; there are {there}")
    if not names:
        return [stage for stage in known if stage.name not in TRAINED]
    return [stage for stage in known if {stage.name, stage.stage} & set(names)]


def measured(repositories: Sequence[Path], names: Sequence[str], rounds: int) -> pd.DataFrame:
    """`PARTS` in seconds by repository and stage."""
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        copies = [Path(temporary) / str(index) for index in range(len(repositories))]
        for repository, folder in zip(repositories, copies, strict=True):
            shutil.copytree(repository, folder, ignore=LEFT)
        for _ in range(rounds):
            for repository, folder in zip(repositories, copies, strict=True):
                for row in rows(folder, names):
                    found.append({"repository": repository.resolve().name, **row})
                    print(f"{found[-1]['repository']} {row['stage']}: {row['cpu']:.1f} s", file=sys.stderr, flush=True)
    whole = pd.DataFrame(found)
    cheapest = whole.loc[whole.groupby(["repository", "stage"], sort=False)["cpu"].idxmin()]
    return cheapest[["repository", "stage", *PARTS]].reset_index(drop=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repositories", nargs="*", type=Path, default=[Path()], help="default: the working folder")
    parser.add_argument("--stages", nargs="+", default=[], help=f"default: all but {', '.join(TRAINED)}")
    parser.add_argument("--rounds", type=int, default=1, help="default 1")
    parser.add_argument("--table", type=Path, help="a CSV file to write")
    options = parser.parse_args(argv)
    try:
        table = measured(options.repositories, options.stages, options.rounds)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.table:
        table.round(3).to_csv(options.table, index=False)
    print(markdown(table.map(lambda value: value if isinstance(value, str) else f"{value:.2f}")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
