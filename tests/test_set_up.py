"""What `set-up` says before it installs anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def start(folder: Path, venv: str = ".venv", **programs: str) -> subprocess.CompletedProcess[str]:
    """`set-up` of the environment folder/`venv`, where `programs` (a name and what it prints) come before those of the system.
    The lock does not exist, so nothing is ever installed."""
    commands = folder / "bin"
    commands.mkdir()
    for name, prints in programs.items():
        (commands / name).write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\n")
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", ROOT / "set-up", sys.executable, folder / venv, folder / "missing.lock"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def disk(gib: int) -> str:
    return f"Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/disk 99999999 1 {gib << 20} 93% /"


def test_a_disk_that_is_too_full_is_named_before_anything_is_made(tmp_path):
    ended = start(tmp_path, df=disk(8), uname="Linux")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: only 8 GiB of disk are free for {tmp_path / '.venv'}; installing takes 9, of which 7 stay (most are PyTorch): "
        "free some, or clone to a larger disk\n"
    )
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(("gib", "system"), [(9, "Linux"), (3, "Darwin")])
def test_where_there_is_room_enough_the_environment_is_made(tmp_path, gib, system):
    ended = start(tmp_path, df=disk(gib), uname=system)
    assert "GiB" not in ended.stderr
    assert "missing.lock" in ended.stderr  # pip's own error
    assert (tmp_path / ".venv" / "bin" / "python").exists()


def test_an_environment_may_be_in_a_folder_that_is_not_there_yet(tmp_path):
    ended = start(tmp_path, "new/venv", uname="Linux")  # df knows no such folder
    assert "missing.lock" in ended.stderr
    assert not re.search("df:|integer|GiB", ended.stderr)
    assert (tmp_path / "new/venv/bin/python").exists()
