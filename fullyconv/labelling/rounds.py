"""The supervisor of the processes that hold networks: proposals for what is open, the order of the images, learning.

Everything runs in the server's event loop; nothing here decodes or computes. A round of learning is: label maps
written, score layers learned on kept features (a network directory), proposals by it, then a whole training by
`fullyconv train` into an ordinary run directory, proposals by its best network.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fullyconv.data.corpora.class_tables import classes_text
from fullyconv.errors import FullyconvError, printable
from fullyconv.files import atomic_write, make_directory, read_ends, read_file
from fullyconv.images import read_label
from fullyconv.labelling.project import Project, Proposal
from fullyconv.terminal import say

__all__ = ["Rounds", "Settings", "image_key"]

_RESTARTS = 3  # of the process that proposes, one after another without a proposal between
Tell = Callable[[dict[str, Any]], None]


@final
@dataclass(frozen=True)
class Settings:
    """source: run, model directory or network's name. runs: the folder of new runs. minutes: of a whole training, 0 for
    none. seconds: of learning score layers."""

    source: str
    runs: Path
    minutes: float = 10.0
    seconds: float = 15.0
    rank: bool = True


def image_key(file: Path) -> str:
    """16 digits by which an image file as it is now is known again."""
    import hashlib

    found = os.stat(file)
    facts = f"{file.resolve()} {found.st_size} {found.st_mtime_ns}"
    return hashlib.sha256(facts.encode(errors="surrogatepass")).hexdigest()[:16]


@final
class Rounds:
    """`tell` is called with what the page should know. `lock` guards the project, whose methods run in threads."""

    def __init__(self, project: Project, settings: Settings, lock: asyncio.Lock, tell: Tell) -> None:
        self.project, self.settings, self.lock, self._tell = project, settings, lock, tell
        self.home = project.home
        self.source = self._latest() or settings.source
        self.model: dict[str, Any] = {}  # what the process that proposes said of its network
        self.order: list[list[Any]] = []  # [number, reason], the first to label first
        self.learning: dict[str, Any] = {"state": "idle"}
        self.training: dict[str, Any] = {"state": "idle"}
        self.fault = ""
        self._wanted: dict[int, bool] = {}  # number -> whether somebody waits for it; the newest last
        self._failed: dict[int, str] = {}
        self._more = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._trainer: asyncio.subprocess.Process | None = None
        self._learner: tuple[str, asyncio.subprocess.Process] | None = None  # what it has loaded, waiting for labels
        self._warming = asyncio.Lock()
        self._reload = False

    # Life

    def start(self) -> None:
        self._spawn(self._keep_proposing())
        if self.settings.rank:
            self._spawn(self._rank())

    async def close(self) -> None:
        """End every process; a training is told to save its last step first."""
        trainer = self._trainer
        if trainer is not None and trainer.returncode is None:
            trainer.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(trainer.wait(), 15)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._learner is not None:
            await _end(self._learner[1])

    def _spawn(self, work: Coroutine[object, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            say(f"error: {printable(error)}")

    async def _process(self, role: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "fullyconv.labelling.network_worker", role, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, env=_environment(), limit=1 << 26,
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        """All that the page shows of networks, as JSON."""
        return {
            "model": self.model, "learning": self.learning, "training": self.training, "fault": self.fault,
            "source": Path(self.source).name,
        }  # fmt: skip

    def _say(self) -> None:
        self._tell({"kind": "status", **self.status()})

    def _latest(self) -> str:
        """The network that an earlier session ended with."""
        try:
            value = json.loads(read_file(self.home / "network.json", 1 << 16))
            return str(value["source"]) if Path(value["source"]).is_dir() else ""
        except (FullyconvError, ValueError, KeyError, TypeError):
            return ""

    def _use(self, source: Path) -> None:
        self.source = str(source)
        atomic_write(self.home / "network.json", json.dumps({"source": str(source.resolve())}))
        self._failed.clear()
        self._reload = True
        self._more.set()

    # Proposals

    def want(self, index: int, waits: bool = True) -> None:
        """Ask for an image's proposal, unless it is there already."""
        if index in self._failed or (not waits and index in self._wanted):
            return
        self._wanted.pop(index, None)
        self._wanted[index] = waits
        self._more.set()

    def why_not(self, index: int) -> str:
        """Why an image has no proposal, in words; "" where nothing is wrong."""
        return self._failed.get(index, "")

    async def _keep_proposing(self) -> None:
        deaths = 0
        while deaths < _RESTARTS:
            before = self.model
            try:
                await self._propose()
            except FullyconvError as error:
                self.fault = str(error)
                return self._say()
            except (OSError, EOFError, ValueError, asyncio.IncompleteReadError):
                deaths = 1 if self.model is not before else deaths + 1
        self.fault = "The process that proposes ended again and again; what it said stands in the terminal."
        return self._say()

    async def _propose(self) -> None:
        """One process's life: raises when it is over."""
        process = await self._process("propose")
        try:
            await self._load(process)
            while True:
                await self._more.wait()
                if self._reload:
                    await self._load(process)
                if not self._wanted:
                    self._more.clear()
                    continue
                index = next((i for i in reversed(self._wanted) if self._wanted[i]), next(iter(self._wanted)))
                self._wanted.pop(index)
                await self._propose_one(process, index)
        finally:
            await _end(process)

    async def _load(self, process: asyncio.subprocess.Process) -> None:
        self._reload = False
        answer = await _ask(process, self._about())
        if "failed" in answer:
            if self.source != self.settings.source:  # learned by an earlier session, and gone since
                say(f"note: {printable(self.source)} cannot be used ({answer['failed']}); going back to the start.")
                self.source = self.settings.source
                await self._load(process)
                return
            raise FullyconvError(answer["failed"])
        self.model, self.fault = answer, ""
        async with self.lock:
            for layers in self.project.open_layers():
                layers.proposal = None
            labelled = self.project.labelled()
        self._say()
        self._tell({"kind": "model"})
        for index in labelled:  # their features are kept before anybody learns from them
            self.want(index, waits=False)
        async with self._warming:
            await self._warm()

    def _about(self) -> dict[str, Any]:
        return {
            "load": self.source, "classes": self.project.taxonomy.to_json(), "features": str(self.home / "features"),
        }  # fmt: skip

    async def _propose_one(self, process: asyncio.subprocess.Process, index: int) -> None:
        photo = self.project.photos[index]
        key = image_key(photo.file)
        out = self.home / "proposals" / f"{key}-{self.model['sha256'][:16]}.png"
        if not out.is_file():
            make_directory(out.parent)
            answer = await _ask(process, {"image": str(photo.file), "key": key, "out": str(out)})
            if "failed" in answer:
                self._failed[index] = answer["failed"]
                self._tell({"kind": "proposal", "image": index, "fault": answer["failed"]})
                return
            if not answer["proposed"]:  # it has learned nothing; what it saw of the image is kept
                return
        model = self.model["sha256"]
        async with self.lock:
            opened = await asyncio.to_thread(self._put, index, out, model)
        if opened:
            self._tell({"kind": "proposal", "image": index})

    def _put(self, index: int, file: Path, model: str) -> bool:
        """Lay a proposal under an image, where it is open."""
        layers = self.project.opened(index)
        if layers is None:
            return False
        labels = read_label(file)
        if labels.shape == layers.canvas.size:
            layers.proposal = Proposal(self.project.codes.encode(labels), model)
        return True

    # Order

    async def _rank(self) -> None:
        """Which images to label next; an order that is not known yet is the files' own."""
        async with self.lock:
            labelled = set(self.project.labelled())
        photos = self.project.photos
        rest = [i for i in range(len(photos)) if i not in labelled and self.project.state(i) == "new"]
        if not rest:
            return
        process = await self._process("rank")
        asked = {
            **self._about(), "images": [str(photos[i].file) for i in rest],
            "labelled": [str(photos[i].file) for i in sorted(labelled)],
        }  # fmt: skip
        try:
            answer = await _ask(process, asked)
        except (OSError, EOFError, ValueError):
            answer = {"failed": "the process that ranks ended"}
        finally:
            await _end(process)
        if "failed" in answer:
            say(f"note: images are not ranked: {answer['failed']}")
            return
        self.order = [[rest[i], reason] for i, reason in answer["order"]]
        for note in answer["notes"]:
            say(f"note: {note}")
        self._tell({"kind": "order", "order": self.order})

    # Learning

    def learn(self) -> str:
        """Begin a round; why it cannot begin, or ""."""
        if self.learning["state"] == "running":
            return "It is learning already."
        if not self.project.labelled():
            return "Nothing is labelled yet; paint or accept something first."
        self.learning = {"state": "running", "what": "writing", "share": 0.0}
        self._say()
        self._spawn(self._learn())
        return ""

    async def _learn(self) -> None:
        begun = time.monotonic()
        try:
            async with self.lock:
                round_, items = await asyncio.to_thread(self._frozen)
            found = await self._learn_heads(round_, items)
            found["seconds"] = round(time.monotonic() - begun, 1)
            self.learning = {"state": "done", **found}
            self._use(self.home / "models" / str(round_))
        except FullyconvError as error:
            self.learning = {"state": "failed", "why": str(error)}
            return self._say()
        except (OSError, EOFError, ValueError):
            self.learning = {"state": "failed", "why": "The process that learns ended; see the terminal."}
            return self._say()
        self._say()
        if self.settings.rank:
            self._spawn(self._rank())
        if self.settings.minutes:
            self._spawn(self._train(round_))
        return None

    def _frozen(self) -> tuple[int, list[tuple[str, Path, Path]]]:
        """Write all label maps, and a list of them as they are now, which later strokes do not change."""
        project = self.project
        for index in project.stale():
            project.write(index)
        rounds = self.home / "rounds"
        make_directory(rounds)
        number = 1 + max((int(p.name) for p in rounds.iterdir() if p.name.isdecimal()), default=0)
        folder = rounds / str(number)
        make_directory(folder / "labels")
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["image", "label"])
        items = []
        for index in project.labelled():
            photo = project.photos[index]
            label = folder / "labels" / f"{index:06d}.png"
            atomic_write(label, read_file(project.out / "labels" / f"{photo.name}.png", 1 << 31))
            image = project.written_image(index)
            rows.writerow([os.path.relpath(image, folder), f"labels/{label.name}"])
            items.append((image_key(photo.file), photo.file, label))
        atomic_write(folder / "list.csv", table.getvalue())
        atomic_write(folder / "classes.txt", classes_text(project.taxonomy))
        return number, items

    async def _learn_heads(self, number: int, items: list[tuple[str, Path, Path]]) -> dict[str, Any]:
        async with self._warming:
            process = await self._warm()
            self._learner = None
        out = self.home / "models" / str(number)
        make_directory(out.parent)
        asked = {
            "items": [[k, str(i), str(m)] for k, i, m in items], "seconds": self.settings.seconds, "out": str(out),
        }  # fmt: skip
        try:
            answer = await _ask(process, asked)
            while "progress" in answer:
                self.learning = {"state": "running", "what": answer["progress"], "share": answer["share"]}
                self._say()
                answer = await _answer(process)
        finally:
            await _end(process)
        if "failed" in answer:
            raise FullyconvError(answer["failed"])
        found: dict[str, Any] = answer["learned"]
        return found

    async def _warm(self) -> asyncio.subprocess.Process:
        """A process that loads what a round starts from ahead of the round, so that learning need not wait for that."""
        start = self._start()
        if self._learner is not None:
            loaded, process = self._learner
            if loaded == start and process.returncode is None:
                return process
            self._learner = None
            await _end(process)
        process = await self._process("learn")
        self._learner = (start, process)
        assert process.stdin is not None
        process.stdin.write(json.dumps({**self._about(), "load": start}).encode() + b"\n")
        return process

    def _start(self) -> str:
        """What a round starts from: the last whole training, else what the page was given; never score layers that an
        earlier round learned, so that a round depends on the labels alone."""
        models = (self.home / "models").resolve()
        return self.settings.source if models in Path(self.source).resolve().parents else self.source

    async def _train(self, number: int) -> None:
        """A whole training in the background, by the command that users give themselves."""
        if self._trainer is not None and self._trainer.returncode is None:
            self._trainer.terminate()
            await self._trainer.wait()
        folder = self.home / "rounds" / str(number)
        name = f"{self.project.out.name}-{number}"
        run = next(
            p for n in range(1, 10_000) if not (p := self.settings.runs / (name if n == 1 else f"{name}-{n}")).exists()
        )
        make_directory(run.parent)
        seconds = max(1, round(60 * self.settings.minutes))
        command = [
            "train", f"folder:{folder / 'list.csv'}", "-o", str(run), "--time", f"{seconds}s",
            "--init-from", str(self.home / "models" / str(number)), "--set", f"model={self.model['name']}",
            "--quiet", "--no-report",
        ]  # fmt: skip
        log = folder / "train.log"
        begun = time.time()
        self.training = {"state": "running", "run": str(run), "since": begun, "minutes": self.settings.minutes}
        self._say()
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "fullyconv", *command, stdin=asyncio.subprocess.DEVNULL, stdout=output,
                stderr=output, env=_environment(), preexec_fn=_nice,
            )  # fmt: skip
            self._trainer = process
            code = await process.wait()
        if self._trainer is not process:
            return
        if code == 0:
            self.training = {"state": "done", "run": str(run), "minutes": round((time.time() - begun) / 60, 1)}
            self._use(run)
        else:
            lines = read_ends(log, 0, 4096).decode(errors="replace").strip().splitlines()
            why = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "")
            self.training = {"state": "failed", "run": str(run), "why": printable(why)[:400]}
        self._say()


def _environment() -> dict[str, str]:
    """This process's environment and modules for those it starts. Their threads do not spin while they wait for each
    other: on cores that others use too, spinning took seven times the processor time (8 images: 1.06 s and 0.14)."""
    path = os.pathsep.join(p for p in sys.path if p)
    return {"OMP_WAIT_POLICY": "passive"} | os.environ | {"PYTHONPATH": path}


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _nice() -> None:
    os.nice(10)


async def _ask(process: asyncio.subprocess.Process, message: Mapping[str, object]) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    await process.stdin.drain()
    return await _answer(process)


async def _answer(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    value: dict[str, Any] = json.loads(line)
    return value
