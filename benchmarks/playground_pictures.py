"""Makes the screenshots of docs/playground.md: `python -m benchmarks.playground_pictures`, after `dvc repro`, in the environment
of `make test-playground`. It opens every tab in Chromium and does what the page describes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import browser
from tessera.core import files
from tessera.core.errors import InputError

FOLDER = Path("docs/playground")
TOKENIZER = "metrics/tokenizer.json"
BEFORE = "before"  # tag of the last run with another tokenizer
FIRST, LAST = "red heart", "grinning face"
COLOURS = 128  # of a screenshot: enough for the eye, and a third of the bytes
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 400, "height": 800}


def reconstruct(visitor: browser.Visitor) -> None:
    visitor.choose("reconstruct", FIRST)
    visitor.changed("reconstruct-grid", "")
    visitor.click("reconstruct-grid", 0.55, 0.45)
    visitor.changed("reconstruct-uses", "")


def sample(visitor: browser.Visitor) -> None:
    visitor.page.locator("#samples-n input[type=number]").fill("8")
    visitor.page.locator("#samples-go").click()
    visitor.changed("samples-found", "")
    visitor.page.locator("#samples-found .thumbnail-item").first.click()
    visitor.page.locator("#samples-keep", has_text="Keep no. 1").wait_for()


def inpaint(visitor: browser.Visitor) -> None:
    visitor.choose("inpaint", FIRST)
    visitor.page.wait_for_timeout(4000)  # the editor shows no sign of having taken its picture in
    visitor.paint((0.35, 0.5), (0.6, 0.5))
    visitor.page.locator("#inpaint-go").click()
    visitor.changed("inpaint-biharmonic", "")


def judge(visitor: browser.Visitor) -> None:
    visitor.page.locator("#judge-start").click()
    visitor.changed("judge-right", "")


def blend(visitor: browser.Visitor) -> None:
    visitor.choose("blend-first", FIRST)
    visitor.choose("blend-last", LAST)
    visitor.changed("blend-strip", "")


def style(visitor: browser.Visitor) -> None:
    visitor.choose("style-content", FIRST)
    visitor.choose("style-style", LAST)
    visitor.changed("style-found", "")


def training(visitor: browser.Visitor) -> None:
    visitor.page.locator("#training-said", has_text="over").wait_for()
    visitor.choose("training", "tokenizer")
    visitor.page.locator("#training-said", has_text="tokenizer").wait_for()
    visitor.page.locator("#training-psnr").locator("svg, canvas").first.wait_for()


def compare(visitor: browser.Visitor) -> None:
    """The last run beside the one before."""
    visitor.choose("compare", f"tag {BEFORE}", "left")
    visitor.page.wait_for_timeout(500)
    visitor.page.locator("#compare-go").click()
    visitor.page.locator("#compare-said", has_text="metrics").wait_for()
    visitor.changed("compare-images", "")


TABS: dict[str, Callable[[browser.Visitor], None]] = {
    "Reconstruct": reconstruct, "Sample": sample, "Inpaint": inpaint, "Judge": judge, "Blend": blend, "Style": style,
    "Training": training, "Compare runs": compare,
}  # fmt: skip
PHONE = "Reconstruct"  # the tab that is also shown as a phone shows it, in dark mode


def made(browser_: Any, address: str, folder: Path, tabs: Sequence[str]) -> None:
    for tab in tabs:
        visitor = browser.Visitor(browser_, address, **WIDE)
        _show(visitor, tab, folder / f"{tab.split()[0].lower()}.png")
    if PHONE in tabs:
        _show(browser.Visitor(browser_, address, **NARROW, scheme="dark"), PHONE, folder / "phone-dark.png")


def _show(visitor: browser.Visitor, tab: str, path: Path) -> None:
    visitor.tab(tab)
    TABS[tab](visitor)
    visitor.page.wait_for_timeout(1000)  # transitions end
    with files.replacing(path) as temporary:
        visitor.page.screenshot(path=temporary, full_page=True)
        Image.open(temporary).convert("RGB").quantize(COLOURS).save(temporary, "PNG", optimize=True)
    visitor.page.context.close()


def clone(folder: str) -> None:
    """The repository in a folder of its own, since votes must not be written here, with a tag at the last run that had another
    tokenizer.

    Raises:
        InputError: there is no repository of git and DVC here, or it holds no such run.
    """
    cache = _said("dvc", "cache", "dir")
    _said("git", "clone", "-q", "--shared", ".", folder)
    _said("git", "-C", folder, "tag", BEFORE, _run_before())
    (Path(folder) / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {cache}\n", encoding="utf-8")
    (Path(folder) / files.ARTIFACTS).symlink_to(files.ARTIFACTS.resolve())
    shutil.copy("params.yaml", folder)


def _run_before() -> str:
    commits = _said("git", "log", "-n", "50", "--format=%H", "--", TOKENIZER).split()
    now, *before = ((commit, _said("git", "show", f"{commit}:{TOKENIZER}")) for commit in commits)
    found = next((commit for commit, metrics in before if metrics != now[1]), None)
    if found is None:
        raise InputError(
            "two committed runs must have tokenizers that differ, for two to compare; fetch all of git's history"
        )
    return found


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(command[:2])} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.playground_pictures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--tabs", nargs="+", choices=TABS, default=list(TABS), help="default: all")
    parser.add_argument("--to", type=Path, default=FOLDER, help=f"folder to write (default {FOLDER})")
    options = parser.parse_args(argv)
    try:
        if reason := browser.missing():
            raise InputError(f"no screenshots can be made: {reason}")
        if not files.ARTIFACTS.exists():
            raise InputError("there is no artifacts/; run `dvc repro` first")
        with tempfile.TemporaryDirectory() as folder:
            clone(folder)
            with browser.served(Path(folder)) as address, browser.chromium() as chromium:
                made(chromium, address, options.to, options.tabs)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
