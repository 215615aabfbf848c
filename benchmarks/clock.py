"""Runs a module as `python -m MODULE` does, and writes where its CPU seconds went: `python clock.py TO MODULE [ARGUMENTS]`.

A script of its own, and of the standard library alone: what it imported itself, a stage would not have to.
"""

from __future__ import annotations

import _frozen_importlib as importer  # Python's import statement and importlib look a new module up in it
import json
import os
import resource
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def spent() -> float:
    """CPU seconds of this process, of all its threads, and of the processes that it started and that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Clock:
    """CPU seconds by what they were spent on.

    Attributes:
        seconds: of `imports`, all modules; of `torch`, the part of these that the import of torch or of a part of it takes,
            with what it imports in turn; of `work`, the stage's `main` less the imports in it.
    """

    def __init__(self) -> None:
        self.seconds = {"imports": 0.0, "torch": 0.0, "work": 0.0}
        self._within: set[str] = set()

    @contextmanager
    def counting(self, what: str) -> Iterator[None]:
        """Count the block, once where one lies inside another."""
        if what in self._within:
            yield
            return
        self._within.add(what)
        begun, imported = spent(), self.seconds["imports"]
        try:
            yield
        finally:
            self._within.remove(what)
            less = self.seconds["imports"] - imported if what == "work" else 0.0
            self.seconds[what] += spent() - begun - less

    def watch_imports(self) -> None:
        find_and_load = importer._find_and_load  # called for modules that are not loaded yet

        def counted(name: str, import_: Any) -> Any:
            with self.counting("imports"):
                if name.partition(".")[0] != "torch":
                    return find_and_load(name, import_)
                with self.counting("torch"):
                    return find_and_load(name, import_)

        importer._find_and_load = counted

    def watch_work(self) -> None:
        from tessera.runtime import stage

        enter = stage.enter

        def watched(main: Callable[[Any], None], **options: Any) -> None:
            def counted(run: Any) -> None:
                with self.counting("work"):
                    main(run)

            enter(counted, **options)

        stage.enter = watched


def main(to: str, module: str, *arguments: str) -> None:
    sys.path[:1] = [os.path.abspath("src"), os.getcwd()]  # instead of the folder of this script
    sys.argv = [module, *arguments]
    clock, begun = Clock(), spent()
    clock.watch_imports()
    if module.startswith("stages."):
        clock.watch_work()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        Path(to).write_text(json.dumps({**clock.seconds, "total": spent() - begun}))


if __name__ == "__main__":
    main(*sys.argv[1:])
