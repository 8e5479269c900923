"""Imports point down the layers and only the rooms that may import torch do so at import time."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "fullyconv"

# room -> (layer, torch at import time?). Rooms of one layer are listed in the order in which they may import.
LAYERS: dict[str, tuple[int, bool]] = {
    "errors": (0, False),
    "arguments": (0, False),
    "terminal": (0, False),
    "allocator": (0, False),
    "processor": (0, False),
    "compiling": (0, False),
    "taxonomy": (0, False),
    "preprocessing": (0, False),
    "geometry": (0, False),
    "regions": (0, False),
    "files": (0, False),
    "tensorfile": (0, False),
    "pages": (0, False),
    "images": (0, False),
    "drawing": (0, False),
    "sandbox": (0, False),
    "interpolation": (1, False),
    "ops": (1, True),
    "metrics": (1, False),
    "checkpoint": (1, False),
    "hub": (1, False),
    "data": (1, False),
    "doctor": (1, False),
    "annotating": (1, False),
    "scenes": (1, False),
    "rasters": (1, False),
    "models": (2, True),
    "convolutionalisation": (2, True),
    "engine": (2, True),
    "cost": (2, True),
    "recipes": (3, False),
    "runtime": (3, False),
    "predict": (3, False),
    "evaluation": (3, False),
    "train": (3, True),
    "experiments": (3, True),
    "report": (4, False),
    "exporting": (4, True),
    "curation": (4, True),
    "serving": (5, False),
    "labelling": (5, False),
    "cli": (5, False),
    "__main__": (6, False),
}
ORDER = list(LAYERS)
# Modules that need torch in rooms that do not: only ever imported inside functions.
EAGER = {"fullyconv.predict.eager", "fullyconv.labelling.page_network"}
# Modules of compiled code, which need numba: only ever imported inside functions (the test below holds them to it).
COMPILED = {
    "fullyconv.compiling",
    "fullyconv.data.pipeline.scaling_kernels",
    "fullyconv.images.png_kernels",
    "fullyconv.metrics.counting_kernels",
    "fullyconv.engine.split_bytes",
    "fullyconv.interpolation.kernel_plan",
    "fullyconv.interpolation.label_kernels",
    "fullyconv.interpolation.vectors",
}
# What parameters are called that have a type of ours: networks (`models.interface`), data, results and classes.
TYPED = (
    "model", "network", "predictor", "ready", "module", "trunk",
    "dataset", "sample", "recipe", "result", "taxonomy", "geometry", "backend", "graph",
)  # fmt: skip
# Kernels are compiled for the types that they are called with, by numba or Triton: theirs may be `Any`.
KERNELS = {
    "fullyconv.data.pipeline.scaling_kernels", "fullyconv.engine.split_bytes", "fullyconv.engine.winograd_kernels",
    "fullyconv.images.png_kernels", "fullyconv.interpolation.label_kernels", "fullyconv.interpolation.vectors",
    "fullyconv.metrics.counting_kernels", "fullyconv.ops.loss_kernels", "fullyconv.ops.triton_kernels",
}  # fmt: skip
# room -> (most parameters of type `Any` outside kernels, what they are). To be lowered, not raised: an array says what
# it holds (`NDArray[np.integer]`), JSON that is only passed on is `object`, JSON of ours a TypedDict.
ANY: dict[str, tuple[int, str]] = {
    "checkpoint": (5, "JSON just read; tensors and arrays by what they have in common"),
    "cli": (9, "typer's and rich's hooks; JSON to be shown"),
    "compiling": (2, "numba's own options, and the function that it compiles"),
    "convolutionalisation": (11, "torch.fx and torch's dispatch, which take any call"),
    "cost": (5, "torch's dispatch and hooks, which take any call"),
    "curation": (2, "CSV rows; scores of torch or of onnxruntime"),
    "data": (20, "annotation tools' JSON, checked where it is read; options handed on to readers"),
    "doctor": (1, "options handed on to readers"),
    "engine": (6, "torch's autograd context and function modes"),
    "evaluation": (2, "JSON just read"),
    "exporting": (16, "onnx and onnxruntime, which have no types; operators of sizes and of tensors"),
    "interpolation": (2, "a kernel's table of lanes, of any layout"),
    "labelling": (2, "JSON of the journal and of the page"),
    "metrics": (1, "torch or numpy, by the same comparison"),
    "models": (11, "torch's dispatch and `Module.to`; options of a network, as JSON"),
    "ops": (4, "torch's autograd context"),
    "predict": (3, "ray, which has no types; numpy or torch"),
    "preprocessing": (1, "JSON just read, each key checked as it is taken"),
    "rasters": (24, "rasterio, tifffile, zarr and PyAV, which have no types"),
    "recipes": (3, "pydantic's defaults and limits; a TOML table before it is checked"),
    "sandbox": (5, "JSON between parent and child; what scipy and h5py hand back"),
    "serving": (4, "JSON between server and worker"),
    "taxonomy": (1, "JSON just read, each key checked as it is taken"),
    "tensorfile": (1, "safetensors' JSON, checked entry by entry"),
    "train": (3, "JSON of a checkpoint, each key checked as it is taken"),
}


def modules() -> dict[str, Path]:
    return {
        ".".join(("fullyconv", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in sorted(PACKAGE.rglob("*.py"))
    }


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Parsed once: some thirty thousand lines."""
    return ast.parse(path.read_text())


@functools.cache
def imported(path: Path, top_only: bool = False) -> set[str]:
    """Modules that a file imports; with `top_only`, those imported when it is imported itself."""
    tree = tree_of(path)
    names: set[str] = set()

    def visit(node: ast.AST, lazy: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if not (top_only and lazy):
                if isinstance(child, ast.Import):
                    names.update(a.name for a in child.names)
                elif isinstance(child, ast.ImportFrom) and child.module:
                    names.add(child.module)
                    names.update(f"{child.module}.{a.name}" for a in child.names)
            visit(child, inner)

    visit(tree, False)
    return names


def test_a_room_imports_only_rooms_below_it() -> None:
    for module, path in modules().items():
        here = room(module)
        if here == "__init__":
            continue
        assert here in LAYERS, f"{here} is not in the table of layers"
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "fullyconv" or len(parts) == 1 or parts[1] not in LAYERS or parts[1] == here:
                continue
            assert LAYERS[parts[1]][0] <= LAYERS[here][0], f"{module} imports upwards: {name}"
            assert ORDER.index(parts[1]) < ORDER.index(here), f"{module} imports {name}, listed after it"
            assert {parts[1], here} != {"data", "models"}, "data and models never see each other"


def test_a_torch_free_room_imports_no_torch_at_import_time() -> None:
    heavy = {
        "torch",
        "torchvision",
        "timm",
        "numba",
        "cv2",
        "scipy",
        "h5py",
        "onnx",
        "onnxruntime",
        "openvino",
        "rasterio",
        "tifffile",
        "shapely",
        "pyogrio",
        "av",
        "ray",
        "zarr",
        "tiffslide",
        "pyarrow",
    }
    for module in (m for m in modules() if room(m) in LAYERS and not LAYERS[room(m)][1]):
        names = imported(modules()[module], top_only=True)
        assert module in COMPILED or not COMPILED & names, module
        assert module in EAGER or not EAGER & names, module
        assert module in COMPILED | EAGER or not heavy & {n.split(".")[0] for n in names}, module


def dependencies() -> dict[str, set[str]]:
    """module -> the modules of the package that it imports, wherever in its text, or names in a table by which they are
    imported ("fullyconv.data.corpora.voc:open_voc"). Not what only types need; not the package itself, which is a list
    of names that are imported when they are asked for."""
    every = {m.removesuffix(".__init__"): path for m, path in modules().items()}
    found = {m: set(imported(path)) for m, path in every.items()}
    for m, path in every.items():
        strings = (n.value for n in ast.walk(tree_of(path)) if isinstance(n, ast.Constant))
        found[m] |= {s.partition(":")[0] for s in strings if isinstance(s, str)}
    return {m: (names & set(every)) - {m, "fullyconv"} for m, names in found.items() if m != "fullyconv"}


def test_no_import_cycle_between_modules_be_it_by_imports_inside_functions() -> None:
    edges = dependencies()
    done: set[str] = set()

    def walk(m: str, path: tuple[str, ...]) -> None:
        assert m not in path, " -> ".join((*path, m))
        if m not in done:
            for n in sorted(edges[m]):
                walk(n, (*path, m))
            done.add(m)

    for m in edges:
        walk(m, ())
    assert sum(map(len, edges.values())) > 1000  # they were found


def any_parameters() -> Iterator[tuple[str, str, str, str]]:
    """(module, function, parameter, annotation) of the parameters outside kernels in whose type `Any` stands."""
    for module, path in modules().items():
        if module in KERNELS:
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))):
                    if p.annotation and any(isinstance(n, ast.Name) and n.id == "Any" for n in ast.walk(p.annotation)):
                        yield module, node.name, p.arg, ast.unparse(p.annotation)


def test_a_network_and_what_else_has_a_type_is_typed_wherever_it_is_handed_on() -> None:
    """What it has to offer is checked by mypy."""
    untyped = [
        f"{module}.{function}({name}: {kind})"
        for module, function, name, kind in any_parameters()
        if name in TYPED and "Any" in kind.split(" | ")
    ]
    assert untyped == ["fullyconv.exporting.int8.scores(graph: Any)"]  # onnx's


def test_parameters_of_type_any_become_fewer() -> None:
    found = Counter(room(module) for module, *_ in any_parameters())
    more = {r: n for r, n in found.items() if n > ANY.get(r, (0, ""))[0]}
    assert not more, "give these parameters a type (see `ANY`)"


def test_an_image_is_called_an_image() -> None:
    """But for folders and columns that users call otherwise, and the option of `report paper`."""
    allowed = {"fullyconv.data.corpora.layout", "fullyconv.data.corpora.folder_roles", "fullyconv.cli.report"}
    others = {m: path for m, path in modules().items() if m not in allowed}
    assert not [m for m, path in others.items() if "picture" in path.read_text().lower()]


def test_no_two_public_classes_have_one_name() -> None:
    found = [
        node.name
        for path in modules().values()
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert len(found) == len(set(found)), sorted(n for n in found if found.count(n) > 1)


# Public functions of one name, which are one interface.
INTERFACES = {
    "main": "what a process of its own runs, and the command line",
    "recognise": "a reader of a corpus: whether this folder is one (`data.corpora.KINDS`)",
    "label": "implementations of `ops` behind one contract, and the same without torch",
    "label_and_confidence": "implementations of `ops` behind one contract, and the same without torch",
    "losses": "implementations of `ops` behind one contract",
    "total": "implementations of `ops` behind one contract",
    "upsample": "`ops.upsample`, its implementations, and the same without torch",
    "focal": "a loss over full scores, to be read, and in strips, to be used",
    "lovasz": "a loss over full scores, to be read, and in strips, to be used",
    "tversky": "a loss over full scores, to be read, and in strips, to be used",
}
# Files of one name, in these folders.
MIRRORS = {
    ("annotating", "data/corpora"): "a format's writer and its reader",
    ("annotating", "data/corpora/annotations"): "a format's writer and its reader",
    ("cli", "data"): "a command bears the name of what it calls",
}


def test_public_functions_of_one_name_are_one_interface() -> None:
    found = Counter(
        node.name
        for path in modules().values()
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    )
    assert {name for name, times in found.items() if times > 1} == set(INTERFACES)


def test_files_of_one_name_are_one_interface() -> None:
    folders: dict[str, list[str]] = {}
    for path in modules().values():
        if path.name != "__init__.py":
            folders.setdefault(path.name, []).append(path.parent.relative_to(PACKAGE).as_posix())
    twice = {name: tuple(sorted(among)) for name, among in folders.items() if len(among) > 1}
    assert set(twice.values()) == set(MIRRORS), twice


def _members(node: ast.AST) -> dict[str, ast.AST]:
    """What is bound by name in a module or class, below `if` and `try` too."""
    found: dict[str, ast.AST] = {}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[child.name] = child
        elif isinstance(child, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: alias for alias in child.names}
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            found[child.id] = child
        elif isinstance(child, ast.Assign | ast.AnnAssign | ast.If | ast.Try):
            found |= _members(child)
    return found


def _exists(name: str) -> bool:
    """Whether `room.module.Class.member` is there, as far as it is a module's or a class's own."""
    every = {m.removesuffix(".__init__"): path for m, path in modules().items()}
    parts = ("fullyconv", *name.removeprefix("fullyconv.").split("."))
    whole = next(n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in every)
    node: ast.AST = tree_of(every[".".join(parts[:whole])])
    for part in parts[whole:]:
        if not isinstance(node, ast.Module | ast.ClassDef):
            return True
        if part not in (known := _members(node)):
            return False
        node = known[part]
    return True


def test_what_architecture_names_is_there() -> None:
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text("utf-8")
    names = re.findall(r"`((?:[a-z_]\w*\.)+\w+)`", text)
    dotted = [n for n in names if n.split(".")[0] in {*LAYERS, "fullyconv"} and not n.endswith((".json", ".jsonl"))]
    files = re.findall(r"\b((?:fullyconv|tests|docs|scripts)/[\w/]+\.\w+)", text)
    assert len(dotted) > 40
    assert len(files) > 5
    assert not [n for n in dotted if not _exists(n)]
    assert not [f for f in files if not (PACKAGE.parent / f).exists()]


def test_the_rooms_of_architecture_are_the_layers() -> None:
    """And a bare word in a room's row is a module or a name of one of its rooms' modules, or another room."""
    rows = re.findall(r"^\| (\d) \| (.*?) \| (.*) \|$", (PACKAGE.parent / "ARCHITECTURE.md").read_text("utf-8"), re.M)
    found, strange = {}, []
    for layer, names, what in rows:
        rooms = re.findall(r"`(\w+)`", names)
        found |= dict.fromkeys(rooms, int(layer))
        held = {m: path for m, path in modules().items() if room(m) in rooms}
        known = {part for m in held for part in m.split(".")} | set(LAYERS)
        known |= {folder.name for r in rooms for folder in (PACKAGE / r).glob("*/")}
        known |= {n for path in held.values() for n in _members(tree_of(path))}
        strange += [word for word in re.findall(r"`(\w+)`", what) if word not in known]
    assert found == {name: layer for name, (layer, _) in LAYERS.items() if name != "__main__"}
    assert not strange


def test_no_object_changes_its_class() -> None:
    trees = {m: tree_of(path) for m, path in modules().items()}
    stored = [m for m, tree in trees.items() for n in ast.walk(tree) if isinstance(n, ast.Attribute)
              and n.attr == "__class__" and isinstance(n.ctx, ast.Store)]  # fmt: skip
    assert not stored


# What other libraries read from there when they are loaded or begin; no option of this package travels so.
ENVIRONMENT = {
    "'THP_MEM_ALLOC_ENABLE'": "torch: huge pages",
    "CUBLAS": "cuBLAS: the same bits again; put back afterwards",
    "'WANDB_ERROR_REPORTING'": "wandb: sends nothing",
    "'MLFLOW_ALLOW_FILE_STORE'": "MLflow: files without a server",
    "'MLFLOW_DISABLE_TELEMETRY'": "MLflow: sends nothing",
    "'ORT_DISABLE_TELEMETRY'": "onnxruntime: sends nothing",
    "'OMP_NUM_THREADS'": "OpenMP in a worker of Ray, before torch is loaded: cores are shared",
    "'RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO'": "Ray: leaves CUDA_VISIBLE_DEVICES alone",
    "'RAY_USAGE_STATS_ENABLED'": "Ray: sends nothing",
}


def test_no_option_travels_by_an_environment_variable() -> None:
    written = set()
    for path in modules().values():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                target = ast.unparse(node.func)
                called = target.startswith(("os.environ.", "os.putenv", "os.unsetenv"))
                if called and not target.startswith(("os.environ.get", "os.environ.items")):
                    written.add(ast.unparse(node.args[0]))
            stored = isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
            if stored and ast.unparse(node.value) == "os.environ":
                written.add(ast.unparse(node.slice))
    assert written == set(ENVIRONMENT)


# Derived from and used themselves: what says more about the same thing.
BASES = {"CocoWriter", "Upsampling", "QuietTracer", "Leaves", "GuardedProtocol", "SignalledServer", "_Asked", "_Kept"}


def test_a_class_is_abstract_or_final() -> None:
    """But for errors, which are a tree, and `BASES`."""
    abstract, errors, loose = {"ABC", "Protocol", "NamedTuple", "TypedDict", "Enum"}, {"Exception"}, set()
    classes = [n for p in modules().values() for n in ast.walk(tree_of(p)) if isinstance(n, ast.ClassDef)]
    bases = {n.name: {ast.unparse(b).split("[")[0].split(".")[-1] for b in n.bases} for n in classes}
    while more := {name for name, above in bases.items() if above & errors} - errors:
        errors |= more
    for node in classes:
        final = "final" in map(ast.unparse, node.decorator_list)
        if not final and not bases[node.name] & abstract and node.name not in errors:
            loose.add(node.name)
    assert loose == BASES


def test_importing_the_package_and_asking_for_help_loads_no_torch() -> None:
    code = (
        "import sys, fullyconv, fullyconv.cli\n"
        "try: fullyconv.cli.main(['--help'])\n"
        "except SystemExit as e: assert e.code in (0, None), e.code\n"
        "assert not {'torch', 'numpy', 'PIL', 'pydantic', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


# Constants of internals that tests replace: what an export in 8 bits looks at, and an image of several strips, are too
# much for a test, and the files that an export for the web fetches are pinned. All others are set as users set them:
# parameters, the environment, inputs.
REPLACED = {("test_exporting_int8", "LOOKED"), ("test_exporting_int8", "TIMED"), ("test_exporting_web", "ENGINE"),
            ("test_exporting_web", "INTEGRITY"), ("test_ops_losses", "CPU_BUDGET")}  # fmt: skip


def test_tests_set_no_constants_of_internals() -> None:
    found = set()
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "monkeypatch.setattr":
                names = [a.value.rpartition(".")[2] for a in node.args[:2] if isinstance(a, ast.Constant)]
                module = ast.unparse(node.args[0])
                found |= {(path.stem, n) for n in names if n.isupper() and not module.endswith("ctypes")}
    assert found == REPLACED
