"""Workers of a Ray cluster (extra `ray`): actors that hold the network. Ray moves units and outcomes, never pixels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, final

from fullyconv.errors import EXIT_CODES, FullyconvError, InternalError, MissingExtra, UsageError, printable
from fullyconv.predict.units import UnitOutcome, UnitWorker, WorkerSetup, WorkUnit
from fullyconv.terminal import say

__all__ = ["RayPool", "ray_or_missing"]

STORE = 100 << 20  # bytes of Ray's store on a machine where we start it: only facts pass through it
WAITING = 2  # units of a worker: one it does and one that waits, so that it is never idle
PATIENCE = 60.0  # seconds after which it is said that no worker has come yet


def ray_or_missing() -> Any:
    """The module, which is told before it loads to report nothing to anybody."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("--engine ray", "ray", "ray") from error
    return ray


@final
class _RemoteWorker:
    """What Ray makes an actor of."""

    def __init__(self, setup: WorkerSetup, cores: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(cores)  # before torch loads
        self._refused: tuple[str, str] | None = None
        try:
            self._worker: UnitWorker | None = UnitWorker(setup)
        except FullyconvError as error:
            self._worker, self._refused = None, (type(error).__name__, str(error))

    def ready(self) -> tuple[str, str] | None:
        """(kind of error, why) where it cannot work."""
        return self._refused

    def do(self, unit: WorkUnit) -> UnitOutcome:
        assert self._worker is not None
        return self._worker.do(unit)


@final
class _Actor:
    def __init__(self, handle: Any) -> None:
        self.handle, self.able = handle, False
        self.units: dict[Any, WorkUnit] = {}

    def takes(self, unit: WorkUnit) -> bool:
        alone = unit.losses or any(u.losses for u in self.units.values())
        return self.able and len(self.units) < (1 if alone else WAITING)


@final
class RayPool:
    """Actors of `cores` CPUs (and a GPU each for "cuda"), as many as the cluster has room for or `workers`.

    address: of a running cluster ("auto", "10.0.0.1:6379"); "" starts Ray on this machine, without dashboard or usage
    statistics. An actor that dies, with its process or its machine, is replaced.
    """

    def __init__(self, setup: WorkerSetup, *, address: str = "", workers: int = 0, cores: int = 1) -> None:
        self._ray = ray = ray_or_missing()
        self._setup, self._cores, self._gpus = setup, cores, int(setup.device.startswith("cuda"))
        self._mine = not ray.is_initialized()
        if self._mine:
            _join(ray, address, workers * cores)
        room = ray.cluster_resources()
        fits = int(room.get("CPU", 0) // cores)
        fits = min(fits, int(room.get("GPU", 0))) if self._gpus else fits
        if fits < 1:
            self.close()
            raise UsageError(f"The cluster has no room for a worker of {cores} cores; give a smaller --cores.")
        self._actors: list[_Actor] = []
        self._asked: dict[Any, _Actor] = {}  # being started
        self._deaths = 0  # before they could work, one after another
        self.size = min(fits, workers or fits)
        for _ in range(self.size):
            self._start()

    def _start(self) -> None:
        kind = self._ray.remote(_RemoteWorker).options(
            num_cpus=self._cores, num_gpus=self._gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        actor = _Actor(kind.remote(self._setup, self._cores))
        self._actors.append(actor)
        self._asked[actor.handle.ready.remote()] = actor

    def submit(self, unit: WorkUnit) -> bool:
        able = [a for a in self._actors if a.takes(unit)]
        if not able:
            return False
        actor = min(able, key=lambda a: len(a.units))
        actor.units[actor.handle.do.remote(unit)] = unit
        return True

    def wait(self) -> Sequence[tuple[WorkUnit, UnitOutcome | None]]:
        """Also empty, when a worker became able to take units."""
        owner = {ref: actor for actor in self._actors for ref in actor.units}
        refs = [*owner, *self._asked]
        done, _ = self._ray.wait(refs, num_returns=1, timeout=PATIENCE)
        if not done and not owner:
            say("note: no worker has started yet; the cluster may be busy with other jobs.")
        found: list[tuple[WorkUnit, UnitOutcome | None]] = []
        for ref in done:
            if ref in self._asked:
                self._greet(ref)
            elif (actor := owner[ref]) in self._actors:
                outcome = self._got(ref)
                found.append((actor.units.pop(ref), outcome))
                if outcome is None:
                    found += [(unit, None) for unit in actor.units.values()]
                    self._replace(actor)
        return found

    def _got(self, ref: object) -> UnitOutcome | None:
        try:
            outcome: UnitOutcome = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise InternalError(f"A worker failed ({printable(error)[-300:]}); please report it.") from error
        except self._ray.exceptions.RayError:
            return None
        return outcome

    def _greet(self, ref: object) -> None:
        actor = self._asked.pop(ref)
        try:
            refused = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._deaths += 1
            if self._deaths > 3 + self.size:
                raise UsageError(
                    f"Workers die before they can work ({printable(error)[:200]}); is fullyconv installed on every "
                    "machine, and memory enough for the network?"
                ) from error
            self._replace(actor)
            return
        if refused:
            raise {c.__name__: c for c in EXIT_CODES}.get(refused[0], UsageError)(refused[1])
        self._deaths, actor.able = 0, True

    def _replace(self, actor: _Actor) -> None:
        """Whatever is still left of it is ended: nobody waits for what it does."""
        with contextlib.suppress(Exception):
            self._ray.kill(actor.handle)
        self._actors.remove(actor)
        self._start()

    def close(self) -> None:
        if self._mine and self._ray.is_initialized():
            self._ray.shutdown()
            return
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor.handle)


def _join(ray: Any, address: str, cores: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local", num_cpus=cores or None, include_dashboard=False, object_store_memory=STORE, **quiet
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"No Ray cluster answers at {printable(address or 'this machine')} ({printable(error)[:200]}); start one "
            "with  ray start --head, or leave --address out."
        ) from error
