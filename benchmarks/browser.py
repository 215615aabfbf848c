"""The playground in Chromium, as a person uses it: what its tests, its benchmark and its screenshots share.

Needs the extra `playground` and Playwright, which only the playground's own environment has, and Debian's Chromium.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
PATIENCE = 100  # seconds for what may load a model on a busy machine
LOCAL = ("http://127.0.0.1:", "data:", "blob:")


def missing() -> str | None:
    """Why there is no browser to test in; None if there is one."""
    for package in ("gradio", "playwright"):
        if importlib.util.find_spec(package) is None:
            return f"there is no {package}: `make test-playground` installs it in an environment of its own"
    return None if shutil.which("chromium") else "there is no chromium"


def environment() -> dict[str, str]:
    """In which the project is found from any folder."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the playground over the artefacts in `folder`, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tessera.playground", "--port", str(port)], cwd=folder, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    said: list[str] = []
    try:
        for line in server.stdout:
            said.append(line)
            if line.startswith("playground: "):
                break
        else:
            raise AssertionError(f"the server did not start:\n{''.join(said)}")
        threading.Thread(target=lambda: said.extend(server.stdout), daemon=True).start()  # else its pipe fills up
        yield f"http://127.0.0.1:{port}"
        assert server.poll() is None, f"the server died:\n{''.join(said)}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            raise


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


PRESSED = """for (const kind of ["click", "keydown"])
  addEventListener(kind, () => { window.begun ??= performance.now() }, { capture: true })"""


class Visitor:
    """One person with a page of their own.

    Attributes:
        page: Playwright's page.
        outside: addresses of requests that left this machine.
        errors: errors on the browser's console.
    """

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        self.page = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
        ).new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.page.on(
            "request", lambda request: None if request.url.startswith(LOCAL) else self.outside.append(request.url)
        )
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.add_init_script(PRESSED)  # before the page's own scripts, which may hold a press back
        self.page.goto(address)
        self.loaded()

    def loaded(self) -> None:
        """Waits until the page has looked up what is there."""
        self.page.locator("#models", has_text=".").wait_for()

    def tab(self, name: str) -> None:
        """A tab, from the menu where the page is narrow."""
        button = self.page.get_by_role("tab", name=name, exact=True)
        if not button.is_visible():
            self.page.locator(".overflow-menu > button").click()
            button = self.page.locator(".overflow-dropdown button", has_text=name)
        button.click()

    def choose(self, key: str, name: str, part: str = "name") -> None:
        """Search a name, and take it."""
        field = self.page.locator(f"#{key}-{part} input")
        field.click()
        field.fill("")  # else it is put behind the name that is there
        field.press_sequentially(name)
        self.page.locator("ul[role=listbox] li", has_text=name).first.wait_for()
        self.page.wait_for_timeout(300)
        field.press("Enter")

    def upload(self, key: str, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.locator(f"#{key}-upload").click()
        chooser.value.set_files(str(path))

    def source(self, part: str) -> str:
        """The address of the picture in a part: another picture has another one. "" if there is none."""
        image = self.page.locator(f"#{part} img").first
        return str(image.get_attribute("src")) if image.count() else ""

    def changed(self, part: str, before: str) -> str:
        """Waits until the part shows another picture, and it is loaded; its address."""
        self.page.wait_for_function(
            """([part, before]) => { const image = document.querySelector(`#${part} img`);
                 return image && image.src !== before && image.complete && image.naturalWidth > 0 }""",
            arg=[part, before],
        )
        return self.source(part)

    def until_changed(self, act: Callable[[], Any], part: str) -> float:
        """Seconds from the click or key that `act` brings about, as the page gets it, until the part shows another picture. The
        driver's own checks before a click are not in it, which take longer than the page."""
        before = self.source(part)
        self.page.evaluate("() => { window.begun = null }")
        act()
        passed = self.page.wait_for_function(
            """([part, before]) => { const image = document.querySelector(`#${part} img`);
                 const over = image && image.src !== before && image.complete && image.naturalWidth > 0;
                 return over && window.begun !== null && performance.now() - window.begun }""",
            arg=[part, before],
        )
        return float(passed.json_value()) / 1000

    def click(self, part: str, across: float, down: float) -> None:
        """At fractions of the width and height of the picture in a part."""
        image = self.page.locator(f"#{part} img").first
        image.scroll_into_view_if_needed()
        box = image.bounding_box()
        image.click(position={"x": box["width"] * across, "y": box["height"] * down})

    def paint(self, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """A stroke with the mouse over the editor, at fractions of its canvas."""
        canvas = self.page.locator("#inpaint-editor canvas").first
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (begin, end)]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        self.page.mouse.move(*points[1], steps=12)
        self.page.mouse.up()

    def message(self) -> str:
        """The newest message on the page, which is closed then."""
        toast = self.page.locator(".toast-body").first
        toast.wait_for()
        text = toast.inner_text()
        toast.locator(".toast-close").click()
        toast.wait_for(state="detached")  # it fades, and would be taken for the next one
        return str(text)


def seconds(act: Any, done: Any) -> float:
    """From the start of `act` to the end of `done`."""
    begun = time.perf_counter()
    act()
    done()
    return time.perf_counter() - begun
