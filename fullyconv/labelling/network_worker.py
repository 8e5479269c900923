"""The processes in which networks run for the page, so that a stroke never waits for one.

    python -m fullyconv.labelling.network_worker propose     lives as long as the page: images in, proposals out
    python -m fullyconv.labelling.network_worker rank        one job, then it ends
    python -m fullyconv.labelling.network_worker learn       loads, waits for one job, then it ends

A line of JSON a request on stdin, a line of JSON an answer on stdout; label maps and networks go by files in the
project's own folder. What is said goes to stderr. The process ends when stdin does, or its parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from fullyconv.errors import FullyconvError
from fullyconv.serving.worker import end_with_parent
from fullyconv.taxonomy import Taxonomy

__all__ = ["main"]

Answer = Callable[[dict[str, Any]], None]


def main() -> None:
    """Do what the first argument says."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends what it started
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints does not answer
    if sys.argv[1] != "propose":
        os.nice(5)

    def answer(value: Mapping[str, object]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        {"propose": _propose, "rank": _rank, "learn": _learn}[sys.argv[1]](sys.stdin, answer)
    except FullyconvError as error:
        answer({"failed": str(error)})
    except BrokenPipeError:
        pass


def _propose(requests: TextIO, answer: Answer) -> None:
    """{"load": network, "classes", "features"} and {"image", "key", "out"} in any order; an answer each."""
    from fullyconv.files import atomic_write
    from fullyconv.images import encode_label
    from fullyconv.labelling.page_network import FeatureFiles, adapted, proposal
    from fullyconv.predict.eager import digest

    model, kept = None, None
    for line in requests:
        asked = json.loads(line)
        try:
            if "load" in asked:
                begun = time.monotonic()
                model = adapted(asked["load"], Taxonomy.from_json(asked["classes"]))
                kept = FeatureFiles(Path(asked["features"]), model)
                answer({
                    "name": model.name, "sha256": digest(model), "untrained": model.untrained,
                    "seconds": round(time.monotonic() - begun, 2),
                })  # fmt: skip
                continue
            assert model is not None
            assert kept is not None
            labels = proposal(model, kept, Path(asked["image"]), asked["key"])
            if labels is not None:
                atomic_write(asked["out"], encode_label(labels))
            answer({"proposed": labels is not None})
        except FullyconvError as error:
            answer({"failed": str(error)})
        except MemoryError:
            answer({"failed": "The image is too large for this machine's memory."})


def _rank(requests: TextIO, answer: Answer) -> None:
    """{"load", "classes", "images", "labelled"}: every one of the images in the order in which to label them."""
    from fullyconv.curation.queue import suggest
    from fullyconv.labelling.page_network import adapted

    asked = json.loads(requests.readline())
    model = adapted(asked["load"], Taxonomy.from_json(asked["classes"]))
    images = [Path(p) for p in asked["images"]]
    chosen, notes = suggest(model, images, [Path(p) for p in asked["labelled"]], len(images))
    place = {p: i for i, p in enumerate(images)}
    answer({"order": [[place[s.image], s.reason] for s in chosen], "notes": notes})


def _learn(requests: TextIO, answer: Answer) -> None:
    """{"load", "classes", "features"}, and when it is wanted {"items": [[key, image, label map]], "seconds", "out"}: a
    model directory."""
    from fullyconv.labelling.page_network import FeatureFiles, adapted, learn_score_layers

    about = json.loads(requests.readline())
    model = adapted(about["load"], Taxonomy.from_json(about["classes"]))
    kept = FeatureFiles(Path(about["features"]), model)
    line = requests.readline()
    if not line:
        return
    begun, last, asked = time.monotonic(), 0.0, json.loads(line)

    def progress(what: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last > 0.3:
            last = time.monotonic()
            answer({"progress": what, "share": round(share, 3)})

    items = [(key, Path(image), Path(label)) for key, image, label in asked["items"]]
    found = learn_score_layers(model, kept, items, seconds=asked["seconds"], progress=progress)
    model.origin = {**model.origin, "heads_learned_on_labels": found}
    model.save_pretrained(asked["out"])
    answer({"learned": found, "seconds": round(time.monotonic() - begun, 2)})


if __name__ == "__main__":
    main()
