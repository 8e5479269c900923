"""Write what docs/performance.md shows of committed results: the tables of engines by width of processor and of the
start, and docs/img/growth.svg.

python docs/speed.py [--check]
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
PAGE, GRAPH, RESULTS = ROOT / "docs/performance.md", ROOT / "docs/img/growth.svg", ROOT / "benchmarks/results"
OURS, THEIRS = ("torch", "onnxruntime, our labels"), ("onnxruntime, whole file", "OpenVINO, whole file")
NETWORKS = ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_lite0", "resnet18", "resnet50", "vgg16")
STYLE = """
text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#1b1d22} .title{font-weight:600}
.small{font-size:10.5px;fill:#5f636e}
.axis{stroke:#c9c9c2;fill:none} polyline{fill:none;stroke-width:2} .s0{stroke:#1f6feb;fill:#1f6feb}
.s1{stroke:#1a7f5a;fill:#1a7f5a} .s2{stroke:#c8642b;fill:#c8642b} .dash{stroke-dasharray:5 4}
"""


def read(name: str) -> Any:
    path = RESULTS / name
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def order(name: str) -> int:
    return next(i for i, trunk in enumerate(NETWORKS) if name.endswith(trunk))


def engines() -> str:
    """A row a network, size, width and number of threads: milliseconds, and ours beside the quicker of the rivals."""
    head = "| network | size | width | threads | torch | onnxruntime, our labels | onnxruntime alone | OpenVINO alone "
    head += "| gain |"
    lines = [head, "|---" * 9 + "|"]
    rows = [(r, n, f) for r in read("engines.json") for n, f in r["figures"].items()]
    for r, name, f in sorted(
        rows, key=lambda row: (row[0]["size"], row[0]["threads"], row[0]["machine"]["width"], order(row[1]))
    ):
        ms = {way: f[way].get("ms") for way in (*OURS, *THEIRS)}
        gain = min(filter(None, (ms[w] for w in THEIRS))) / min(filter(None, (ms[w] for w in OURS)))
        cells = [f"{v:.0f}" if v else "failed" for v in ms.values()]
        where = f"{r['size'][0]}x{r['size'][1]} | {r['machine']['width']} | {r['threads']}"
        lines.append(f"| `{name}` | {where} | {' | '.join(cells)} | {gain:.2f} |")
    return "\n".join(lines)


def panel(title: str, across: str, series: dict[str, list[tuple[float, float]]], x0: int, y0: int) -> str:
    """One graph, both axes logarithmic: name -> points."""
    wide, tall = 250, 150
    xs = sorted({x for points in series.values() for x, _ in points})
    ys = [y for points in series.values() for _, y in points]
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys) * 1.0001))

    def at(x: float, y: float) -> tuple[float, float]:
        right = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        up = math.log(y / low) / math.log(high / low)
        return x0 + right * wide, y0 + tall - up * tall

    body = [f'<text class="title" x="{x0}" y="{y0 - 12}">{escape(title)}</text>']
    body.append(f'<path class="axis" d="M{x0} {y0}V{y0 + tall}H{x0 + wide}"/>')
    for x in xs:
        body.append(
            f'<text class="small" text-anchor="middle" x="{at(x, low)[0]:.0f}" y="{y0 + tall + 14}">{x:g}</text>'
        )
    body.append(f'<text class="small" text-anchor="end" x="{x0 + wide}" y="{y0 + tall + 28}">{escape(across)}</text>')
    y = low
    while y <= high * 1.01:
        body.append(f'<text class="small" text-anchor="end" x="{x0 - 6}" y="{at(xs[0], y)[1] + 4:.0f}">{y:g}</text>')
        y *= 10
    for i, (name, points) in enumerate(series.items()):
        where = [at(*p) for p in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        body.append(
            f'<polyline class="s{i}" style="fill:none" points="{path}"><title>{escape(name)}</title></polyline>'
        )
        body += [f'<circle class="s{i}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in where]
    return "".join(body)


def growth() -> str:
    """The picture: time above, memory below, against size, classes and batch."""
    found = read("growth.json")
    graphs: list[tuple[str, str, str, Callable[[dict[str, Any]], float]]] = [
        ("size", "ms a megapixel", "pixels a side", lambda r: r["cpu_ms"] / (r["at"] ** 2 / 1e6)),
        ("classes", "ms, 512 x 512", "classes", lambda r: r["cpu_ms"]),
        ("batch", "ms an image, training step, 256 x 256", "batch", lambda r: r["cpu_ms"] / r["at"]),
    ]
    body, names = [], ["Predictor", "Predictor, tiles of 1,024", "plain torch"]
    for column, (what, title, across, time) in enumerate(graphs):
        for row, (words, value) in enumerate(((title, time), ("peak of the process, MiB", lambda r: r["peak_mib"]))):
            body.append(
                panel(words, across, _series(found["rows"], what, names, value), 60 + column * 320, 60 + row * 230)
            )
    legend = "".join(
        f'<circle class="s{i}" cx="{64 + i * 220}" cy="20" r="4"/>'
        f'<text x="{74 + i * 220}" y="24">{escape(words)}</text>'
        for i, words in enumerate(("fullyconv", "fullyconv in tiles of 1,024", "the same network in plain torch"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 990 510" width="990" height="510" role="img" '
        f'aria-label="time and memory against size, classes and batch"><style>{STYLE}</style>'
        f'<rect width="990" height="510" fill="#fff"/>{legend}{"".join(body)}</svg>\n'
    )


def _series(
    rows: Iterable[dict[str, Any]], what: str, names: Sequence[str], value: Callable[[dict[str, Any]], float]
) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for r in rows:
        if r["what"] == what and "failed" not in r:
            found["Predictor" if r["who"] == "train" else r["who"]].append((r["at"], value(r)))
    return found


def start() -> str:
    """Seconds of the first images after the start, with compiled functions on the disk and without."""
    lines = ["| | until the network is there | first image | second |", "|---" * 4 + "|"]
    for r in read("growth.json")["rows"]:
        if r["what"] == "start":
            cells = [f"{r[f'{part}_cpu_s']:.2f} s" for part in ("ready", "first", "second")]
            lines.append(f"| {r['who']} | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {"engines": engines, "start": start}


def page(text: str) -> str:
    """`text` with each table between its two marks made anew."""
    for name, table in TABLES.items():
        marks = rf"(<!-- {name}: docs/speed.py -->\n\n).*?(\n\n<!-- end -->)"
        text, found = re.subn(marks, lambda m, t=table: m[1] + t() + m[2], text, flags=re.DOTALL)  # type: ignore[misc]
        if found != 1:
            raise SystemExit(f"docs/performance.md has {found} places for the table of {name}; it needs one.")
    return text


def main(arguments: list[str]) -> int:
    wanted = {PAGE: page(PAGE.read_text("utf-8")), GRAPH: growth()}
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text("utf-8") != text]
    if arguments == ["--check"]:
        print("current" if not stale else f"not current, run python docs/speed.py: {', '.join(p.name for p in stale)}")
        return bool(stale)
    for path in stale:
        path.write_text(wanted[path], "utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
