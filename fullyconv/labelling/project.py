"""What is labelled and where it is written: the journal, one canvas an image, label maps with their provenance.

OUT/images/NAME.jpg OUT/labels/NAME.png OUT/classes.txt     what `fullyconv train OUT` reads
OUT/provenance/NAME.json                                    model, pixels accepted and painted, time, versions
OUT/.labelling/journal                                      every edit; also bases/, proposals/, features/, models/
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.checkpoint import model_of, read_model
from fullyconv.data.corpora.class_tables import classes_text, read_classes
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.files import Lock, atomic_write, make_directory, read_json
from fullyconv.files.outputs import Outputs, name_fault
from fullyconv.images import encode_label, image_size, read_label
from fullyconv.labelling.canvas import Box, Canvas, Codes, standing
from fullyconv.labelling.edits import BadEdit, Edit, Filled, packed_runs, refuse_foreign
from fullyconv.labelling.images import Collection
from fullyconv.labelling.journal import Journal
from fullyconv.labelling.strokes import MOST_SIDE
from fullyconv.taxonomy import Taxonomy

__all__ = ["Layers", "Project", "Proposal", "chosen_classes"]

HIDDEN = ".labelling"
_OPEN = 4  # images whose layers are held at once


def classes_before(out: Path) -> Taxonomy | None:
    """The classes that an earlier session in `out` labelled; None where there was none."""
    file = out / "classes.txt"
    return read_classes(file).taxonomy if (out / HIDDEN).is_dir() and file.is_file() else None


def chosen_classes(named: tuple[str, ...], out: Path, labelled: Taxonomy | None, model: str) -> tuple[Taxonomy, str]:
    """(the classes to label, whose they are): those `named`, of an earlier session in `out`, of the labels that are
    there, or of the network `model`. UsageError where none of these says any."""
    before = classes_before(out)
    if named:
        if before is not None and before.names == named:
            return before, f"classes: {_few(named)}, as before."
        return Taxonomy(named), f"classes: {_few(named)}, as told."
    if before is not None:
        return before, f"classes: {_few(before.names)}, as before in {printable(out)}."
    if labelled is not None:
        return labelled, f"classes: {_few(labelled.names)}, those of the labels that are there."
    config = read_model(model_of(Path(model))).config if Path(model).is_dir() else {}
    try:
        known = Taxonomy.from_json(next(iter(config["taxonomies"].values())))
    except (KeyError, StopIteration, TypeError, ValueError):
        raise UsageError("Neither labels nor the network name classes; name them: --classes background,leaf.") from None
    return known, f"classes: {_few(known.names)}, the network's."


@final
class Proposal:
    """What a network makes of an image: codes H W, and the network's sha256."""

    def __init__(self, codes: NDArray[np.integer], model: str) -> None:
        self.codes, self.model = codes, model


@final
class Layers:
    """One image that is open: its canvas and what lies below the painting."""

    def __init__(self, canvas: Canvas, existing: NDArray[np.integer] | None) -> None:
        self.canvas, self.existing = canvas, existing
        self.proposal: Proposal | None = None
        self.accepted: tuple[str, NDArray[Any]] = ("", np.zeros((0, 0), np.uint8))


@final
class Project:
    """One folder `out` and the images of a collection in it; held by one process at a time (`Lock`).

    Raises TryAgain where another process holds it, DataError for a damaged journal, UsageError for a folder whose
    classes are others or that holds files of somebody else.
    """

    def __init__(self, collection: Collection, out: Path, taxonomy: Taxonomy) -> None:
        self.collection, self.out, self.taxonomy = collection, out, taxonomy
        self.photos = list(collection.photos)
        self.codes = Codes(taxonomy)
        self.number = {p.name: i for i, p in enumerate(self.photos)}
        self.home = out / HIDDEN
        before = classes_before(out)
        if before is not None and before.names != taxonomy.names:
            raise UsageError(
                f"{printable(out)} was labelled with the classes {_few(before.names)}, not {_few(taxonomy.names)}; "
                "name another folder by -o."
            )
        fresh = not self.home.is_dir()
        if fresh and out.is_dir() and any(out.iterdir()):
            raise UsageError(f"{printable(out)} holds files of something else; name a new folder by -o.")
        table = classes_text(taxonomy) if before is None else ""
        make_directory(self.home)
        self._lock = Lock(self.home / "lock")
        self._lock.acquire()
        try:
            self.journal = Journal(self.home / "journal")
        except BaseException:
            self._lock.release()
            raise
        self.notes = [self.journal.note] if self.journal.note else []
        self._records: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._known: dict[str, dict[str, Any]] = {}
        try:
            refuse_foreign(self.journal.records, len(taxonomy), self.journal.path)
            for record in self.journal.records:
                self._file(record)
            self._refuse_another_journal()
        except BaseException:
            self.close()
            raise
        self._open: OrderedDict[int, Layers] = OrderedDict()
        self._sizes: dict[int, tuple[int, int]] = {}
        if lost := sorted(set(self._records) - set(self.number)):
            self.notes.append(f"{len(lost)} labelled images are not in the folder any more ({printable(lost[0])}).")
        if before is None:
            plan = Outputs(out)
            plan.write(plan.claim("classes.txt"), table.encode())

    def close(self) -> None:
        self.journal.close()
        self._lock.release()

    def _file(self, record: dict[str, Any]) -> None:
        self._records[record["image"]].append(record)
        self._known[record["id"]] = record

    def _refuse_another_journal(self) -> None:
        """DataError where a label map was written from an edit that the journal does not hold: it lost its end, or is
        that of another folder, and the label maps would be written anew without what they show."""
        for index, photo in enumerate(self.photos):
            written = self._written(index)
            ids = [r["id"] for r in self._records.get(photo.name, [])]
            last = written.get("last_edit")
            if written and (len(ids) < written["edits"] or (last is not None and last not in ids)):
                raise DataError(
                    f"{printable(self.journal.path)} does not hold the edits that the label map of "
                    f"{printable(photo.name)} was written from: it is damaged, or another folder's. Restore it from a "
                    f"copy, or move {HIDDEN} and provenance away to begin anew."
                )

    # What there is

    def size(self, index: int) -> tuple[int, int]:
        """H W of an image; DataError for one too large to be drawn on."""
        if index not in self._sizes:
            size = image_size(self.photos[index].file)
            if max(size) > MOST_SIDE:
                raise DataError(
                    f"{printable(self.photos[index].file)} is longer than {MOST_SIDE} pixels; cut it first."
                )
            self._sizes[index] = size
        return self._sizes[index]

    def state(self, index: int) -> str:
        """ "new", "existing" (labels that came with it), "begun" (painted in part) or "done" (accepted)."""
        photo = self.photos[index]
        kept = standing(self._records.get(photo.name, []))
        last = next((r["op"] for r in reversed(kept) if r["op"] in ("accept", "reopen")), "")
        if last == "accept":
            return "done"
        return "begun" if kept else "existing" if photo.record is not None else "new"

    def seconds(self, index: int) -> float:
        return float(sum(r.get("spent", 0) for r in self._records.get(self.photos[index].name, [])))

    @property
    def count(self) -> int:
        """Of all edits."""
        return len(self._known)

    def edits(self, index: int) -> int:
        return len(self._records.get(self.photos[index].name, []))

    def labelled(self) -> list[int]:
        """The images that have a label map of this folder's."""
        return [i for i, p in enumerate(self.photos) if standing(self._records.get(p.name, []))]

    # Layers

    def layers(self, index: int) -> Layers:
        """An image's layers, replayed from the journal where they are not held."""
        if index in self._open:
            self._open.move_to_end(index)
            return self._open[index]
        photo = self.photos[index]
        size = self.size(index)
        labels = self.collection.labels(photo, self.taxonomy)
        if labels is not None and labels.shape != size:
            raise DataError(
                f"The label map of {printable(photo.name)} is {labels.shape[0]}x{labels.shape[1]} (HxW), its image "
                f"{size[0]}x{size[1]}; make them the same size."
            )
        canvas = Canvas(size, self.codes, self._records.get(photo.name, []))
        found = Layers(canvas, None if labels is None else self.codes.encode(labels))
        self._open[index] = found
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return found

    def opened(self, index: int) -> Layers | None:
        """An image's layers where they are held."""
        return self._open.get(index)

    def open_layers(self) -> list[Layers]:
        return list(self._open.values())

    def base(self, index: int) -> NDArray[Any] | None:
        """What lies below the painting: what was accepted, else labels that came with the image, else the proposal."""
        layers = self.layers(index)
        if digest := layers.canvas.accepted:
            if layers.accepted[0] != digest:
                layers.accepted = digest, self._stored_base(digest, layers.canvas.size)
            return layers.accepted[1]
        if layers.existing is not None:
            return layers.existing
        return layers.proposal.codes if layers.proposal else None

    def _stored_base(self, digest: str, size: tuple[int, int]) -> NDArray[Any]:
        file = self.home / "bases" / f"{digest}.png"
        codes = read_label(file).astype(self.codes.dtype)
        if _digest(codes) != digest or codes.shape != size:
            raise DataError(f"{printable(file)} is damaged; restore it from a copy, or undo and accept again.")
        return codes

    # Edits

    def known(self, edit: Edit) -> bool:
        """Whether the very edit was made already: a page that got no answer asks again."""
        return edit.id in self._known

    def edit(self, edit: Edit) -> Box:
        """Make an edit: it is durable when this returns. Raises BadEdit for one that cannot be made, StorageError for a
        disk that does not take it; nothing is changed then."""
        if edit.image >= len(self.photos):
            raise BadEdit("There is no image of that number.")
        layers = self.layers(edit.image)
        record = edit.model_dump(exclude={"image"}) | {
            "image": self.photos[edit.image].name,
            "time": round(time.time(), 3),
        }
        if "paint" in record and isinstance(record["paint"], int) and record["paint"] >= len(self.taxonomy):
            raise BadEdit("There is no class of that number.")
        if isinstance(edit, Filled):
            x, y = edit.point
            if y >= layers.canvas.size[0] or x >= layers.canvas.size[1]:
                raise BadEdit("That pixel lies outside of the image.")
            record["runs"] = packed_runs(layers.canvas.region(self.base(edit.image), x, y))
        if edit.op == "accept":
            record |= self._keep_base(edit.image)
        if edit.op in ("undo", "redo") and not (layers.canvas.kept if edit.op == "undo" else layers.canvas.undone):
            raise BadEdit(f"There is nothing to {edit.op}.")
        self.journal.append(record)
        self._file(record)
        return layers.canvas.apply(record)

    def _keep_base(self, index: int) -> dict[str, Any]:
        """What is accepted, on the disk under its own sha256 before the journal says so."""
        layers = self.layers(index)
        base = self.base(index)
        codes = np.zeros(layers.canvas.size, self.codes.dtype) if base is None else base
        digest = _digest(codes)
        file = self.home / "bases" / f"{digest}.png"
        if not file.is_file():
            make_directory(file.parent)
            atomic_write(file, encode_label(codes))
        before = layers.canvas.accepted
        source = "existing" if layers.existing is not None and not before else "proposal"
        model = layers.proposal.model if layers.proposal and source == "proposal" and not before else ""
        return {"base": digest, "source": source, "model": model}

    # What is written

    def labels(self, index: int) -> NDArray[Any]:
        """The ids H W as they are written: the painting over what was accepted or came with the image; of a proposal
        that was not accepted, nothing."""
        layers = self.layers(index)
        accepted = bool(layers.canvas.accepted) or layers.existing is not None
        return self.codes.decode(layers.canvas.shown(self.base(index) if accepted else None))

    def stale(self) -> list[int]:
        """Labelled images whose label map is older than the journal."""
        return [i for i in self.labelled_ever() if self._written(i).get("edits") != self.edits(i)]

    def labelled_ever(self) -> list[int]:
        return [i for i, p in enumerate(self.photos) if p.name in self._records]

    def _written(self, index: int) -> dict[str, Any]:
        file = self.out / "provenance" / f"{self.photos[index].name}.json"
        value = read_json(file) if file.is_file() else {}
        kinds = {"edits": int, "file": str, "versions": list}
        sound = isinstance(value, dict) and all(isinstance(value.get(k), kind) for k, kind in kinds.items())
        return value if sound else {}

    def written_image(self, index: int) -> Path:
        """The copy of an image beside its label map."""
        name = str(self._written(index).get("file", ""))
        if fault := name_fault(name):
            raise DataError(f"The provenance of {printable(self.photos[index].name)} names an image that {fault}.")
        return self.out / "images" / name

    def write(self, index: int) -> Path:
        """Write an image's label map, its image and provenance. Raises UsageError where somebody changed them since."""
        photo = self.photos[index]
        data, suffix = self.collection.copied(photo)
        labels = encode_label(self.labels(index), self.taxonomy.palette)
        before = self._written(index)
        plan = Outputs(self.out, {photo.file})
        image, label, about = (
            plan.claim("images", f"{photo.name}{suffix}"), plan.claim("labels", f"{photo.name}.png"),
            plan.claim("provenance", f"{photo.name}.json"),
        )  # fmt: skip
        if not (self.out / image).is_file():
            plan.write(image, data)
        written = plan.write(label, labels)
        value = self._provenance(index, image.partition("/")[2], data, labels)
        former = {k: before[k] for k in ("label_sha256", "edits", "written") if k in before}
        value["versions"] = [*before.get("versions", []), *([former] if former else [])]
        plan.write(about, json.dumps(value, ensure_ascii=False, indent=1).encode())
        return written

    def _provenance(self, index: int, image_name: str, image: bytes, labels: bytes) -> dict[str, Any]:
        """Where each pixel of the label map comes from."""
        photo, layers = self.photos[index], self.layers(index)
        painted = layers.canvas.painted > 0
        kept = [r for r, _ in layers.canvas.kept]
        accept = next((r for r in reversed(kept) if r["op"] == "accept"), None) if layers.canvas.accepted else None
        base = self.base(index) if accept or layers.existing is not None else None
        below = int(((base > 0) & ~painted).sum()) if base is not None else 0
        source = accept["source"] if accept else "existing"
        return {
            "format": 1, "image": photo.name, "file": image_name, "image_sha256": hashlib.sha256(image).hexdigest(),
            "label_sha256": hashlib.sha256(labels).hexdigest(), "size": list(layers.canvas.size),
            "state": self.state(index), "model": accept["model"] if accept else "",
            "pixels": {
                "painted": int(painted.sum()), "accepted": below if accept and source == "proposal" else 0,
                "existing": below if source == "existing" else 0,
                "unlabelled": int(painted.size - painted.sum()) - below,
            },
            "seconds": round(self.seconds(index), 1), "edits": self.edits(index),
            "last_edit": self._records[photo.name][-1]["id"],
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip


def _digest(codes: NDArray[np.integer]) -> str:
    """sha256 (hex) of codes and their size."""
    return hashlib.sha256(repr(codes.shape).encode() + codes.astype("<u2").tobytes()).hexdigest()


def _few(names: tuple[str, ...]) -> str:
    return printable(", ".join(names[:4]) + (", ..." if len(names) > 4 else ""))
