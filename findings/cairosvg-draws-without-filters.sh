#!/usr/bin/env bash
# Title:    CairoSVG draws most filters as if they were not there
# Packages: CairoSVG 2.9.1, resvg-py 0.5.0, Pillow 13.0.0, numpy 2.4.6, libcairo 2
# Expected: An SVG is drawn as browsers draw it, or what cannot be drawn is an error or a warning.
# Instead:  Of nine filter primitives, each used as its specification's examples use it, seven change no pixel of CairoSVG's
#           drawing, feFlood and feBlend among them, which its manual lists as supported. There is no word of it: exit status 0,
#           nothing on stderr. resvg draws all nine.
# Seen:     the same pixels as without the filter: feGaussianBlur, feColorMatrix, feFlood, feComposite, feBlend, feMorphology,
#           feDropShadow; other pixels: feOffset (as resvg), feMerge (only its last node is moved: 15.9 grey levels from resvg)
# Date:     2026-11-29
# Matters:  Shading of drawings made in design programs is filters: 2,957 of the 3,145 modern SVGs of the npm package
#           fluentui-emoji 1.3.0 have some, and two in three come out more than 10 grey levels (RMSE at 64x64) from resvg's. A
#           data set that is rendered so is another one, and nobody is told.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null
ldconfig -p | grep -q 'libcairo\.so\.2' || { apt-get update -qq && apt-get install -y -qq libcairo2; } >/dev/null
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check cairosvg==2.9.1 resvg-py==0.5.0 pillow==13.0.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import io
import sys
import warnings

import cairosvg
import numpy as np
import resvg_py
from PIL import Image

warnings.simplefilter("error")
SQUARE = '<rect x="4" y="4" width="8" height="8" fill="#f00"{}/>'
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
<filter id="f" x="-50%" y="-50%" width="200%" height="200%">{}</filter>{}</svg>"""
FLOOD = '<feFlood flood-color="#00f" result="blue"/>'
FILTERS = {
    "feGaussianBlur": '<feGaussianBlur stdDeviation="2"/>',
    "feColorMatrix": '<feColorMatrix values="0 0 0 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 1 0"/>',
    "feFlood": FLOOD,
    "feOffset": '<feOffset dx="3" dy="3"/>',
    "feComposite": FLOOD + '<feComposite in="blue" in2="SourceGraphic" operator="in"/>',
    "feBlend": FLOOD + '<feBlend in="SourceGraphic" in2="blue" mode="multiply"/>',
    "feMorphology": '<feMorphology operator="erode" radius="2"/>',
    "feDropShadow": '<feDropShadow dx="2" dy="2"/>',
    "feMerge": '<feOffset dx="3" result="o"/><feMerge><feMergeNode in="o"/><feMergeNode in="SourceGraphic"/></feMerge>',
}
DRAWN_BY = {
    "cairosvg": lambda svg: cairosvg.svg2png(bytestring=svg.encode(), output_width=64, output_height=64),
    "resvg": lambda svg: bytes(resvg_py.svg_to_bytes(svg_string=svg, width=64, height=64, skip_system_fonts=True)),
}


def pixels(renderer, svg):
    image = Image.open(io.BytesIO(DRAWN_BY[renderer](svg))).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), float)[..., :3]


without = {name: pixels(name, SVG.format("", SQUARE.format(""))) for name in DRAWN_BY}
ignored = {name: [] for name in DRAWN_BY}
for primitive, inside in FILTERS.items():
    svg = SVG.format(inside, SQUARE.format(' filter="url(#f)"'))
    images = {name: pixels(name, svg) for name in DRAWN_BY}
    for name, image in images.items():
        if np.abs(image - without[name]).max() == 0:
            ignored[name].append(primitive)
    apart = np.abs(images["cairosvg"] - images["resvg"]).mean()
    print(f"{primitive:15} cairosvg {'ignores it' if primitive in ignored['cairosvg'] else 'draws it':11} apart from resvg: {apart:5.1f}")
print(f"cairosvg {cairosvg.__version__} ignores {len(ignored['cairosvg'])} of {len(FILTERS)}, resvg {len(ignored['resvg'])}")

expected = {"cairosvg": [name for name in FILTERS if name not in ("feOffset", "feMerge")], "resvg": []}
if ignored != expected:
    sys.exit(f"the behaviour has changed: expected was {expected}")
PYTHON
