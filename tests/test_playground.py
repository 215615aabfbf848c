"""What the tabs of the playground compute, without the page: test_playground_page.py has the page."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import pandas as pd
import pytest
import torch
from kinds import KINDS
from PIL import Image

from stages import infiller
from tessera import playground
from tessera.commands import trained
from tessera.core import files, models
from tessera.core.conditioning import UNCONDITIONAL
from tessera.core.contracts import Sampling
from tessera.core.errors import InputError
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.space import CodeSpace
from tessera.extensions import inpainting, interpolation, style_transfer
from tessera.images import arrays
from tessera.near_copies import nearest_codes
from tessera.playground import (
    __main__ as command,
)
from tessera.playground import (
    blend,
    cells,
    compare,
    inpaint,
    judge,
    reconstruct,
    samples,
    style,
    uploads,
    workspace,
)
from tessera.playground.workspace import Picture, Workspace
from tessera.release import sums

SPACES = (CodeSpace(((8, 8),), (4,)), CodeSpace(((1, 2), (4, 4)), (3, 4)), CodeSpace(((2, 3), (2, 3)), (4, 4)))
TWO = ("vqvae", "vqvae2, residual")  # kinds of one grid and of many
Made = Callable[..., Workspace]


@pytest.fixture
def made(raw: dict[str, Any], tiny: Any, tiny_run: Any, runtime: Any) -> Made:
    """`made(kind="vqvae2", conditional=True)`: the artefacts of a tiny run, with a tokenizer of that kind."""
    for name, extension in {
        "inpainting": inpainting,
        "interpolation": interpolation,
        "style_transfer": style_transfer,
    }.items():
        raw["extensions"][name] = tiny(extension.Config).model_dump()

    def make(kind: str | None = None, conditional: bool = False) -> Workspace:
        raw["prior"]["conditions"]["label"] = 0.1 if conditional else "none"
        tiny_run()
        if kind:
            kinds.run_of(kind, raw, runtime, None)
        return Workspace(Params(raw))

    return make


def of(space: Workspace, *rows: int) -> list[Picture]:
    return [space.picture(f"test:{row}") for row in rows]


def decoded(space: Workspace, pixels: np.ndarray) -> np.ndarray:
    """One image through the tokenizer."""
    with torch.no_grad():
        tokenizer = space.tokenizer()
        return arrays.to_pixels(tokenizer.decode(tokenizer.encode(arrays.to_model(pixels[None]))))[0]


# the workspace


def test_what_is_missing_is_said_in_one_sentence_with_its_command(made: Made) -> None:
    space = made()
    assert space.why_not("dataset", "tokenizer", "codes", "prior") is None
    shutil.rmtree(space.folder("prior"))
    said = space.why_not("dataset", "prior", "samples")
    assert said == "No artefacts of prior and samples are here yet: `dvc repro prior samples` makes them."
    shutil.rmtree(files.ARTIFACTS)
    assert "`dvc repro tokenizer`" in str(space.why_not("tokenizer"))
    assert space.names(10) == []


def test_artefacts_that_do_not_belong_together_are_not_shown_together(made: Made) -> None:
    space = made()
    files.write_json(space.folder("codes") / "made_from.json", {"artifacts/tokenizer": "0" * 32})
    assert "do not belong together" in str(space.why_not("tokenizer", "codes"))


def test_a_prior_of_other_grids_is_refused(made: Made, raw: dict[str, Any]) -> None:
    space = made()
    recipe = models.prior_recipe(Params(raw), CodeSpace(((1, 1),), (4,)), UNCONDITIONAL, "histogram")
    models.save(space.folder("prior"), models.build(recipe), recipe, "")
    with pytest.raises(InputError, match=r"do not belong together. Run `dvc repro prior`"):
        space.prior()


def test_a_new_model_is_seen_and_an_old_one_is_loaded_once(made: Made, raw: dict[str, Any]) -> None:
    space = made()
    before = space.tokenizer()
    assert space.tokenizer() is before
    recipe = models.read_recipe(space.folder("tokenizer"))
    models.save(space.folder("tokenizer"), models.build(recipe), recipe, "")
    after = space.tokenizer()
    assert after is not before
    assert any((a != b).any() for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_images_are_found_by_name(made: Made) -> None:
    space = made()
    found = space.names(100)
    assert len({title for title, _ in found}) == len(found) == 23
    for title, key in found[:3]:
        assert space.picture(key).name == title
    assert len(space.names(7)) == 7
    split, row = dict(space.names(100))["picture 20"].split(":")
    assert (space.picture(f"{split}:{row}").pixels == space.images(split)[int(row)]).all()
    for key in ("test:99", "no:1", "test:-1", "", "../test:1"):
        with pytest.raises(InputError, match="there is no image"):
            space.picture(key)


def test_images_of_one_name_get_numbers(made: Made) -> None:
    space = made()
    table = pd.read_csv(space.folder("dataset") / "table.csv").assign(name="same")
    files.write_table(space.folder("dataset") / "table.csv", table)
    assert {"same", "same (2)", "same (23)"} <= {title for title, _ in space.names(100)}


# uploads


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header claims `side` x `side` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def cut() -> bytes:
    """A PNG of which the half is missing."""
    whole = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    return whole[: len(whole) // 2]


def test_an_upload_is_what_the_data_set_would_make_of_it(made: Made, workspace: Path) -> None:
    space = made()
    pixels = space.images("test")[0]
    path = workspace / "mine.png"
    path.write_bytes(png(pixels))
    assert (uploads.picture(space, path).pixels == pixels).all()
    assert uploads.picture(space, path)[::2] == ("mine", "")
    clear = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    path.write_bytes(png(clear))
    assert (uploads.picture(space, path).pixels == 255).all(), "on white"
    path.write_bytes(png(pixels.repeat(4, 0).repeat(4, 1)))
    assert (uploads.picture(space, path).pixels == pixels).all(), "made smaller"
    path.write_bytes(png(np.zeros((4, 8), np.uint8)))
    found = uploads.picture(space, path).pixels
    assert found.shape == pixels.shape
    assert (found[[0, -1]] == 255).all(), "made square"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"just some words", "no image"),
        (b"", "empty"),
        (bomb(30_000), "limit of"),
        (cut(), "cut short"),
        (pickle.dumps(print), "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    ],
)
def test_an_upload_that_is_no_picture_is_refused(made: Made, workspace: Path, content: bytes, said: str) -> None:
    path = workspace / "upload.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"upload\.png.*{said}"):
        uploads.picture(made(), path)


def test_a_large_file_is_refused_before_it_is_read(made: Made, workspace: Path) -> None:
    path = workspace / "large.png"
    with open(path, "wb") as stream:
        stream.truncate(uploads.MAX_BYTES + 1)
    with pytest.raises(InputError, match="at most 32 MiB"):
        uploads.picture(made(), path)


# cells


@pytest.mark.parametrize("space", SPACES)
def test_a_click_hits_the_cell_that_is_there(space: CodeSpace) -> None:
    codes = np.arange(space.length) % min(space.sizes)
    palettes = [np.full((size, 3), 200, np.uint8) for size in space.sizes]
    plain = np.asarray(cells.picture(codes, space, palettes, None)).astype(int)
    for t in range(0, space.length, 3):
        marked = np.asarray(cells.picture(codes, space, palettes, t)).astype(int)
        framed = np.argwhere((marked != plain).any(2))[::7]
        grid, _ = space.locate(t)
        same = {at for at in range(space.length) if space.locate(at)[0] == grid and codes[at] == codes[t]}
        assert t in {cells.position(space, x, y) for y, x in framed} <= same
    assert cells.position(space, plain.shape[1] + 5, 5) is None
    assert cells.position(space, 5, plain.shape[0] + 5) is None
    for box in cells.boxes(space)[:-1]:
        assert cells.position(space, box.left + box.cell * box.width + cells.GAP // 2, 3) is None


def test_colours_of_codes_follow_their_code_vectors() -> None:
    book = np.random.default_rng(0).normal(size=(40, 8))
    book[7] = book[3]
    book[9] = book[3] + 1e-4
    colours = cells.colours(book).astype(int)
    assert (colours[7] == colours[3]).all()
    assert abs(colours[9] - colours[3]).max() <= 1
    assert len(np.unique(colours, axis=0)) > 30
    assert (cells.colours(-book) == cells.colours(-book)).all()
    for shape in ((1, 4), (5, 1), (3, 2)):
        assert cells.colours(np.ones(shape)).shape == (shape[0], 3)


# reconstruct


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_reconstructed_and_one_code_is_replaced(made: Made, kind: str) -> None:
    space = made(kind)
    (picture,) = of(space, 1)
    edited = reconstruct.encoded(space, picture)
    assert (edited.codes == space.codes("test")[1]).all()
    pixels = reconstruct.reconstruction(space, edited)
    assert (pixels == decoded(space, picture.pixels)).all()
    error = np.square((pixels.astype(float) - picture.pixels) / 255).mean()
    assert reconstruct.psnr_db(edited, pixels) == pytest.approx(-10 * np.log10(max(error, 1e-10)), abs=1e-3)
    codes, last = space.tokenizer().space, space.tokenizer().space.length - 1
    box = cells.boxes(codes)[-1]
    x, y = box.left + box.cell * (box.width - 0.5), box.cell * (box.height - 0.5)
    edited = reconstruct.clicked(space, edited, x, y)
    assert edited.chosen == last
    other = (int(edited.codes[last]) + 1) % codes.sizes[-1]
    changed = reconstruct.replaced(space, edited, other)
    assert changed.changed == 1
    assert changed.codes[last] == other
    assert (edited.codes == edited.own).all(), "what it was made from is as before"
    with torch.no_grad():
        expected = space.tokenizer().decode(torch.tensor(changed.codes[None]).long())
    assert (reconstruct.reconstruction(space, changed) == arrays.to_pixels(expected)[0]).all()
    assert (reconstruct.restored(changed).codes == edited.own).all()


@pytest.mark.parametrize("kind", TWO)
def test_a_code_is_looked_up(made: Made, kind: str) -> None:
    space = made(kind)
    codes = space.tokenizer().space
    edited = reconstruct.encoded(space, of(space, 2)[0])._replace(chosen=codes.length - 1)
    code = int(edited.codes[-1])
    use = reconstruct.use(space, edited, 3)
    train = codes.split(np.asarray(space.codes("train")))[-1]
    times = (train == code).sum((1, 2))
    assert use[:2] == (code, int((codes.split(edited.codes[None])[-1] == code).sum()))
    assert (use.fraction, use.counted) == (pytest.approx(float((train == code).mean())), 12)
    assert times[use.images].tolist() == sorted(times, reverse=True)[: len(use.images)]
    pictures = reconstruct.elsewhere(space, edited, use)
    assert [caption for _, caption in pictures] == [
        f"{space.table('train')['name'][row]}: {times[row]}" for row in use.images
    ]
    found = reconstruct.nearest(space, edited, 3)
    book = space.tokenizer().codebooks[-1].detach().numpy()
    far = np.linalg.norm(book - book[code], axis=1)
    assert code not in {other for other, _ in found}
    assert [distance for _, distance in found] == pytest.approx(sorted(np.delete(far, code))[:3], rel=1e-4)
    for (picture, _), (other, _) in zip(reconstruct.with_each(space, edited, found), found, strict=True):
        pixels = reconstruct.reconstruction(space, reconstruct.replaced(space, edited, other))
        assert (np.asarray(picture) == np.asarray(cells.enlarged(pixels, reconstruct.SMALL))).all()


def test_a_code_that_is_none_and_a_click_beside_are_told(made: Made) -> None:
    space = made()
    edited = reconstruct.encoded(space, of(space, 0)[0])
    with pytest.raises(InputError, match="no cell is chosen"):
        reconstruct.replaced(space, edited, 0)
    edited = edited._replace(chosen=0)
    size = space.tokenizer().space.sizes[0]
    for code in (-1, size):
        with pytest.raises(InputError, match=f"from 0 to {size - 1}"):
            reconstruct.replaced(space, edited, code)
    assert reconstruct.clicked(space, edited, 10_000, 3).chosen is None
    shutil.rmtree(space.folder("codes"))
    assert reconstruct.use(space, edited, 3).counted == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_is_redrawn_as_it_is_replaced(made: Made, kind: str) -> None:
    space = made(kind)
    codes = space.tokenizer().space
    edited = reconstruct.encoded(space, of(space, 1)[0])._replace(chosen=codes.length - 1)
    other = (int(edited.codes[-1]) + 1) % codes.sizes[-1]
    replaced = reconstruct.replaced(space, edited, other)
    found = reconstruct.redrawn(space, edited.codes.tolist(), codes.length - 1, other)
    assert found is not None
    pixels, grid = found
    assert (pixels == reconstruct.reconstruction(space, replaced)).all()
    assert (np.asarray(grid) == np.asarray(reconstruct.grid(space, replaced))).all()


def test_what_are_no_codes_of_the_tokenizer_is_not_redrawn(made: Made) -> None:
    space = made()
    length, size = space.tokenizer().space.length, space.tokenizer().space.sizes[0]
    wrong = [([0] * (length - 1), 0, 0), ([0] * length, length, 0), ([0] * length, -1, 0), ([0] * length, 0, size),
             ([0] * length, 0, -1), ([size, *[0] * (length - 1)], 1, 0)]  # fmt: skip
    assert [reconstruct.redrawn(space, *each) for each in wrong] == [None] * len(wrong)


# samples


def drawn(space: Workspace, n: int, **asked: Any) -> list[samples.Sample]:
    return [
        each for batch in samples.sampled(space, n, samples.Asked(Sampling(), **{"seed": 3, **asked})) for each in batch
    ]


@pytest.mark.parametrize("kind", TWO)
def test_samples_depend_on_their_seed_alone(made: Made, kind: str) -> None:
    space = made(kind)
    many, few = drawn(space, samples.AT_ONCE + 3), drawn(space, 2)
    assert [each.number for each in many] == list(range(samples.AT_ONCE + 3))
    assert all((a.codes == b.codes).all() and (a.pixels == b.pixels).all() for a, b in zip(many, few, strict=False))
    assert any((a.codes != b.codes).any() for a, b in zip(many, drawn(space, 4, seed=4), strict=False))
    for n in (0, samples.MOST + 1):
        with pytest.raises(InputError, match="samples can be drawn"):
            drawn(space, n)
    with pytest.raises(InputError, match="temperature > 0"):
        next(samples.sampled(space, 1, samples.Asked(Sampling(temperature=0.0), 0)))


def test_a_cluster_is_no_mere_number(made: Made) -> None:
    space = made()
    (sample,) = drawn(space, 1)
    told = sample._replace(said={"label": "round", "cluster": "58", "words": ""}, neighbour=None)
    assert samples.shown(space, told)[1] == "round, cluster 58, no. 1"


def test_the_nearest_training_image_is_that_of_the_measure(made: Made) -> None:
    space = made()
    train, codes = np.asarray(space.codes("train")), np.asarray(space.codes("test"))
    expected = nearest_codes(codes, train)
    assert [near.distance for near in samples.nearest(space, codes)] == pytest.approx(expected)
    augmented = np.stack([np.zeros_like(train), np.roll(codes[:1].repeat(len(train), 0), 0)])
    files.save_array(space.folder("codes") / "augmented.npy", augmented)
    found = samples.nearest(space, codes)
    assert [near.distance for near in found] == pytest.approx(nearest_codes(codes, train, *augmented))
    assert found[0] == (0, 2 if expected[0] else 0, 0.0)
    shutil.rmtree(space.folder("dataset"))
    assert samples.nearest(space, codes) == []
    assert samples.shown(space, drawn(space, 1)[0])[1] == "no. 1"


def test_a_kept_sample_can_be_made_again(made: Made) -> None:
    space = made(conditional=False)
    sample = drawn(space, 2)[1]
    stored = Image.open(io.BytesIO(samples.png(space, sample)))
    assert (np.asarray(stored) == sample.pixels).all()
    codes = np.array(json.loads(stored.text["codes"]))
    assert (space.decoded(codes[None])[0] == sample.pixels).all()
    again = samples.Asked(Sampling(**json.loads(stored.text["sampling"])), int(stored.text["seed"]))
    (found,) = samples.sampled(space, 2, again)
    assert (found[int(stored.text["number"])].codes == codes).all()


def test_samples_of_a_prior_with_labels(made: Made) -> None:
    space = made("vqvae", conditional=True)
    asked = {"label": "square"}
    assert {each.said["label"] for each in drawn(space, 4, conditions=asked)} == {"square"}
    assert {each.said["label"] for each in drawn(space, 16)} == {"round", "square"}
    assert "square" in samples.shown(space, drawn(space, 1, conditions=asked)[0])[1]
    assert json.loads(Image.open(io.BytesIO(samples.png(space, drawn(space, 1)[0]))).text["conditions"]).keys() == {
        "label"
    }
    with pytest.raises(InputError, match="no such label; there are round, square"):
        drawn(space, 1, conditions={"label": "oval"})
    with pytest.raises(InputError, match="this prior knows no words: it is told label"):
        drawn(space, 1, conditions={"words": "guitar"})
    shutil.rmtree(space.folder("dataset"))  # then nothing is said of what is not asked for
    assert {each.said["label"] for each in drawn(space, 4, conditions=asked)} == {"square"}
    assert {each.said["label"] for each in drawn(space, 4)} == {""}


# inpaint


def test_what_is_painted_over_is_hidden() -> None:
    alpha = np.zeros((80, 80), np.uint8)
    alpha[20:40, 10:30] = 128
    mask = inpaint.hidden(alpha, 8, 8)
    assert (mask == np.pad(np.ones((2, 2), bool), ((2, 4), (1, 5)))).all()
    alpha[40:42] = 255  # less than a quarter of these pixels
    assert (inpaint.hidden(alpha, 8, 8) == mask).all()
    assert not inpaint.hidden(np.zeros((1, 1), np.uint8), 8, 8).any()


def filled(*asked: Any) -> inpaint.Filled:
    """What all methods fill in."""
    *_, found = inpaint.filled(*asked)
    return found


@pytest.mark.parametrize(("kind", "conditional"), [("vqvae", False), ("vqvae2, residual", True)])
def test_methods_fill_in_what_is_hidden_and_nothing_else(
    made: Made, kind: str, conditional: bool, runtime: Any
) -> None:
    space = made(kind, conditional)
    infiller.main(Run(space.params, None, runtime))
    (picture,) = of(space, 0)
    mask = np.zeros((8, 8), bool)
    mask[2:6, 3:7] = True
    found_by = filled(space, picture._replace(key=""), mask, 2, 0)
    assert list(found_by.found) == list(inpaint.ORDER)
    assert found_by.reasons == {}
    for name, found in found_by.found.items():
        assert len(found) == (2 if name in ("raster", "gibbs", "masked") else 1)
        assert (found[:, ~mask] == picture.pixels[~mask]).all()
        assert np.asarray(inpaint.shown(found_by, name)[0]).shape[0] >= inpaint.SIDE
    quick, _ = inpaint.filled(space, picture._replace(key=""), mask, 2, 0)
    assert list(quick.found) == ["autoencoder", "biharmonic"], "nobody waits for those that sample"
    assert all((quick.found[name] == found_by.found[name]).all() for name in quick.found)
    more = filled(space, picture._replace(key=""), mask, 2, 0, 40)
    assert (more.found["raster"] == found_by.found["raster"]).all()
    again = filled(space, picture._replace(key=""), mask, 2, 0)
    assert all((again.found[name] == found).all() for name, found in found_by.found.items())


def test_what_cannot_be_filled_in_is_told(made: Made, raw: dict[str, Any]) -> None:
    space = made("vqvae")
    (picture,) = of(space, 0)
    mask = np.zeros((8, 8), bool)
    with pytest.raises(InputError, match="nothing is painted over"):
        filled(space, picture, mask, 1, 0)
    with pytest.raises(InputError, match="all is painted over"):
        filled(space, picture, ~mask, 1, 0)
    mask[:2] = True
    with pytest.raises(InputError, match="fill-ins"):
        filled(space, picture, mask, inpaint.MOST + 1, 0)
    with pytest.raises(InputError, match="visit hidden codes between 1"):
        filled(space, picture, mask, 1, 0, 0)
    assert "dvc repro infiller" in filled(space, picture, mask, 1, 0).reasons["masked"]
    files.write_json(space.folder("infiller") / "unused.json", {"reason": "infiller.enabled is false"})
    assert "infiller.enabled=true" in filled(space, picture, mask, 1, 0).reasons["masked"]
    del raw["extensions"]["inpainting"]
    with pytest.raises(InputError, match=r"no extensions\.inpainting"):
        filled(space, picture, mask, 1, 0)


# judge


@pytest.fixture
def judged(made: Made) -> Workspace:
    """With reconstructions, samples, and a group for each of them."""
    space = made()
    test, count = space.images("test"), 6
    files.save_array(space.folder("reconstruction") / "test.npy", np.asarray(test))
    files.save_array(space.folder("samples") / "samples" / "images.npy", np.zeros((count, *test.shape[1:]), np.uint8))
    files.write_json(space.folder("samples") / "facts.json", {"sets": ["samples"]})
    files.write_json(space.folder("features") / "facts.json", {"groups": ["a", "b"], "shown": ["a", "b"]})
    for name, groups in {"test": [0, 0, 0, 1, 1], "samples": [0, 0, 0, 0, 1, 1]}.items():
        files.save_array(space.folder("features") / "groups" / f"{name}.npy", np.array(groups))
    for stage in ("reconstruction", "samples", "features"):
        files.write_json(space.folder(stage) / "made_from.json", {})
    return space


def test_pairs_are_of_one_group_and_their_sides_are_even(judged: Workspace) -> None:
    found = judge.pairs(judged, 7)
    assert found == judge.pairs(judged, 7)
    assert found != judge.pairs(judged, 8)
    assert [each.real_side for each in found].count("left") == judge.PAIRS // 2
    assert {(each.group, each.real > 2, each.sample > 3) for each in found} == {("a", False, False), ("b", True, True)}
    first = [each.sample for each in found if each.group == "a"][:4]
    assert sorted(first) == [0, 1, 2, 3], "none twice before all have come"
    for pair in found[:4]:
        images = judge.images(judged, pair)
        assert (images[pair.real_side] == judged.images("test")[pair.real]).all()
        assert not images["right" if pair.real_side == "left" else "left"].any()
    shutil.rmtree(judged.folder("features"))
    assert {each.group for each in judge.pairs(judged, 7)} == {"all"}


def test_votes_are_kept_and_count_for_the_samples_they_are_of(judged: Workspace, workspace: Path) -> None:
    pairs = judge.pairs(judged, 7)
    for number, pair in enumerate(pairs):
        judge.vote(judged, 7, number, pair, "left")
    table = pd.read_csv(workspace / judge.VOTES)
    assert list(table.columns) == list(judge.COLUMNS)
    assert table["right"].sum() == judge.PAIRS // 2
    before = judge.version(judged)
    assert len(judge.votes(before)) == judge.PAIRS
    files.save_array(judged.folder("samples") / "samples" / "images.npy", judged.samples() + 1)
    assert judge.version(judged) != before
    assert judge.votes(judge.version(judged)).empty
    assert judge.summary(judge.votes(judge.version(judged))).empty
    (workspace / judge.VOTES).write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="must have the columns"):
        judge.votes(before)


def test_intervals_are_exact() -> None:
    """Clopper & Pearson's own: 25 of 50, and 0 of 5, whose upper end is 1 - (.025)^(1/5)."""
    table = pd.DataFrame({"group": ["a"] * 50 + ["b"] * 5, "right": [1, 0] * 25 + [0] * 5})
    found = judge.summary(table).set_index("group")
    assert found.loc["a", ["votes", "right", "fraction"]].tolist() == [50, 25, 0.5]
    assert found.loc["a", ["low", "high"]].tolist() == pytest.approx([0.355273, 0.644727], abs=1e-5)
    assert found.loc["b", ["low", "high"]].tolist() == pytest.approx([0, 1 - 0.025**0.2])
    assert found.loc["all", "votes"] == 55


def test_the_study_of_judges_reads_votes_by_session(judged: Workspace) -> None:
    for session in (7, 8):
        for number, pair in enumerate(judge.pairs(judged, session)):
            judge.vote(judged, session, number, pair, "left" if session == 7 else pair.real_side)
    found = judge.by_session(judge.votes())
    whole = found[found["group"] == "all"]
    assert whole["value"].tolist() == [0.5, 1.0]
    assert whole["repetition"].tolist() == [0, 1]
    assert set(found["set"]) == {f"samples {judge.version(judged)}"}
    assert set(found["group"]) == {"all", "a", "b"}
    assert {"group", "images", "judge", "set", "repetition", "value"} == set(found)


# blend and style


@pytest.mark.parametrize("kind", TWO)
def test_every_way_leads_from_one_picture_to_the_other(made: Made, kind: str) -> None:
    space = made(kind)
    pictures = of(space, *kinds.apart(space))
    ends = [decoded(space, each.pixels) for each in pictures]
    for way in blend.WAYS:
        if way == "hierarchical" and kind not in kinds.LEVELS:
            with pytest.raises(
                InputError, match=r"decodes one level of codes only: `dvc exp run -S tokenizer\.name=vqvae2`"
            ):
                blend.frames(space, *pictures, way)
            continue
        found = blend.frames(space, *pictures, way)
        assert found.shape == (blend.FRAMES, 8, 8, 3)
        for frame, end in zip(found[[0, -1]], ends, strict=True):
            assert abs(frame.astype(int) - end).max() <= 1, way


def test_an_animation_goes_there_and_back(made: Made) -> None:
    space = made()
    found = blend.frames(space, *of(space, *kinds.apart(space)), "latent")
    for kind in ("gif", "apng"):
        image = Image.open(io.BytesIO(blend.animation(found, kind)))
        assert image.info["loop"] == 0
        assert image.size == (blend.SIDE, blend.SIDE)
        assert 1 < image.n_frames <= 2 * blend.FRAMES - 2  # Pillow joins frames that are equal
        if kind == "apng":
            assert (np.asarray(image.convert("RGB")) == np.asarray(cells.enlarged(found[0], blend.SIDE))).all()
    assert np.asarray(blend.strip(found, 8)).shape[1] == 8 * blend.SMALL


def test_the_way_of_the_prior_needs_one(made: Made) -> None:
    space = made()
    shutil.rmtree(space.folder("prior"))
    with pytest.raises(InputError, match="`dvc repro prior` makes them"):
        blend.frames(space, *of(space, 0, 1), "prior")


@pytest.mark.parametrize("kind", TWO)
def test_a_picture_in_its_own_style_is_its_reconstruction(made: Made, kind: str) -> None:
    space = made(kind)
    (picture,) = of(space, 0)
    result = style.styled(space, picture, picture)
    applies = [name for name in style_transfer.METHODS if kind in kinds.LEVELS or name != "hierarchy"]
    assert list(result.found) == applies
    assert list(result.reasons) == [name for name in style_transfer.METHODS if name not in applies]
    for name, pixels in result.found.items():
        assert (pixels == decoded(space, picture.pixels)).all(), name
        assert result.measures[name]["edges"] == pytest.approx(1)


# compare


@pytest.fixture
def repository(made: Made, raw: dict[str, Any], workspace: Path) -> Workspace:
    """Of git and DVC: a first commit with its tokenizer, metrics and curve, then others in the working folder."""
    from dvc.repo import Repo

    space = made()
    environment = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "init", "-q", "-b", "main", "."], check=True)
    repo = Repo.init(".")
    files.write_metrics("tokenizer", {"val": {"psnr_db": 20.0, "loss": 0.5}, "epoch": 3})
    files.write_history(
        "tokenizer", [{"epoch": 1, "val_loss": 2.0, "loss": 1.0}, {"epoch": 2, "val_loss": 1.0, "loss": 1.0}]
    )
    repo.add([(files.ARTIFACTS / "tokenizer").as_posix()])
    repo.close()
    subprocess.run(["git", "add", ".dvc", "artifacts/tokenizer.dvc", "metrics", "plots"], check=True)
    subprocess.run(["git", *environment, "commit", "-qm", "first"], check=True)
    subprocess.run(["git", "update-ref", "refs/exps/ab/cd/loud-crow", "HEAD"], check=True)
    files.write_metrics("tokenizer", {"val": {"psnr_db": 21.0, "loss": 0.5}, "new": 1})
    recipe = models.read_recipe(space.folder("tokenizer"))
    models.save(space.folder("tokenizer"), models.build(recipe), recipe, "")
    return space


def test_two_runs_side_by_side(repository: Workspace) -> None:
    assert compare.why_not() is None
    names = dict(compare.revisions())
    assert {"workspace, as it is now", "HEAD, the last commit", "branch main", "experiment loud-crow"} == set(names)
    then, now = compare.Revision(names["experiment loud-crow"]), compare.Revision(compare.HERE)
    table = compare.differing(then.metrics(), now.metrics()).set_index("metric")
    assert set(table.index) == {"tokenizer:val.psnr_db", "tokenizer:epoch", "tokenizer:new"}
    assert table.loc["tokenizer:val.psnr_db"].tolist() == [20, 21, 1]
    assert table.index[-1] == "tokenizer:val.psnr_db", "one that only one run has comes first"
    curve = compare.curves(then, now, "tokenizer")
    assert set(curve["measure"]) == {"val_loss"}
    assert curve["value"].tolist() == [2, 1, 2, 1]
    assert compare.curves(then, now, "prior").empty
    original, before, after = compare.reconstructed(repository, then, now)
    assert (original == repository.images("test")).all()
    assert (after[0] == decoded(repository, original[0])).all()
    assert (before != after).any()


def test_a_run_whose_tokenizer_is_not_in_the_cache_is_told(repository: Workspace) -> None:
    shutil.rmtree(".dvc/cache")
    then = compare.Revision("refs/heads/main")
    assert then.metrics()["tokenizer:epoch"] == 3
    with pytest.raises(InputError, match=r"DVC's cache does not hold the tokenizer of refs/heads/main .*`dvc pull`"):
        then.tokenizer(repository)
    for name in ("--help", "refs/heads/other", "HEAD~1"):
        with pytest.raises(InputError, match="there is no revision"):
            compare.Revision(name)


def test_without_git_or_dvc_there_is_nothing_to_compare(workspace: Path) -> None:
    assert "`git init`" in str(compare.why_not())
    subprocess.run(["git", "init", "-q", "."], check=True)
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "a"], check=True
    )
    assert "`dvc init`" in str(compare.why_not())


# the command


def test_wrong_commands_are_told(workspace: Path, raw: dict[str, Any], capsys: Any, monkeypatch: Any) -> None:
    assert command.main(["--port", "70000"]) == 1
    assert "error: --port must be from 1 to 65535, got 70000" in capsys.readouterr().err
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main([]) == 1
    assert "`make playground` installs it" in capsys.readouterr().err
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: True)
    assert command.main([]) == 1
    assert "params.yaml: there is no such file" in capsys.readouterr().err


def test_the_page_alone_knows_gradio() -> None:
    folder = Path(playground.__file__).parent
    knows = {path.relative_to(folder).parts[0] for path in folder.rglob("*.py") if "import gradio" in path.read_text()}
    assert knows == {"page"}


def test_the_committed_models_are_played_with_where_none_was_trained_and_it_is_said(made: Made) -> None:
    space = made()
    assert workspace.models_folder() == files.ARTIFACTS
    for kind in workspace.MODELS:
        shutil.copytree(space.folder(kind), trained.COMMITTED / kind)
        (trained.COMMITTED / kind / "made_from.json").unlink()
    sums.write(trained.COMMITTED)
    assert workspace.models_folder() == files.ARTIFACTS, "a run of one's own comes first"
    before = drawn(space, 2)
    shutil.rmtree(space.folder("tokenizer"))
    assert workspace.models_folder() == files.ARTIFACTS, (
        "a run that has not come to its end is no reason for other models"
    )
    shutil.rmtree(space.folder("prior"))
    assert workspace.models_folder() == trained.COMMITTED
    assert space.models.endswith("this is models/default, the models of the committed run.")
    assert space.why_not("dataset", "tokenizer", "prior") is None
    assert "`dvc repro codes`" in str(space.why_not("codes")), "those that are there are of other models"
    after = drawn(space, 2)
    assert all((a.codes == b.codes).all() and (a.pixels == b.pixels).all() for a, b in zip(before, after, strict=True))
    (picture,) = of(space, 0)
    assert reconstruct.reconstruction(space, reconstruct.encoded(space, picture)).shape == picture.pixels.shape
    shutil.rmtree(files.ARTIFACTS)
    assert (space.names(10), space.why_not("tokenizer", "prior")) == ([], None)
    with open(trained.COMMITTED / "prior" / models.WEIGHTS, "ab") as stream:
        stream.write(b" ")
    with pytest.raises(InputError, match=r"SHA256SUMS: models/default/prior/model\.safetensors is another file"):
        space.prior()


@pytest.mark.parametrize(("kind", "said"), [
    ("vqvae2, residual", r"Tokenizer vqvae2 with residual, \dx\d codes of \d+ and .*; prior histogram\."),
    ("pixels", r"Tokenizer pixels, 8x8 codes of \d+ .*"),
])  # fmt: skip
def test_the_page_names_its_models(made: Made, kind: str, said: str) -> None:
    space = made(kind)
    assert re.fullmatch(said, space.models)
    shutil.rmtree(files.ARTIFACTS)
    assert space.models == "There are no models here yet."
