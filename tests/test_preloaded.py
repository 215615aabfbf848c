"""Stages as forks of a process that has loaded the libraries: each is as `python -m` would be. Every test asks a process of its
own, since there is one such server per process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tessera.runtime import preloaded

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")

SEES = """
import json, multiprocessing, os, signal, sys
from pathlib import Path
import stages.part
print(json.dumps({
    "name": __name__, "argv": [Path(sys.argv[0]).name, *sys.argv[1:]], "cwd": os.getcwd(), "own": os.environ.get("OWN"),
    "method": multiprocessing.get_start_method(), "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "value": stages.part.VALUE, "module": sys.modules["__main__"].__spec__.name, "tessera": "tessera" in sys.modules,
    "path": sys.path[0], "preloaded": "colorsys" in sys.modules, "spin": os.environ.get("GOMP_SPINCOUNT"),
}), flush=True)
"""
WAITS = """
import sys, time
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""
ASKS = """
import os, sys
from tessera.runtime import preloaded
from dvc.stage.exceptions import StageCmdFailedError
preloaded.LIBRARIES = ("colorsys",)
def others(executable, command, **given):
    print("others", command, flush=True)
start = preloaded.starting(others)
def ask(command, **given):
    try:
        start("/bin/sh", command, **{"env": dict(os.environ, OWN="1"), "cwd": ".", "close_fds": True, "shell": False} | given)
    except StageCmdFailedError as error:
        print("failed", error, flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    files = {
        "__init__": "", "part": "VALUE = 1", "sees": SEES, "waits": WAITS, "says": "import sys\nsys.exit('no such thing')",
        "ends": "import os\nos.kill(os.getpid(), 9)",
    }  # fmt: skip
    (tmp_path / "stages").mkdir()
    for name, text in files.items():
        (tmp_path / f"stages/{name}.py").write_text(text)
    return tmp_path


def environment() -> dict[str, str]:
    """Of `python` as this process is one, with our code on the path, before any of it has prepared a process."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    return kept | {"PYTHONPATH": str(ROOT / "src"), "PATH": path}


def begin(folder: Path, code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ASKS + textwrap.dedent(code)]
    return subprocess.Popen(
        command, cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )  # fmt: skip


def asked(folder: Path, code: str) -> tuple[list[str], str]:
    """The lines that a program with these calls of `ask` prints, and what stands in its log of errors."""
    out, errors = begin(folder, code).communicate(timeout=100)
    return out.splitlines(), errors


def test_a_fork_is_as_a_new_interpreter_would_be(folder):
    (first, forked), errors = asked(folder, "ask('python -m stages.sees'); ask('python -m stages.sees one-key')")
    new = subprocess.run(
        [sys.executable, "-m", "stages.sees", "one-key"], cwd=folder, env=environment() | {"OWN": "1"}, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    seen, expected = json.loads(forked), json.loads(new.stdout)
    assert first == "others python -m stages.sees"  # while the libraries are being loaded
    assert (seen.pop("preloaded"), expected.pop("preloaded")) == (True, False)
    assert (seen.pop("spin"), expected.pop("spin")) == ("1000", None)  # set before torch is loaded
    assert Path(seen.pop("path")) == folder
    assert Path(expected.pop("path")) in (folder, Path())
    assert seen == expected
    assert not errors


def test_edits_during_a_run_count(folder):
    lines, _ = asked(
        folder,
        """
        from pathlib import Path
        ask("python -m stages.sees")
        ask("python -m stages.sees")
        Path("stages/part.py").write_text("VALUE = 22")
        ask("python -m stages.sees")
        """,
    )
    assert [json.loads(line)["value"] for line in lines[1:]] == [1, 22]


def test_failures_are_failures(folder):
    lines, errors = asked(folder, "for name in ('sees', 'says', 'ends', 'absent'): ask('python -m stages.' + name)")
    failed = [line.rpartition("exited with ")[2] for line in lines if line.startswith("failed")]
    assert failed == ["1", "-9", "1"]
    assert "no such thing" in errors
    assert "No module named stages.absent" in errors


def test_only_a_stage_of_this_interpreter_is_forked(folder):
    other = "ask('python -m stages.sees', env=dict(os.environ, PATH='/usr/bin:/bin'))"
    commands = [
        "python -m stages.sees; true",
        "echo python -m stages.sees",
        "python -m other",
        "python  stages/sees.py",
    ]
    lines, _ = asked(folder, f"for command in {['python -m stages.sees', *commands]!r}: ask(command)\n{other}")
    assert lines == [f"others {command}" for command in ["python -m stages.sees", *commands, "python -m stages.sees"]]


@pytest.fixture
def interrupted():
    """Ctrl-C ends what is started here, also where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_the_affair_of_the_stage(folder, interrupted):
    asking = begin(folder, "ask('python -m stages.sees'); ask('python -m stages.waits'); ask('python -m stages.sees')")
    assert asking.stdout is not None
    try:
        assert [asking.stdout.readline().strip() for _ in range(2)] == ["others python -m stages.sees", "begun"]
        os.killpg(asking.pid, signal.SIGINT)
        out, errors = asking.communicate(timeout=60)
    finally:
        asking.kill()
    stopped, after = out.splitlines()
    assert stopped.endswith("exited with 130")
    assert json.loads(after)["interrupt"]
    assert not errors


def test_libraries_are_there_and_none_looks_for_a_gpu():
    """A process that has asked how many there are cannot use them in its forks."""
    code = f"""
    import importlib, torch
    def asked():
        raise AssertionError("a library has asked for GPUs")
    torch._C._cuda_getDeviceCount = asked
    for name in {preloaded.LIBRARIES!r}:
        importlib.import_module(name)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=150)


def test_dvc_starts_stages_so(tmp_path):
    """DVC's own command line, in a repository of two stages: the second is a fork."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").write_text("")
    for name in ("one", "two"):
        text = f"import sys\nopen({name!r}, 'w').write(str('multiprocessing.forkserver' in sys.modules))"
        (tmp_path / f"stages/{name}.py").write_text(text)
    one = "one: {cmd: python -m stages.one, outs: [one]}"
    two = "two: {cmd: python -m stages.two, deps: [one], outs: [two]}"
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  {one}\n  {two}\n")
    start = [
        sys.executable,
        "-c",
        "import sys\nfrom tessera.runtime import command, preloaded\npreloaded.LIBRARIES = ()\nsys.exit(command.main())",
    ]
    for arguments in (["init", "--no-scm", "--quiet"], ["repro", "--quiet"]):
        subprocess.run([*start, *arguments], cwd=tmp_path, env=environment(), check=True, timeout=150)
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["False", "True"]
