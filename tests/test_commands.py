"""The commands sample, encode and decode: what they write, which models they use, what they say of bad input."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kinds import untrained
from PIL import Image

from tessera import decode, encode, rejection, sample
from tessera.commands import encoded, line
from tessera.commands.encoded import Encoded
from tessera.core import files, models
from tessera.core.conditioning import UNCONDITIONAL, Condition, Conditioning
from tessera.core.contracts import Sampling
from tessera.core.params import Params
from tessera.core.run import Run
from tessera.core.seeding import generator, seed_globally
from tessera.core.space import CodeSpace
from tessera.images import arrays
from tessera.release import sums

COMMANDS = {"sample": sample, "encode": encode, "decode": decode}


@pytest.fixture
def run(tiny_run: Callable[[], Run]) -> Run:
    """A tiny run in the working folder."""
    return tiny_run()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`said(status, command, *arguments)`: what a command printed that ended with this status."""

    def start(status: int, command: str, *arguments: str) -> str:
        capsys.readouterr()
        ended: Any = None
        try:
            ended = COMMANDS[command].main(arguments)
        except SystemExit as end:
            ended = end.code
        assert ended == status
        out, err = capsys.readouterr()
        return out + err

    return start


def pictures_of(pixels: np.ndarray, folder: str = "photos") -> Path:
    for index, image in enumerate(pixels):
        files.write_picture(Path(folder) / f"{index:02}.png", image)
    return Path(folder)


# sample


def test_the_picture_and_the_codes_are_of_the_same_samples(run, said):
    out = said(0, "sample", "-n", "3", "--seed", "5", "--out", "a.png", "--codes", "a.npz")
    assert "a.png: 3 samples of artifacts/prior, seed 5" in out
    found = encoded.read(Path("a.npz"))
    assert found.names == ["sample-0", "sample-1", "sample-2"]
    own = arrays.decoded(run.tokenizer(), found.codes.astype(np.int64), 2)
    sheet = np.asarray(Image.open("a.png"))
    size = 8 * 8  # enlarged eightfold
    places = [(4, 4), (4, 8 + size), (8 + size, 4)]
    for image, (top, left) in zip(own, places, strict=True):
        assert np.array_equal(sheet[top : top + size : 8, left : left + size : 8], image)


def test_the_images_are_those_of_the_stage(run, said):
    """With the seed and the batches of params.yaml."""
    said(0, "sample", "-n", "5", "--seed", "3", "--out", "a.png", "--codes", "a.npz", "--batch-size", "2")
    codes = encoded.read(Path("a.npz")).codes
    for index, where in enumerate([slice(0, 2), slice(2, 4), slice(4, 5)]):
        n = where.stop - where.start
        assert np.array_equal(codes[where], run.prior().sample(n, generator(3, "samples", index), Sampling()))


def drawn(**changes: Any) -> dict[str, Any]:
    """What the stage `samples` says of how it drew."""
    return {"sets": ["samples"], "sampling": {**Sampling()._asdict(), **changes}}


def test_they_are_drawn_as_the_run_drew_its_samples(conditional, said):
    facts = conditional.folder("samples") / "facts.json"
    files.write_json(facts, drawn(top_k=2, guidance={"label": 3.0, "words": 2.0}))
    out = said(0, "sample", "-n", "2", "--out", "a.png", "--codes", "a.npz", "--label", "round")
    assert "seed 0; temperature 1, top-k 2, guidance label=3" in out
    assert "words" not in out, "of which this prior is told nothing"
    told = torch.tensor([[0], [0]])
    wanted = conditional.prior().sample(2, generator(0, "samples", 0), Sampling(1.0, 2, 1.0, {"label": 3.0}), told)
    assert np.array_equal(encoded.read(Path("a.npz")).codes, wanted)


def test_what_is_given_counts_more_than_how_the_run_drew(conditional, said):
    files.write_json(conditional.folder("samples") / "facts.json", drawn(temperature=0.5, guidance={"label": 3.0}))
    given = ("--temperature", "2", "--top-p", "0.5", "--guidance", "1")
    out = said(0, "sample", "-n", "2", "--out", "a.png", "--codes", "a.npz", "--label", "round", *given)
    assert "seed 0; temperature 2, top-p 0.5\n" in out
    wanted = conditional.prior().sample(2, generator(0, "samples", 0), Sampling(2.0, 0, 0.5), torch.tensor([[0], [0]]))
    assert np.array_equal(encoded.read(Path("a.npz")).codes, wanted)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_p": 2}, {"guidance": 3}, {"guidance": {"label": -1.0}}])
def test_how_a_run_drew_is_checked(wrong, run, said):
    files.write_json(run.folder("samples") / "facts.json", drawn(**wrong))
    out = said(1, "sample", "--out", "a.png")
    assert f"artifacts/samples/facts.json: sampling.{next(iter(wrong))}" in out
    assert "Run `dvc repro samples`" in out


def test_what_is_no_table_of_facts_is_named(run, said):
    files.write_json(run.folder("samples") / "facts.json", ["samples"])
    assert "artifacts/samples/facts.json: the whole: " in said(1, "sample", "--out", "a.png")


def test_an_older_run_does_not_say_how_it_drew(run, said):
    files.write_json(run.folder("samples") / "facts.json", {"sets": ["samples"]})
    assert "seed 0; temperature 1\n" in said(0, "sample", "-n", "1", "--out", "a.png")


def test_a_prior_that_never_went_without_is_not_guided_as_another_was(conditional, said):
    """`samples` may be older than the prior."""
    recipe = conditional.folder("prior") / "recipe.json"
    found = files.read_json(recipe)
    found["arguments"]["conditions"][0]["dropout"] = 0.0
    files.write_json(recipe, found)
    files.write_json(conditional.folder("samples") / "facts.json", drawn(guidance={"label": 3.0}))
    assert "guidance" not in said(0, "sample", "-n", "1", "--out", "a.png", "--label", "round")


def test_fewer_images_are_the_first_of_more_and_a_seed_decides(run, said):
    found = {}
    for name, n, seed in (("few", "2", "0"), ("more", "6", "0"), ("again", "6", "0"), ("other", "6", "1")):
        said(0, "sample", "-n", n, "--seed", seed, "--out", f"{name}.png", "--codes", f"{name}.npz")
        found[name] = encoded.read(Path(f"{name}.npz")).codes
    assert np.array_equal(found["few"], found["more"][:2])
    assert Path("more.png").read_bytes() == Path("again.png").read_bytes()
    assert Path("more.npz").read_bytes() == Path("again.npz").read_bytes()
    assert not np.array_equal(found["more"], found["other"])


@pytest.mark.parametrize(("flag", "value"), [("--top-k", "1"), ("--top-p", "1e-9"), ("--temperature", "1e-6")])
def test_only_the_likeliest_codes_are_drawn(flag, value, run, said):
    """Whatever the seed."""
    for seed in ("0", "1"):
        said(0, "sample", "-n", "2", "--seed", seed, "--out", "a.png", "--codes", f"{seed}.npz", flag, value)
    first, second = (encoded.read(Path(f"{seed}.npz")).codes for seed in ("0", "1"))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(("n", "given", "shape"), [(5, (), (2, 3)), (5, ("--columns", "5"), (1, 5)),
                                                   (2, ("--columns", "9"), (1, 2))])  # fmt: skip
def test_the_picture_is_a_square_or_has_these_columns(n, given, shape, run, said):
    said(0, "sample", "-n", str(n), "--out", "a.png", *given)
    rows, columns = shape
    assert Image.open("a.png").size == (columns * 68 + 4, rows * 68 + 4)


def test_a_picture_has_an_end(run, said, monkeypatch):
    monkeypatch.setattr(sample, "SHOWN", 2)
    out = said(0, "sample", "-n", "5", "--out", "a.png", "--codes", "a.npz")
    assert "the first 2 of 5 samples" in out
    assert Image.open("a.png").size == (2 * 68 + 4, 68 + 4)
    assert len(encoded.read(Path("a.npz")).codes) == 5


@pytest.fixture
def small_critic(run: Run, raw: dict[str, Any]) -> dict[str, int]:
    """params.yaml with a critic that is trained in no time; its values."""
    found = {"count": 6, "channels": 4, "epochs": 2, "batch_size": 4}
    raw["samples"]["rejection"].update(found)
    Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return found


@pytest.mark.usefixtures("small_critic")
def test_of_so_many_candidates_the_critic_keeps_the_best(run, said):
    for name, n, given in (("all", "6", ()), ("best", "2", ("--best-of", "3")), ("again", "2", ("--best-of", "3"))):
        out = said(0, "sample", "-n", n, "--out", "a.png", "--codes", f"{name}.npz", *given)
        assert ("the best by a critic of 6 that were drawn" in out) == bool(given)
    found = {name: encoded.read(Path(f"{name}.npz")).codes for name in ("all", "best", "again")}
    assert len(found["best"]) == 2
    for image, codes in enumerate(found["best"]):  # each of its own candidates
        assert codes.tolist() in found["all"][image::2].tolist()
    assert np.array_equal(found["best"], found["again"])


def test_a_critic_learns_from_training_codes_and_is_told_what_they_are(conditional, small_critic, said, monkeypatch):
    seen: dict[str, Any] = {}

    def log_odds(real: Any, false: Any, candidates: Any, *_: Any) -> np.ndarray:
        seen.update(real=real, false=false, candidates=candidates)
        return np.arange(len(candidates), dtype=float)  # the last are the best

    monkeypatch.setattr(rejection, "log_odds", log_odds)
    said(0, "sample", "-n", "2", "--best-of", "2", "--label", "square", "--out", "a.png", "--codes", "a.npz")
    train = conditional.codes("train")
    assert np.array_equal(seen["real"], train[arrays.evenly(len(train), small_critic["count"])])
    assert len(seen["false"]) == len(seen["real"])
    assert np.array_equal(encoded.read(Path("a.npz")).codes, seen["candidates"][2:])


def test_a_critic_needs_the_codes_of_the_training_images(run, said):
    shutil.copytree(run.folder("tokenizer"), "models/mine/tokenizer")
    shutil.copytree(run.folder("prior"), "models/mine/prior")
    out = said(1, "sample", "--best-of", "2", "--out", "a.png", "--models", "models/mine")
    assert "error: --best-of 2: must be 1 without the codes of the training images" in out
    assert "models/mine has none. Run `dvc repro prior`" in out


@pytest.fixture
def conditional(run: Run, raw: dict[str, Any], runtime: Any) -> Run:
    """The labels are `round` and `square`; the prior is not trained."""
    kind = ("vqvae", "ema", {})
    return untrained(kind, raw, runtime, "", "transformer", True)


def test_a_label_by_name_or_number_or_all_in_turn(conditional, said):
    for name, given in {"name": ("--label", "square"), "number": ("--label", "1"), "turn": ()}.items():
        said(0, "sample", "-n", "4", "--out", "a.png", "--codes", f"{name}.npz", *given)
    found = {name: encoded.read(Path(f"{name}.npz")).codes for name in ("name", "number", "turn")}
    prior = conditional.prior()
    for name, labels in {"name": [1] * 4, "number": [1] * 4, "turn": [0, 1, 0, 1]}.items():
        wanted = prior.sample(4, generator(0, "samples", 0), conditions=torch.tensor(labels)[:, None])
        assert np.array_equal(found[name], wanted)


@pytest.mark.parametrize(
    ("told", "n", "wanted"),
    [
        ({"cluster": 6}, 3, {"cluster": ["0", "2", "4"]}),  # not the largest alone
        ({"cluster": 3}, 7, {"cluster": list("0120120")}),
        ({"vendor": 2, "cluster": 2}, 2, {"cluster": ["0", "1"]}),
        ({"cluster": 2, "label": 3}, 3, {"label": ["0", "1", "2"]}),
        ({"vendor": 2}, 2, {}),
        ({}, 2, {}),
    ],
)
def test_where_nothing_is_asked_for_labels_or_clusters_come_evenly(told, n, wanted):
    parts = tuple(Condition(name, tuple(map(str, range(count))), 1, 0.1) for name, count in told.items())
    prior = SimpleNamespace(conditioning=Conditioning(parts))
    assert sample.wishes(SimpleNamespace(n=n), prior) == wanted
    assert "vendor" not in told or sample.wishes(SimpleNamespace(n=n, vendor="1"), prior) == {"vendor": ["1"]}


def test_guidance_counts(conditional, said):
    said(0, "sample", "-n", "2", "--out", "a.png", "--codes", "a.npz", "--label", "round", "--guidance", "4")
    wanted = conditional.prior().sample(
        2, generator(0, "samples", 0), Sampling(guidance={"label": 4.0}), torch.tensor([[0], [0]])
    )
    assert np.array_equal(encoded.read(Path("a.npz")).codes, wanted)
    said(0, "sample", "-n", "2", "--out", "a.png", "--codes", "b.npz", "--label", "round", "--guidance", "label=4")
    assert np.array_equal(encoded.read(Path("b.npz")).codes, wanted)


def test_a_label_that_is_not_there_is_named(conditional, said):
    out = said(1, "sample", "--out", "a.png", "--label", "squar")
    assert "error: label 'squar': there is no such label; there are round, square; did you mean 'square'?" in out
    assert not Path("a.png").exists()


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--label", "square"), "this prior knows no label: it is told nothing. Train one with prior.conditions.label"),
        (("--words", "guitar"), "this prior knows no words: it is told nothing. Train one with prior.conditions.words"),
        (("--guidance", "3"), "--guidance 3: must name its condition, such as label=3; this prior is told nothing"),
        (("--guidance", "words=3"), "guidance: this prior knows no words: it is told nothing"),
    ],
)
def test_an_unconditional_prior_cannot_be_asked(flags, why, run, said):
    assert f"error: {why}" in said(1, "sample", "--out", "a.png", *flags)


def test_a_prior_of_another_tokenizer_is_refused(run, said):
    recipe = models.prior_recipe(run.params, CodeSpace(((3, 3),), (4,)), UNCONDITIONAL)
    models.save(run.folder("prior"), models.build(recipe), recipe, "")
    assert "they do not belong together. Run `dvc repro prior`" in said(1, "sample", "--out", "a.png")


# encode and decode


def test_images_become_codes_and_images_again(run, said):
    pixels, codes = run.images("test"), run.codes("test")
    folder = pictures_of(pixels)
    out = said(0, "encode", str(folder), "codes.npz", "--batch-size", "2")
    assert f"codes.npz: {len(pixels)} images, {codes.shape[1]} codes each, by artifacts/tokenizer" in out
    found = encoded.read(Path("codes.npz"))
    assert np.array_equal(found.codes, codes)
    assert found.codes.dtype == np.uint8
    assert "images: 5 images" in said(0, "decode", "codes.npz", "images", "--batch-size", "3")
    wanted = arrays.decoded(run.tokenizer(), codes.astype(np.int64), 4)
    for index, image in enumerate(wanted):
        assert np.array_equal(np.asarray(Image.open(f"images/{index:02}.png")), image)
    assert len(list(Path("images").iterdir())) == len(wanted)


def test_images_of_any_form_are_read_as_the_pipeline_reads_them(run, said):
    """In folders, of other sizes, with transparency, as JPEG."""
    whole = run.images("test")[0]
    Path("photos/sub").mkdir(parents=True)
    large = Image.fromarray(whole.repeat(4, 0).repeat(4, 1))
    large.save("photos/large.png")
    clear = np.dstack([whole, np.full(whole.shape[:2], 255, np.uint8)])
    clear[(whole == 255).all(2)] = (9, 9, 9, 0)
    Image.fromarray(clear).save("photos/sub/clear.WEBP", lossless=True, exact=True)
    Image.fromarray(whole[:4]).save("photos/wide.png")
    said(0, "encode", "photos", "codes.npz")
    found = dict(zip(*(encoded.read(Path("codes.npz"))._asdict()[name] for name in ("names", "codes")), strict=True))
    assert found.keys() == {"large.png", "sub/clear.WEBP", "wide.png"}
    assert np.array_equal(found["large.png"], run.codes("test")[0])
    assert np.array_equal(found["sub/clear.WEBP"], run.codes("test")[0])
    padded = np.full_like(whole, 255)
    padded[2:6] = whole[:4]
    with torch.no_grad():
        assert np.array_equal(found["wide.png"], run.tokenizer().encode(arrays.to_model(padded[None]))[0])
    said(0, "decode", "codes.npz", "images")
    assert {path.as_posix() for path in Path("images").rglob("*.png")} == {
        "images/large.png", "images/wide.png", "images/sub/clear.WEBP.png",
    }  # fmt: skip


def test_aspect_and_extensions_count(run, said):
    whole = run.images("test")[0]
    Path("photos").mkdir()
    Image.fromarray(whole[:4]).save("photos/wide.bmp")
    assert "error: photos holds no file that ends in .png, .jpg, .jpeg, .webp" in said(
        1, "encode", "photos", "codes.npz"
    )
    for aspect in ("crop", "stretch"):
        said(0, "encode", "photos", f"{aspect}.npz", "--aspect", aspect, "--extensions", "bmp")
        pixels = whole[:4, 2:6].repeat(2, 0).repeat(2, 1) if aspect == "crop" else whole[:4].repeat(2, 0)
        with torch.no_grad():
            wanted = run.tokenizer().encode(arrays.to_model(pixels[None]))
        assert np.array_equal(encoded.read(Path(f"{aspect}.npz")).codes, wanted)


def test_all_broken_images_are_named_and_nothing_is_written(run, said, monkeypatch):
    folder = pictures_of(run.images("test"))
    for name in ("a", "b", "c"):
        (folder / f"{name}.png").write_bytes(b"<html>")
    monkeypatch.setattr(encode, "SHOWN", 2)
    out = said(1, "encode", str(folder), "codes.npz")
    assert "error: 3 of 8 images cannot be used:\n  photos/a.png is corrupt" in out
    assert "\n  and 1 more" in out
    assert not Path("codes.npz").exists()


def test_codes_of_another_tokenizer_are_refused(run, said):
    said(0, "sample", "-n", "2", "--out", "a.png", "--codes", "a.npz")
    seed_globally(1, "another")
    recipe = models.read_recipe(run.folder("tokenizer"))
    models.save(run.folder("tokenizer"), models.build(recipe), recipe, "")
    out = said(1, "decode", "a.npz", "images")
    assert re.search(r"error: a\.npz was made by another tokenizer \([0-9a-f]{8}\) than artifacts/tokenizer", out)
    assert not Path("images").exists()


def test_a_long_work_shows_progress_and_a_short_one_does_not(run, said, monkeypatch):
    folder = pictures_of(run.images("test"))
    assert "encode:" not in said(0, "encode", str(folder), "codes.npz", "--batch-size", "1")
    monkeypatch.setattr(line, "QUIET", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = said(0, "encode", str(folder), "codes.npz", "--batch-size", "1")
    assert re.search(r"encode: +\d+%.*/5 ", shown)


# files of codes

SPACE = CodeSpace(((1, 2), (1, 1)), (300, 4))
GOOD = Encoded(np.array([[0, 299, 3], [5, 6, 1]]), ["a", "b/c"], SPACE, "f" * 64)


def test_a_file_of_codes_is_read_as_it_was_written(tmp_path):
    encoded.write(tmp_path / "a.npz", GOOD)
    found = encoded.read(tmp_path / "a.npz")
    assert np.array_equal(found.codes, GOOD.codes)
    assert found.codes.dtype == np.uint16
    assert found[1:] == GOOD[1:]


def changed(**arrays: Any) -> Callable[[Path], None]:
    """Writes a file of codes in which these arrays are others; None: left out."""

    def write(path: Path) -> None:
        encoded.write(path, GOOD)
        with np.load(path) as stored:
            kept = {name: stored[name] for name in stored.files} | arrays
        np.savez(path, **{name: array for name, array in kept.items() if array is not None})

    return write


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "there is no such file"),
    "text": (lambda path: path.write_text("codes"), "is no whole .npz file"),
    "cut": (lambda path: (encoded.write(path, GOOD), path.write_bytes(path.read_bytes()[:-60])), "is no whole .npz file"),
    "pickle": (changed(names=np.array(["a", None])), "is no whole .npz file"),
    "no grids": (changed(grids=None), "it has no grids"),
    "fractions": (changed(codes=np.zeros((2, 3))), "codes must be integers, got float64"),
    "one dimension": (changed(codes=np.zeros(3, int)), "codes [N,T]"),
    "other grids": (changed(grids=np.array([[2, 2], [1, 1]])), "must have 5 codes for grids [[2, 2], [1, 1]], got 3"),
    "too large": (changed(codes=np.array([[0, 0, 0], [0, 0, 4]])), "codes must be below [300, 4]"),
    "negative": (changed(codes=np.array([[0, 0, 0], [-1, 0, 3]])), "codes must be below [300, 4]"),
    "fewer names": (changed(names=np.array(["a"])), "names must be one text for each of 2 images"),
    "upwards": (changed(names=np.array(["a", "../b"])), "names of images must be paths below the folder, got '../b'"),
    "absolute": (changed(names=np.array(["a", "/b"])), "names of images must be paths below the folder, got '/b'"),
    "equal names": (changed(names=np.array(["a", "a.png"])), "names of images must differ"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_of_codes_is_named_and_nothing_is_written(case, run, said):
    write, why = BAD_FILES[case]
    write(Path("a.npz"))
    out = said(1, "decode", "a.npz", "images")
    assert re.search(rf"error: .*{re.escape(why)}", out)
    assert not Path("images").exists()
    assert not Path("b.png").exists()


def test_a_file_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    encoded.write(tmp_path / "a.npz", GOOD)
    monkeypatch.setattr(encoded, "MOST_BYTES", 100)
    with pytest.raises(encoded.InputError, match=r"a\.npz is refused: unpacked it has \d+ bytes, the limit is 100"):
        encoded.read(tmp_path / "a.npz")


# arguments

SAMPLE, ENCODE, DECODE = ("--out", "a.png"), ("photos", "a.npz"), ("a.npz", "images")
BAD_ARGUMENTS: list[tuple[str, tuple[str, ...], str]] = [
    ("sample", (), "the following arguments are required: --out"),
    ("sample", ("--out", "a.jpg"), "--out: must end in .png, got 'a.jpg'"),
    ("sample", ("--out", "folder.png"), "--out: must be a file, and 'folder.png' is a folder"),
    ("sample", (*SAMPLE, "-n", "0"), "-n: must be at least 1, got 0"),
    ("sample", (*SAMPLE, "-n", "two"), "-n: must be a whole number, got 'two'"),
    ("sample", (*SAMPLE, "--seed", "-1"), "--seed: must be at least 0, got -1"),
    ("sample", (*SAMPLE, "--temperature", "0"), "--temperature: must be above 0, got 0"),
    ("sample", (*SAMPLE, "--temperature", "nan"), "--temperature: must be above 0, got nan"),
    ("sample", (*SAMPLE, "--top-p", "1.5"), "--top-p: must be above 0 and at most 1, got 1.5"),
    ("sample", (*SAMPLE, "--top-k", "1.5"), "--top-k: must be a whole number, got '1.5'"),
    ("sample", (*SAMPLE, "--guidance", "-1"), "--guidance: must be at least 0, got -1"),
    ("sample", (*SAMPLE, "--codes", "a.npy"), "--codes: must end in .npz, got 'a.npy'"),
    ("sample", (*SAMPLE, "--device", "tpu"), "--device: invalid choice: 'tpu'"),
    ("sample", (*SAMPLE, "--tempreature", "1"), "unrecognized arguments: --tempreature"),
    ("sample", (*SAMPLE, "--temp", "1"), "unrecognized arguments: --temp"),
    ("encode", ("photos",), "the following arguments are required: NPZ"),
    ("encode", ("photos", "a.npy"), "NPZ: must end in .npz, got 'a.npy'"),
    ("encode", (*ENCODE, "--aspect", "wide"), "--aspect: invalid choice: 'wide'"),
    ("encode", (*ENCODE, "--batch-size", "0"), "--batch-size: must be at least 1, got 0"),
    ("decode", ("a.npz",), "the following arguments are required: FOLDER"),
    ("decode", (*DECODE, "--seed", "1"), "unrecognized arguments: --seed"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "given", "why"), BAD_ARGUMENTS, ids=[why for _, _, why in BAD_ARGUMENTS])
def test_bad_arguments_are_named(command, given, why, workspace, said):
    Path("folder.png").mkdir()
    out = said(2, command, *given)
    assert out.startswith(f"usage: python -m tessera.{command} ")
    assert why in out


BAD_INPUTS: list[tuple[str, tuple[str, ...], str]] = [
    ("encode", ENCODE, "error: photos: there is no such folder"),
    ("encode", ("empty", "a.npz"), "error: empty holds no file that ends in .png"),
    ("decode", DECODE, "error: a.npz: there is no such file. Make it by `python -m tessera.encode`"),
    ("decode", ("good.npz", "file"), "error: file is a file. Name a folder for the images"),
    ("sample", (*SAMPLE, "--models", "elsewhere"), "--models elsewhere: there is no tokenizer/recipe.json, prior/recipe.json"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "given", "why"), BAD_INPUTS, ids=[why for _, _, why in BAD_INPUTS])
def test_bad_inputs_are_named_before_a_model_is_loaded(command, given, why, run, said, monkeypatch):
    monkeypatch.setattr(models, "load", None)
    Path("empty").mkdir()
    Path("file").write_text("")
    encoded.write(Path("good.npz"), GOOD)
    assert why in said(1, command, *given)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_what_for_and_every_default(command, said):
    out = said(0, command, "--help")
    assert COMMANDS[command].__doc__.splitlines()[0] in out
    assert f"python -m tessera.{command} " in out
    parser = COMMANDS[command].arguments()
    for action in parser._actions:
        assert action.help, action.dest
        assert (action.option_strings or [action.metavar])[-1] in out
    assert "==SUPPRESS==" not in out
    assert max(map(len, out.splitlines())) <= 80, "the width of a terminal"
    assert "default: None" not in out


def test_ctrl_c_ends_without_a_traceback(run, said, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "sampled", stop)
    assert said(130, "sample", "--out", "a.png") == "stopped\n"


# which models


@pytest.fixture
def committed(run: Run) -> Path:
    """models/default as a clone has it, and nothing in artifacts/."""
    for kind in ("tokenizer", "prior"):
        shutil.copytree(run.folder(kind), Path("models/default") / kind)
    shutil.rmtree(files.ARTIFACTS)
    sums.write(Path("models/default"))
    return Path("models/default")


def test_where_there_are_no_artefacts_the_committed_models_are_used_and_this_is_said(committed, said):
    out = said(0, "sample", "-n", "1", "--out", "a.png")
    assert "artifacts holds no trained models: using models/default, those of the committed run" in out
    assert "samples of models/default/prior" in out


def test_the_workspaces_own_models_come_first_and_a_folder_can_be_named(committed, said):
    shutil.copytree(committed, "artifacts")
    out = said(0, "sample", "-n", "1", "--out", "a.png")
    assert "samples of artifacts/prior" in out
    assert "models/default" not in out
    assert "samples of models/default/prior" in said(
        0, "sample", "-n", "1", "--out", "a.png", "--models", str(committed)
    )


def test_a_run_that_has_no_prior_yet_is_not_mixed_with_the_committed_one(committed, said):
    shutil.copytree(committed / "tokenizer", "artifacts/tokenizer")
    out = said(1, "sample", "--out", "a.png")
    assert (
        "error: artifacts has no prior/recipe.json yet. Run `dvc repro prior`, or take the committed models by --models"
        in out
    )


def test_without_any_model_the_remedy_is_named(workspace, said):
    out = said(1, "sample", "--out", "a.png")
    assert "error: neither artifacts nor models/default holds trained models. Run `dvc repro prior`" in out


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "is another file": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\1"),
    "is missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_exported_weights_that_have_changed_are_refused(what, committed, said):
    DAMAGES[what](committed / "prior" / models.WEIGHTS)
    assert f"SHA256SUMS: models/default/prior/model.safetensors {what}" in said(1, "sample", "--out", "a.png")


def test_a_folder_with_another_kind_of_model_is_refused(run, said):
    shutil.rmtree(run.folder("prior"))
    shutil.copytree(run.folder("tokenizer"), run.folder("prior"))
    assert "artifacts/prior must hold a model of priors, got one of tokenizers" in said(1, "sample", "--out", "a.png")


def test_params_are_not_read(run, said):
    """A model stands for itself."""
    assert not Path("params.yaml").exists()
    assert isinstance(run.params, Params)
    assert "1 samples" in said(0, "sample", "-n", "1", "--out", "a.png")
