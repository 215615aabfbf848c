"""Provenance of artefacts: `made_from.json` in each folder holds a digest of each artefact that its stage read.

`dvc repro` runs every stage again that is out of date. `dvc repro -s`, `dvc checkout` and `dvc pull` of single artefacts do
not: one tokenizer could then decode the codes of another without an error. So before a stage begins, it compares what its
artefacts record about one another with the files that are there.

Each model also has `code.json` beside its weights, with a digest of each source file that loading and running it needs. A stage
that only uses the model does not declare these files. When one of them changes, the stage that trains the model is out of
date, it writes another `code.json`, and all stages that use the model follow. So they depend on the code of the chosen
plug-ins, which dvc.yaml cannot express.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from tessera.core import files, models
from tessera.core.errors import InputError
from tessera.runtime import imports
from tessera.runtime.inputs import digests

MADE_FROM = "made_from.json"
CODE = "code.json"
SHOWN = 8  # hexadecimal digits of a digest in a message

Digests = Mapping[str, str]  # file -> digest of its content


def digest(artefact: str, hashed: Digests) -> str | None:
    """Digest of the files of an artefact that other stages use: all files, except that of a model only weights and recipe count,
    not its card or the snapshots of its training. None if there are no such files.

    Args:
        artefact: a file or folder, relative to the repository.
        hashed: digests of the artefact's files; others are ignored.
    """
    inside = {name: found for name, found in hashed.items() if name == artefact or name.startswith(f"{artefact}/")}
    of_models = [PurePosixPath(name).parent for name in inside if PurePosixPath(name).name == models.RECIPE]

    def counts(name: str) -> bool:
        path = PurePosixPath(name)
        of = next((folder for folder in of_models if folder in path.parents), None)
        return path.name not in (MADE_FROM, CODE) and (of is None or path in (of / models.WEIGHTS, of / models.RECIPE))

    kept = {name: found for name, found in sorted(inside.items()) if found and counts(name)}
    return files.digest_of(kept) if kept else None


def require_consistent(stage: str, deps: Iterable[str], hashed: Digests) -> None:
    """
    Args:
        stage: name of the stage, for the remedy.
        deps: the artefacts that it reads.
        hashed: digests of all their files.

    Raises:
        InputError: an artefact was made from another version of a file than is there, or two artefacts from different versions.
    """
    deps = [dep for dep in deps if _artefact(dep) is not None]
    said: dict[str, dict[str, str]] = defaultdict(dict)  # artefact -> digest -> the artefact that records it
    for dep in deps:
        if found := digest(dep, hashed):
            said[dep].setdefault(found, "")
    for artefact in dict.fromkeys(filter(None, map(_artefact, deps))):
        for source, found in _record(artefact, stage).items():
            if any(source.startswith(f"{dep}/") for dep in deps):  # a part of a folder that this stage reads whole
                said[source].setdefault(digest(source, hashed) or "nothing", "")
            said[source].setdefault(found, artefact)
    for source, versions in said.items():
        if len(versions) > 1:
            (one, first), (another, second) = list(versions.items())[:2]
            begun = f"{first} was made from {source}" if first else f"{source} is"
            raise InputError(
                f"{second} was made from {source} {another[:SHOWN]}, but {begun} {one[:SHOWN]}: they do not belong together. "
                + _remedy(stage)
            )


def require_together(*stages: str) -> None:
    """`require_consistent` for code that reads artefacts without being a stage, such as a study.

    Args:
        stages: the stages whose artefacts it reads.
    """
    deps = [f"{files.ARTIFACTS.name}/{stage}" for stage in stages]
    require_consistent("", deps, {file: found for dep in deps for file, found in digests(dep).items()})


def _remedy(stage: str) -> str:
    return f"Run `{f'dvc repro {stage}'.strip()}`, without -s, which makes anew what is out of date"


def _artefact(dep: str) -> str | None:
    """The folder in artifacts/ that holds a dependency; None for other paths, and for a single file such as the gate's."""
    parts = PurePosixPath(dep).parts
    folder = PurePosixPath(*parts[:2])
    return folder.as_posix() if parts[0] == files.ARTIFACTS.name and len(parts) > 1 and not folder.suffix else None


def _record(artefact: str, stage: str) -> dict[str, str]:
    path = Path(artefact) / MADE_FROM
    if not Path(artefact).exists():
        return {}  # the stage itself reports missing inputs
    if not path.exists():
        raise InputError(
            f"{artefact} has no {MADE_FROM}, so its inputs are unknown: the stage that makes it was stopped, or ran before "
            f"{MADE_FROM} was introduced. {_remedy(stage)}"
        )
    return files.read_json(path)


def forget(outs: Iterable[str]) -> None:
    """Delete the records before a stage writes: otherwise a half-written folder would keep the record of its old content."""
    for out in outs:
        if Path(out).is_dir():
            (Path(out) / MADE_FROM).unlink(missing_ok=True)


def write(outs: Iterable[str], deps: Iterable[str], hashed: Digests) -> None:
    """Write `made_from.json` into every folder that a stage made, from the digests of its inputs when it began."""
    found = {dep: digest(dep, hashed) for dep in deps if _artefact(dep) is not None}
    for out in outs:
        if Path(out).is_dir():
            files.write_json(Path(out) / MADE_FROM, {dep: value for dep, value in found.items() if value})


def write_code(outs: Iterable[str]) -> None:
    """Write `code.json` for each model that a stage made: digests of the files that the plug-ins of its recipe need."""
    for folder in [path.parent for out in outs for path in sorted(Path(out).rglob(models.RECIPE))]:
        recipe = models.read_recipe(folder)
        plugins = [(recipe.seam, recipe.name), *([("quantizers", recipe.quantizer[0])] if recipe.quantizer else [])]
        found = sorted(file.relative_to(imports.ROOT).as_posix() for file in imports.model_code(plugins))
        files.write_json(folder / CODE, {name: digests(str(imports.ROOT / name)).popitem()[1] for name in found})


def code(deps: Iterable[str]) -> dict[str, str]:
    """Source files that the models among a stage's inputs need -> their digests when the models were made."""
    found: dict[str, str] = {}
    for dep in deps:
        if _artefact(dep) is not None:
            for path in sorted(Path(dep).rglob(CODE)):
                found |= files.read_json(path)
    return found


def require_code(stage: str, deps: Iterable[str]) -> None:
    """
    Raises:
        InputError: a model was made with other code than is there, or has no `code.json`.
    """
    for dep in [dep for dep in deps if _artefact(dep) is not None]:
        for recipe in sorted(Path(dep).rglob(models.RECIPE)):
            path = recipe.parent / CODE
            if not path.exists():
                raise InputError(
                    f"{path.parent} has no {CODE}: the stage that makes it is older, or was stopped. {_remedy(stage)}"
                )
            for name, then in files.read_json(path).items():
                now = digests(name).get(name, "") if Path(name).exists() else ""
                if now != then:
                    raise InputError(f"{path.parent} was made with another {name} than lies here. {_remedy(stage)}")
