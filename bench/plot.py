"""Curves as SVG: one plot per unit, one below the other. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 640, 220, 60, 30, 40
_COLOURS = ("#1a6fb5", "#c2571a", "#3a8a3a", "#7a4fa3")
_TEXT = 'font-family="sans-serif" font-size="12" fill="currentColor"'


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: its name, the unit of its values, and its points."""

    name: str
    unit: str
    points: Sequence[tuple[float, float]]


def fleet(points: Sequence[Mapping[str, float]]) -> str:
    """Draw the `values` of the rows of `bench fleet`: CPU and memory over the number of agents."""

    def curve(key: str) -> list[tuple[float, float]]:
        return [(point["agents"], point[key]) for point in points]

    return svg(
        "agents",
        [
            Series("master's CPU", "% of a core", curve("master_cpu")),
            Series("etcd's CPU", "% of a core", curve("etcd_cpu")),
            Series("master's memory", "MB", curve("resident_mb")),
        ],
    )


def svg(across: str, series: Sequence[Series]) -> str:
    """Return the plots. Series of the same unit that follow each other share one."""
    groups = [list(group) for _, group in groupby(series, key=lambda one: one.unit)]
    step = _HEIGHT + _TOP + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {step * len(groups)}">'
    ]
    for number, group in enumerate(groups):
        parts += _plot(across, group, step * number + _TOP)
    return "\n".join((*parts, "</svg>", ""))


def _plot(across: str, series: Sequence[Series], top: float) -> list[str]:
    right, bottom = _WIDTH - 20, top + _HEIGHT
    most_x = _round(max(x for one in series for x, _ in one.points))
    most_y = _round(max(y for one in series for _, y in one.points))

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x / most_x * (right - _LEFT), bottom - y / most_y * _HEIGHT

    parts = []
    grid = 'stroke="currentColor" stroke-opacity="0.2"'
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(share * most_x, share * most_y)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" {grid}/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{share * most_y:g}", "end"))
        parts.append(_text(x, bottom + 18, f"{share * most_x:g}", "middle"))
    parts.append(_text(right, bottom + 34, across, "end"))
    for number, one in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [place(x, y) for x, y in sorted(one.points)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        dot = f'<tspan fill="{colour}">&#9679;</tspan>'
        parts.append(_text(_LEFT + 190 * number, top - 10, f"{dot} {one.name}, {one.unit}"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_TEXT}>{text}</text>'


def _round(most: float) -> float:
    """Return a number of two digits that is not less than `most`, and is easy to divide by 4."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(
        step * power for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 6, 8, 10) if step * power >= most
    )
