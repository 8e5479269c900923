"""Keeping an evaluation: every prediction, statistics that need the pixels, and the images that the report shows.

DIR/result.json                          the Result, with `analysis`
DIR/predictions/NAME.png                 every prediction, palette of the data set (predictions-HEAD/ for other heads)
DIR/confidence/NAME.jpg                  the label's probability, 0..255 (main head)
DIR/gallery/I/{image.jpg, label.png, prediction.png, confidence.jpg}   the images the report shows, and crops of them
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.drawing import encode_jpeg, shrunk, viewable
from fullyconv.evaluation.pixel_statistics import PixelStatistics
from fullyconv.evaluation.protocols import resized
from fullyconv.evaluation.result import ImageTables, Result
from fullyconv.evaluation.statistics import costly_pairs, image_iu
from fullyconv.files.outputs import Outputs, one_part
from fullyconv.images import encode_label, read_image, read_label
from fullyconv.regions import bounding_box, components

if TYPE_CHECKING:
    from fullyconv.data.base import Dataset, Sample
    from fullyconv.evaluation import HeadPrediction
    from fullyconv.taxonomy import Taxonomy

__all__ = ["EvaluationWriter", "typical"]

SURE = 0.9  # confidence from which a network that says otherwise casts doubt on a label
SHOWN, CROPS, SUSPECTS = 640, 12, 12  # pixels of the longer side of what a page shows; how many of each are kept
Window = tuple[int, int, int, int]


@final
@dataclass(frozen=True)
class Suspect:
    """A region whose label the network contradicts with confidence: either may be wrong."""

    index: int
    window: Window
    labelled: int
    said: int
    pixels: int
    confidence: float


@final
class EvaluationWriter:
    """Collects an evaluation of `dataset` into `directory` (created; an older evaluation there is replaced, no other
    file)."""

    def __init__(self, directory: Path, dataset: Dataset, head: str) -> None:
        self.directory, self.dataset, self.head = directory, dataset, head
        self.taxonomy: Taxonomy = dataset.taxonomies[head]
        self.statistics = PixelStatistics(len(self.taxonomy))
        self.suspects: list[Suspect] = []
        self._outputs = Outputs(directory, dataset.files)
        self._claim()

    def _claim(self) -> None:
        """Every file that is named after something, before the first image is labelled."""
        for modality in self.dataset.inputs:
            one_part(modality, "The input")
        self._outputs.claim("result.json")
        self._outputs.look("gallery/0/image.jpg")
        for file in sorted((self.directory / "gallery").rglob("*")):  # which of them come up is known at the end
            if not file.is_dir():
                self._outputs.look(file.relative_to(self.directory).as_posix())
        folders = [(self._folder(one_part(head, "The head")), "png") for head in self.dataset.taxonomies]
        for record in self.dataset.records:
            for folder, suffix in (*folders, ("confidence", "jpg")):
                self._outputs.claim(folder, f"{record.name}.{suffix}")

    def add(self, image: ImageTables, sample: Sample, predictions: Mapping[str, HeadPrediction]) -> None:
        """Count and write one image; said[head] has `.labels` and `.confidence`."""
        for head, answer in predictions.items():
            palette = self.dataset.taxonomies[head].palette
            self._write(f"{self._folder(head)}/{image.name}.png", encode_label(answer.labels, palette))
        labels, confidence = predictions[self.head].labels, predictions[self.head].confidence
        assert confidence is not None, "an evaluation that is kept asks for confidence"
        self._write(f"confidence/{image.name}.jpg", encode_jpeg(np.rint(confidence * 255).astype(np.uint8), 80))
        label = sample.labels[self.head]
        self.statistics.add(label, labels, confidence, self.taxonomy.ignore)
        suspect = find_suspect(image.index, label, labels, confidence, self.taxonomy.ignore)
        if suspect:
            self.suspects.append(suspect)

    def finish(self, result: Result) -> Result:
        """`result` with its analysis; writes the gallery and result.json."""
        gallery = [self._whole(result, i, why) for why, i in typical(result)]
        pairs = [p for p in (self._pair(result, i) for i in range(CROPS)) if p]
        largest = {s.index: s for s in sorted(self.suspects, key=lambda s: -s.pixels)}
        chosen = _apart(list(largest), SUSPECTS, len(result.per_image) // 50)
        suspects = [self._suspect(result, largest[i]) for i in chosen]
        analysis = {**self.statistics.to_json(), "gallery": gallery, "pairs": pairs, "suspects": suspects}
        kept = replace(result, analysis=analysis)
        self._write("result.json", json.dumps(kept.to_json(), allow_nan=False).encode())
        return kept

    def _folder(self, head: str) -> str:
        return "predictions" if head == self.head else f"predictions-{head}"

    def _whole(self, result: Result, index: int, why: str) -> dict[str, Any]:
        image = result.per_image[index]
        entry = {"why": why, "name": image.name, "iu": image_iu(image.table(self.head, len(self.taxonomy)))}
        files = self._images(f"gallery/{index}", image, None)
        return {**entry, "files": files, "inputs": self._further_inputs(f"gallery/{index}", image)}

    def _pair(self, result: Result, number: int) -> dict[str, Any] | None:
        """The costliest confusion but `number`: the largest region of it in the image that has most of it."""
        pairs = costly_pairs(result.confusion, result.average)
        if number >= len(pairs):
            return None
        pair = pairs[number]
        cell = pair.truth * len(self.taxonomy) + pair.said
        image = max(result.per_image, key=lambda i: int(i.counts[self.head][i.cells[self.head] == cell].sum()))
        label, predicted = self._labels(image, result), self._prediction(image)
        inside = (label == pair.truth) & (predicted == pair.said)
        region, count = components(inside)
        largest = np.bincount(region[inside], minlength=count).argmax()
        window = context_window(bounding_box(region == largest), label.shape)
        return {**asdict(pair), "name": image.name, "files": self._images(f"gallery/pair{number}", image, window)}

    def _suspect(self, result: Result, s: Suspect) -> dict[str, Any]:
        image = next(i for i in result.per_image if i.index == s.index)
        window = context_window(s.window, image.size)
        files = self._images(f"gallery/suspect{s.index}", image, window)
        return {**asdict(s), "window": list(s.window), "name": image.name, "files": files}

    def _labels(self, image: ImageTables, result: Result) -> NDArray[Any]:
        return self._sample(image).labels[self.head]

    def _sample(self, image: ImageTables) -> Sample:
        """The sample as it was scored: resized where the protocol did so."""
        sample = self.dataset[image.index]
        return sample if sample.image.shape[:2] == image.size else resized(sample, min(image.size))

    def _prediction(self, image: ImageTables) -> NDArray[Any]:
        return read_label(self.directory / "predictions" / f"{image.name}.png")

    def _images(self, folder: str, image: ImageTables, window: Window | None) -> dict[str, str]:
        """Write the four images of an image or a window of it, at most `SHOWN` pixels a side -> {what: file}."""
        top, left, bottom, right = window or (0, 0, *image.size)
        rows, columns = slice(top, bottom), slice(left, right)
        sample, predicted = self._sample(image), self._prediction(image)
        confidence = read_image(self.directory / "confidence" / f"{image.name}.jpg")[..., 0]
        palette = self.taxonomy.palette
        data = {
            "image.jpg": encode_jpeg(shrunk(viewable(sample.image)[rows, columns], SHOWN, smooth=True), 85),
            "label.png": encode_label(shrunk(sample.labels[self.head][rows, columns], SHOWN), palette),
            "prediction.png": encode_label(shrunk(predicted[rows, columns], SHOWN), palette),
            "confidence.jpg": encode_jpeg(shrunk(confidence[rows, columns], SHOWN, smooth=True), 80),
        }
        for name, content in data.items():
            self._write(f"{folder}/{name}", content)
        return {name.partition(".")[0]: f"{folder}/{name}" for name in data}

    def _further_inputs(self, folder: str, image: ImageTables) -> dict[str, str]:
        """What the network saw besides the first input (depth, HHA), each as an image of its own -> {input: file}."""
        files = {}
        for modality in self.dataset.inputs[1:]:
            plane = self.dataset.read_input(self.dataset.records[image.index], modality)
            files[modality] = f"{folder}/input-{modality}.jpg"
            self._write(files[modality], encode_jpeg(shrunk(viewable(plane), SHOWN, smooth=True), 85))
        return files

    def _write(self, name: str, data: bytes) -> None:
        """What is named after something was claimed at the start; the gallery is numbered."""
        self._outputs.write(self._outputs.claim(name) if name.startswith("gallery/") else name, data)


def typical(result: Result, worst: int = 6, middle: int = 3, best: int = 3) -> list[tuple[str, int]]:
    """("worst" | "median" | "best", position in `per_image`) by the image's own mean IU, no image twice.

    Neighbours within 2 % of the set are shown once as long as there are others: frames of a video look alike.
    """
    figures = np.array([image_iu(i.table(result.head, len(result.taxonomy))) for i in result.per_image], np.float64)
    order = [int(i) for i in np.argsort(figures, kind="stable") if not np.isnan(figures[i])]
    low = _apart(order, worst, len(figures) // 50)
    high = _apart([i for i in order[::-1] if i not in low], best, len(figures) // 50)
    rest = [i for i in order if i not in low and i not in high]
    start = max(0, len(rest) // 2 - middle // 2)
    centre = rest[start : start + middle]
    return [*(("worst", i) for i in low), *(("median", i) for i in centre), *(("best", i) for i in high)]


def _apart(order: Sequence[int], number: int, distance: int) -> list[int]:
    """The first `number` of `order` that lie more than `distance` from each other, then whatever comes first."""
    chosen: list[int] = []
    for i in order:
        if len(chosen) < number and all(abs(i - c) > distance for c in chosen):
            chosen.append(i)
    return [*chosen, *(i for i in order if i not in chosen)][:number]


def find_suspect(
    index: int,
    label: NDArray[np.integer],
    predicted: NDArray[np.integer],
    probability: NDArray[np.float32],
    ignore: int,
) -> Suspect | None:
    """The largest region labelled one class and surely (p >= 0.9) called one other; None below 0.05 % of the image."""
    doubted = (label != predicted) & (label != ignore) & (probability >= SURE)
    if doubted.sum() < label.size * 0.0005:
        return None
    kind = np.where(doubted, label.astype(np.int64) * 65536 + predicted + 1, 0)
    region, count = components(kind)
    pixels = np.bincount(region[doubted], minlength=count)
    largest = int(pixels.argmax())
    if pixels[largest] < label.size * 0.0005:
        return None
    inside = region == largest
    first = tuple(np.argwhere(inside)[0])
    confidence = float(probability[inside].mean())
    return Suspect(
        index,
        bounding_box(inside),
        int(label[first]),
        int(predicted[first]),
        int(pixels[largest]),
        round(confidence, 4),
    )


def context_window(window: Window, size: Sequence[int]) -> Window:
    """A roughly square window round `window`, with context: half again as large, at least 96 pixels, in the image."""
    top, left, bottom, right = window
    side = max(96, round(1.5 * max(bottom - top, right - left)))
    out = []
    for low, high, length in ((top, bottom, size[0]), (left, right, size[1])):
        start = max(0, min((low + high - side) // 2, length - side))
        out.append((start, min(length, start + side)))
    return out[0][0], out[1][0], out[0][1], out[1][1]
