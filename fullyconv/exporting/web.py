"""An exported file as a folder for any web server: a page that labels images in the browser, without upload.

The engine is onnxruntime-web of one version, its files known by their sha256: from the npm registry by the user's own
npm client where that is asked for, or from what the user has.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from fullyconv.errors import DataError, MissingInput, TryAgain, UsageError, printable
from fullyconv.files import read_file
from fullyconv.files.outputs import Outputs
from fullyconv.runtime.sealing import ExportFacts, GeometryFacts

__all__ = ["VERSION", "check_showable", "claimed", "engine_files", "write_page"]

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # sha512
ENGINE = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
PAGE = ("index.html", "page.css", "page.js", "png.js", "tiles.js", "worker.js")
LARGEST = 1 << 28  # bytes of the package
PIXELS, SCORES = 1 << 22, 1 << 30  # of an image that the browser labels whole; bytes that its scores may take
LEAST_CORE = 128  # pixels of a tile: below, nearly all work would be its context
TIMEOUT = 900  # seconds for npm


def check_showable(inputs: tuple[str, ...], channels: int, output: str, taken: str) -> None:
    """UsageError for what a browser's images cannot feed, or the page cannot show."""
    if inputs != ("rgb",) or channels != 3:
        raise UsageError(
            f"A browser's images are red, green and blue; this network takes {', '.join(inputs)} ({channels} "
            "channels). Export it with --to onnx."
        )
    if output not in ("labels", "confidence") or taken != "uint8":
        raise UsageError("The page shows labels of images: use --output labels or confidence, and --input uint8.")


def engine_files(source: str | Path, fetch: bool) -> dict[str, bytes]:
    """{name: bytes} of onnxruntime-web: from `source`, a folder that holds it or its .tgz, else by npm if `fetch`.

    Raises UsageError where neither is given, DataError where the bytes are not those of the version that was tried.
    """
    if bool(source) == fetch:
        raise UsageError(
            f"The page needs {PACKAGE} {VERSION} (33 MB): let npm fetch it with --fetch, or name a folder or "
            ".tgz that has it with --onnxruntime-web PATH, one of the two."
        )
    if fetch:
        return _of_archive(_fetched(), f"What npm gave for {PACKAGE}")
    path = Path(source)
    if not path.is_dir():
        return _of_archive(read_file(path, LARGEST), printable(path))
    for folder in (path, path / "dist", path / "package" / "dist", path / PACKAGE / "dist"):
        if (folder / next(iter(ENGINE))).exists():
            return _checked({n: read_file(folder / n, LARGEST) for n in ENGINE}, printable(folder))
    raise MissingInput(
        f"{printable(path)} holds no {next(iter(ENGINE))}; name a folder of {PACKAGE} {VERSION}: node_modules."
    )


def _fetched() -> bytes:
    """The package as npm fetches it from the registry that the user's settings name; none of its scripts are run."""
    if os.environ.get("FULLYCONV_OFFLINE"):
        raise MissingInput(f"FULLYCONV_OFFLINE forbids fetching {PACKAGE}; name it with --onnxruntime-web PATH.")
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(
            f"npm, which fetches {PACKAGE}, is not installed: install Node.js, or fetch {PACKAGE} {VERSION} elsewhere "
            "and name it with --onnxruntime-web PATH."
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TryAgain(f"npm did not fetch {PACKAGE} ({printable(error)[:200]}); try again.") from error
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not found:
            cause = printable(done.stderr.strip() or done.stdout.strip())[:300]
            raise TryAgain(f"npm did not fetch {PACKAGE} {VERSION} ({cause}); check its settings, or try again.")
        return read_file(found[0], LARGEST)


def _of_archive(data: bytes, source: str) -> dict[str, bytes]:
    if hashlib.sha512(data).digest() != base64.b64decode(INTEGRITY):
        raise DataError(f"{source} is not {PACKAGE} {VERSION} (its sha512 differs); give that version's .tgz.")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:  # its bytes are known: no foreign archive
        found = {name: archive.extractfile(f"package/dist/{name}") for name in ENGINE}
        return _checked({name: file.read() for name, file in found.items() if file is not None}, source)


def _checked(found: dict[str, bytes], source: str) -> dict[str, bytes]:
    for name, sha256 in ENGINE.items():
        if hashlib.sha256(found.get(name, b"")).hexdigest() != sha256:
            raise DataError(f"{source}: {name} is not that of {PACKAGE} {VERSION} (its sha256 differs); give that one.")
    return found


def claimed(folder: Path) -> Outputs:
    """The folder's files, those of an earlier export free to be replaced and all others refused (`files.outputs`)."""
    plan = Outputs(folder)
    for name in (*PAGE, "model.onnx", "model.json", "ort/LICENSE.txt", *(f"ort/{n}" for n in ENGINE)):
        plan.claim(name)
    return plan


def write_page(data: bytes, about: ExportFacts, plan: Outputs, engine: Mapping[str, bytes]) -> None:
    """Write the page, its engine and the exported file `data`, which says `about` of itself, as `claimed`."""
    page = files("fullyconv").joinpath("exporting", "page")
    for name, part in engine.items():
        plan.write(f"ort/{name}", part)
    plan.write("ort/LICENSE.txt", page.joinpath("LICENSE.txt").read_bytes())
    plan.write("model.onnx", data)
    told = _told(data, about, sum(map(len, engine.values())))
    plan.write("model.json", json.dumps(told, allow_nan=False).encode())
    for name in reversed(PAGE):  # index.html last: with it the folder is whole
        plan.write(name, page_file(name))


def page_file(name: str) -> bytes:
    """One of the page's files; its style is the server's page's too."""
    here = {"page.css": ("pages", "tool.css")}.get(name, ("exporting", "page", name))
    return files("fullyconv").joinpath(*here).read_bytes()


def _told(data: bytes, about: ExportFacts, engine_bytes: int) -> dict[str, Any]:
    """What the page is told of its network (model.json)."""
    from fullyconv import __version__

    heads = []
    for head, names in about["names"].items():
        taxonomy = about["taxonomies"][head]
        classes = [{"name": n, "colour": list(c)} for n, c in zip(taxonomy["names"], taxonomy["palette"], strict=True)]
        second = names[1] if len(names) > 1 else None
        heads.append({"name": head, "labels": names[0], "confidence": second, "classes": classes})
    return {
        "name": about["name"], "file": "model.onnx", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
        "output": about["output"], "heads": heads, "engine_bytes": engine_bytes, "onnxruntime_web": VERSION,
        "fullyconv": __version__, **tiling(about["geometry"], sum(about["heads"].values())),
    }  # fmt: skip


def tiling(geometry: GeometryFacts, classes: int) -> dict[str, int | None]:
    """How the page reads a large image: whole up to `largest` pixels, else in cores of `core` with `context` around;
    core None where the network's context is unbounded, or so large that tiles would be nearly nothing else."""
    largest = min(PIXELS, SCORES // (8 * classes))
    if geometry["halo"] is None:
        return {"largest": largest, "core": None, "context": 0}
    align = int(geometry["align"])
    context = -(-math.ceil(geometry["halo"]) // align) * align
    core = (math.isqrt(largest) - 2 * context) // align * align
    return {"largest": largest, "core": core if core >= LEAST_CORE else None, "context": context}
