from __future__ import annotations

import numpy as np
from PIL import Image

from fullyconv.data.base import Sample


def augment(s, r, fill, ignore, rng):
    img, labs = s.image, dict(s.labels)
    f = float(rng.uniform(*r.scale)) if r.scale[0] != r.scale[1] else r.scale[0]
    flip = rng.random() < r.flip
    u, v = rng.random(2)
    H, W = img.shape[:2]
    h, w = max(1, round(H * f)), max(1, round(W * f))
    if (h, w) != (H, W):
        img = np.asarray(Image.fromarray(img).resize((w, h), Image.Resampling.BILINEAR))
        labs = {k: np.asarray(Image.fromarray(l).resize((w, h), Image.Resampling.NEAREST)) for k, l in labs.items()}
    if r.crop:
        ch, cw = r.crop
        oi = np.empty((ch, cw, img.shape[2]), img.dtype)
        oi[:] = np.round(fill).astype(img.dtype)
        y = int(u * (h - ch + 1)) if h > ch else 0
        x = int(v * (w - cw + 1)) if w > cw else 0
        a, b = min(h, ch), min(w, cw)
        oi[:a, :b] = img[y : y + a, x : x + b]
        img = oi
        for k, l in labs.items():
            ol = np.full((ch, cw), ignore[k], l.dtype)
            ol[:a, :b] = l[y : y + a, x : x + b]
            labs[k] = ol
    if flip:
        img = img[:, ::-1]
        labs = {k: l[:, ::-1] for k, l in labs.items()}
    return Sample(s.name, img, labs)
