"""Line charts over epochs as SVG: sharp at any size, in the colours of the page, without scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 170, 44, 14, 8, 22  # size and margins of a chart in SVG units


def svg(lines: dict[str, list[tuple[float, float]]], kept: Any, label: str) -> str:
    """`lines`: CSS class of a line -> points (epoch, value). `kept`: epoch of the vertical line, or None for no line."""
    xs, ys = [[point[axis] for points in lines.values() for point in points] for axis in (0, 1)]
    (left, right), (low, high) = _range(xs), _range(ys)

    def x(value: float) -> str:
        return f"{LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT):.1f}"

    def y(value: float) -> str:
        return f"{HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"

    plotted = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
        f'<text x="{LEFT - 5}" y="{y(tick)}" dy=".32em" text-anchor="end">{tick:.6g}</text>'
        for tick in ticks(low, high)
    ]
    plotted += [
        f'<text x="{x(tick)}" y="{HEIGHT - 6}" text-anchor="middle">{tick:.6g}</text>' for tick in ticks(left, right)
    ]
    if kept is not None and left <= kept <= right:
        plotted.append(f'<line class="kept" x1="{x(kept)}" x2="{x(kept)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for line, points in lines.items():
        places = " ".join(f"{x(a)},{y(b)}" for a, b in points)
        plotted.append(f'<polyline class="{line}" points="{places}"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(plotted)}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value. If all values are equal, the range extends a tenth of their size to both sides."""
    low, high = min(values), max(values)
    around = 0.1 * abs(low) or 1.0
    return (low, high) if high - low > 1e-9 * around else (low - around, high + around)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """About `about` multiples of 1, 2 or 5 times a power of ten between `low` and `high`."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / about))
    interval = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude > 0.7 * (high - low) / about)
    return [
        round(i * interval, 12) for i in range(math.ceil(low / interval - 1e-9), math.floor(high / interval + 1e-9) + 1)
    ]
