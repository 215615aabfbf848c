"""A folder of image files, with or without classes as sub-folders. Files are never moved or changed.

If the folder is divided into train/ and test/, use `dataset.name: huggingface`, which keeps such splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from tessera.core import files
from tessera.core.contracts import Source
from tessera.core.errors import InputError, listed
from tessera.core.params import Params, Strict
from tessera.decoding.compressed import Encoded

if TYPE_CHECKING:
    import numpy as np


class Config(Strict):
    labels: bool = Field(description="whether sub-folders are classes", examples=[True])
    extensions: list[str] = Field(min_length=1, description="endings of image files, in upper or lower case",
                                  examples=[["png", "jpg"]])  # fmt: skip

    def rule(self, params: Params) -> Iterator[str]:
        if "label" in params.conditions and not self.labels:
            yield (
                "prior.conditions.label: must be none while dataset.folder.labels is false, since the data set has no labels then, "
                f"got {params.conditions['label']:g}; set dataset.folder.labels to true"
            )


def load(config: Config, source: Path, generator: np.random.Generator) -> Source:
    """All image files under `source`, sorted by path; nothing is random. Hidden files and files with other endings are left out,
    and `notes` name them.

    The name of an image is its path below `source`, its family is that path without extension, its class is the first folder.

    Raises:
        InputError: the folder is missing or holds no image file; images lie in no class folder, or a class folder holds none;
            a folder is a link, or a link is broken; a name is not UTF-8.
    """
    paths, others = files.pictures(source, config.extensions)
    wanted = ", ".join(files.endings(config.extensions))
    if not paths:
        raise InputError(f"dataset.source {str(source)!r} holds no file that ends in {wanted}, at any depth")
    if config.labels:
        files.require_filled(source, config.extensions, paths)
    names = [path.as_posix() for path in paths]
    labels, label_names = _classes(paths, source) if config.labels else (None, [])
    unread = f"{len(others)} files are not read, being hidden or without one of the endings {wanted}: {listed(others)}"
    return Source(
        images=Encoded(len(paths), lambda i: (source / paths[i]).read_bytes(), lambda i: str(source / paths[i])),
        names=names,
        families=[path.with_suffix("").as_posix() for path in paths],
        labels=labels,
        label_names=label_names,
        splits=None,
        notes=(unread,) if others else (),
    )


def _classes(paths: list[Path], source: Path) -> tuple[list[int], list[str]]:
    if homeless := [source / path for path in paths if len(path.parts) == 1]:
        many = "stands in no sub-folder, so it has" if len(homeless) == 1 else "stand in no sub-folder, so they have"
        raise InputError(
            f"{listed(homeless)} {many} no class. Move them into one, or set dataset.folder.labels to false"
        )
    label_names = sorted({path.parts[0] for path in paths})
    index = {name: i for i, name in enumerate(label_names)}
    return [index[path.parts[0]] for path in paths], label_names
