"""A small clean data set, and one function for each fault that can be planted in it; for test_check."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NAMES = ("background", "disc", "box", "stripe")
COLOURS = np.array([(60, 110, 70), (200, 60, 50), (60, 80, 200), (220, 200, 60)])
SIZE = (96, 128)


def scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A textured image of three shapes on a ground, and its exact label."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    label = np.zeros(size, np.uint8)
    cy, cx, r = rng.integers(30, 66), rng.integers(30, 98), rng.integers(14, 24)
    top, left = rng.integers(18, 50), rng.integers(18, 80)
    label[top : top + 26, left : left + 30] = 2
    label[np.hypot(y - cy, x - cx) < r] = 1
    at = int(rng.integers(20, 76))
    label[at : at + 8] = 3
    shade = rng.normal(0, 1, (6, 8))
    light = np.asarray(Image.fromarray(shade.astype(np.float32)).resize(size[::-1], Image.Resampling.BICUBIC))
    image = COLOURS[label] + 28 * light[..., None] + rng.normal(0, 6, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8), label


def save(array: NDArray[np.uint8], path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def clean(root: Path, train: int = 24, val: int = 7) -> Path:
    """ROOT/{train,val}/{images,labels} without any fault."""
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for i in range(count):
            image, label = scene(first + i)
            save(image, root / split / "images" / f"p{i:03}.png")
            save(label, root / split / "labels" / f"p{i:03}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


# ---- faults: each takes the root and returns the file(s) a finding must name ---------------------------------------

Fault = Callable[[Path], Path | tuple[Path, ...]]


def image(root: Path, i: int, split: str = "train") -> Path:
    return root / split / "images" / f"p{i:03}.png"


def label(root: Path, i: int, split: str = "train") -> Path:
    return root / split / "labels" / f"p{i:03}.png"


def _pixels(path: Path) -> NDArray[np.uint8]:
    return np.array(Image.open(path))


def _swap(path: Path, suffix: str) -> Path:
    return path.rename(path.with_suffix(suffix))


def truncated_png(root: Path) -> Path:
    data = image(root, 0).read_bytes()
    image(root, 0).write_bytes(data[: len(data) // 2])
    return image(root, 0)


def truncated_jpeg(root: Path) -> Path:
    photo = _pixels(image(root, 0))
    new = _swap(image(root, 0), ".jpg")
    save(photo, new, quality=95)
    new.write_bytes(new.read_bytes()[:-2000])
    return new


def flipped_byte(root: Path) -> Path:
    data = bytearray(image(root, 0).read_bytes())
    data[len(data) // 2] ^= 4
    image(root, 0).write_bytes(data)
    return image(root, 0)


def web_page(root: Path) -> Path:
    image(root, 1).write_bytes(b"<!doctype html><html>404 not found</html>")
    return image(root, 1)


def empty_image(root: Path) -> Path:
    image(root, 2).write_bytes(b"")
    return image(root, 2)


def empty_label(root: Path) -> Path:
    label(root, 3).write_bytes(b"")
    return label(root, 3)


def truncated_label(root: Path) -> Path:
    label(root, 3).write_bytes(label(root, 3).read_bytes()[:-20])
    return label(root, 3)


def fifo(root: Path) -> Path:
    image(root, 4).unlink()
    os.mkfifo(image(root, 4))
    return image(root, 4)


def no_label(root: Path) -> Path:
    label(root, 4).unlink()
    return image(root, 4)


def no_image(root: Path) -> Path:
    image(root, 5, "val").unlink()
    return label(root, 5, "val")


def smaller_label(root: Path) -> Path:
    save(_pixels(label(root, 5))[:-1], label(root, 5))
    return label(root, 5)


def turned_label(root: Path) -> Path:
    save(_pixels(label(root, 5)).T, label(root, 5))
    return label(root, 5)


def exif_rotation(root: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = _pixels(image(root, 6))
    new = _swap(image(root, 6), ".jpg")
    save(photo, new, exif=exif)
    return new


def exif_half_turn(root: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 3
    photo = _pixels(image(root, 6))
    new = _swap(image(root, 6), ".jpg")
    save(photo, new, exif=exif)
    return new


def jpeg_label(root: Path) -> Path:
    values = _pixels(label(root, 7)) * 60
    new = _swap(label(root, 7), ".jpg")
    save(values, new)
    return new


def jpeg_named_png(root: Path) -> Path:
    Image.fromarray(_pixels(label(root, 7)) * 60).save(label(root, 7), "JPEG")
    return label(root, 7)


def smoothed_label(root: Path) -> Path:
    small = Image.open(label(root, 8)).point(lambda v: v * 40).resize((60, 45), Image.Resampling.BILINEAR)
    small.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(label(root, 8))
    return label(root, 8)


def bilinear_label(root: Path) -> Path:
    big = Image.open(label(root, 8)).point(lambda v: v * 80)
    big.rotate(7, Image.Resampling.BILINEAR).save(label(root, 8))
    return label(root, 8)


def rgb_label(root: Path) -> Path:
    save(COLOURS[_pixels(label(root, 9))].astype(np.uint8), label(root, 9))
    return label(root, 9)


def rgba_label(root: Path) -> Path:
    colour = COLOURS[_pixels(label(root, 9))].astype(np.uint8)
    save(np.concatenate([colour, np.full((*SIZE, 1), 255, np.uint8)], axis=-1), label(root, 9))
    return label(root, 9)


def grey_alpha_label(root: Path) -> Path:
    values = _pixels(label(root, 9))
    Image.fromarray(np.stack([values, np.full_like(values, 255)], axis=-1), "LA").save(label(root, 9))
    return label(root, 9)


def value_too_large(root: Path) -> Path:
    values = _pixels(label(root, 10))
    values[40:44, 50:60] = 9
    save(values, label(root, 10))
    return label(root, 10)


def value_254(root: Path) -> Path:
    values = _pixels(label(root, 3, "val"))
    values[0, 0] = 254
    save(values, label(root, 3, "val"))
    return label(root, 3, "val")


def sixteen_bit_id(root: Path) -> Path:
    values = _pixels(label(root, 10)).astype(np.uint16)
    values[3, 4] = 1000
    save(values, label(root, 10))
    return label(root, 10)


def off_by_one(root: Path) -> Path:
    save(_pixels(label(root, 11)) + 1, label(root, 11))
    return label(root, 11)


def all_ignored(root: Path) -> Path:
    save(np.full(SIZE, 255, np.uint8), label(root, 12))
    return label(root, 12)


def constant_label(root: Path) -> Path:
    save(np.full(SIZE, 2, np.uint8), label(root, 13))
    return label(root, 13)


def nearly_empty(root: Path) -> Path:
    values = np.zeros(SIZE, np.uint8)
    values[50, 50:53] = 1
    save(values, label(root, 14))
    return label(root, 14)


def same_stem(root: Path) -> Path:
    save(_pixels(image(root, 15)), image(root, 15).with_suffix(".bmp"))
    return image(root, 15)


def same_label_stem(root: Path) -> Path:
    save(_pixels(label(root, 15)), label(root, 15).with_suffix(".tif"))
    return label(root, 15).with_suffix(".tif")


def case_twins(root: Path) -> tuple[Path, ...]:
    for kind in ("images", "labels"):
        save(scene(777)[kind == "labels"], root / "train" / kind / "P015.png")
    return (image(root, 15), root / "train" / "images" / "P015.png")


def copied_to_val(root: Path) -> tuple[Path, ...]:
    image(root, 1, "val").write_bytes(image(root, 16).read_bytes())
    label(root, 1, "val").write_bytes(label(root, 16).read_bytes())
    return (image(root, 16), image(root, 1, "val"))


def saved_again_to_val(root: Path) -> tuple[Path, ...]:
    save(_pixels(image(root, 16)), image(root, 1, "val"), compress_level=1)
    return (image(root, 16), image(root, 1, "val"))


def reencoded_to_val(root: Path) -> tuple[Path, ...]:
    photo = _pixels(image(root, 17))
    new = _swap(image(root, 2, "val"), ".jpg")
    save(photo, new, quality=60)
    return (image(root, 17), new)


def next_frame_in_val(root: Path) -> tuple[Path, ...]:
    save(np.roll(_pixels(image(root, 17)), (1, 2), (0, 1)), image(root, 2, "val"))
    return (image(root, 17), image(root, 2, "val"))


def twice_in_train(root: Path) -> tuple[Path, ...]:
    image(root, 18).write_bytes(image(root, 19).read_bytes())
    return (image(root, 18), image(root, 19))


def sixteen_bits(root: Path) -> Path:
    Image.fromarray(_pixels(image(root, 20))[..., 0].astype(np.uint16) * 257).save(image(root, 20))
    return image(root, 20)


def cmyk(root: Path) -> Path:
    photo = Image.open(image(root, 20)).convert("CMYK")
    new = _swap(image(root, 20), ".jpg")
    photo.save(new)
    return new


def alpha(root: Path) -> Path:
    Image.open(image(root, 20)).convert("RGBA").save(image(root, 20))
    return image(root, 20)


def animated(root: Path) -> Path:
    frames = [Image.fromarray(_pixels(image(root, i))) for i in (20, 21)]
    frames[0].save(image(root, 20), save_all=True, append_images=frames[1:])
    return image(root, 20)


def blank(root: Path) -> Path:
    save(np.full((*SIZE, 3), 90, np.uint8), image(root, 21))
    return image(root, 21)


def tiny(root: Path) -> Path:
    save(_pixels(image(root, 21))[:8, :9], image(root, 21))
    save(_pixels(label(root, 21))[:8, :9], label(root, 21))
    return image(root, 21)


def strip(root: Path) -> Path:
    photo, values = scene(5, (96, 128))
    save(np.tile(photo, (1, 9, 1)), image(root, 21))
    save(np.tile(values, (1, 9)), label(root, 21))
    return image(root, 21)


def shifted(root: Path) -> Path:
    save(np.roll(_pixels(label(root, 22)), (10, -8), (0, 1)), label(root, 22))
    return label(root, 22)


def control_name(root: Path) -> Path:
    for kind in ("images", "labels"):
        path = root / "train" / kind / "p022.png"
        path.rename(path.with_name("p\x1b[31m.png"))
    return root / "train" / "images" / "p\x1b[31m.png"


def latin1_name(root: Path) -> Path:
    name = os.fsdecode(b"caf\xe9.png")
    for kind in ("images", "labels"):
        (root / "train" / kind / "p022.png").rename(root / "train" / kind / name)
    return root / "train" / "images" / name


def link_outside(root: Path) -> Path:
    away = root.parent / "away.png"
    image(root, 23).rename(away)
    image(root, 23).symlink_to(away)
    return image(root, 23)


def link_loop(root: Path) -> Path:
    image(root, 23).unlink()
    image(root, 23).symlink_to(image(root, 23).name)
    return image(root, 23)


def bomb(root: Path) -> Path:
    """A few kilobytes that claim 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9000))) + chunk(b"IEND", b"")
    )
    image(root, 23).write_bytes(data)
    return image(root, 23)


def other_palette(root: Path) -> tuple[Path, ...]:
    for i in range(6):
        image = Image.open(label(root, i)).convert("P")
        image.putpalette([c for k in range(256) for c in ((k * 40) % 256, (k * 7) % 256, 9)])
        if i == 5:
            image.putpalette([c for k in range(256) for c in ((k * 7) % 256, (k * 40) % 256, 9)])
        image.save(label(root, i))
    return (label(root, 5),)


FAULTS: dict[str, list[Fault]] = {
    "unreadable-file": [truncated_png, truncated_jpeg, flipped_byte, web_page, truncated_label, fifo, bomb],
    "empty-file": [empty_image, empty_label],
    "missing-file": [],
    "image-without-label": [no_label],
    "label-without-image": [no_image],
    "size-mismatch": [smaller_label, turned_label],
    "exif-rotation": [exif_rotation],
    "exif-orientation": [exif_half_turn],
    "jpeg-label": [jpeg_label, jpeg_named_png],
    "interpolated-label": [smoothed_label, bilinear_label],
    "colour-label": [rgb_label],
    "alpha-label": [rgba_label],
    "id-out-of-range": [value_too_large, value_254, sixteen_bit_id, off_by_one],
    "all-ignored-label": [all_ignored],
    "constant-label": [constant_label],
    "near-empty-foreground": [nearly_empty],
    "duplicate-stem": [same_stem, same_label_stem],
    "case-twins": [case_twins],
    "duplicate-across-splits": [copied_to_val, saved_again_to_val],
    "near-duplicate-across-splits": [reencoded_to_val, next_frame_in_val],
    "duplicate-in-split": [twice_in_train],
    "16-bit-image": [sixteen_bits],
    "cmyk-image": [cmyk],
    "alpha-image": [alpha],
    "animated-image": [animated],
    "blank-image": [blank],
    "extreme-size": [tiny, strip],
    "shifted-label": [shifted],
    "odd-name": [control_name],
    "non-utf8-name": [latin1_name],
    "symlink-outside": [link_outside],
    "palette-inconsistent": [other_palette],
}
"""kind -> the faults that must be found as it."""
