"""Reading labelled images: `open_dataset("PATH" | "kind:PATH" | "kind,key=value:PATH", split)` -> `Dataset`.

The kinds are the table of `data.corpora`; a bare PATH is shown to each in its order, `folder` last.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fullyconv.arguments import MAPPING, PATH, TEXT, TEXTS, either, maybe, takes
from fullyconv.data.base import Dataset, Record, Sample
from fullyconv.data.corpora import KINDS
from fullyconv.errors import DataError, MissingInput, UnknownName, UsageError, printable
from fullyconv.files import open_regular

__all__ = ["KINDS", "Dataset", "Record", "Sample", "open_dataset", "parse_options", "parse_spec"]


@takes(
    spec=PATH,
    split=maybe(TEXT),
    inputs=maybe(TEXTS),
    heads=maybe(either(MAPPING, TEXTS)),
)
def open_dataset(
    spec: str | os.PathLike[str],
    split: str | None = None,
    *,
    inputs: Sequence[str] | None = None,
    heads: Mapping[str, object] | Sequence[str] | None = None,
    **options: object,
) -> Dataset:
    """The labelled images at `spec`: "kind:PATH", or a bare PATH whose layout is recognised (and said in `.notes`).
    The kind's options may stand in it: "coco,crowd=skip,images=photos:export".

    split    a split's name; None is "train" where the data has one, else everything; "all" is everything.
    inputs   the modalities that make the image, in this order along C, such as ("rgb", "depth").
    heads    names of the label maps to keep, or a mapping that adds some: {"geometric": {"from": "semantic", "map":
             {"sky": ["sky"], "horizontal": ["road", "pavement"], "vertical": "*"}}} or {"folder": "labels-geometric"}.
    options  the kind's own.

    Raises MissingInput (no such path), UnknownName (kind, split, modality, head) or DataError (no such layout there).

    >>> data = fc.open_dataset("mydata")
    >>> sample = data[0]
    >>> sample.image.shape, sample.labels["semantic"].shape
    ((40, 48, 3), (40, 48))
    """
    kind, root, written = parse_spec(spec)
    options = {**written, **options}
    if os.path.lexists(root) and not os.path.isdir(root):
        os.close(open_regular(root))  # a pipe, a device, a link to itself: said before a reader looks at it
    if not os.path.exists(root):
        raise MissingInput(f"{printable(root)} does not exist; give the folder (or list file) of the data set.")
    notes: tuple[str, ...] = ()
    if kind is None:
        kind, root = _recognise(root)
        notes = (f"{printable(root)} is read as {kind!r} data; write {kind}:PATH to say so yourself.",)
    dataset: Dataset = _function(kind)(root, split, **_known(kind, options))
    from fullyconv.data.corpora.derive import choose_heads, choose_inputs

    dataset = choose_heads(choose_inputs(dataset, inputs), heads)
    return replace(dataset, notes=notes + dataset.notes)


def parse_spec(spec: str | os.PathLike[str]) -> tuple[str | None, Path, dict[str, Any]]:
    """("kind", path, options) of "kind:PATH" or "kind,key=value,...:PATH"; (None, path, {}) of a bare path."""
    text = os.fspath(spec)
    front, colon, rest = text.partition(":")
    kind, *pairs = front.split(",")
    if not colon or os.path.lexists(text) or len(kind) == 1 or os.sep in kind:
        return None, Path(text), {}
    if kind not in KINDS:
        raise UnknownName("kind of data", kind, KINDS)
    return kind, Path(rest or "."), parse_options(pairs)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """{key: value} of "key=value" texts; values are TOML, else text. UsageError for one without "="."""
    import tomllib

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"The option {printable(pair)!r} is not key=value; write it like order=area.")
        try:
            found[key.strip()] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value
    return found


def _function(kind: str) -> Any:
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def _known(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """`options`, or UnknownName for one that the kind does not have."""
    import inspect

    parameters = inspect.signature(_function(kind)).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = [p.name for p in parameters][2:]
        for name in options:
            if name not in known:
                raise UnknownName(f"option of {kind!r} data", name, known)
    return options


def _present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _recognise(root: Path) -> tuple[str, Path]:
    """The kind of data at `root`, and where it begins: in its one folder, and the one in it, as archives unpack."""
    from fullyconv.data.corpora.layout import describe_folder, only_folder

    places = [root]
    while len(places) < 3 and places[-1].is_dir() and (inner := only_folder(places[-1])):
        places.append(inner)
    for at in places:
        for kind, target in KINDS.items():
            module = target.partition(":")[0]
            if kind != "folder" and _present(module) and importlib.import_module(module).recognise(at):
                return kind, at
    if importlib.import_module(KINDS["folder"].partition(":")[0]).recognise(root):
        return "folder", root

    raise DataError(
        f"{printable(root)} holds no layout that is known ({describe_folder(root)}); put images into images/ and label "
        f"maps of the same names into labels/, or name the kind: {', '.join(KINDS)} (kind:PATH)."
    )
