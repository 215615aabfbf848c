"""Fetch the packages of emoji drawings that everyone may use into data/vendors, beside the included emoji: `make vendors`.

data/vendors-lock.json pins them: name, version, and the SHA-512 of the archive as npm writes it. npm's own client fetches; an
archive that lies there already, put there by hand or by an earlier run, is only checked. Nothing is unpacked, and no script
of a package runs. docs/data.md says what each licence allows.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS = 600  # that npm may take for one package


class FetchError(Exception):
    """A package cannot be had. The message says what to do."""


def archive(name: str, version: str) -> str:
    """The file name that `npm pack` gives a package: `@lobehub/x` 1.0.0 -> `lobehub-x-1.0.0.tgz`."""
    return f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def integrity(path: Path) -> str:
    """As in npm's locks: `sha512-` and the digest in base 64."""
    with open(path, "rb") as stream:
        return "sha512-" + base64.b64encode(hashlib.file_digest(stream, "sha512").digest()).decode()


def fetch(name: str, version: str, wanted: str, folder: Path) -> bool:
    """Put a package into `folder`, whole and checked, or not at all. False if it is there already.

    Raises:
        FetchError: there is no npm, npm fails, or the content is not what the lock pins.
    """
    target = folder / archive(name, version)
    if target.exists():
        _require(target, wanted, "Remove it and run this again")
        return False
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        got = Path(temporary) / target.name
        command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", temporary, f"{name}@{version}"]
        by_hand = f"Or get it elsewhere, as `npm pack {name}@{version}` leaves it, and put it at {target}"
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS, cwd=temporary)
        except FileNotFoundError:
            raise FetchError(
                f"there is no npm, which fetches {name} (Debian: apt-get install npm). {by_hand}"
            ) from None
        except subprocess.TimeoutExpired:
            raise FetchError(f"npm did not fetch {name}@{version} in {SECONDS} s. Run this again. {by_hand}") from None
        except subprocess.CalledProcessError as error:
            said = " ".join((error.stderr or "no word").split())[:500]
            raise FetchError(f"npm cannot fetch {name}@{version}: {said}. {by_hand}") from None
        if not got.is_file():
            raise FetchError(f"npm left no {target.name}. {by_hand}")
        _require(got, wanted, "It is not what this version was; do not use it")
        os.replace(got, target)
    return True


def _require(path: Path, wanted: str, remedy: str) -> None:
    if (found := integrity(path)) != wanted:
        raise FetchError(f"{path.name} must have the content {wanted}, got {found}. {remedy}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", type=Path, default=HERE / "vendors-lock.json")
    parser.add_argument(
        "--to", type=Path, default=HERE / "vendors", help="folder, a dataset.source of dataset.name=emoji"
    )
    given = parser.parse_args()
    folder = given.to.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, pin in json.loads(given.lock.read_text(encoding="utf-8")).items():
        try:
            fetched = fetch(name, pin["version"], pin["integrity"], folder)
        except FetchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"{archive(name, pin['version'])}: {'fetched' if fetched else 'is there'}, checked", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # a copy: DVC looks at no file outside the folder
        shutil.copy(HERE / "noto-emoji.parquet", temporary)
        os.replace(Path(temporary) / "noto-emoji.parquet", folder / "noto.parquet")
    return 0


if __name__ == "__main__":
    sys.exit(main())
