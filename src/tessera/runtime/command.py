"""DVC with a faster start of stages and a faster dvc.lock: `python -m tessera.runtime.command repro` does what `dvc repro` does.
`make repro` uses it. How stages start: `tessera.runtime.preloaded`.

After each stage DVC reads the whole dvc.lock and writes it again, by those parts of ruamel.yaml that keep comments and are written
in Python: 0.9 CPU seconds for the lock of this pipeline, and nine tenths of what DVC itself takes. DVC writes no comment into
dvc.lock, so here libyaml reads and writes it: the same content in a fifth of the time. The bytes are DVC's own too, but for nulls,
very long words, quotes within quotes and characters beyond the basic plane, and DVC reads those all the same. The file appears
whole or not at all, where DVC writes it in place. All other files are left to DVC.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tessera.core import files
from tessera.runtime import preloaded
from tessera.runtime.lockfile import LOCK

TAG = "tag:yaml.org,2002"  # of YAML's own types
Modify = Callable[
    ..., AbstractContextManager[Any]
]  # path, fs= -> the content of a YAML file, which is written at the end


def modifying(others: Modify) -> Modify:
    """DVC's `modify_yaml` with another way for dvc.lock; `others` is DVC's own."""

    @contextmanager
    def modify(path: str, fs: Any = None) -> Iterator[Any]:
        if Path(path).name != LOCK.name:
            with others(path, fs=fs) as content:
                yield content
            return
        yaml, lock = _libyaml(), Path(path)
        content = (yaml.load(lock.read_bytes()) if lock.exists() else None) or {}
        yield content
        with files.writing(lock) as stream:
            yaml.dump(content, stream)

    return modify


def _libyaml() -> Any:
    """A reader and writer in C, in the style in which DVC writes dvc.lock."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        """Values in the style of DVC's own writer. Its entries are ordered dicts, and are written as plain ones."""

    def text(representer: SafeRepresenter, value: str) -> Any:
        return representer.represent_scalar(f"{TAG}:str", value, style='"' if "\n" in value else None)

    Representer.add_representer(OrderedDict, SafeRepresenter.represent_dict)
    Representer.add_representer(str, text)
    yaml: Any = YAML(typ="safe")
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    return yaml


def main(given: Sequence[str] | None = None) -> int:
    """The command line of DVC."""
    from dvc import cli, dvcfile
    from dvc.stage import run

    dvcfile.modify_yaml = modifying(dvcfile.modify_yaml)
    run._run = preloaded.starting(run._run)
    return cli.main(list(sys.argv[1:] if given is None else given))


if __name__ == "__main__":
    sys.exit(main())
