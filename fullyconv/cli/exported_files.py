"""What the commands say of an exported file: what it holds, and where it holds nothing that they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from fullyconv.evaluation import Result
    from fullyconv.runtime.sealing import ExportFacts

__all__ = ["evaluate_source", "exported_facts", "print_exported", "refuse_unmeasured"]


class FileFacts(TypedDict):
    """What is known of an exported file: its size, its graph and what it says of itself."""

    file: str
    bytes: int
    operators: int
    seal: str
    about: ExportFacts


def print_exported(file: str, as_json: bool) -> None:
    """Print what an exported file says of itself, once its bytes are found to be what was sealed."""
    import json

    from fullyconv.errors import foreign_values, printable

    found = exported_facts(file)
    if as_json:
        print(json.dumps(found))
        return
    with foreign_values(file, "export the model again"):
        lines = list(_lines(found))
    print("\n".join(printable(line) for line in lines))


def _lines(found: FileFacts) -> Iterator[str]:
    about = found["about"]
    given, g, proof = about["input"], about["geometry"], about["proof"]
    if proof is None:
        raise ValueError("no proof")
    yield f"{about['name']}, {found['bytes'] / 1e6:.1f} MB, {found['operators']} operators, {about['precision']}"
    yield f"takes: {', '.join(about['inputs'])}, {given['layout']}, {given['channels']} channels"
    for head, names in about["names"].items():
        classes = about["taxonomies"][head]["names"]
        yield f"gives: {', '.join(names)}, {about['output']} of {head}, {len(classes)} classes: {', '.join(classes)}"
    yield f"last upsampling: stride {g['stride']}, offset {g['offset']}, border {g['border']}"
    yield "context of a tile: " + ("unbounded" if g["halo"] is None else f"{g['halo']:g} pixels on each side")
    yield (
        f"proved: {' and '.join(proof['engines'])} on {len(proof['sizes'])} batches of {proof['images']} images, "
        f"largest difference {proof['difference']:.1e} of the largest score, {proof['changed']} of {proof['pixels']} "
        "labels changed"
    )
    if kept := about.get("int8"):
        before, after = kept["mean_iu"]
        yield (
            f"8 bits: mean IU {100 * before:.2f} -> {100 * after:.2f} on {kept['images']} images of {kept['split']}; "
            f"{len(kept['kept_in_fp32'])} of {kept['layers']} layers of the trunk in fp32"
        )
    yield "made by: " + ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    yield f"weights: sha256 {about['weights_sha256']}"


def exported_facts(file: str) -> FileFacts:
    """{"file", "bytes", "operators", "seal", "about": the metadata}; DataError where it is damaged or not ours."""
    from fullyconv.runtime.exported import ExportedNetwork

    network = ExportedNetwork(file)
    about: ExportFacts = {**network.about, "precision": network.about.get("precision", "fp32")}
    return {
        "file": file, "bytes": Path(file).stat().st_size, "operators": network.operators, "seal": network.seal,
        "about": about,
    }  # fmt: skip


def evaluate_source(name: str | Path, data: str, keep: Path | None = None) -> Result:
    """The result of a network (an exported file, a model or run directory) on the images of `data` that `evaluate`
    would take; `keep`: where what a report shows is written."""
    from fullyconv.cli.evaluate import predictor
    from fullyconv.evaluation import evaluate
    from fullyconv.evaluation.choice import images_to_measure
    from fullyconv.terminal import progress_line, say

    ready = predictor(str(name), device="auto", tile=0, max_memory="")
    dataset = images_to_measure(data, "", ready, str(name))
    for note in dataset.notes:
        say(note)
    return evaluate(ready, dataset, keep=keep, progress=progress_line(f"evaluating {Path(name).name}", False))


def refuse_unmeasured(name: str | Path, remedy: str) -> None:
    """`UsageError` for an exported file where figures are asked for and no data to measure it on: it holds none."""
    from fullyconv.errors import UsageError, printable
    from fullyconv.runtime.exported import is_exported

    if is_exported(name):
        raise UsageError(
            f"{printable(name)} is an exported network and holds no figures; name the data to measure it on:  "
            f"fullyconv {printable(remedy)} DATA."
        )
