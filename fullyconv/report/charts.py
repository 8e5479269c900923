"""Charts as SVG text: no script, no library; colours come from the page's style sheet, so they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import final

from markupsafe import Markup

__all__ = ["Bar", "Series", "bars", "histogram", "line_chart", "reliability", "stacked_bars"]

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 42
MANY = 30  # bars from which they stand in two columns where there is room


@final
@dataclass(frozen=True)
class Series:
    """A curve: points (x, y), the style sheet's class for it, and whether its points are marked."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "s1"
    marked: bool = False


@final
@dataclass(frozen=True)
class Bar:
    """A bar 0..1 with an optional interval and the (R, G, B) of its swatch; `note` shows on hovering."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    colour: tuple[int, int, int] | None = None
    note: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside low..high."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    left: float | None = None,
    right: float | None = None,
    bottom: float | None = None,
    top: float | None = None,
) -> Markup:
    """Curves over common axes, which reach as far as the points unless told. Empty when there is nothing to draw."""
    points = [p for s in series for p in s.points]
    if not points:
        return Markup("")
    left, right = _reach([p[0] for p in points], left, right)
    plot = _Plot(left, right, *_reach([p[1] for p in points], bottom, top))
    body = [plot.axes(x, y, whole=all(p[0] == int(p[0]) for p in points))]
    for s in series:
        path = " ".join(f"{plot.x(a)},{plot.y(b)}" for a, b in s.points)
        body.append(f'<polyline class="curve {s.style}" points="{path}"><title>{escape(s.name)}</title></polyline>')
        if s.marked:
            body += [
                f'<circle class="dot {s.style}" cx="{plot.x(a)}" cy="{plot.y(b)}" r="2.6">'
                f"<title>{escape(s.name)} at {_short(a)}: {b:.4g}</title></circle>"
                for a, b in s.points
            ]
    return _svg("".join(body), f"{y} over {x}")


def _reach(values: Sequence[float], low: float | None, high: float | None) -> tuple[float, float]:
    """The ends of an axis: as told, else the values'; never one and the same."""
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    return low, high if high > low else low + 1


def bars(items: Sequence[Bar], label: str) -> Markup:
    """Horizontal bars with intervals as HTML rows (they wrap and scale better than SVG text)."""
    rows = []
    for b in items:
        swatch = f'<i class="swatch" style="--c:rgb{b.colour}"></i>' if b.colour else ""
        fill = f"--v:{100 * (b.value or 0):.2f}%;" + (f"--c:rgb{b.colour}" if b.colour else "")
        whisker = ""
        if b.low is not None and b.high is not None:
            whisker = f'<b class="whisker" style="--l:{100 * b.low:.2f}%;--w:{100 * (b.high - b.low):.2f}%"></b>'
        value = "–" if b.value is None else f"{100 * b.value:.1f}"
        rows.append(
            f'<div class="bar" title="{escape(b.note, quote=True)}"><span class="name">{swatch}{escape(b.name)}</span>'
            f'<span class="track"><i class="fill" style="{fill}"></i>{whisker}</span>'
            f'<span class="value">{value}</span></div>'
        )
    many = " many" if len(rows) > MANY else ""
    return Markup(f'<div class="bars{many}" role="img" aria-label="{escape(label, quote=True)}">{"".join(rows)}</div>')


def histogram(values: Sequence[float], *, x: str, y: str, steps: int = 20) -> Markup:
    """How many values (0..1) lie in each of `steps` equal steps."""
    edges = [i / steps for i in range(steps + 1)]
    counts = [0] * steps
    for v in values:
        counts[min(int(v * steps), steps - 1)] += 1
    plot = _Plot(0, 1, 0, max(counts, default=0) or 1)
    body = [plot.axes(x, y, whole_y=True)]
    for low, high, n in zip(edges, edges[1:], counts, strict=False):
        if n:
            wide, tall = plot.x(high) - plot.x(low) - 1, plot.y(0) - plot.y(n)
            body.append(
                f'<rect class="bin" x="{plot.x(low) + 0.5:.2f}" y="{plot.y(n)}" width="{wide:.2f}" height="{tall:.2f}">'
                f"<title>{100 * low:.0f} to {100 * high:.0f} %: {n}</title></rect>"
            )
    return _svg("".join(body), f"{y} by {x}")


def stacked_bars(parts: Sequence[tuple[str, float]], label: str) -> Markup:
    """One bar cut into named shares (values of any unit)."""
    total = sum(v for _, v in parts) or 1
    cells = "".join(
        f'<i class="part p{i % 6}" style="--w:{100 * v / total:.3f}%" title="{escape(n)}: {100 * v / total:.1f} %"></i>'
        for i, (n, v) in enumerate(parts)
    )
    legend = "".join(
        f'<span><i class="key p{i % 6}"></i>{escape(n)} <b>{100 * v / total:.0f}\u202f%</b></span>'
        for i, (n, v) in enumerate(parts)
    )
    bar = f'<div class="stack" role="img" aria-label="{escape(label, quote=True)}">{cells}</div>'
    return Markup(f'{bar}<div class="legend">{legend}</div>')


def reliability(bins: Sequence[tuple[int, int, float]]) -> Markup:
    """Share right over mean confidence; bins are (pixels, right pixels, sum of confidence). Dots grow with pixels."""
    plot = _Plot(0, 1, 0, 1)
    most = max((n for n, _, _ in bins), default=1) or 1
    dots = [
        f'<circle class="dot s1" cx="{plot.x(confidence / n)}" cy="{plot.y(right / n)}"'
        f' r="{2 + 5 * math.sqrt(n / most):.1f}">'
        f"<title>said {100 * confidence / n:.0f} %, right {100 * right / n:.0f} % of {n} pixels</title></circle>"
        for n, right, confidence in bins
        if n
    ]
    diagonal = f'<line class="guide" x1="{plot.x(0)}" y1="{plot.y(0)}" x2="{plot.x(1)}" y2="{plot.y(1)}"/>'
    curve = " ".join(f"{plot.x(s / n)},{plot.y(r / n)}" for n, r, s in bins if n)
    body = plot.axes("confidence", "share right") + diagonal + f'<polyline class="curve s1" points="{curve}"/>'
    return _svg(body + "".join(dots), "share of right pixels over confidence")


@final
@dataclass(frozen=True)
class _Plot:
    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        share = (value - self.left) / (self.right - self.left)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)

    def axes(self, x: str, y: str, *, whole: bool = False, whole_y: bool = False) -> str:
        """Grid, ticks and names; `whole`: what is counted (steps, images) has no ticks between whole numbers."""
        body = []
        for v in (v for v in ticks(self.low, self.high) if not whole_y or v == int(v)):
            body.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(v)}" y2="{self.y(v)}"/>')
            body.append(f'<text class="tick" x="{LEFT - 7}" y="{self.y(v) + 4}" text-anchor="end">{_short(v)}</text>')
        for v in (v for v in ticks(self.left, self.right) if not whole or v == int(v)):
            body.append(
                f'<text class="tick" x="{self.x(v)}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_short(v)}</text>'
            )
        body.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x)}</text>')
        body.append(f'<text class="axis" x="4" y="{HEIGHT - 4}">{escape(y)}</text>')
        return "".join(body)


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if 0 < abs(value) < 0.01:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.4g}"


def _svg(body: str, label: str) -> Markup:
    name = escape(label, quote=True)
    return Markup(f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{body}</svg>')
