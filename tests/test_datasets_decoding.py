"""Kinds of image files: odd metadata, all depths of pixels, what is no image; and that all broken ones are told at once."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import example
from PIL import Image

from stages import dataset as preparation
from stages.dataset import Settings as Dataset
from tessera.core import seams
from tessera.core.errors import InputError
from tessera.core.seeding import numpy_generator
from tessera.decoding.compressed import decode, taken_for

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)


def encoded(kind: str, pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


# metadata


def exif(*entries: tuple[int, int, int, bytes], data: bytes = b"") -> bytes:
    """Tag, type, count and four bytes each; `data` stands behind them, at `8 + 2 + 12 * len(entries) + 4`."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0) + data


SIX = (0x0112, 3, 1, struct.pack("<HH", 6, 0))  # turn by 90 degrees clockwise
BEHIND = struct.pack("<I", 8 + 2 + 24 + 4)
ODD = {
    "a resolution of -1/0": exif(SIX, (0x011A, 10, 1, BEHIND), data=struct.pack("<ii", -1, 0)),
    "a resolution of 0/0": exif(SIX, (0x011A, 5, 1, BEHIND), data=struct.pack("<II", 0, 0)),
    "a negative signed number": exif(SIX, (0x0100, 9, 1, struct.pack("<i", -5))),
    "a negative offset": exif(SIX, (0x8769, 9, 1, struct.pack("<i", -5))),
    "an offset beyond the end": exif(SIX, (0x010F, 2, 500, struct.pack("<I", 9999))),
    "an unknown type": exif(SIX, (0x9999, 77, 1, struct.pack("<I", 9999))),
    "cut short": exif(SIX, (0x011A, 5, 1, BEHIND))[:-9],
    "an orientation of another type": exif((0x0112, 4, 1, struct.pack("<I", 6)), (0x0100, 9, 1, struct.pack("<i", -5))),
}
MAKE, MODEL = ((tag, 2, 20, struct.pack("<I", 9999)) for tag in (0x010F, 0x0110))
ODD |= {
    "a maker beyond the end, before it": exif(MAKE, SIX),
    "two broken tags before it": exif(MAKE, MODEL, SIX),
    "a broken tag before a long": exif(MAKE, (0x0112, 4, 1, struct.pack("<I", 6))),
    "a broken tag before a byte": exif(MAKE, (0x0112, 1, 1, b"\6\0\0\0")),
    "more entries than there are": exif(MAKE, SIX).replace(b"\2\0", b"\x50\0", 1),
    "the other order of bytes": b"MM\0*" + struct.pack(">IHHHII", 8, 2, 0x010F, 2, 20, 9999)
    + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4),
}  # fmt: skip
UNREADABLE = {
    "no orientation": exif((0x0100, 9, 1, struct.pack("<i", -5))),
    "an orientation of 0": exif((0x0112, 3, 1, struct.pack("<HH", 0, 0))),
    "an orientation of 99": exif((0x0112, 3, 1, struct.pack("<HH", 99, 0))),
    "an orientation in words": exif((0x0112, 2, 2, b"6\0\0\0")),
    "a broken tag before an orientation of 9": exif(MAKE, (0x0112, 3, 1, struct.pack("<HH", 9, 0))),
    "a broken tag before words": exif(MAKE, (0x0112, 2, 2, b"6\0\0\0")),
    "a broken tag and no more": exif(MAKE)[:-8],
    "nonsense": b"nonsense",
    "a header only": b"II*\0",
    "an offset into nothing": b"II*\0" + struct.pack("<I", 70000),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("case", ODD)
def test_beside_odd_metadata_the_orientation_is_read(case: str, kind: str) -> None:
    data = encoded(kind, exif=b"Exif\0\0" + ODD[case], **({"lossless": True} if kind == "WEBP" else {}))
    found = decode(data, "picture")
    assert found.shape == (5, 3, 3)
    if kind != "JPEG":
        assert np.array_equal(found, np.rot90(PIXELS, -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("case", UNREADABLE)
def test_metadata_that_cannot_be_read_is_ignored(case: str, kind: str) -> None:
    data = encoded(kind, exif=b"Exif\0\0" + UNREADABLE[case], **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(data, "picture"), PIXELS)


@pytest.mark.parametrize("profile", [ODD["a resolution of 0/0"].hex(), ODD["a negative signed number"].hex(), "zz", ""])
def test_a_raw_profile_of_a_png(profile: str) -> None:
    text = b"\nexif\n%8d\n" % len(profile) + b"457869660000" + profile.encode() + b"\n"
    whole = encoded("PNG")
    data = whole[:33] + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)) + whole[33:]
    assert np.array_equal(decode(data, "picture"), np.rot90(PIXELS, -1) if len(profile) > 2 else PIXELS)


TURNED = {1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.swapaxes(0, 1),
          6: PIXELS.swapaxes(0, 1)[:, ::-1], 7: PIXELS[::-1, ::-1].swapaxes(0, 1), 8: PIXELS.swapaxes(0, 1)[::-1]}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
def test_every_orientation_and_a_tiff_is_turned_once(orientation: int) -> None:
    tag = Image.Exif()
    tag[0x0112] = orientation
    for data in (
        encoded("PNG", exif=tag),
        encoded("TIFF", tiffinfo={0x0112: orientation}),
        encoded("TIFF", tiffinfo={0x0112: orientation}, compression="tiff_lzw"),
    ):
        assert np.array_equal(decode(data, "picture"), TURNED[orientation])


# depths


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, colour: int, width: int, row: bytes, clear: bytes, palette: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"") + chunk(b"tRNS", clear)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def grey(value: int, alpha: int = 255) -> list[int]:
    return [value, value, value, alpha]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(16, 0, 3, struct.pack(">3H", 0, 1000, 65535), struct.pack(">H", 1000)), [grey(0), grey(4, 0), grey(255)]),
        (png(16, 0, 2, struct.pack(">2H", 1000, 1001), struct.pack(">H", 1000)), [grey(4, 0), grey(4)]),
        (png(8, 0, 2, b"\x05\x06", struct.pack(">H", 5)), [grey(5, 0), grey(6)]),
        (png(4, 0, 2, b"\x5f", struct.pack(">H", 5)), [grey(85, 0), grey(255)]),
        (png(2, 0, 4, b"\x1b", struct.pack(">H", 1)), [grey(0), grey(85, 0), grey(170), grey(255)]),
        (png(1, 0, 2, b"\x80", struct.pack(">H", 1)), [grey(255, 0), grey(0)]),
        (png(16, 2, 2, struct.pack(">6H", 65535, 0, 0, 1000, 2000, 3000), struct.pack(">3H", 1000, 2000, 3000)),
         [[255, 0, 0, 255], [3, 7, 11, 0]]),
        (png(8, 3, 2, b"\0\1", b"\x80\0", bytes([9, 8, 7, 1, 2, 3])), [[9, 8, 7, 128], [1, 2, 3, 0]]),
    ],
    ids=["16 bits", "16 bits, neighbours", "8 bits", "4 bits", "2 bits", "1 bit", "48 bits", "palette"],
)  # fmt: skip
def test_the_transparent_colour_of_a_png(data: bytes, expected: list) -> None:
    assert decode(data, "picture")[0].tolist() == expected


def tiff(bits: int, photometric: int, data: bytes, width: int, samples: int = 1) -> bytes:
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 12 * 9 + 4), (277, samples),
               (278, 1), (279, len(data))]  # fmt: skip
    if samples > 1:  # the bits of all samples stand before the pixels
        entries[5], entries[2] = (273, entries[5][1] + 2 * samples), (258, entries[5][1])
    count = {258: samples}
    return exif(*((tag, 3, count.get(tag, 1), struct.pack("<I", value)) for tag, value in entries),
                data=struct.pack(f"<{samples}H", *[bits] * samples) * (samples > 1) + data)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(16, 0, struct.pack("<3H", 0, 1000, 65535), 3), [255, 251, 0]),
        (tiff(16, 1, struct.pack("<3H", 0, 1000, 65535), 3), [0, 4, 255]),
        (tiff(12, 1, b"\xff\xf0\x00", 2), [255, 0]),
        (tiff(8, 0, b"\0\x0a\xff", 3), [255, 245, 0]),
        (tiff(4, 0, b"\x0f", 2), [255, 0]),
        (tiff(1, 0, b"\x80", 2), [0, 255]),
        (tiff(1, 1, b"\x80", 2), [255, 0]),
        (tiff(8, 5, b"\0\xff\xff\0", 1, samples=4), [[255, 0, 0]]),
        (tiff(16, 2, struct.pack("<3H", 65535, 0, 1000), 1, samples=3), [[255, 0, 3]]),
        (encoded("TIFF", np.array([[0, 1000, 65535]], np.uint16), compression="tiff_lzw", tiffinfo={262: 0}), [255, 251, 0]),
        (b"P5 2 1 65535\n" + struct.pack(">2H", 65535, 1000), [255, 4]),
        (b"P5 2 1 4095\n" + struct.pack(">2H", 4095, 1000), [255, 62]),
    ],
    ids=["16 white", "16", "12", "8 white", "4 white", "1 white", "1", "cmyk", "48", "16 white lzw", "pgm", "pgm of 12 bits"],
)  # fmt: skip
def test_white_is_255_whatever_the_depth_and_its_sign(data: bytes, expected: list) -> None:
    assert decode(data, "picture")[0].tolist() == expected


# what is no image


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer.*git lfs pull"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>', "an SVG drawing.*PNG"),
        (b"<!-- drawn by hand --><svg/>", "an SVG drawing"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>", "a web page.*Download"),
        (b"<HTML><body>404</body>", "a web page"),
        (b"outs:\n- md5: 0\n  path: a.png\n", "a DVC pointer.*dvc pull"),
        (b"%PDF-1.7", "a PDF"),
        (b"PK\x03\x04", "a zip archive.*Unpack"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIF photograph.*PNG or JPEG"),
        (b"", "empty"),
        (b"404: Not Found", "in no known format"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_called_what_it_is(data: bytes, what: str) -> None:
    with pytest.raises(InputError, match=rf"^a\.png is corrupt, cut short or no image \(it is {what}") as caught:
        decode(data, "a.png")
    assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"name,drawing\na,<svg/>\n",
        b'{"code": "<svg></svg>"}',
        b"path,hash\n/annex/objects/x,1\n",
        b"outs,b\n1,2\n",
        b"x",
    ],
)
def test_a_table_that_speaks_of_such_is_none(data: bytes) -> None:
    assert taken_for(data) is None


# all at once


def section(name: str, source: Path) -> Dataset:
    split = {"by": "random", "train": 0.6, "val": 0.2, "test": 0.2, "withheld": []}
    return Dataset(name=name, source=str(source), image_size=8, target_size=8, colour="rgb", aspect="pad",
                   near_duplicate_rmse=1.0, split=split)  # fmt: skip


def table(path: Path, images: list[bytes]) -> Path:
    columns = {name: [f"{name} {i}" for i in range(len(images))] for name in ("name", "group", "subgroup")}
    codepoints = [f"1f9{i:02x}" for i in range(len(images))]
    rows = [{"bytes": data, "path": None} for data in images]
    pq.write_table(pa.table({"image": rows, **columns, "codepoints": codepoints}), path)
    return path


def folder(path: Path, images: list[bytes], names: list[str]) -> Path:
    path.mkdir()
    for name, data in zip(names, images, strict=True):
        (path / name).write_bytes(data)
    return path


def emoji(path: Path, images: list[bytes]) -> Path:
    names = [f"1f9{i:02x}.png" for i in range(len(images))]
    table(path / "noto.parquet", [encoded("PNG")] * len(images))
    folder(path / "own", images, names)
    return path


SOURCES = {
    "noto": lambda path, images: table(path / "x.parquet", images),
    "emoji": emoji,
    "folder": lambda path, images: folder(path / "set", images, [f"{i:02}.png" for i in range(len(images))]),
    "huggingface": lambda path, images: folder(path / "set", images, [f"{i:02}.png" for i in range(len(images))]),
    "huggingface rows": lambda path, images: table(path / "x.parquet", images),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("count", [2, 60])
def test_all_broken_images_of_a_set_are_told_in_one_go(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    source = SOURCES[name](tmp_path / "data", [encoded("PNG"), *[encoded("PNG")[:-30], b"<svg/>"] * (count // 2)])
    plugin = seams.plugin("datasets", name.split()[0])
    config = example(plugin.Config, **({"labels": False} if name == "folder" else {}))
    loaded = plugin.load(config, source, numpy_generator(0, "dataset", "load"))
    with pytest.raises(InputError) as caught:
        preparation.prepare(loaded, section(name.split()[0], source), numpy_generator(0, "dataset", "split"))
    first, *lines = str(caught.value).splitlines()
    assert first == f"{count} of {len(loaded.images)} images cannot be used:"
    assert len(lines) == (2 if count == 2 else 51)
    assert "is corrupt, cut short or no image" in lines[0]
    assert "(it is an SVG drawing)" in lines[1]
    assert count == 2 or lines[-1] == "  and 10 more"


def test_one_broken_image_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = SOURCES["folder"](tmp_path, [encoded("PNG"), b""])
    plugin = seams.plugin("datasets", "folder")
    loaded = plugin.load(example(plugin.Config, labels=False), source, numpy_generator(0, "dataset", "load"))
    with pytest.raises(InputError, match=r"^.*01\.png is corrupt, cut short or no image \(it is empty\)"):
        preparation.prepare(loaded, section("folder", source), numpy_generator(0, "dataset", "split"))
