"""The embedded dataset data/noto-emoji.parquet, its README, and the script that renders it."""

import hashlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PARQUET = ROOT / "data" / "noto-emoji.parquet"
README = ROOT / "data" / "README.md"
SCRIPT = ROOT / "data" / "render_noto_emoji.py"
# The same emoji rendered by another program; no part of the project, so that most machines lack it.
INDEPENDENT = ROOT.parent / "shared" / "data" / "noto-emoji-128.parquet"

ROWS = 3664
COLUMNS = ["image", "name", "group", "subgroup", "codepoints"]
TONES = ["", "-1f3fb", "-1f3fc", "-1f3fd", "-1f3fe", "-1f3ff"]

Row = dict[str, Any]


def decode(row: Row) -> np.ndarray:
    """Return the picture of a row as uint8 [128, 128, 3]; converting nothing, so that a wrong mode shows."""
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return pq.read_table(PARQUET).to_pylist()


@pytest.fixture(scope="module")
def pictures(rows: list[Row]) -> list[np.ndarray]:
    return [decode(row) for row in rows]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The rendering script as a module; skips where what it needs is not installed."""
    pytest.importorskip("uharfbuzz")
    pytest.importorskip("fontTools")
    spec = importlib.util.spec_from_file_location("render_noto_emoji", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def font(script: ModuleType) -> Path:
    """The font from which the committed file was made; skips where it is absent or of another version."""
    if not script.FONT.is_file():
        pytest.skip(f"{script.FONT} is not installed")
    version = pq.read_schema(PARQUET).metadata[b"font"].decode()
    if script.BitmapFont(script.FONT).version != version:
        pytest.skip(f"{script.FONT} is not {version}")
    return script.FONT


def run_script(**options: Path) -> subprocess.CompletedProcess[str]:
    """Run the rendering script with `--name value` for each option."""
    words = [word for name, path in options.items() for word in ("--" + name.replace("_", "-"), str(path))]
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


def test_schema_is_what_load_dataset_reads_as_images() -> None:
    schema = pq.read_schema(PARQUET)
    assert schema.names == COLUMNS
    assert schema.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    assert all(schema.field(column).type == pa.string() for column in COLUMNS[1:])
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == COLUMNS
    assert features["image"] == {"_type": "Image"}
    assert schema.metadata[b"emoji_test"] == b"15.0"
    assert b"Version 2.042" in schema.metadata[b"font"]


def test_every_row_is_whole_and_unique(rows: list[Row]) -> None:
    assert len(rows) == ROWS
    assert len({row["codepoints"] for row in rows}) == ROWS
    assert len({row["name"] for row in rows}) == ROWS
    assert all(row[column] for row in rows for column in COLUMNS[1:])
    spelling = re.compile(r"[1-9a-f][0-9a-f]*(-[1-9a-f][0-9a-f]*)*")
    assert [row["codepoints"] for row in rows if not spelling.fullmatch(row["codepoints"])] == []


def test_all_pictures_are_128x128_rgb(pictures: list[np.ndarray]) -> None:
    assert {(picture.shape, picture.dtype) for picture in pictures} == {((128, 128, 3), np.dtype("uint8"))}


def test_no_picture_is_blank(pictures: list[np.ndarray]) -> None:
    assert all((picture < 200).any() for picture in pictures)


def test_pixels_have_the_digest_of_the_readme(pictures: list[np.ndarray]) -> None:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(picture.tobytes())
    assert re.findall(r"^sha256 ([0-9a-f]{64})$", README.read_text(encoding="utf-8"), re.M) == [digest.hexdigest()]


def test_readme_documents_the_columns_and_the_counts(rows: list[Row]) -> None:
    text = README.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == COLUMNS
    counts = re.search(r"^## Counts\n(.+?)^## ", text, re.M | re.S)[1]
    documented = {
        group: int(n.replace(",", "")) for group, n in re.findall(r"^\| (\w.+) \| ([\d,]+) \|$", counts, re.M)
    }
    assert documented == Counter(row["group"] for row in rows)


def test_exact_duplicates_are_those_of_the_readme(rows: list[Row], pictures: list[np.ndarray]) -> None:
    same: dict[bytes, set[str]] = {}
    for row, picture in zip(rows, pictures, strict=True):
        same.setdefault(picture.tobytes(), set()).add(row["codepoints"])
    assert len(same) == 3650
    assert {frozenset(codes) for codes in same.values() if len(codes) > 1} == {
        frozenset(f"1f3c2{tone}" for tone in TONES),  # snowboarder: no skin is to be seen
        frozenset({"1f46a", "1f468-200d-1f468-200d-1f466"}),  # family; family: man, man, boy
        frozenset({"1f1e6-1f1fa", "1f1ed-1f1f2"}),  # Australia; Heard & McDonald Islands
        frozenset({"1f1f3-1f1f4", "1f1e7-1f1fb", "1f1f8-1f1ef"}),  # Norway; Bouvet Island; Svalbard & Jan Mayen
        frozenset({"1f1eb-1f1f7", "1f1e8-1f1f5", "1f1f2-1f1eb"}),  # France; Clipperton Island; St. Martin
        frozenset({"1f1ee-1f1f4", "1f1e9-1f1ec"}),  # British Indian Ocean Territory; Diego Garcia
        frozenset({"1f1ea-1f1f8", "1f1ea-1f1e6"}),  # Spain; Ceuta & Melilla
        frozenset({"1f1fa-1f1f8", "1f1fa-1f1f2"}),  # United States; U.S. Outlying Islands
    }


@pytest.mark.skipif(not INDEPENDENT.is_file(), reason="the independent rendering is not on this machine")
def test_agrees_with_an_independent_rendering(rows: list[Row], pictures: list[np.ndarray]) -> None:
    """Every row is there with the same texts, and no pixel of any picture differs."""
    independent = {row["codepoints"]: row for row in pq.read_table(INDEPENDENT).to_pylist()}
    assert [row["codepoints"] for row in rows if row["codepoints"] not in independent] == []
    pairs = [(row, independent[row["codepoints"]]) for row in rows]
    assert [own["name"] for own, other in pairs if any(own[c] != other[c] for c in COLUMNS[1:])] == []
    differing = [
        own["name"]
        for (own, other), picture in zip(pairs, pictures, strict=True)
        if not np.array_equal(picture, decode(other))
    ]
    assert differing == []


# One of each kind: a single character, a variation selector, a keycap, a tone, joined sequences, two kinds of
# flag, a component. The unqualified line has to be passed over; the last is two glyphs in this font.
SOME_EMOJI = """\
# emoji-test.txt
# Version: 15.0

# group: Some group
# subgroup: some-subgroup
1F600                                      ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F                                  ; fully-qualified     # ☺️ E0.6 smiling face
263A                                       ; unqualified         # ☺ E0.6 smiling face
0023 FE0F 20E3                             ; fully-qualified     # #️⃣ E0.6 keycap: #
1F44B 1F3FB                                ; fully-qualified     # 👋🏻 E1.0 waving hand: light skin tone

# group: Another group
# subgroup: another-subgroup
1F469 200D 2764 FE0F 200D 1F48B 200D 1F468 ; fully-qualified     # 👩‍❤️‍💋‍👨 E2.0 kiss: woman, man
1F1F3 1F1F4                                ; fully-qualified     # 🇳🇴 E2.0 flag: Norway
1F3F4 E0067 E0062 E0077 E006C E0073 E007F  ; fully-qualified     # 🏴󠁧󠁢󠁷󠁬󠁳󠁿 E5.0 flag: Wales
1F3FB                                      ; component           # 🏻 E1.0 light skin tone
1F600 200D 1F4A9                           ; fully-qualified     # 😀‍💩 E99.0 no such emoji

#EOF
"""
SOME_CODEPOINTS = [
    "1f600",
    "263a-fe0f",
    "23-fe0f-20e3",
    "1f44b-1f3fb",
    "1f469-200d-2764-fe0f-200d-1f48b-200d-1f468",
    "1f1f3-1f1f4",
    "1f3f4-e0067-e0062-e0077-e006c-e0073-e007f",
    "1f3fb",
]


def test_script_renders_the_committed_pictures(font: Path, rows: list[Row], tmp_path: Path) -> None:
    emoji_test = tmp_path / "emoji-test.txt"
    emoji_test.write_text(SOME_EMOJI, encoding="utf-8")
    outputs = [tmp_path / "first.parquet", tmp_path / "second.parquet"]
    runs = [run_script(font=font, emoji_test=emoji_test, output=output) for output in outputs]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert runs[0].stderr == "not drawn as one glyph: 1f600-200d-1f4a9 no such emoji\n"
    assert "drawn:      8; not drawn as one glyph: 1\n" in runs[0].stdout

    rendered = pq.read_table(outputs[0]).to_pylist()
    committed = {row["codepoints"]: row for row in rows}
    assert [row["codepoints"] for row in rendered] == SOME_CODEPOINTS
    assert [row["name"] for row in rendered] == [committed[codes]["name"] for codes in SOME_CODEPOINTS]
    assert [row["group"] for row in rendered] == ["Some group"] * 4 + ["Another group"] * 4
    assert [row["subgroup"] for row in rendered] == ["some-subgroup"] * 4 + ["another-subgroup"] * 4
    for row in rendered:
        np.testing.assert_array_equal(decode(row), decode(committed[row["codepoints"]]), err_msg=row["name"])


def test_script_writes_the_schema_of_the_committed_file(script: ModuleType, font: Path, tmp_path: Path) -> None:
    emoji = script.Emoji("\N{GRINNING FACE}", "grinning face", "a group", "a subgroup")
    colour_font = script.BitmapFont(font)
    source = {"font": colour_font.version, "emoji_test": "15.0"}
    script.write_parquet(tmp_path / "one.parquet", [(emoji, colour_font.draw(emoji.text))], source)
    assert pq.read_schema(tmp_path / "one.parquet").equals(pq.read_schema(PARQUET), check_metadata=True)
    assert [path.name for path in tmp_path.iterdir()] == ["one.parquet"]


def test_script_reads_the_whole_list_of_unicode(script: ModuleType, rows: list[Row]) -> None:
    if not script.EMOJI_TEST.is_file():
        pytest.skip(f"{script.EMOJI_TEST} is not installed")
    version, emojis = script.read_emoji_test(script.EMOJI_TEST)
    if version != "15.0":
        pytest.skip(f"{script.EMOJI_TEST} is of version {version}, not 15.0")
    texts = COLUMNS[1:]
    assert [[getattr(emoji, c) for c in texts] for emoji in emojis] == [[row[c] for c in texts] for row in rows]


@pytest.mark.usefixtures("script")
def test_missing_source_says_what_to_install(tmp_path: Path) -> None:
    absent, output = tmp_path / "absent", tmp_path / "out.parquet"
    emoji_test = tmp_path / "emoji-test.txt"
    emoji_test.write_text(SOME_EMOJI, encoding="utf-8")
    no_list = run_script(emoji_test=absent, output=output)
    no_font = run_script(emoji_test=emoji_test, font=absent, output=output)
    assert no_list.stderr == f"error: {absent} not found; on Debian: apt-get install unicode-data\n"
    assert no_font.stderr == f"error: {absent} not found; on Debian: apt-get install fonts-noto-color-emoji\n"
    assert (no_list.returncode, no_font.returncode) == (1, 1)
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# Version: 15.0\n1F600 ; unqualified # 😀 E1.0 grinning face\n", "lists no emoji of status"),
        ("# Version: 15.0\nnonsense\n", "line 2: not in the format of emoji-test.txt: 'nonsense'"),
    ],
)
def test_unreadable_list_is_refused(script: ModuleType, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(content, encoding="utf-8")
    with pytest.raises(script.SourceError, match=message):
        script.read_emoji_test(tmp_path / "list.txt")


def test_file_that_is_no_font_is_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_text("no font", encoding="utf-8")
    with pytest.raises(script.SourceError, match="not a TrueType font"):
        script.BitmapFont(tmp_path / "font.ttf")
