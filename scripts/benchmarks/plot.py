"""Line plots with a logarithmic x axis as one self-contained SVG.

>>> svg([("seconds", "rows", {"open": [[10, 1.0], [1000, 2.0]]})]).count("<polyline")
1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[Sequence[float]]
Panel = tuple[str, str, Mapping[str, Points]]  # label of y, label of x, lines by name

_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7d5ba6")
_WIDTH, _HEIGHT, _MARGIN = 460, 320, 56


def svg(panels: Sequence[Panel]) -> str:
    """Panels side by side. y begins at 0, so that flat looks flat."""
    drawn = "\n".join(
        f'<g transform="translate({i * _WIDTH} 0)">{_panel(*panel)}</g>' for i, panel in enumerate(panels)
    )
    size = f'width="{_WIDTH * len(panels)}" height="{_HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{drawn}\n</svg>\n'
    )


def _panel(y_label: str, x_label: str, lines: Mapping[str, Points]) -> str:
    every = [point for points in lines.values() for point in points]
    low, high = (math.log10(edge(n for n, _ in every)) for edge in (min, max))
    top = max(value for _, value in every) * 1.1 or 1

    def x(n: float) -> float:
        return _MARGIN + (math.log10(n) - low) / ((high - low) or 1) * (_WIDTH - 1.5 * _MARGIN)

    def y(value: float) -> float:
        return _HEIGHT - _MARGIN - value / top * (_HEIGHT - 1.7 * _MARGIN)

    parts = [_text(_MARGIN, 18, y_label), _text(_WIDTH / 2, _HEIGHT - 12, x_label, "middle")]
    parts.append(_line(_MARGIN, y(0), _WIDTH - _MARGIN / 2, y(0), "black"))
    for step in range(5):
        value = top * step / 4
        parts.append(_line(_MARGIN, y(value), _WIDTH - _MARGIN / 2, y(value), "#dddddd"))
        parts.append(_text(_MARGIN - 6, y(value) + 4, f"{value:.2g}", "end"))
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        parts.append(_text(x(10**exponent), y(0) + 18, f"{10**exponent:,}", "middle"))
    for i, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        path = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(n):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for n, value in points]
        parts.append(_text(_WIDTH - _MARGIN, 18 + 15 * i, name, "end", colour))
    return "\n".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
