"""One opener for every file that is read: whatever stands in its place, an error of ours names it and nothing hangs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fullyconv import files
from fullyconv.errors import DataError, MissingInput, StorageError

PACKAGE = Path(__file__).parent.parent / "fullyconv"

# Who opens files beside fullyconv/files, and why.
ALLOWED = {
    "images/opening.py": "the one opener of images: non-blocking, regular files only, sniffed before they are read",
    "tensorfile.py": "hands descriptors of `open_regular` on",
    "images/tiff.py": "Pillow opens bytes of ours",
    "sandbox/descriptors.py": "in the confined child; the parent has opened the file by `open_regular`",
    "sandbox/guardian.py": "/proc/self/uid_map",
    "sandbox/landlock.py": "the folders of the libraries, to name them to the kernel",
    "sandbox/child.py": "/proc/self/statm",
    "sandbox/weight_files.py": "in the confined child, after the parent has opened the file by `open_regular`",
    "sandbox/caffemodel.py": "mapped, in the confined child, which the parent stops after its time",
    "sandbox/unpacking.py": "archives, in the confined child",
    "processor.py": "/proc/cpuinfo and the system's own control groups",
    "data/pipeline/workers.py": "/proc/PID/stat",
    "predict/memory_limit.py": "/proc/self/statm and status",
    "pages/__init__.py": "the pages' own templates, packed with them",
    "serving/assets.py": "a page's own files, packed with it",
    "exporting/web.py": "the page's own files, packed with it, and an archive whose bytes are known",
    "labelling/image_pyramid.py": "maps a temporary file of its own",
    "labelling/rounds.py": "the log of a process of its own, to write",
    "labelling/page_server.py": "the browser, not a file",
    "data/corpora/bands.py": "rasterio reads by itself what `holds_tiff`, by `read_ends`, found a regular TIFF",
    "rasters/geotiff.py": "rasterio reads by itself what `open_regular` has found to be a regular file",
    "rasters/assembling.py": "rasterio writes, and reads again, a temporary file of ours",
    "rasters/ground_truth.py": "rasterio reads by itself what `GeoTiffSource` has found to be a regular file",
    "rasters/cutting.py": "rasterio writes windows into a new folder of ours",
    "annotating/writer.py": "opens its own partial file to write",
    "cli/export.py": "the script that is packed with it",
    "exporting/example.py": "a script on its own, without the package",
    "exporting/pt2.py": "arrays that a process of ours has just written, without pickle",
    "exporting/pt2_runner.py": "a script on its own, without the package",
    "exporting/__init__.py": "reads a file of its own that it has just written",
    "images/labels.py": "decodes an array that `read_bytes` has read",
    "data/pipeline/effects.py": "decodes what it has encoded in memory",
    "rasters/video.py": "FFmpeg reads by itself what `open_regular` has found to be a regular file",
    "rasters/polygons.py": "rasterio reads the results that were just written",
    "data/pipeline/cache.py": "maps the cache's own file",
    "cli/__init__.py": "os.devnull, to write to",
}
METHODS = {"open", "read_text", "read_bytes", "memmap", "fromfile", "iterparse"}
MODULES = {
    ("json", "load"),
    ("tomllib", "load"),
    ("np", "load"),
    ("np", "loadtxt"),
    ("ElementTree", "parse"),
    ("ET", "parse"),
}
OURS = {("images", "read_bytes"), ("files", "read_text")}


def openings(tree: ast.AST) -> list[str]:
    """The calls in a module that open files by themselves."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        call = node.func
        if isinstance(call, ast.Name) and call.id == "open":
            found.append(f"line {node.lineno}: open()")
        elif isinstance(call, ast.Attribute):
            owner = ast.unparse(call.value)
            if (owner, call.attr) not in OURS and (call.attr in METHODS or (owner, call.attr) in MODULES):
                found.append(f"line {node.lineno}: {owner}.{call.attr}()")
    return found


def test_files_are_opened_in_one_place() -> None:
    by_themselves = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("files/") and name not in ALLOWED and (found := openings(ast.parse(path.read_text()))):
            by_themselves[name] = found
    assert by_themselves == {}, "read these through fullyconv.files (read_text, read_json, open_regular, ...)"


def test_the_search_for_openings_finds_each_kind() -> None:
    code = "open(p); p.open(); p.read_text(); p.read_bytes(); json.load(f); np.load(p); os.open(p); ET.parse(p)"
    assert len(openings(ast.parse(code))) == 8
    assert openings(ast.parse("images.read_bytes(p); json.loads(t); files.read_text(p)")) == []


ODD = ("fifo", "endless", "folder", "itself", "no text", "rights")


def put(kind: str, path: Path) -> None:
    """Something odd in the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "itself":
        path.symlink_to(path)
    elif kind == "no text":
        path.write_bytes(b"\xff\xff\x00{")
    else:
        path.write_text("{}")
        path.chmod(0)


READERS: dict[str, Callable[[Path], object]] = {
    "text": files.read_text,
    "json": files.read_json,
    "toml": files.read_toml,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ODD)
def test_whatever_stands_there_is_an_error_that_names_it(kind: str, reader: str, tmp_path: Path) -> None:
    if kind == "rights" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    put(kind, path := tmp_path / "there")
    with pytest.raises((DataError, MissingInput, StorageError), match=str(path)):
        READERS[reader](path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "gone", "file/below"])
def test_names_that_no_file_can_have_are_missing_inputs(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingInput):
        files.read_text(tmp_path / name)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000, "", "{'a': 1}"])
def test_json_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json is no JSON"):
        files.read_json(tmp_path / "x.json")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "x.json") == {"a": 1}


def test_no_more_is_read_than_the_limit_and_the_ends_are_the_ends(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    assert files.read_ends(tmp_path / "x", 10, 5) == bytes([*range(10), *range(95, 100)])
    assert files.read_ends(tmp_path / "x", 98, 50) == bytes(range(100))
    assert files.read_ends(tmp_path / "x", 500, 50) == bytes(range(100))
    with pytest.raises(DataError, match="at most 99 B"):
        files.read_file(tmp_path / "x", 99)


# One process reads every odd file, so that what hangs is seen by its time and the test needs one start.
TRY = """
import json, sys
from pathlib import Path
from fullyconv.errors import FullyconvError
def attempt(what, path):
    if what == "data":
        from fullyconv.data import open_dataset
        open_dataset(path)
    elif what == "check":
        from fullyconv.doctor import open_every_split
        open_every_split(path)
    elif what == "recipe":
        from fullyconv import recipes
        recipes.read_recipe(path)
    elif what == "result":
        from fullyconv.evaluation.result import Result
        Result.load(path)
    elif what == "run":
        from fullyconv.report import collect
        getattr(collect, "_rows")(Path(path))
    elif what == "log":
        from fullyconv.checkpoint import RunDirectory
        RunDirectory(Path(path).parent).rows()
for line in sys.stdin:
    what, path = json.loads(line)
    try:
        attempt(what, path)
        said = "nothing"
    except FullyconvError as error:
        said = f"ours: {error}"
    except BaseException as error:
        said = f"foreign: {error!r}"
    print(json.dumps(said), flush=True)
"""
PLACES = {
    "train.txt": "data",
    "x.csv": "data",
    "x.json": "data",
    "annotations.xml": "data",
    "classes.txt": "data",
    "recipe.toml": "recipe",
    "result.json": "result",
    "metrics.jsonl": "run",
    "log/metrics.jsonl": "log",
}


def test_nothing_hangs_and_every_odd_file_is_named(tmp_path: Path) -> None:
    from PIL import Image

    kinds = [k for k in ODD if k != "rights" or os.geteuid() != 0]
    asked = []
    for kind in kinds:
        for place, what in PLACES.items():
            folder = tmp_path / kind.replace(" ", "") / place.replace(".", "_").replace("/", "-")
            for part in ("images", "labels"):
                (folder / part).mkdir(parents=True)
                Image.new("L", (4, 4)).save(folder / part / "a.png")
            put(kind, folder / place)
            alone = what != "data" or place in ("x.csv", "x.json")
            asked.append((what, folder / place if alone else folder, folder / place, kind))
            if what == "data":
                asked.append(("check", folder, folder / place, kind))
    done = subprocess.run(
        [sys.executable, "-c", TRY],
        input="".join(json.dumps([what, str(path)]) + "\n" for what, path, *_ in asked),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(asked), done.stderr[-2000:]
    for (what, _, odd, kind), answer in zip(asked, answers, strict=True):
        unread = what == "check" and odd.suffix in (".csv", ".json")  # lies beside images/ and labels/
        unread |= kind in ("folder", "no text", "itself")
        assert answer.startswith("ours: ") or (answer == "nothing" and unread), (what, odd, answer)
        if answer.startswith("ours: "):
            assert odd.name in answer, (kind, answer)
