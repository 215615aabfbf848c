"""npm packages of emoji, each layout in small, packed and unpacked; what is left out is counted; families over vendors."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import example
from PIL import Image
from pydantic import ValidationError
from test_datasets_emoji import ROWS, write_images, write_parquet

from stages import dataset as preparation
from stages.dataset import Settings as Dataset
from tessera.core import files, seams
from tessera.core.contracts import Source
from tessera.core.errors import InputError
from tessera.core.seeding import numpy_generator
from tessera.datasets import emoji
from tessera.datasets.emoji import packages, svg
from tessera.datasets.emoji.meanings import Meanings, slug
from tessera.decoding.collection import Collection

ROOT = Path(__file__).resolve().parent.parent
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2, "withheld": []}
TABLE = [  # as in emoji-datasource: capitals, fe0f kept; one that the parquet lacks
    {"unified": "1F600", "name": "GRINNING FACE", "short_names": ["grinning"], "category": "Smileys",
     "subcategory": "face"},
    {"unified": "1FAE9", "name": "FACE WITH BAGS UNDER EYES", "short_names": ["tired"], "category": "Smileys",
     "subcategory": "face"},
]  # fmt: skip
OPEN = [  # as in OpenMoji: groups are slugs, some its own
    {"hexcode": "1F680", "annotation": "rocket", "group": "travel-places", "subgroups": "space"},
    {"hexcode": "1FACD", "annotation": "orca", "group": "smileys", "subgroups": "face"},
    {"hexcode": "E0B4", "annotation": "siren", "group": "extras-openmoji", "subgroups": "emergency"},
]
SHADE = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><defs><filter id="f" x="8" y="0" width="8" height="16"
 filterUnits="userSpaceOnUse"><feFlood flood-color="#00f"/></filter></defs>
 <rect width="8" height="16" fill="#f00"/><g filter="url(#f)"><rect x="8" width="8" height="16" fill="#f00"/></g></svg>"""


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_parquet(tmp_path / "set" / "noto.parquet")
    return tmp_path / "set"


def picture(seed: int, kind: str = "PNG", mode: str = "RGBA") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 4), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


# each layout in small: files, and what is counted of them


def datasource(vendor: str) -> dict[str, bytes]:
    images = ("1f600", "1f44b", "1f44b-1f3ff", "2640", "2640-fe0f", "1fae9", "1f9ff")
    folder = f"img/{vendor}/64"
    modes = ["RGBA", "P", "LA", "RGBA", "RGBA", "RGBA", "RGBA"]
    return {
        "emoji.json": json.dumps(TABLE).encode(),
        **{f"{folder}/{name}.png": picture(i, mode=modes[i]) for i, name in enumerate(images)},
        f"img/{vendor}/sheets/64.png": picture(90),
        f"img/{vendor}/sheets-clean/64.png": picture(91),
        "README.md": b"text",
    }


LAYOUTS: dict[str, tuple[dict[str, bytes], dict[str, dict[str, int]]]] = {
    "emoji-datasource-apple": (datasource("apple"), {"apple": {"images": 5, "without_class": 1, "twice": 1}}),
    "emoji-datasource-facebook": (datasource("facebook"), {"facebook": {"images": 5, "without_class": 1, "twice": 1}}),
    "emoji-datasource-twitter": (datasource("twitter"), {"twitter": {"images": 5, "without_class": 1, "twice": 1}}),
    "emoji-datasource-google": (datasource("google"), {}),
    "@lobehub/fluent-emoji-3d": (
        {f"assets/{name}.webp": picture(i, "WEBP") for i, name in enumerate(
            ("0023-fe0f-20e3", "23-fe0f-20e3", "1f468_200d-1f4bb", "1f3f4-e0067_e0062", "1f600"))},
        {"fluent-3d": {"images": 3, "without_class": 1, "twice": 1}},
    ),
    "emojione-assets": (
        {f"png/{size}/{name}.png": picture(i) for size in (64, 128)
         for i, name in enumerate(("0023", "0023-20e3", "2640", "1f468-1f4bb", "_alt/1f600"))},
        {"emojione": {"images": 3, "without_class": 1, "twice": 0}},
    ),
    "openmoji": (
        {"data/openmoji.json": json.dumps(OPEN).encode(), "black/svg/1F600.svg": b"<svg/>",
         **{f"color/svg/{name}.svg": SHADE.encode() for name in ("1F600", "2640-FE0F", "1FACD", "E0B4", "1F680")}},
        {"openmoji": {"images": 3, "without_class": 2, "twice": 0}},
    ),
    "fluentui-emoji": (
        {f"icons/{style}/{name}.svg": SHADE.encode() for style in ("flat", "modern", "high-contrast")
         for name in ("grinning-face", "waving-hand-default", "waving-hand-medium-light", "keycap-hashtag",
                      "no-such-thing")},
        {vendor: {"images": 4, "without_class": 1, "twice": 0} for vendor in ("fluent-flat", "fluent-modern")},
    ),
}  # fmt: skip


def pack(path: Path, name: str, contents: Mapping[str, bytes], folder: str = "package") -> Path:
    """What `npm pack` leaves; the card stands where its name sorts it, behind most drawings."""
    everything = {**contents, "package.json": json.dumps({"name": name, "version": "1.2.3"}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(everything):
            member = tarfile.TarInfo(f"{folder}/{file}")
            member.size = len(everything[file])
            archive.addfile(member, io.BytesIO(everything[file]))
    return path


def unpack(path: Path, name: str, contents: Mapping[str, bytes]) -> Path:
    for file, data in {**contents, "package.json": json.dumps({"name": name}).encode()}.items():
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(data)
    return path


def load(path: Path, **values: Any) -> Collection:
    return emoji.load(example(emoji.Config, **values), path, numpy_generator(0, "dataset", "load"))


def counts(loaded: Collection) -> dict[str, dict[str, int]]:
    """Of each vendor but that of the parquet, how many images there are, and how many are left out."""
    vendors = [loaded.vendor_names[vendor] for vendor in loaded.vendors]
    return {name: {"images": vendors.count(name), **out} for name, out in loaded.left_out.items() if name != "noto"}


@pytest.fixture(autouse=True)
def resvg(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The tests of the environment have no resvg: SVG is drawn as a square of the size that is asked for."""
    if "real_resvg" in request.fixturenames:
        return

    def svg_to_bytes(svg_string: str, width: int, height: int, skip_system_fonts: bool) -> list[int]:
        assert skip_system_fonts
        assert width == height
        if not svg_string.startswith("<svg"):
            raise ValueError("unknown token at 1:1")
        stream = io.BytesIO()
        Image.new("RGBA", (width, height), (9, 8, 7, 255)).save(stream, "PNG")
        return list(stream.getvalue())

    monkeypatch.setattr(svg, "renderer", lambda: SimpleNamespace(svg_to_bytes=svg_to_bytes))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("form", ["packed", "unpacked"])
def test_a_package_is_read_as_it_comes(source: Path, name: str, form: str) -> None:
    contents, expected = LAYOUTS[name]
    if form == "packed":
        pack(source / "x" / "some.tgz", name, contents, folder="any name")
    else:
        unpack(source / "node_modules" / name, name, contents)
    loaded = load(source)
    assert counts(loaded) == expected
    assert all(pixels.dtype == np.uint8 for pixels in loaded.images)
    assert sum(name.startswith("noto/") for name in loaded.names) == len(ROWS) == loaded.lead


def test_every_layout_is_tested() -> None:
    assert set(LAYOUTS) == set(packages.LAYOUTS)


def test_packed_or_not_images_come_in_the_same_order(tmp_path: Path) -> None:
    sets = [tmp_path / "packed", tmp_path / "unpacked"]
    for folder in sets:
        write_parquet(folder / "noto.parquet")
    for i, (name, (contents, _)) in enumerate(LAYOUTS.items()):
        pack(sets[0] / f"{9 - i}.tgz", name, contents)
        unpack(sets[1] / f"{i}", name, contents)
    one, other = (load(folder) for folder in sets)
    assert one[1:6] == other[1:6]
    assert (one.vendors, one.vendor_names, one.left_out) == (other.vendors, other.vendor_names, other.left_out)
    assert all(np.array_equal(a, b) for a, b in zip(one.images, other.images, strict=True))
    assert one.vendor_names == ["noto", *sorted(one.vendor_names[1:])]


def test_an_emoji_is_one_whatever_a_vendor_calls_its_file(source: Path) -> None:
    for i, (name, (contents, _)) in enumerate(LAYOUTS.items()):
        pack(source / f"{i}.tgz", name, contents)
    loaded = load(source)
    of = dict(zip(loaded.names, zip(loaded.families, loaded.labels or (), strict=True), strict=True))
    keycaps = {name for name in of if name.endswith("/keycap: #")}
    assert keycaps == {
        f"{vendor}/keycap: #" for vendor in ("noto", "fluent-3d", "emojione", "fluent-flat", "fluent-modern")
    }
    assert len({of[name] for name in keycaps}) == 1
    tones = {name for name, (family, _) in of.items() if family == "1f44b"}
    assert {"apple/1f44b-1f3ff", "fluent-flat/1f44b-1f3fc", "noto/waving hand: light skin tone"} <= tones
    assert of["fluent-3d/man technologist"] == of["noto/man technologist"]


def test_classes_are_the_union_of_the_tables(source: Path) -> None:
    pack(source / "a.tgz", "emoji-datasource-twitter", LAYOUTS["emoji-datasource-twitter"][0])
    pack(source / "b.tgz", "openmoji", LAYOUTS["openmoji"][0])
    loaded = load(source)
    label = dict(zip(loaded.names, loaded.labels or (), strict=True))
    assert loaded.label_names == [
        "Smileys",
        "People",
        "Symbols",
    ]  # OpenMoji's travel-places is a class of no other table
    assert label["twitter/face with bags under eyes"] == label["openmoji/orca"] == 0


def test_a_package_that_is_no_vendor_gives_its_table(source: Path) -> None:
    pack(source / "g.tgz", "emoji-datasource-google", LAYOUTS["emoji-datasource-google"][0])
    write_images(source, "mine/1fae9.png")
    loaded = load(source)
    assert loaded.vendor_names == ["noto", "mine"]
    assert loaded.names[-1] == "mine/face with bags under eyes"


def test_licences_are_told(source: Path) -> None:
    for i, name in enumerate(("emoji-datasource-apple", "emoji-datasource-twitter")):
        pack(source / f"{i}.tgz", name, LAYOUTS[name][0])
    told = [note for note in load(source).notes if "1.2.3" in note]
    assert told == [
        f"apple (emoji-datasource-apple 1.2.3): {packages.MEASURE_ONLY}",
        "twitter (emoji-datasource-twitter 1.2.3): CC BY 4.0",
    ]
    assert not [note for note in load(source, vendors=["twitter"]).notes if "apple" in note]


def test_vendors_are_chosen(source: Path) -> None:
    for i, name in enumerate(("emoji-datasource-apple", "emoji-datasource-twitter", "openmoji")):
        pack(source / f"{i}.tgz", name, LAYOUTS[name][0])
    assert load(source, vendors=["twitter", "openmoji"]).vendor_names == ["noto", "openmoji", "twitter"]
    with pytest.raises(
        InputError, match=r"vendors must name vendors of dataset\.source, got google; there are apple, op"
    ):
        load(source, vendors=["google"])


# names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grinning face", "grinning-face"),
        ("flag: Côte d’Ivoire", "flag-cote-divoire"),
        ("keycap: *", "keycap-asterisk"),
        ("1st place medal", "1st-place-medal"),
        ("waving_hand", "waving-hand"),
        ("woman: medium-light skin tone, red hair", "woman-medium-light-skin-tone-red-hair"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("man-red-hair-dark", "1f468-1f3ff-200d-1f9b0"),
        ("man-red-hair-default", "1f468-200d-1f9b0"),
        ("horizontal-traffic-light", "1f6a5"),  # ends as a tone does
        ("person-blonde-hair-medium-dark", "1f471-1f3fe"),
        ("woman-deaf-light", "1f9cf-1f3fb-200d-2640"),
        ("person-elf-medium", "1f9dd-1f3fd"),
        ("woman-with-bunny-ears", "1f46f-200d-2640"),  # before the short name that is the same
        ("person-with-bunny-ears", "1f46f"),
        ("wave", "1f44b"),  # a short name
        ("zzzz", None),
    ],
)
def test_a_slug_with_its_tone(stem: str, expected: str | None) -> None:
    meanings = Meanings("group")
    rows = {"1f468-200d-1f9b0": ["man: red hair"], "1f6a5": ["horizontal traffic light"], "1f471": ["person: blond hair"],
            "1f9cf-200d-2640-fe0f": ["deaf woman"], "1f9dd": ["elf"], "1f46f-200d-2640-fe0f": ["women with bunny ears"],
            "1f46f": ["people with bunny ears", "woman-with-bunny-ears"], "1f44b": ["waving hand", "wave"]}  # fmt: skip
    for codepoints, names in rows.items():
        meanings.add(codepoints, "any", names)
    assert meanings.codepoints(stem, slugs=True) == expected


def test_tags_without_their_end_are_a_flag_all_the_same() -> None:
    meanings, scotland = Meanings("group"), "1f3f4-e0067-e0062-e0073-e0063-e0074"
    meanings.add(f"{scotland}-e007f", "Flags", ["flag: Scotland"])
    for stem in (scotland.replace("-e0062", "_e0062"), f"{scotland}-e007f"):
        assert meanings.of(str(meanings.codepoints(stem, slugs=False))) == (
            "flag: Scotland",
            f"{scotland}-e007f",
            "Flags",
        )


def test_two_emoji_of_one_name_keep_apart() -> None:
    meanings = Meanings("group")
    for codepoints in ("1f600", "1f601"):
        meanings.add(codepoints, "Smileys", ["smile"])
    assert [meanings.of(codepoints).name for codepoints in ("1f600", "1f601")] == ["smile", "1f601"]


# what is refused


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-200], r"x\.tgz is not a whole archive .*\. Fetch it again, or remove it"),
        (lambda data: b"<!doctype html><html>", r"not a whole archive \(it is a web page\. Download the file itself\)"),
        (lambda data: b"", r"not a whole archive \(it is empty\. Replace or remove it\)"),
    ],
)
def test_a_damaged_archive(source: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    path = pack(
        source / "x.tgz", "emojione-assets", {**LAYOUTS["emojione-assets"][0], "png/128/1f601.png": os.urandom(999)}
    )
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=said):
        load(source)


def test_an_archive_that_is_no_package_or_none_that_is_known(source: Path) -> None:
    pack(source / "x.tgz", "left-pad", {"index.js": b""})
    with pytest.raises(
        InputError, match=r"x\.tgz is the package 'left-pad'; known are emoji-datasource-apple, .*Remove it"
    ):
        load(source)
    with tarfile.open(source / "x.tgz", "w:gz"):
        pass
    with pytest.raises(InputError, match=r"x\.tgz is no npm package: it has no package\.json"):
        load(source)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, r"x\.tgz lacks emoji\.json, which its package has"),
        (b"{", r"x\.tgz, emoji\.json is no JSON \("),
        (b'[{"unified": "1F600"}]', r"x\.tgz, emoji\.json has another form \(KeyError\('category'\)\)"),
    ],
)
def test_a_table_that_is_missing_or_damaged(source: Path, table: bytes | None, said: str) -> None:
    contents = {**LAYOUTS["emoji-datasource-twitter"][0], "emoji.json": table}
    pack(
        source / "x.tgz",
        "emoji-datasource-twitter",
        {file: data for file, data in contents.items() if data is not None},
    )
    with pytest.raises(InputError, match=said):
        load(source)


def test_a_vendor_in_two_places(source: Path) -> None:
    pack(source / "x.tgz", "emojione-assets", LAYOUTS["emojione-assets"][0])
    unpack(source / "y", "emojione-assets", LAYOUTS["emojione-assets"][0])
    with pytest.raises(InputError, match=r"set/x\.tgz and .*set/y are both 'emojione'\. Remove one"):
        load(source)


def test_svg_without_resvg_is_refused_at_once_and_only_where_it_is_read(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    for i, name in enumerate(("openmoji", "emojione-assets")):
        pack(source / f"{i}.tgz", name, LAYOUTS[name][0])
    with pytest.raises(InputError, match=r"Run `python -m pip install -e '\.\[svg\]'`, or name only other vendors in"):
        load(source)
    assert load(source, vendors=["emojione"]).vendor_names == ["noto", "emojione"]


# SVG


@pytest.fixture
def real_resvg() -> None:
    pytest.importorskip("resvg_py", reason="the extra `svg` is not installed")


def test_a_filter_is_drawn(real_resvg: None) -> None:
    """The right half is red, and blue by its filter, which CairoSVG would leave out."""
    pixels = np.asarray(Image.open(io.BytesIO(svg.rendered(SHADE.encode(), 32, "x.svg"))))
    assert pixels.shape == (32, 32, 4)
    assert (
        pixels[:, :15].reshape(-1, 4).tolist() == [[0, 0, 255, 255]] * (32 * 15)
        or (pixels[8, 4] == (255, 0, 0, 255)).all()
    )
    assert (pixels[8, 24] == (0, 0, 255, 255)).all()


def test_the_longer_side_has_the_size(real_resvg: None) -> None:
    tall = SHADE.replace('viewBox="0 0 16 16"', 'viewBox="0 0 16 32"')
    assert Image.open(io.BytesIO(svg.rendered(tall.encode(), 64, "x.svg"))).size == (32, 64)


@pytest.mark.parametrize("data", [b"no svg", b"", b"<svg", b"\xff\xfe"])
def test_what_is_no_svg(real_resvg: None, data: bytes) -> None:
    with pytest.raises(InputError, match=r"x\.svg is no SVG that resvg draws"):
        svg.rendered(data, 8, "x.svg")


def test_svg_has_the_size_of_params(source: Path) -> None:
    pack(source / "x.tgz", "openmoji", LAYOUTS["openmoji"][0])
    assert load(source, svg_size=24).images[len(ROWS)].shape == (24, 24, 4)


# the stage


def section(**split: Any) -> Dataset:
    return Dataset(name="emoji", source="set", image_size=8, target_size=8, colour="rgb", aspect="pad",
                   near_duplicate_rmse=1.0, split={"by": "family", **FRACTIONS, **split})  # fmt: skip


def prepared(source: Path, **split: Any) -> preparation.Prepared:
    return preparation.prepare(load(source), section(**split), numpy_generator(0, "dataset", "split"))


POINTS = [f"1f9{i:02x}" for i in range(0x20, 0x50)]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """48 emoji with a tone, of which Twitter has all, in other colours, and eight families more."""
    rows = [
        (f"emoji {point}", point, f"group {i % 2}", "x")
        for i, base in enumerate(POINTS)
        for point in (base, f"{base}-1f3fb")
    ]
    write_parquet(tmp_path / "set" / "noto.parquet", rows)
    more = [f"1fa{i:02x}" for i in range(0x70, 0x78)]
    table = [{"unified": point, "name": f"more {point}", "short_names": [], "category": "group 1", "subcategory": "x"}
             for point in more]  # fmt: skip
    names = [point + tone for point in [*POINTS, *more] for tone in ("", "-1f3ff")]
    files_of = {f"img/twitter/64/{name}.png": picture(1000 + i) for i, name in enumerate(names)}
    pack(tmp_path / "set" / "t.tgz", "emoji-datasource-twitter", {"emoji.json": json.dumps(table).encode(), **files_of})
    return tmp_path / "set"


def test_families_over_vendors_are_never_divided(many: Path) -> None:
    table = prepared(many).table
    assert len(table) == 48 * 4 + 8 * 2
    assert table.groupby("family")["split"].nunique().max() == 1
    assert set(table["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize("by", ["family", "vendor_and_family", "random"])
def test_the_embedded_images_stand_in_the_splits_that_they_have_alone(many: Path, by: str) -> None:
    with_others = prepared(many, by=by).table
    (many / "t.tgz").unlink()
    alone = prepared(many, by=by).table
    of_noto = with_others[with_others["vendor_name"] == "noto"]
    assert len(alone) == 96
    assert dict(zip(of_noto["name"], of_noto["split"], strict=True)) == dict(
        zip(alone["name"], alone["split"], strict=True)
    )


def test_emoji_that_the_embedded_set_lacks_fill_every_split(many: Path) -> None:
    table = prepared(many).table
    assert set(table[table["family"].str.startswith("1fa")]["split"]) == {"train", "val", "test"}


def test_withheld_words_stand_in_test_alone_of_every_vendor(many: Path) -> None:
    plain, found = (
        prepared(many, by="vendor_and_family", withheld=words) for words in ([], ["More_1fa70", "emoji 1f920"])
    )
    held = found.table["name"].str.contains(r"/(?:more 1fa70|emoji 1f920)(?![\w-])")
    assert held.sum() == found.metrics["withheld"] > 1
    assert set(found.table[held]["split"]) == {"test"}
    before = dict(zip(plain.table["name"], plain.table["split"], strict=True))
    assert (found.table["split"] == found.table["name"].map(before))[~held].all()
    assert "withheld" not in plain.metrics


def test_withheld_words_are_whole_words_in_any_order() -> None:
    names = ["noto/woman mage: dark skin tone", "noto/man mage", "t/woman", "t/Mage, Woman", "t/woman-mage"]
    assert preparation.has_words(names, ["woman_mage"]).tolist() == [True, False, False, True, False]
    assert preparation.has_words(names, ["man mage"]).tolist() == [False, True, False, False, False]
    with pytest.raises(InputError, match="no image has the words 'woman_fairy' in its name"):
        preparation.has_words(names, ["man mage", "woman_fairy"])


def test_names_with_underscores_are_withheld_too() -> None:
    assert preparation.has_words(["woman_mage.png", "people/woman_mage"], ["woman mage"]).tolist() == [True, True]


def of_names(names: list[str]) -> Source:
    """A picture for each name; those of `mage` and `woman mage` are the same."""
    pictures = np.random.default_rng(0).integers(0, 256, (len(names), 8, 8, 3), np.uint8)
    alike = [i for i, name in enumerate(names) if name in ("mage", "woman mage")]
    pictures[alike] = pictures[alike[:1]] if alike else 0
    return Source(list(pictures), names, names, None, [], None)


def split_of(names: list[str], withheld: list[str]) -> dict[str, str]:
    table = preparation.prepare(
        of_names(names), section(withheld=withheld), numpy_generator(0, "dataset", "split")
    ).table
    return dict(zip(table["name"], table["split"], strict=True))


def test_of_equal_images_the_one_that_is_withheld_stays() -> None:
    found = split_of(["mage", "woman mage", *(f"thing {i}" for i in range(40))], ["woman_mage"])
    assert found["woman mage"] == "test"
    assert "mage" not in found, "or training had what is withheld, by another name"


def test_withheld_words_leave_images_for_training() -> None:
    names = [f"{kind} thing {i}" for i in range(20) for kind in ("red", "blue")]
    with pytest.raises(
        InputError, match=r"withheld takes 40 images and leaves the train split 0, .* withhold fewer words"
    ):
        split_of(names, ["red_thing", "thing blue"])


@pytest.mark.parametrize("wrong", ["mage", " mage", "mage_", ""])
def test_one_word_cannot_be_withheld(wrong: str) -> None:
    with pytest.raises(ValidationError, match="withheld"):
        section(withheld=[wrong])


def test_by_vendor_and_family_a_concept_is_known_from_other_vendors(many: Path) -> None:
    whole = prepared(many)
    assert whole.metrics["families_in_train"] == {"val": 0, "test": 0}
    split = prepared(many, by="vendor_and_family")
    table = split.table
    assert (table["vendor_name"] + table["family"]).map(dict(
        zip(table["vendor_name"] + table["family"], table["split"], strict=True))).eq(table["split"]).all()  # fmt: skip
    known = set(table[table["split"] == "train"]["family"])
    for name in ("val", "test"):
        expected = table[table["split"] == name]["family"].isin(known).sum()
        assert split.metrics["families_in_train"][name] == expected > 0


def test_vendor_and_family_is_refused_where_there_are_no_vendors() -> None:
    for name in seams.names("datasets"):
        values = {**section().model_dump(), "name": name, "split": {"by": "vendor_and_family", **FRACTIONS}}
        if name == "emoji":
            assert Dataset.model_validate(values).split.by == "vendor_and_family"
        else:
            with pytest.raises(
                ValueError, match=rf"by must be family or random while name is {name}.*got vendor_and_family"
            ):
                Dataset.model_validate(values)


def test_every_drawing_is_counted_once(many: Path) -> None:
    """Of five more by EmojiOne one has no class, one is broken, one has the pixels of another, and two are images."""
    first = io.BytesIO()
    Image.fromarray(np.asarray(load(many).images[0])).save(first, "PNG")
    drawings = {"0023": picture(7), POINTS[0]: picture(8)[:90], POINTS[1]: first.getvalue(), POINTS[2]: picture(9),
                POINTS[3]: picture(10)}  # fmt: skip
    pack(many / "e.tgz", "emojione-assets", {f"png/128/{name}.png": data for name, data in drawings.items()})
    done = prepared(many)
    expected = {"found": 5, "without_class": 1, "twice": 0, "broken": 1, "duplicates": 1, "images": 2, "families": 2}
    assert done.metrics["vendors"]["emojione"] == expected
    for vendor, of in done.metrics["vendors"].items():
        rows = done.table[done.table["vendor_name"] == vendor]
        assert of["found"] == of["without_class"] + of["twice"] + of["broken"] + of["duplicates"] + of["images"]
        assert (of["images"], of["families"]) == (len(rows), rows["family"].nunique())
    assert done.metrics["duplicates_removed"] == 1
    assert any(note.startswith("emojione: 5 found, 1 without_class") for note in done.notes)
    assert done.notes[-1].startswith(f"left out are 1 broken: {many}/e.tgz, png/128/{POINTS[0]}.png is corrupt")


def test_images_stand_beside_their_rows(many: Path) -> None:
    loaded, done = load(many), prepared(many)
    index = {name: i for i, name in enumerate(loaded.names)}
    start = 0
    for split in ("train", "val", "test"):
        for row, name in enumerate(done.table[done.table["split"] == split]["name"]):
            expected, _ = preparation.render(loaded.images[index[name]], section())
            assert np.array_equal(done.images[done.rows[split][row]], expected)
        start += row


def test_a_package_of_which_all_is_broken_stops(many: Path) -> None:
    pack(many / "e.tgz", "emojione-assets", {f"png/128/{point}.png": picture(7)[:90] for point in POINTS[:3]})
    with pytest.raises(InputError, match=r"^3 of 211 images cannot be used:"):
        prepared(many)


def test_a_broken_image_of_the_users_own_stops(many: Path) -> None:
    write_images(many, f"mine/{POINTS[0]}.png")
    (many / "mine" / f"{POINTS[1]}.png").write_bytes(picture(7)[:90])
    with pytest.raises(InputError, match=rf"mine/{POINTS[1]}\.png is corrupt"):
        prepared(many)


def test_several_label_columns_are_written_and_one_as_before(many: Path, tmp_path: Path) -> None:
    loaded = load(many)
    table, facts = prepared(many).table, preparation.facts(loaded)
    assert list(table.columns) == ["split", "name", "family", "label", "label_name", "vendor", "vendor_name"]
    assert facts == {"label_names": ["group 0", "group 1"], "vendor_names": ["noto", "twitter"]}
    for column in ("label", "vendor"):  # as a prior reads one of several columns: by its name
        names = [facts[f"{column}_names"][value] for value in table[column]]
        assert names == list(table[f"{column}_name"])
    assert (table["name"].str.partition("/")[0] == table["vendor_name"]).all()
    files.write_table(tmp_path / "table.csv", table)
    again = files.read_table(tmp_path / "table.csv", text=("split", "name", "family", "label_name"))
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    plain = preparation.Source(*loaded)
    assert preparation.facts(plain) == {"label_names": ["group 0", "group 1"]}
    done = preparation.prepare(plain, section(), numpy_generator(0, "dataset", "split"))
    assert list(done.table.columns) == ["split", "name", "family", "label", "label_name"]
    assert set(done.metrics) == {"rows", "families", "classes", "duplicates_removed", "near_duplicates"}


# the command that fetches


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_vendors", ROOT / "data" / "fetch_vendors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAKE = """#!{python}
import shutil, sys
assert sys.argv[1:5] == ["pack", "--silent", "--ignore-scripts", "--pack-destination"], sys.argv
if "absent" in sys.argv[6]:
    sys.exit("npm error 404  no such package")
name = sys.argv[6].rpartition("@")[0].lstrip("@").replace("/", "-")
shutil.copy({archive!r}, f"{{sys.argv[5]}}/{{name}}-1.0.0.tgz")
"""


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that has one archive for every name; returns the archive."""
    archive = pack(tmp_path / "registry" / "x.tgz", "emojione-assets", LAYOUTS["emojione-assets"][0])
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "npm").write_text(FAKE.format(python=sys.executable, archive=str(archive)))
    (tmp_path / "bin" / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return archive


def fetched(lock: dict[str, Any], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "lock.json").write_text(json.dumps(lock))
    command = [sys.executable, str(ROOT / "data" / "fetch_vendors.py"), "--lock", "lock.json", "--to", "vendors"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


def pin(path: Path) -> dict[str, str]:
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return {"version": "1.0.0", "integrity": f"sha512-{digest}"}


def test_packages_are_fetched_once_and_checked(npm: Path, tmp_path: Path) -> None:
    lock = {"@some/emoji": pin(npm), "emojione-assets": pin(npm)}
    first = fetched(lock, tmp_path)
    assert first.stdout.splitlines() == [
        "some-emoji-1.0.0.tgz: fetched, checked",
        "emojione-assets-1.0.0.tgz: fetched, checked",
    ]
    assert sorted(path.name for path in (tmp_path / "vendors").iterdir()) == [
        "emojione-assets-1.0.0.tgz", "noto.parquet", "some-emoji-1.0.0.tgz"]  # fmt: skip
    assert files.sha256(tmp_path / "vendors" / "noto.parquet") == files.sha256(ROOT / "data" / "noto-emoji.parquet")
    (tmp_path / "bin" / "npm").unlink()
    assert fetched(lock, tmp_path).stdout.count("is there, checked") == 2


def test_other_content_is_not_kept(npm: Path, tmp_path: Path) -> None:
    lock = {"emojione-assets": pin(npm)}
    npm.write_bytes(npm.read_bytes() + b"\0")
    failed = fetched(lock, tmp_path)
    assert failed.returncode == 1
    assert "emojione-assets-1.0.0.tgz must have the content sha512-" in failed.stderr
    assert list((tmp_path / "vendors").iterdir()) == []
    (tmp_path / "vendors" / "emojione-assets-1.0.0.tgz").write_bytes(b"by hand")
    failed = fetched(lock, tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.endswith("Remove it and run this again\n")


def test_a_package_that_npm_cannot_fetch(npm: Path, tmp_path: Path) -> None:
    failed = fetched({"absent": pin(npm)}, tmp_path)
    assert failed.returncode == 1
    assert "npm cannot fetch absent@1.0.0: npm error 404 no such package. Or get it elsewhere" in failed.stderr


def test_without_npm_files_may_be_put_there_by_hand(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        script.FetchError, match=r"there is no npm.*`npm pack a@1\.0\.0` leaves it, and put it at .*a-1\.0\.0\.tgz"
    ):
        script.fetch("a", "1.0.0", "sha512-x", tmp_path)


def test_the_lock_pins_what_everyone_may_use_and_the_preset_reads_it() -> None:
    lock = json.loads((ROOT / "data" / "vendors-lock.json").read_text())
    preset = yaml.safe_load((ROOT / "presets" / "emoji-vendors.yaml").read_text())
    given = {vendor for name in lock for vendor in packages.LAYOUTS[name].folders}
    assert set(preset["dataset.emoji.vendors"]) == given
    assert {packages.LAYOUTS[name].licence for name in lock} <= {"MIT", "CC BY 4.0", "CC BY-SA 4.0"}
    for pinned in lock.values():
        assert len(base64.b64decode(pinned["integrity"].removeprefix("sha512-"))) == 64


def test_the_extra_pins_the_version_that_decides_pixels() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["svg"] == ["resvg-py==0.5.0"]
