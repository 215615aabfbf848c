"""Repair of a truncated dvc.lock. `python -m tessera.runtime.lockfile` restores the committed one; `make repro` runs it first.

DVC writes the file in place after each stage, which takes up to a second under load. If the process is killed meanwhile, only the
beginning of the file is left, and DVC refuses it. Nothing is lost: DVC's run cache knows every stage that has finished since,
and `dvc repro` takes the results from there instead of running the stage again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import count
from pathlib import Path

from tessera.core import files
from tessera.core.errors import InputError
from tessera.runtime.scratch import root

LOCK = Path("dvc.lock")
MERGED = "Take one side, `git checkout HEAD -- dvc.lock`, and run `dvc repro`: what the other side made is in DVC's run cache"
PATIENCE = 5.0  # seconds without a change, after which no process is assumed to write the file


def problem(path: Path = LOCK) -> str | None:
    """Why DVC would refuse the file, or that it is empty; None if the file is sound or does not exist.

    Raises:
        InputError: the file holds a merge conflict, or a stage twice, as a merge without conflict can leave it.
    """
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError
    from voluptuous import Invalid

    if not path.exists():
        return None
    content = path.read_bytes()
    if any(line.startswith((b"<<<<<<< ", b">>>>>>> ")) for line in content.splitlines()):
        raise InputError(f"{path} holds a merge conflict. {MERGED}")
    try:
        whole = COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(content))
    except DuplicateKeyError as error:
        raise InputError(f"{path} has a key twice, as a merge leaves it ({error.problem}). {MERGED}") from None
    except (YAMLError, Invalid, ValueError) as error:
        return str(error).splitlines()[0]
    entries = [
        entry
        for stage in whole.get("stages", {}).values()
        for kind in ("deps", "outs")
        for entry in stage.get(kind, ())
    ]
    without = [entry["path"] for entry in entries if "hash" in entry and entry["hash"] not in entry]
    return f"{without[0]} has no digest" if without else None


def mend(path: Path = LOCK, patience: float = PATIENCE) -> str | None:
    """Replace a truncated file by the committed one, and keep the truncated one in the scratch. Returns a message, or None if
    there was nothing to repair.

    Raises:
        InputError: git cannot read the committed file, or a merge has spoilt the file: see `problem`.
    """
    found = problem(path)
    while found:  # another DVC process may be writing it
        before = path.read_bytes()
        time.sleep(patience)
        if path.exists() and path.read_bytes() == before:
            break
        found = problem(path)
    if not found:
        return None
    kept = _keep(before)
    committed = _committed(path)
    if committed is None:
        path.unlink()
        how = "is removed, since none is committed"
    else:
        with files.writing(path, "wb") as stream:
            stream.write(committed)
        how = "is the committed one again"
    return (
        f"{path} was cut short ({found}), as happens when DVC is killed while writing it. It {how}, and the cut one is {kept}. "
        "Results of stages that have finished since are taken from DVC's run cache"
    )


def _keep(content: bytes) -> Path:
    """Save the content in the scratch, beside earlier ones; returns its path."""
    root().mkdir(parents=True, exist_ok=True)
    kept = next(path for i in count() if not (path := root() / f"dvc.lock.cut{i or ''}").exists())
    kept.write_bytes(content)
    return kept


def _committed(path: Path) -> bytes | None:
    """The file at HEAD; None if there is none."""
    listed = _git("ls-tree", "--name-only", "HEAD", path.as_posix())
    return _git("show", f"HEAD:./{path.as_posix()}") if listed.strip() else None


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    if done.returncode:
        raise InputError(
            f"{LOCK} is cut short, and git cannot say what the committed one is ({done.stderr.decode().strip()}). "
            f"Delete {LOCK}: DVC's run cache has the stages that ended"
        )
    return done.stdout


def main() -> int:
    try:
        said = mend()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if said:
        print(said, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
