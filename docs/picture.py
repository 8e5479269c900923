"""Write docs/img/demo.png from a demo run: image, label and prediction of a few validation scenes.

python docs/picture.py runs/demo
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

GAP, ZOOM, ROWS = 6, 2, 2


def main(run: Path) -> None:
    from fullyconv import Predictor, load, open_dataset

    data = open_dataset(f"folder:{run / 'data'}", "val")
    predictor = Predictor(load(run / "best"))
    palette = np.asarray(data.taxonomy.palette, np.uint8)
    scored = []
    for i in range(len(data)):
        sample = data[i]
        found = predictor(sample.image)
        labels = found["semantic"] if isinstance(found, dict) else found
        truth = sample.labels["semantic"]
        known = truth != data.taxonomy.ignore
        scored.append((float((labels == truth)[known].mean()), i, sample.image, truth, labels))
    scored.sort(key=lambda row: row[0])
    middle = scored[len(scored) // 2 :: max(1, len(scored) // 4)][:ROWS]  # the median scene and a better one
    rows = []
    for _, _, image, truth, labels in middle:
        shown = [image, palette[np.minimum(truth, len(palette) - 1)], palette[labels]]
        gap = np.full((image.shape[0], GAP // ZOOM, 3), 255, np.uint8)
        rows.append(np.concatenate([shown[0], gap, shown[1], gap, shown[2]], 1))
    space = np.full((GAP // ZOOM, rows[0].shape[1], 3), 255, np.uint8)
    picture = np.concatenate([part for row in rows for part in (row, space)][:-1])
    big = Image.fromarray(picture).resize((picture.shape[1] * ZOOM, picture.shape[0] * ZOOM), Image.Resampling.NEAREST)
    out = Path(__file__).parent / "img" / "demo.png"
    big.save(out, optimize=True)
    print(out.relative_to(Path(__file__).parent.parent))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
