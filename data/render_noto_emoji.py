"""Render the Noto Color Emoji font into data/noto-emoji.parquet, the dataset that comes with the project.

One row for each emoji of Unicode's emoji-test list, in the order of that list. HarfBuzz chooses the glyph, as
it does in a browser; the picture is the bitmap that the font itself holds for this glyph (table CBDT), and is
neither scaled nor rasterised. data/README.md describes the result and its licence.

Needs the Debian packages fonts-noto-color-emoji and unicode-data, and from PyPI uharfbuzz, fonttools, pillow
and pyarrow. The same versions of all of them give the same file, byte for byte.
"""

import argparse
import hashlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import uharfbuzz as hb
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
OUTPUT = Path(__file__).resolve().with_name("noto-emoji.parquet")

# The other two statuses of the list, minimally-qualified and unqualified, spell the same emoji with variation
# selectors left out: those rows would be duplicates.
STATUSES = ("fully-qualified", "component")

# The font's bitmaps are 136 wide and 128 high. Their outer 4 columns are empty: cut, they leave a square.
BITMAP_SIZE = (136, 128)
SQUARE = (4, 0, 132, 128)

GROUP_LINE = re.compile(r"# (?P<kind>group|subgroup): (?P<title>.+)")
EMOJI_LINE = re.compile(
    r"(?P<codepoints>[0-9A-F]+(?: [0-9A-F]+)*)\s*; (?P<status>[a-z-]+)\s*# \S+ E\d+\.\d+ (?P<name>.+)"
)

TEXT_COLUMNS = ("name", "group", "subgroup", "codepoints")
# How `datasets.load_dataset` learns that the struct of bytes and path is a picture and not a plain record.
FEATURES = {"image": {"_type": "Image"}} | {c: {"dtype": "string", "_type": "Value"} for c in TEXT_COLUMNS}


class SourceError(Exception):
    """A source file is missing or is not what this script can read; the message says what to do about it."""


class Emoji(NamedTuple):
    """One line of emoji-test.txt."""

    text: str
    name: str
    group: str
    subgroup: str

    @property
    def codepoints(self) -> str:
        """Lower-case hexadecimal code points joined by hyphens, such as `263a-fe0f`: the key of a row."""
        return "-".join(f"{ord(character):x}" for character in self.text)


def require_file(path: Path, package: str) -> None:
    """Raise SourceError with the remedy where `path` does not exist."""
    if not path.is_file():
        raise SourceError(f"{path} not found; on Debian: apt-get install {package}")


def read_emoji_test(path: Path) -> tuple[str, list[Emoji]]:
    """Read emoji-test.txt: its version, and its emoji of the statuses in STATUSES, in its order."""
    require_file(path, "unicode-data")
    version, titles, emojis = "unknown", {"group": "", "subgroup": ""}, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("# Version: "):
            version = line.removeprefix("# Version: ").strip()
        elif heading := GROUP_LINE.fullmatch(line):
            titles[heading["kind"]] = heading["title"].strip()
        elif line.strip() and not line.startswith("#"):
            entry = EMOJI_LINE.fullmatch(line.rstrip())
            if entry is None:
                raise SourceError(f"{path}, line {number}: not in the format of emoji-test.txt: {line!r}")
            if entry["status"] in STATUSES:
                text = "".join(chr(int(codepoint, 16)) for codepoint in entry["codepoints"].split())
                emojis.append(Emoji(text, entry["name"], titles["group"], titles["subgroup"]))
    if not emojis:
        raise SourceError(f"{path} lists no emoji of status {' or '.join(STATUSES)}; is it emoji-test.txt?")
    return version, emojis


class BitmapFont:
    """A colour font with one bitmap per glyph, and HarfBuzz to choose the glyph for a string."""

    def __init__(self, path: Path) -> None:
        require_file(path, "fonts-noto-color-emoji")
        try:
            self.tables = TTFont(path)
        except TTLibError as error:
            raise SourceError(f"{path} is not a TrueType font: {error}") from error
        if "CBDT" not in self.tables:
            raise SourceError(
                f"{path} holds no bitmaps (table CBDT); fonts drawn with COLRv1 outlines will not do, "
                "the one of Debian's package fonts-noto-color-emoji will"
            )
        self.bitmaps = self.tables["CBDT"].strikeData[0]
        self.shaper = hb.Font(hb.Face(hb.Blob.from_file_path(str(path))))

    @property
    def version(self) -> str:
        """The font's own name and version, such as `Noto Color Emoji, Version 2.042;...`."""
        names = self.tables["name"]
        return f"{names.getDebugName(4)}, {names.getDebugName(5)}"

    def draw(self, text: str) -> Image.Image | None:
        """Return `text` as 128x128 RGB on white, or None where the font does not draw it as one glyph."""
        buffer = hb.Buffer()
        buffer.add_str(text)
        buffer.guess_segment_properties()
        hb.shape(self.shaper, buffer)
        # After shaping, `codepoint` is the number of the glyph; 0 stands for what the font does not know.
        glyphs = [info.codepoint for info in buffer.glyph_infos]
        if len(glyphs) != 1 or glyphs[0] == 0:
            return None
        glyph = self.tables.getGlyphName(glyphs[0])
        if glyph not in self.bitmaps:
            return None
        # Most of the bitmaps are PNGs with a palette of colours and opacities; RGBA makes all of them alike.
        bitmap = Image.open(io.BytesIO(self.bitmaps[glyph].imageData)).convert("RGBA")
        if bitmap.size != BITMAP_SIZE:
            raise SourceError(f"glyph {glyph}: bitmap of size {bitmap.size}, expected {BITMAP_SIZE}")
        white = Image.new("RGBA", bitmap.size, "white")
        return Image.alpha_composite(white, bitmap).convert("RGB").crop(SQUARE)


def webp(picture: Image.Image) -> bytes:
    """Pack a picture as lossless WebP, which here takes less than half of the bytes of PNG."""
    file = io.BytesIO()
    # In lossless mode `quality` is the effort. The most (100, method 6) saves 1 % and takes 100 times longer.
    picture.save(file, "WEBP", lossless=True, quality=75, method=4)
    return file.getvalue()


def render(emojis: Iterable[Emoji], font: BitmapFont) -> Iterator[tuple[Emoji, Image.Image | None]]:
    """Yield each emoji with its picture, or with None and a line on stderr where there is no single glyph."""
    for emoji in emojis:
        picture = font.draw(emoji.text)
        if picture is None:
            print(f"not drawn as one glyph: {emoji.codepoints} {emoji.name}", file=sys.stderr)
        yield emoji, picture


def write_parquet(path: Path, drawn: list[tuple[Emoji, Image.Image]], source: dict[str, str]) -> None:
    """Write the rows in the form that `datasets.load_dataset` reads; `path` is replaced in one step."""
    images = [{"bytes": webp(picture), "path": None} for _, picture in drawn]
    columns = {"image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    for column in TEXT_COLUMNS:
        columns[column] = pa.array([getattr(emoji, column) for emoji, _ in drawn], pa.string())
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})} | source
    partial = path.with_name(path.name + ".partial")
    # No statistics: a column's smallest and largest picture would be repeated in the footer.
    pq.write_table(
        pa.table(columns, metadata=metadata),
        partial,
        compression="zstd",
        use_dictionary=["group", "subgroup"],
        write_statistics=False,
    )
    os.replace(partial, path)


def pixel_digest(pictures: Iterable[Image.Image]) -> str:
    """SHA-256 of all pixels in order: the same for the same pictures, however they were packed."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(picture.tobytes())
    return digest.hexdigest()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Render Noto Color Emoji into parquet, 128x128.")
    parser.add_argument("--font", type=Path, default=FONT, help="font with bitmaps (default: %(default)s)")
    parser.add_argument("--emoji-test", type=Path, default=EMOJI_TEST, help="Unicode's list (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: noto-emoji.parquet next to this script")
    return parser.parse_args()


def main() -> None:
    """Render, write, and say what was done."""
    chosen = arguments()
    try:
        emoji_version, emojis = read_emoji_test(chosen.emoji_test)
        font = BitmapFont(chosen.font)
        drawn = [(emoji, picture) for emoji, picture in render(emojis, font) if picture is not None]
        if not drawn:
            raise SourceError(f"{chosen.font} draws none of the {len(emojis)} emoji of {chosen.emoji_test}")
    except SourceError as error:
        sys.exit(f"error: {error}")
    write_parquet(chosen.output, drawn, {"font": font.version, "emoji_test": emoji_version})
    print(f"font:       {font.version}")
    print(f"emoji-test: {emoji_version}, {len(emojis)} emoji ({', '.join(STATUSES)})")
    print(f"drawn:      {len(drawn)}; not drawn as one glyph: {len(emojis) - len(drawn)}")
    print(f"pixels:     sha256 {pixel_digest(picture for _, picture in drawn)}")
    print(f"written:    {chosen.output} ({chosen.output.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
