"""Write docs/img/house.svg, the picture of the rooms, from the table of layers that the tests hold imports to.

python docs/house.py [--check]
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
TABLE, PICTURE = ROOT / "tests" / "test_layers.py", ROOT / "docs" / "img" / "house.svg"
FLOORS = {
    6: "the process",
    5: "what people use",
    4: "what comes of a network",
    3: "what is done with one",
    2: "networks",
    1: "data, operators, figures",
    0: "the ground",
}
WORDS = {
    "__main__": "python -m fullyconv",
    "cli": "argument, one call, print",
    "labelling": "the labelling page",
    "serving": "the HTTP server",
    "curation": "what to label next",
    "exporting": "ONNX, OpenVINO, a page",
    "report": "one HTML page",
    "experiments": "the paper's own",
    "train": "learning",
    "evaluation": "a data set, measured",
    "predict": "images, rasters, videos",
    "runtime": "files without torch",
    "recipes": "settings as data",
    "cost": "FLOPs and memory",
    "engine": "the same network, sooner",
    "convolutionalisation": "any classifier, dense",
    "models": "the paper's idea: fcn",
    "rasters": "windows of large scenes",
    "scenes": "drawn street scenes",
    "annotating": "label maps to tools",
    "doctor": "what is wrong with data",
    "data": "corpora, pipeline, splits",
    "hub": "fetch and publish",
    "checkpoint": "models and runs on disk",
    "metrics": "figures of one table",
    "ops": "upsampling and losses",
    "interpolation": "labels without torch",
    "sandbox": "foreign files, confined",
    "drawing": "overlays, error maps",
    "images": "the one decoder",
    "pages": "HTML: head and style",
    "tensorfile": "safetensors",
    "files": "reading and writing",
    "regions": "connected pixels",
    "geometry": "stride, offset, crop",
    "preprocessing": "pixels to input",
    "taxonomy": "what labels mean",
    "compiling": "compiled functions",
    "processor": "what the machine has",
    "allocator": "huge pages",
    "terminal": "text to people",
    "arguments": "what calls may take",
    "errors": "one tree of errors",
}
STYLE = """
text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#1b1d22} .floor{font-size:14px;font-weight:600}
.small{font-size:11px;fill:#5f636e} .room{fill:#fff;stroke:#c9c9c2} .torch{fill:#fdf1e7;stroke:#d9915a}
.band{fill:#f3f3ee} .name{font-weight:600} .arrow{stroke:#5f636e;stroke-width:1.5;fill:none}
"""
ROOMS, WIDE, TALL, GAP, LEFT, PAD = 5, 168, 46, 8, 190, 12  # a floor's rooms in a row, and sizes in pixels


def layers() -> dict[str, tuple[int, bool]]:
    """Room -> (layer, whether it loads torch when it is imported)."""
    for node in ast.parse(TABLE.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LAYERS" and node.value is not None:
            found: dict[str, tuple[int, bool]] = ast.literal_eval(node.value)
            return found
    raise SystemExit(f"{TABLE} holds no table LAYERS.")


def picture() -> str:
    """The SVG: a floor a layer, the ground at the bottom; on a floor, rooms import those before them."""
    rooms, body, top = layers(), [], 34
    for floor in sorted(FLOORS, reverse=True):
        here = [name for name, (layer, _) in rooms.items() if layer == floor]
        rows = -(-len(here) // ROOMS)
        height = rows * (TALL + GAP) - GAP + 2 * PAD
        width = LEFT + ROOMS * (WIDE + GAP) + PAD
        body.append(f'<rect class="band" x="8" y="{top}" width="{width - 8}" height="{height}" rx="8"/>')
        body.append(f'<text class="floor" x="24" y="{top + PAD + 20}">{floor}</text>')
        body.append(f'<text class="small" x="40" y="{top + PAD + 20}">{escape(FLOORS[floor])}</text>')
        for i, name in enumerate(here):
            x, y = LEFT + i % ROOMS * (WIDE + GAP), top + PAD + i // ROOMS * (TALL + GAP)
            kind = "room torch" if rooms[name][1] else "room"
            body.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{WIDE}" height="{TALL}" rx="6"/>')
            body.append(f'<text class="name" x="{x + 10}" y="{y + 19}">{escape(name)}</text>')
            body.append(f'<text class="small" x="{x + 10}" y="{y + 36}">{escape(WORDS[name])}</text>')
        top += height + GAP
    width, height = LEFT + ROOMS * (WIDE + GAP) + PAD + 8, top + 8
    head = (
        '<text class="small" x="24" y="20">Imports point down, and on a floor to what stands before. '
        "Orange rooms load torch when they are imported.</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="the rooms of fullyconv by layer"><style>{STYLE}</style>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{head}{"".join(body)}</svg>\n'
    )


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        current = PICTURE.exists() and PICTURE.read_text("utf-8") == picture()
        print("current" if current else "docs/img/house.svg is not current: run python docs/house.py")
        return 0 if current else 1
    PICTURE.write_text(picture(), "utf-8")
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
