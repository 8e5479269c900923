"""`fullyconv predict --as KIND`: what the network proposes, as the files of an annotation tool."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fullyconv.annotating import open_writer
from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.files.outputs import Outputs
from fullyconv.images import read_bytes
from fullyconv.predict import Predictor
from fullyconv.predict.jobs import read_ahead
from fullyconv.predict.sources import InputFiles
from fullyconv.terminal import progress_line, say

__all__ = ["label_for_tool"]


def label_for_tool(
    kind: str,
    ready: Predictor,
    pairs: Sequence[tuple[Path, str]],
    out: Path,
    reading: InputFiles,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Label every image and write the export to `out`; DataError at the end where some images could not be labelled."""
    heads = list(ready.heads)
    if heads[1:] and not quiet:
        say(f"note: the labels are those of {heads[0]}; further heads are left out: {', '.join(heads[1:])}.")
    with_confidence = kind == "labelstudio"
    line = progress_line("labelling", quiet)
    written: list[Path] = []
    failed: list[str] = []
    with open_writer(
        kind,
        Outputs(out, [f for source, _ in pairs for f in reading.files(source)]),
        ready.taxonomies[heads[0]],
        model=_name(ready),
    ) as writer:
        jobs = [(source, writer.claim(name, source.suffix)) for source, name in pairs]
        for done, (job, image) in enumerate(read_ahead(jobs, lambda _: True, lambda job: reading.read(job[0])), 1):
            source, place = job
            try:
                labels, probability = (
                    ready.confident_labels(image())[heads[0]]
                    if with_confidence
                    else (ready.labels(image())[heads[0]], None)
                )
                written += writer.add(place, read_bytes(source), labels, probability)
            except (DataError, MissingInput) as error:  # one damaged image does not end a folder of them
                say(f"error: {error}")
                failed.append(printable(source))
            if line:
                line(done, len(jobs))
        finished = writer.finish()
    for note in () if quiet else writer.notes:
        say(f"note: {note}")
    if as_json:
        print(json.dumps({"files": [str(p) for p in written + finished], "failed": failed}))
    else:
        print("\n".join(map(str, finished)))
    if failed:
        raise DataError(f"{len(failed)} of {len(jobs)} images could not be labelled ({failed[0]}); see above.")


def _name(ready: Predictor) -> str:
    """The network's name and the first digits of its sha256: which model proposed this."""
    return f"{getattr(ready.model, 'name', 'network')} {ready.backend.identity()[:12]}"
