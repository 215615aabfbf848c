"""A dvc.lock that was cut short. `python -m tessera.runtime.lockfile` puts the committed one back; `make repro` does it first.

DVC writes the file in place after each stage, for a second under load, and a process that is killed meanwhile leaves the
beginning of it, which DVC then refuses. Nothing is lost: DVC's run cache knows each stage that has ended since, and `dvc
repro` takes its results from there instead of running it again.
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
PATIENCE = 5.0  # seconds without a change after which nobody is writing the file


def problem(path: Path = LOCK) -> str | None:
    """What DVC would refuse the file for, or that it is empty; None where it is sound, or is not there.

    Raises:
        InputError: it holds a merge conflict, or what a merge without one leaves: a stage twice.
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
    """Put the committed file in the place of one that is cut short, which is kept in the scratch; what was done, or None.

    Raises:
        InputError: git cannot say what the committed file is, or it is none of a kill: see `problem`.
    """
    found = problem(path)
    while found:  # another dvc may be in the middle of it
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
        f"{path} was cut short ({found}), as a kill while DVC writes it leaves it. It {how}, and the cut one is {kept}. "
        "Stages that have ended since are taken from DVC's run cache"
    )


def _keep(content: bytes) -> Path:
    """In the scratch, beside those that were kept before."""
    root().mkdir(parents=True, exist_ok=True)
    kept = next(path for i in count() if not (path := root() / f"dvc.lock.cut{i or ''}").exists())
    kept.write_bytes(content)
    return kept


def _committed(path: Path) -> bytes | None:
    """The file at HEAD; None where there is none."""
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
