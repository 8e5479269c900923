"""`cache = "disk"`: the run's images decoded once into RUN/cache, from which every process reads; gone when it ends.

The file is as large as the decoded images and maps, which the disk must have room for before it is begun; only the
caches of the splits that are in use are kept. Nothing is ever written beside the data.
"""

from __future__ import annotations

from pathlib import Path

from fullyconv.data.base import Dataset
from fullyconv.data.pipeline.cache import cached, key
from fullyconv.files import remove_tree
from fullyconv.recipes import Recipe
from fullyconv.train.display import Display
from fullyconv.train.process_group import ProcessGroup

__all__ = ["drop", "on_disk"]

FOLDER = "cache"


def on_disk(recipe: Recipe, dataset: Dataset, out: Path, group: ProcessGroup, display: Display) -> Dataset:
    """`dataset` reading from its cache in the run, made by the first process; as it is under any other `cache`."""
    if recipe.cache != "disk":
        return dataset
    skip = recipe.on_bad_sample == "skip"
    with group.together():
        if group.rank == 0:
            quick = cached(dataset, out / FOLDER, skip=skip)
            for note in quick.notes[len(dataset.notes) :]:
                display.note(note)
    return quick if group.rank == 0 else cached(dataset, out / FOLDER, skip=skip)


def drop(out: Path, *, but: tuple[Dataset, ...] = ()) -> None:
    """Remove the run's caches, all of them or those of other data than `but`."""
    folder = out / FOLDER
    if not but:
        remove_tree(folder)
        return
    names = {key(d) for d in but}
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name.split(".")[0] not in names:
            file.unlink()
