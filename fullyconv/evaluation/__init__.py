"""evaluate: predictor x data set -> Result. One table a head over the whole set, at the labels' own resolution."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import metrics, processor
from fullyconv.arguments import CALL, NUMBER, PATH, TEXT, TEXTS, TILE, WHOLE, Kind, either, maybe, takes
from fullyconv.errors import DataError, UsageError
from fullyconv.evaluation.classes import in_the_networks_classes, matching_heads
from fullyconv.evaluation.ground_area import GroundAreas
from fullyconv.evaluation.protocols import resized, shorter_side
from fullyconv.evaluation.result import AVERAGES, ImageTables, Result, class_figures, merge
from fullyconv.taxonomy import Taxonomy

if TYPE_CHECKING:
    from fullyconv.data.base import Dataset, Sample
    from fullyconv.models.interface import SegmentationModel
    from fullyconv.predict import Predictor
    from fullyconv.runtime.exported import ExportedNetwork

__all__ = ["Result", "class_figures", "evaluate", "merge", "score"]

Labels = Mapping[str, NDArray[Any]]
Progress = Callable[[int, int], None]
TTA = ("flip", "scales")


@takes(
    protocol=TEXT,
    average=TEXT,
    tta=either(TEXT, TEXTS),
    share=Kind("(rank, processes)", lambda v: TILE.fits(v) and not WHOLE.fits(v) and 0 <= v[0] < v[1]),
    progress=maybe(CALL),
    keep=maybe(PATH),
    timeout=NUMBER,
    unknown=TEXT,
)
def evaluate(
    predictor: Predictor | SegmentationModel | ExportedNetwork | str | Path,
    dataset: Dataset | str | Path | Sequence[tuple[object, object]],
    *,
    protocol: str = "native",
    average: str = "present",
    tta: str | Sequence[str] = (),
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    keep: str | Path | None = None,
    timeout: float = math.inf,
    unknown: str = "refuse",
) -> Result:
    """Label every image of `dataset` and count, for each head, which class was called what.

    Classes of the data are the network's of the same name, whatever their ids (`taxonomy.match`); the result is in the
    network's ids, and `about["classes"]` says what was matched how where they are not simply the same.

    predictor: a `Predictor`, a network, or the directory of a model or a run. dataset: a `Dataset`, or the path of one
    (its val split; without one, what the run did not learn from, or all where the network's directory is not given), or
    a sequence of (image, label), such as a torch `Dataset`, in the network's own ids.
    protocol: "native" (images and labels at their own size); "paper" (the same, whole images and no augmentation, as
    the paper scores); "resized:520" (shorter side 520, labels resampled nearest, as torchvision reports).
    average: means over the classes "present" in the truth (the paper's rule), or over "all".
    tta: "flip" and/or "scales" (0.75, 1, 1.25): mean probabilities over the variants.
    share: (rank, processes): only images rank, rank + processes, ...; `merge` adds the shares up.
    progress: called with (images done, images in all). keep: a directory that gets result.json, every prediction and
    what the report shows. timeout: seconds that reading may stand still at one file before it counts as hung.
    unknown: classes of the data that the network lacks are refused ("refuse"), count as "missed", or are "ignored".

    Raises `DataError` for an empty or unlabelled split, heads or classes that the network lacks, and labels outside
    the table; `UsageError` for an unknown protocol or variant; `TryAgain` naming the file where reading hangs.

    >>> result = fc.evaluate(fc.Predictor(model), [(image, labels)])
    >>> int(result.tables["semantic"].sum()) == labels.size
    True
    """
    side = shorter_side(protocol)
    predictor, dataset = _opened(predictor, dataset)
    tta = tuple(v for v in tta.split(",") if v) if isinstance(tta, str) else tuple(tta)
    _check(predictor, dataset, protocol, average, tta)
    heads, stored = matching_heads(predictor.heads, dataset.taxonomies), dataset
    dataset, matched = in_the_networks_classes(dataset, predictor.taxonomies, heads, unknown)
    label = _labeller(predictor, tta, confident=keep is not None)
    indices = range(share[0], len(dataset), share[1])
    writer = _writer(keep, dataset, heads, share)
    start = time.perf_counter()
    images, ground = [], GroundAreas() if side is None and share == (0, 1) else None
    for done, (index, sample) in enumerate(zip(indices, _samples(dataset, indices, side, timeout), strict=True), 1):
        predictions = label(sample.image)
        tables = {h: score(sample, h, predictions[m].labels, dataset.taxonomies[h]) for h, m in heads.items()}
        images.append(ImageTables.of(index, sample.name, _size(sample.image), tables))
        if ground:
            ground.add(dataset.records[index], tables)
        if writer:
            writer.add(images[-1], sample, {h: predictions[m] for h, m in heads.items()})
        if progress:
            progress(done, len(indices))
    seconds = time.perf_counter() - start
    about = describe(
        predictor, stored, protocol=protocol, average=average, tta=tta, seconds=seconds, images=len(images)
    ) | ({"classes": matched} if matched else {})
    about |= {"ground": areas} if ground and (areas := ground.to_json()) else {}
    taxonomies = {h: dataset.taxonomies[h] for h in heads}
    result = Result(taxonomies, _summed(images, taxonomies), images, about)
    return writer.finish(result) if writer else result


@final
@dataclass(frozen=True)
class HeadPrediction:
    """A head's answer for one image: labels H W and, when asked for, the probability of each (float32 H W)."""

    labels: NDArray[Any]
    confidence: NDArray[np.float32] | None = None


def score(sample: Sample, head: str, predicted: NDArray[np.integer], taxonomy: Taxonomy) -> NDArray[np.int64]:
    """One image's table, int64 K x K. `DataError` names the first label value outside the table and its pixel."""
    labels, classes = sample.labels[head], len(taxonomy)
    strange = (labels >= classes) & (labels != taxonomy.ignore)
    if strange.any():
        row, column = (int(v) for v in np.argwhere(strange)[0])
        raise DataError(
            f"{sample.name}: the {head} label holds {int(labels[row, column])} at row {row}, column {column}, but "
            f"there are {classes} classes (0..{classes - 1}) and {taxonomy.ignore} is ignored; correct the labels."
        )
    return np.asarray(metrics.confusion(labels, predicted, classes, ignore=taxonomy.ignore), np.int64)


def describe(
    predictor: Predictor,
    dataset: Dataset,
    *,
    protocol: str,
    average: str,
    tta: Sequence[str],
    seconds: float,
    images: int,
) -> dict[str, Any]:
    """What a result says of itself: data, model, protocol, ignore, tiling, versions, machine and speed."""
    from fullyconv import __version__

    return {
        "data": {
            "kind": dataset.kind,
            "name": dataset.root.name,
            "split": dataset.split,
            "inputs": list(dataset.inputs),
            "fingerprint": dataset.fingerprint,
            "of": len(dataset),
        },
        "model": {
            "name": getattr(predictor.model, "name", type(predictor.model).__name__),
            "sha256": predictor.backend.digest(),
            **({"training": origin} if (origin := getattr(predictor.model, "origin", {})) else {}),
        },
        "protocol": protocol,
        "average": average,
        "ignore": {h: t.ignore for h, t in dataset.taxonomies.items()},
        "tta": list(tta),
        "tiling": predictor.tiling,
        "precision": predictor.precision,
        "versions": {
            "fullyconv": __version__,
            **predictor.backend.versions,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": machine(predictor),
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 3) if seconds > 0 else None,
    }


def machine(predictor: Predictor) -> dict[str, Any]:
    """The hardware: processor, its instructions (as wide as active), cores this process may use, and the accelerator if
    one computed."""
    device = str(predictor.device)
    if device.startswith("cuda"):
        import torch

        device = torch.cuda.get_device_name(predictor.device)
    return {
        "processor": processor.name(),
        "width": processor.width(),
        "cores": processor.cores(),
        "threads": predictor.backend.threads(),
        "device": device,
    }


def _opened(
    predictor: Predictor | SegmentationModel | ExportedNetwork | str | Path,
    dataset: Dataset | str | Path | Sequence[tuple[object, object]],
) -> tuple[Predictor, Dataset]:
    """A network or its directory as a predictor, a path as a data set; `UsageError` for anything else."""
    from fullyconv.data.base import Dataset
    from fullyconv.data.pairs import from_pairs
    from fullyconv.evaluation.choice import images_to_measure
    from fullyconv.predict import Predictor

    model = predictor if isinstance(predictor, str | Path) else ""
    ready = predictor if isinstance(predictor, Predictor) else Predictor(predictor)
    if isinstance(dataset, str | os.PathLike):
        return ready, images_to_measure(os.fspath(dataset), "", ready, model)
    if not isinstance(dataset, Dataset):  # a sequence of (image, label), in the network's own classes
        dataset = from_pairs(dataset, next(iter(ready.taxonomies.values())), "all")
    return ready, dataset


def _check(predictor: Predictor, dataset: Dataset, protocol: str, average: str, tta: Sequence[str]) -> None:
    if average not in AVERAGES:
        raise UsageError(f"The average {average!r} is unknown; choose from {', '.join(AVERAGES)}.")
    if unknown := set(tta) - set(TTA):
        raise UsageError(f"The augmentation {sorted(unknown)[0]!r} is unknown; choose from {', '.join(TTA)}.")
    if protocol == "paper" and (tta or predictor.tiling["tile"]):
        raise UsageError("The paper's protocol labels whole images once; leave out the tiles and the augmentation.")
    if not len(dataset):
        raise DataError(
            f"The {dataset.split or 'whole'} split of {dataset.root.name} is empty; there is nothing to score."
        )
    if not dataset.taxonomies:
        raise DataError(f"{dataset.root.name} has no labels to score against; add them, or use fullyconv predict.")


def _samples(dataset: Dataset, indices: Iterable[int], side: int | None, timeout: float) -> Iterator[Sample]:
    """The samples in order, decoded a little ahead of the network."""
    from fullyconv.data.pipeline.loader import ordered_map

    def read(index: int) -> Sample:
        sample = dataset[index]
        return sample if side is None else resized(sample, side)

    return ordered_map(read, iter(indices), timeout=timeout, describe=lambda i: dataset.records[i].name)


def _labeller(predictor: Predictor, tta: Sequence[str], confident: bool) -> Callable[[Any], dict[str, HeadPrediction]]:
    """image -> {head: Said}."""
    if tta:
        return lambda image: {h: HeadPrediction(*v) for h, v in predictor.augmented_labels(image, tta).items()}
    if confident:
        return lambda image: {h: HeadPrediction(*v) for h, v in predictor.confident_labels(image).items()}
    return lambda image: {h: HeadPrediction(v) for h, v in predictor.labels(image).items()}


def _writer(keep: str | Path | None, dataset: Dataset, heads: Mapping[str, str], share: tuple[int, int]) -> Any:
    if keep is None:
        return None
    if share != (0, 1):
        raise UsageError("An evaluation shared over processes cannot be kept; evaluate with one process.")
    from fullyconv.evaluation.evaluation_writer import EvaluationWriter

    return EvaluationWriter(Path(keep), dataset, next(iter(heads)))


def _summed(images: Sequence[ImageTables], taxonomies: Mapping[str, Taxonomy]) -> dict[str, NDArray[np.int64]]:
    tables = {h: np.zeros(len(t) ** 2, np.int64) for h, t in taxonomies.items()}
    for image in images:
        for h, table in tables.items():
            table[image.cells[h]] += image.counts[h]
    return {h: t.reshape(len(taxonomies[h]), -1) for h, t in tables.items()}


def _size(image: NDArray[np.number]) -> tuple[int, int]:
    return int(image.shape[0]), int(image.shape[1])
