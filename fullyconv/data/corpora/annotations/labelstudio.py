"""Label Studio's JSON and JSON-MIN exports: brush strokes, bitmaps, polygons, rectangles and ellipses.

Positions are percents of the image. Regions are painted in the order of the file, later ones on top; polygons by
COCO's rule. Of several annotations of a task the ground truth counts, else the first that was not cancelled; a task
without one (skipped, never opened, only predicted) is no image to learn from. What is left out is counted.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, final
from urllib.parse import parse_qs, unquote, urlsplit

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.annotations.labelstudio_regions import LabelledShape, regions_of, shape_of
from fullyconv.data.corpora.annotations.paint import (
    Painter,
    classes_of,
    image_folder,
    read_rgb,
    refuse_shared,
    unique_names,
)
from fullyconv.data.corpora.annotations.raster import BadShape
from fullyconv.data.corpora.annotations.shapes import Entry, Unused, draw_shapes, short
from fullyconv.data.corpora.layout import SUFFIXES, choose_split, describe_folder, list_files
from fullyconv.errors import DataError, MissingInput, UsageError, printable
from fullyconv.files import read_ends, read_json
from fullyconv.images import image_size

__all__ = ["open_labelstudio", "recognise"]

_KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "bitmasklabels")


def recognise(root: Path) -> bool:
    """Whether `root` is, or holds, a JSON list of Label Studio's tasks."""
    return any(_is_export(f) for f in _files(root))


@final
@dataclass(frozen=True)
class _Task:
    """A task that was annotated: its images by (key of its data, index), and its regions."""

    who: str
    images: Mapping[tuple[str, int], str]
    regions: Sequence[LabelledShape]


def open_labelstudio(
    root: Path,
    split: str | None = None,
    *,
    images: str | Path | None = None,
    bind: str | None = None,
    predictions: bool = False,
) -> Dataset:
    """A Label Studio export at `root` (the JSON file or its folder); class 0 is background, labels follow sorted.

    images   the images' folder; default: anywhere below the export's own. Upload prefixes ("1a2b3c4d-") are dropped.
    bind     for tasks of several images whose regions do not tell them apart: which <Image> shows which field of the
             task's data, "img1=before+img2=after".
    predictions  take a task's first prediction where nobody has annotated it.

    Raises DataError (no such export, damaged), MissingInput (images), UsageError (bind).
    """
    root = Path(root)
    files = {f.stem: f for f in _files(root) if _is_export(f)}
    if not files:
        raise DataError(
            f"{printable(root)} is no Label Studio export: looked for a .json list of tasks with annotations; "
            f"{describe_folder(root)}; export the project as JSON."
        )
    if len(files) > 1 and split in (None, "all") and "train" not in files:
        raise DataError(f"{printable(root)} holds {', '.join(files)}; name one as the split, or give the file itself.")
    chosen = choose_split(list(files), split, root)[0]
    file = files[chosen]
    unused = Unused()
    tasks = _tasks(read_json(file), file, unused, predictions is True)
    bound = _bind(tasks, bind, file)
    taxonomy, ids = classes_of(sorted({r.label for t in tasks for r in t.regions if r.label}))
    find = _Finder(list_files(image_folder(file.parent, images)), file)
    rows: list[Record] = []
    entries: dict[str, Entry] = {}
    shown = {place for places in bound.values() for place in places} or None
    wanted = [(t, place) for t in tasks for place in t.images if shown is None or place[0] in shown]
    for task in tasks:
        for key, i in task.images:
            if shown is not None and key not in shown:
                unused.add("images that no region is drawn on", f"{short(key)} of task {task.who}, {i}")
    paths = [find(t.images[place]) for t, place in wanted]
    refuse_shared(((find.bare(t.images[p]), path) for (t, p), path in zip(wanted, paths, strict=True)), file)
    keys = unique_names([p.relative_to(find.root).as_posix() if find.twice(p) else p.name for p in paths])
    path_of = dict(zip(keys, paths, strict=True))
    of_task: dict[int, dict[tuple[str, int], str]] = {}
    for (task, place), path, key in zip(wanted, paths, keys, strict=True):
        rows.append(Record(key, {"rgb": path}, {"semantic": file}))
        of_task.setdefault(id(task), {})[place] = key
    faulty: set[str] = set()
    for task in tasks:
        by_key: dict[str, tuple[Path, list[Any]]] = {k: (path_of[k], []) for k in of_task.get(id(task), {}).values()}
        for region in task.regions:
            faulty |= _place(region, task, of_task.get(id(task), {}), bound, by_key, ids, unused)
        entries |= {key: Entry(path, tuple(shapes)) for key, (path, shapes) in by_key.items()}
    for key in sorted(key for key in faulty if not entries[key].shapes):  # no image of background alone
        unused.add("images none of whose regions can be painted", key)
        rows = [row for row in rows if row.name != key]
        del entries[key]
    notes = ("later regions cover earlier ones; what no region covers is background.", *unused.notes())
    if bare := sum(not e.shapes for e in entries.values()):
        notes += (f"images submitted without a region, all background: {bare} of {len(entries)}.",)
    painter = Painter(taxonomy, entries, draw_shapes, ids)
    return Dataset("labelstudio", file.parent, chosen, rows, {"semantic": taxonomy}, read_rgb, painter, notes=notes)


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" else []
    return sorted(root.glob("*.json"))


def _is_export(file: Path) -> bool:
    if file.is_dir():
        return False
    head = read_ends(file, 1 << 20)
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return False
    return ((b'"annotations"' in head or b'"predictions"' in head) and b'"data"' in head) or any(
        f'"{k}"'.encode() in head for k in _KINDS
    )


def _place(
    region: LabelledShape,
    task: _Task,
    keys: Mapping[tuple[str, int], str],
    bound: Mapping[str, Sequence[str]],
    by_key: Mapping[str, tuple[Path, list[object]]],
    ids: Mapping[str, int],
    unused: Unused,
) -> set[str]:
    """The region's shape to the image that it names, or counted; the image whose region cannot be painted."""
    who = f"{short(region.who)} of task {task.who}"
    fields = bound.get(region.to_name, sorted({key for key, _ in keys}))
    places = [place for place in keys if place[0] in fields and place[1] == region.item]
    try:
        if not region.label:
            raise BadShape("without a label")
        if len(places) != 1:
            raise BadShape("of an image that the task does not have")
        path, shapes = by_key[keys[places[0]]]
        shapes.append((ids[region.label], shape_of(region, image_size(path))))
    except BadShape as error:
        unused.add(f"regions {error.reason}", who)
        return {keys[place] for place in places} if region.label else set()
    return set()


def _tasks(found: object, file: Path, unused: Unused, proposed: bool) -> list[_Task]:
    if not isinstance(found, list):
        raise DataError(f"{printable(file)} is no list of tasks; export the project as JSON.")
    tasks = []
    for number, task in enumerate(found):
        who = short(task.get("id", f"number {number + 1}") if isinstance(task, Mapping) else f"number {number + 1}")
        if not isinstance(task, Mapping):
            raise DataError(f"{printable(file)}: the task {who} is not as Label Studio writes it; export it as JSON.")
        results = _results(task, who, unused, proposed)
        if results is not None:
            data = task.get("data") if isinstance(task.get("data"), Mapping) else task
            images = _images(data if isinstance(data, Mapping) else {})
            if not images:
                raise DataError(f"{printable(file)}: the task {who} names no image; export it with its data.")
            tasks.append(_Task(who, images, regions_of(results, f"task {who}", unused)))
    if not tasks:
        reason = " ".join(unused.notes()) or "it is an empty list."
        raise DataError(
            f"{printable(file)} holds no annotated task: {reason} Annotate and submit some, then export them."
        )
    return tasks


def _images(data: Mapping[str, object]) -> dict[tuple[str, int], str]:
    """(field, index) -> the image's name, of every field that holds images; "image" may have any name."""
    found: dict[tuple[str, int], str] = {}
    for key, value in data.items():
        values = value if isinstance(value, list) else [value]
        named = [v for v in values if isinstance(v, str)]
        if named and len(named) == len(values) and (key == "image" or all(_IMAGE.search(v) for v in named)):
            found |= {(key, i): v for i, v in enumerate(named)}
    return found


_IMAGE = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})\b", re.IGNORECASE)


def _results(task: Mapping[str, object], who: str, unused: Unused, proposed: bool) -> list[Any] | None:
    """The results of the annotation that counts; None where nobody has annotated the task, which is counted."""
    if "annotations" not in task and "completions" not in task and "predictions" not in task:
        return _min_results(task, who, unused)
    every = task.get("annotations", task.get("completions"))
    written = [a for a in every if isinstance(a, Mapping)] if isinstance(every, list) else []
    good = [a for a in written if not a.get("was_cancelled") and isinstance(a.get("result"), list)]
    if not good and proposed:
        guesses = task.get("predictions")
        good = [
            p
            for p in (guesses if isinstance(guesses, list) else [])
            if isinstance(p, Mapping) and isinstance(p.get("result"), list)
        ]
    good.sort(key=lambda a: not a.get("ground_truth"))  # stable
    if not good:
        skipped = any(a.get("was_cancelled") for a in written)
        predicted = "tasks with predictions alone, which nobody has accepted"
        why = (
            "skipped tasks" if skipped else predicted if task.get("predictions") else "tasks that nobody has annotated"
        )
        unused.add(why, f"task {who}")
        return None
    if len(good) > 1:
        unused.add("further annotations of tasks that have one", f"task {who}", len(good) - 1)
    found: list[Any] = good[0]["result"]
    return found


def _min_results(task: Mapping[str, object], who: str, unused: Unused) -> list[Any] | None:
    lists = [v for key, v in task.items() if key != "data" and isinstance(v, list)]
    found = [r for v in lists for r in v if isinstance(r, Mapping)]
    if not found and not {"annotation_id", "annotator"} & set(task):
        unused.add("tasks that nobody has annotated", f"task {who}")
        return None
    return found


def _bind(tasks: Sequence[_Task], bind: str | None, file: Path) -> dict[str, list[str]]:
    """<Image> name -> the fields of the data that it shows; {} where tasks have one image field."""
    fields = list(dict.fromkeys(key for t in tasks for key, _ in t.images))
    names = sorted({r.to_name for t in tasks for r in t.regions})
    if bind is not None:
        return _bound_by_hand(bind, fields, names)
    if len(fields) == 1 or not names:
        return {}
    if set(names) <= set(fields):
        return {n: [n] for n in names}
    for rule in (_by_number, _by_part):
        found = {n: [f for f in fields if rule(n, f)] for n in names}
        if all(len(f) == 1 for f in found.values()) and len({f[0] for f in found.values()}) == len(names):
            return found
    if len(names) == 1:
        return {names[0]: ["image"] if "image" in fields else fields[:1]}
    example = "+".join(f"{n}={f}" for n, f in zip(names, fields, strict=False))
    raise DataError(
        f"{printable(file)} holds tasks of several images ({', '.join(map(short, fields))}) with regions on "
        f"{', '.join(map(short, names))}, and which is which cannot be told; say it, as in labelstudio,bind={example}:"
        f"{printable(file)}."
    )


def _bound_by_hand(bind: str, fields: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    pairs = [part.partition("=")[::2] for part in str(bind).split("+")]
    found = {n.strip(): [f.strip()] for n, f in pairs}
    if any(f[0] not in fields for f in found.values()) or not set(names) <= set(found):
        raise UsageError(
            f"bind={short(bind)} must give each of {', '.join(map(short, names))} one of the fields "
            f"{', '.join(map(short, fields))}, like {short(names[0] if names else 'img')}={short(fields[0])}."
        )
    return found


def _by_number(name: str, field: str) -> bool:
    """img1 shows image, img2 image2: the numbers at the end are equal, none being 1."""
    ends = [re.search(r"\d{0,4}$", text) for text in (name, field)]
    a, b = (int(e[0] or 1) if e else 1 for e in ends)
    return a == b


def _by_part(name: str, field: str) -> bool:
    """before_view shows before."""
    return field.lower() in name.lower() or name.lower() in field.lower()


@final
class _Finder:
    """Images by what a task says: the last parts of a path, a URL or /data/local-files/?d=PATH, with or without
    upload prefix."""

    def __init__(self, files: Sequence[Path], source: Path) -> None:
        self.source, self.root = source, source.parent
        self._named: dict[str, list[Path]] = {}
        self._uploaded: dict[str, list[Path]] = {}
        for file in files:
            self._named.setdefault(file.name, []).append(file)
            self._uploaded.setdefault(_uploaded(file.name), []).append(file)
            if not file.is_relative_to(self.root):
                self.root = Path(file.anchor)

    def twice(self, file: Path) -> bool:
        """Whether another file has this one's name."""
        return len(self._named[file.name]) > 1

    def bare(self, name: str) -> str:
        """What identifies the image in the task."""
        try:
            parts = urlsplit(name)
            if stored := parse_qs(parts.query).get("fileuri"):  # /tasks/1/resolve/?fileuri=, the address in base64
                return unquote(urlsplit(base64.urlsafe_b64decode(stored[0] + "===").decode()).path)
            return parse_qs(parts.query).get("d", [unquote(parts.path)])[0].replace("\\", "/")
        except ValueError:  # http://[bad
            return name.replace("\\", "/")

    def __call__(self, name: str) -> Path:
        path = PurePosixPath(self.bare(name))
        plain = re.sub(r"^[0-9a-f]{8}-", "", path.name)
        for candidates in (self._named.get(path.name), self._named.get(plain), self._uploaded.get(plain)):
            if candidates and len(best := _nearest(candidates, path)) == 1:
                return best[0]
        raise MissingInput(
            f"{printable(self.source)} names the image {short(path.name)!r}, which is not there (or there twice); "
            "put the images beside the export, or say where they are (labelstudio,images=PATH:EXPORT)."
        )


def _nearest(candidates: Sequence[Path], path: PurePosixPath) -> list[Path]:
    """Those whose folders agree with the most of the stated path's."""

    def agreeing(file: Path) -> int:
        pairs = zip(reversed(file.parent.parts), reversed(path.parent.parts), strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(file.parts), len(path.parts)) - 1)

    if len(candidates) == 1:
        return list(candidates)
    most = max(map(agreeing, candidates))
    return [c for c in candidates if agreeing(c) == most]


def _uploaded(name: str) -> str:
    """A file's name as Label Studio stores an upload: blanks as _, nothing but letters, digits, - _ and dots."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))
