"""The playground in Chromium: pick, click, paint and press as a person does. `make test-playground` runs it; elsewhere it skips."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from committed import ROOT
from filelock import FileLock
from PIL import Image
from ruamel.yaml import YAML
from test_playground import bomb, cut, png

from tessera.core import files
from tessera.playground import cells, judge, samples
from tessera.runtime import live
from tessera.runtime.scratch import LOCK

sys.path.insert(0, str(ROOT))  # where a shell in the repository finds benchmarks
from benchmarks import browser

REASON = browser.missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")
ABORTED = (
    "AbortError",
    "Unexpected error Connection errored out",
)  # what Gradio says of requests of a page that is left
TABS = ("Reconstruct", "Sample", "Inpaint", "Judge", "Blend", "Style", "Training", "Compare runs")
NAMES = ("picture 19", "picture 22")  # test images
GREY = 128


def furnished(folder: Path, artifacts: Path, raw: dict[str, Any]) -> Path:
    """A workspace with params.yaml and a commit, and with artefacts, reconstructions and samples."""
    folder.mkdir(exist_ok=True)
    with open(folder / "params.yaml", "w") as stream:
        YAML(typ="safe").dump(raw, stream)
    (folder / "metrics").mkdir()
    (folder / "metrics" / "prior.json").write_text(json.dumps({"val": {"nll": 2.0}}))
    for command in (
        ("init", "-q"),
        ("add", "metrics"),
        ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "one"),
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    made = folder / files.ARTIFACTS
    shutil.copytree(artifacts, made)
    test = np.load(made / "dataset" / "test.npy")
    files.save_array(made / "reconstruction" / "test.npy", test)
    files.save_array(made / "samples" / "samples" / "images.npy", 255 - test)
    files.write_json(made / "samples" / "facts.json", {"sets": ["samples"]})
    for stage in ("reconstruction", "samples"):
        files.write_json(made / stage / "made_from.json", {})
    return folder


@pytest.fixture(scope="module")
def furnish(_artifacts: Path, _raw: dict[str, Any]) -> Callable[[Path], Path]:
    return lambda folder: furnished(folder, _artifacts, _raw)


@pytest.fixture(scope="module")
def house(tmp_path_factory: Any, furnish: Callable[[Path], Path]) -> Path:
    folder = furnish(tmp_path_factory.mktemp("playground"))
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("")
    (folder / "metrics" / "prior.json").write_text(json.dumps({"val": {"nll": 1.5}}))
    return folder


@pytest.fixture(scope="module")
def address(house: Path) -> Iterator[str]:
    with browser.served(house) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as found:
        yield found


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., browser.Visitor]]:
    """Whatever a visitor did: no request left the machine, and the console had no error."""
    visitors: list[browser.Visitor] = []

    def make(address: str, **options: Any) -> browser.Visitor:
        visitors.append(browser.Visitor(chromium, address, **options))
        return visitors[-1]

    yield make
    for each in visitors:
        assert each.outside == []
        assert each.errors == []
        each.page.context.close()


@pytest.fixture
def visitor(visit: Any, address: str) -> browser.Visitor:
    return visit(address)


def pixels(visitor: browser.Visitor, part: str) -> np.ndarray:
    """What a part shows, [y,x,3]. A picture that stands in its own address has been drawn at once, and Gradio's own comes next."""
    visitor.page.wait_for_function("part => !document.querySelector(`#${part} img`).src.startsWith('data:')", arg=part)
    content = visitor.page.request.get(visitor.source(part)).body()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def image_of(house: Path, name: str) -> np.ndarray:
    table = files.read_table(house / files.ARTIFACTS / "dataset" / "table.csv", text=("name",))
    rows = table[table["split"] == "test"].reset_index(drop=True)
    return np.load(house / files.ARTIFACTS / "dataset" / "test.npy")[rows.index[rows["name"] == name][0]]


def downloaded(visitor: browser.Visitor, button: str) -> bytes:
    with visitor.page.expect_download() as download:
        visitor.page.locator(f"#{button}").click()
    return Path(download.value.path()).read_bytes()


# the tabs


def test_a_code_is_clicked_and_replaced(visitor: browser.Visitor, house: Path) -> None:
    visitor.choose("reconstruct", NAMES[0])
    grid = visitor.changed("reconstruct-grid", "")
    visitor.changed("reconstruct-result", "")
    visitor.changed("reconstruct-original", "")
    assert (pixels(visitor, "reconstruct-original") == np.asarray(cells.enlarged(image_of(house, NAMES[0])))).all()
    visitor.click("reconstruct-grid", 0.9, 0.9)
    grid = visitor.changed("reconstruct-grid", grid)
    visitor.page.locator("#reconstruct-facts", has_text=re.compile(r"Code \d+ stands")).wait_for()
    visitor.changed("reconstruct-near", "")
    before = {part: pixels(visitor, f"reconstruct-{part}") for part in ("grid", "result", "original")}
    code = int(visitor.page.locator("#reconstruct-code input").input_value())
    assert f"Code {code} stands in" in visitor.page.locator("#reconstruct-facts").inner_text()
    result = visitor.source("reconstruct-result")
    visitor.page.locator("#reconstruct-near button").first.click()
    at_once = visitor.changed("reconstruct-result", result)
    drawn = base64.b64decode(at_once.removeprefix("data:image/png;base64,"))
    visitor.changed("reconstruct-grid", grid)
    after = {part: pixels(visitor, f"reconstruct-{part}") for part in before}
    assert (after["original"] == before["original"]).all()
    assert (after["result"] != before["result"]).any()
    assert (after["result"] == np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB"))).all()
    changed = np.argwhere((after["grid"] != before["grid"]).any(2))
    side = before["grid"].shape[0] // json.loads((house / "artifacts/codes/facts.json").read_text())["grids"][0][0]
    assert {tuple(place) for place in changed // side} >= {(before["grid"].shape[0] // side - 1,) * 2}
    same = before["grid"][changed[:, 0], changed[:, 1]]  # elsewhere only frames of the old and the new code change
    assert len(same) < before["grid"].shape[0] * before["grid"].shape[1] / 2
    result, grid = visitor.source("reconstruct-result"), visitor.source("reconstruct-grid")
    visitor.page.locator("#reconstruct-facts", has_text=re.compile(rf"Code (?!{code} )\d+ stands")).wait_for()
    visitor.page.locator("#reconstruct-code input").fill(str(code))
    visitor.page.locator("#reconstruct-code input").press("Enter")
    assert visitor.changed("reconstruct-result", result).startswith("data:"), "a key draws at once, too"
    visitor.changed("reconstruct-grid", grid)
    visitor.page.locator("#reconstruct-facts", has_text=f"Code {code} stands").wait_for()
    assert (pixels(visitor, "reconstruct-result") == before["result"]).all()
    visitor.page.locator("#reconstruct-near button").first.click()  # and once more, to be undone
    for wrong in (
        "",
        "[]",
        '{"codes": [0], "position": 0, "code": 0}',
        '{"codes": [], "position": -1, "code": 1e99}',
        " " * 2**20,
    ):
        answer = visitor.page.request.post(f"{visitor.page.url}redraw", data=wrong)
        assert (answer.status, answer.json()) == (200, {}), "what is no cell is not drawn"
    visitor.page.locator("#reconstruct-code input").fill("99999")
    visitor.page.locator("#reconstruct-put").click()
    assert "a code must be from 0 to" in visitor.message()
    visitor.page.locator("#reconstruct-facts", has_text=re.compile(rf"Code (?!{code} )\d+ stands")).wait_for()
    result = visitor.source("reconstruct-result")
    visitor.page.locator("#reconstruct-undo").click()
    visitor.changed("reconstruct-result", result)
    assert (pixels(visitor, "reconstruct-result") == before["result"]).all()
    visitor.page.locator("#reconstruct-facts", has_text=f"Code {code} stands").wait_for()
    visitor.page.locator("#reconstruct-code input").fill(str((code + 1) % 3))  # another one
    visitor.page.wait_for_timeout(300)
    visitor.page.evaluate(
        """() => { window.came = [];
                   document.addEventListener("click", ({ target }) => window.came.push(target.id));
                   document.querySelector("#reconstruct-put").click();
                   setTimeout(() => document.querySelector("#reconstruct-undo").click()) }"""
    )
    visitor.page.wait_for_function("() => window.came.length === 2")
    assert visitor.page.evaluate("() => window.came") == ["reconstruct-put", "reconstruct-undo"], "in their order"


def test_samples_are_drawn_and_one_is_kept(visitor: browser.Visitor, house: Path) -> None:
    visitor.tab("Sample")
    visitor.page.locator("#samples-n input[type=number]").fill("3")
    visitor.page.locator("#samples-go").click()
    visitor.changed("samples-found", "")
    assert visitor.page.locator("#samples-found .thumbnail-item").count() == 3
    assert "of codes differ from picture" in visitor.page.locator("#samples-found").inner_text()
    visitor.page.locator("#samples-found .thumbnail-item").nth(1).click()
    visitor.page.locator("#samples-keep", has_text="Keep no. 2").wait_for()
    kept = Image.open(io.BytesIO(downloaded(visitor, "samples-keep")))
    assert (kept.text["seed"], kept.text["number"]) == ("0", "1")
    length = len(np.load(house / files.ARTIFACTS / "codes" / "test.npy")[0])
    assert len(json.loads(kept.text["codes"])) == length
    assert (kept.width, kept.height) == (8, 8)


def test_what_is_painted_over_is_filled_in_and_the_rest_stays(visitor: browser.Visitor, house: Path) -> None:
    visitor.tab("Inpaint")
    visitor.page.locator("#inpaint-go").click()
    assert "no picture is chosen" in visitor.message()
    visitor.choose("inpaint", NAMES[0])
    visitor.page.locator("#inpaint-editor canvas").first.wait_for()
    visitor.page.wait_for_timeout(2000)  # the editor shows no sign of having taken its picture in
    visitor.page.locator("#inpaint-go").click()
    assert "nothing is painted over" in visitor.message()
    visitor.paint((0.3, 0.55), (0.6, 0.55))
    visitor.page.locator("#inpaint-go").click()
    visitor.changed("inpaint-given", "")
    visitor.changed("inpaint-biharmonic", "")
    visitor.changed("inpaint-gibbs", "")
    original = np.asarray(cells.enlarged(image_of(house, NAMES[0]), pixels(visitor, "inpaint-given").shape[0]))
    hidden = (pixels(visitor, "inpaint-given") == GREY).all(2) & (original != GREY).any(2)
    rows, columns = np.nonzero(hidden)
    height, width = hidden.shape
    assert 0.01 < hidden.mean() < 0.6
    assert 0.3 < rows.mean() / height < 0.8
    assert 0.2 < columns.mean() / width < 0.7
    for method in ("raster", "gibbs", "autoencoder", "biharmonic"):
        found = pixels(visitor, f"inpaint-{method}")
        assert (found[~hidden] == original[~hidden]).all(), method
    assert (pixels(visitor, "inpaint-autoencoder") != original).any()
    assert "dvc repro infiller" in visitor.page.locator("#inpaint-left-out").inner_text()
    assert visitor.page.locator("#inpaint-raster .thumbnail-item").count() == 2


def test_pairs_are_judged_and_votes_are_kept(visitor: browser.Visitor, house: Path) -> None:
    visitor.tab("Judge")
    visitor.page.locator("#judge-start").click()
    left = visitor.changed("judge-left", "")
    visitor.page.get_by_text(f"Pair 1 of {judge.PAIRS}").wait_for()
    visitor.page.locator("#judge-left-real").click()
    visitor.page.get_by_text(f"Pair 2 of {judge.PAIRS}").wait_for()
    visitor.page.locator("#judge-right-real").click()
    visitor.page.get_by_text(f"Pair 3 of {judge.PAIRS}").wait_for()
    assert left
    votes = files.read_table(house / judge.VOTES)
    assert votes["voted_side"].tolist() == ["left", "right"]
    assert (votes["right"] == (votes["real_side"] == votes["voted_side"])).all()
    assert not visitor.page.locator("#judge-said").is_visible()


def test_pictures_are_blended_and_the_way_is_kept(visitor: browser.Visitor) -> None:
    visitor.tab("Blend")
    visitor.choose("blend-first", NAMES[0])
    visitor.choose("blend-last", NAMES[1])
    middle = visitor.changed("blend-frame", "")
    visitor.changed("blend-strip", "")
    visitor.page.locator("#blend-fraction input[type=number]").fill("0")
    visitor.page.locator("#blend-fraction input[type=number]").press("Enter")
    visitor.changed("blend-frame", middle)
    assert downloaded(visitor, "blend-gif").startswith(b"GIF8")
    assert b"acTL" in downloaded(visitor, "blend-apng")[:200]
    visitor.page.locator("#blend-way label", has_text="hierarchical").click()
    visitor.page.locator("#blend-said", has_text="tokenizer.name=vqvae2").wait_for()
    assert visitor.page.locator("#blend-frame img").count() == 0


def test_one_picture_takes_the_style_of_another(visitor: browser.Visitor) -> None:
    visitor.tab("Style")
    visitor.choose("style-content", NAMES[0])
    visitor.choose("style-style", NAMES[1])
    visitor.changed("style-found", "")
    assert visitor.page.locator("#style-found .thumbnail-item").count() == 2
    assert "hierarchy does not apply" in visitor.page.locator("#style-said").inner_text()


def test_a_training_under_way_is_shown_and_grows(visitor: browser.Visitor, house: Path) -> None:
    rows = [{"epoch": epoch, "train_mse": 1 / epoch, "val_mse": 1.5 / epoch, "lr": 0.1} for epoch in (1, 2, 3, 4)]
    visitor.tab("Training")
    said = visitor.page.locator("#training-said")
    said.filter(has_text="Nothing has been trained here yet").wait_for()
    folder = house / ".scratch" / "tokenizer" / "abc"
    folder.mkdir(parents=True)

    def told(done: float, count: int) -> None:
        files.write_table(house / "plots" / "tokenizer.csv", pd.DataFrame(rows[:count]))
        files.write_json(folder / live.FILE, live.Progress(str(house), "", "tokenizer", done, 1234.0, 90.0)._asdict())

    with FileLock(folder / LOCK):
        told(0.5, 2)
        said.filter(has_text="50% of all steps are taken, 1,234 images per second, about 90 s left").wait_for()
        chart = visitor.page.locator("#training-loss")
        chart.locator("svg, canvas").first.wait_for()
        assert visitor.page.locator("#training-psnr").count() == 0, "nothing of the kind was measured"
        visitor.page.wait_for_timeout(500)
        before = chart.screenshot()
        told(1.0, 4)
        said.filter(has_text="100% of all steps").wait_for()
        visitor.page.wait_for_timeout(1000)
        assert chart.screenshot() != before
    said.filter(has_text="this training is over").wait_for()
    shutil.rmtree(house / "plots")


def test_runs_are_compared(visitor: browser.Visitor) -> None:
    visitor.tab("Compare runs")
    visitor.page.locator("#compare-go").click()
    visitor.page.locator("#compare-said", has_text="1 metrics differ").wait_for()
    assert "prior:val.nll" in visitor.page.locator("#compare-table").inner_text()
    assert "does not hold the tokenizer of HEAD" in visitor.page.locator("#compare-said").inner_text()


# visitors


def test_a_taken_port_is_told(house: Path, address: str) -> None:
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "tessera.playground", "--port", port]
    done = subprocess.run(command, cwd=house, capture_output=True, text=True, check=False, env=browser.environment())
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port {port} of 127.0.0.1 cannot be had")


def test_two_visitors_get_their_own(visit: Any, address: str, house: Path) -> None:
    both = [visit(address), visit(address)]
    for each, name in zip(both, NAMES, strict=True):
        each.choose("reconstruct", name)
    for each, name in zip(both, NAMES, strict=True):
        each.changed("reconstruct-original", "")
        assert (pixels(each, "reconstruct-original") == np.asarray(cells.enlarged(image_of(house, name)))).all()
        each.tab("Sample")
        each.page.locator("#samples-n input[type=number]").fill("2")
    both[1].page.locator("#samples-seed input").fill("5")
    for each in both:
        each.page.locator("#samples-go").click()
    for each, seed in zip(both, ("0", "5"), strict=True):
        each.changed("samples-found", "")
        each.page.locator("#samples-found .thumbnail-item").first.click()
        each.page.locator("#samples-keep", has_text="Keep no. 1").wait_for()
        assert Image.open(io.BytesIO(downloaded(each, "samples-keep"))).text["seed"] == seed


def test_bad_uploads_are_told_and_a_good_one_is_shown(visitor: browser.Visitor, house: Path, tmp_path: Path) -> None:
    bad = {"words": b"only words", "bomb": bomb(30_000), "cut": cut(), "none": b""}
    for name, content in bad.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(content)
        visitor.upload("reconstruct", path)
        assert path.name in visitor.message()
    good = tmp_path / "good.png"
    good.write_bytes(png(image_of(house, NAMES[1])))
    visitor.upload("reconstruct", good)
    visitor.changed("reconstruct-original", "")
    assert (pixels(visitor, "reconstruct-original") == np.asarray(cells.enlarged(image_of(house, NAMES[1])))).all()


def test_without_artefacts_each_tab_says_how_to_make_them(
    visit: Any, tmp_path: Path, furnish: Callable[[Path], Path]
) -> None:
    folder = furnish(tmp_path / "house")
    kept = tmp_path / "kept"
    with browser.served(folder) as address:
        visitor = visit(address)
        visitor.tab("Sample")
        shutil.move(folder / files.ARTIFACTS, kept)
        visitor.page.locator("#samples-go").click()
        assert "dvc repro" in visitor.message()
        visitor.page.reload()
        visitor.loaded()
        for name in TABS:
            visitor.tab(name)
            said = visitor.page.locator("#training-said" if name == "Training" else ".block.missing:visible")
            said.filter(has_text="dvc init" if name == "Compare runs" else "dvc repro").wait_for()
            assert visitor.page.locator("button:visible", has_text="Draw samples").count() == 0
        shutil.move(kept, folder / files.ARTIFACTS)
        visitor.page.reload()
        visitor.loaded()
        visitor.tab("Sample")
        visitor.page.locator("#samples-go").click()
        visitor.changed("samples-found", "")
        assert visitor.page.locator("#samples-found .thumbnail-item").count() == samples.AT_ONCE
        # a page that is left aborts what it waits for; nothing else may have gone wrong
        visitor.errors[:] = [said for said in visitor.errors if not said.startswith(ABORTED)]
