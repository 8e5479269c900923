"""`predict --engine ray` on a cluster of two nodes (two raylets on this machine), with workers, a node and the asking
process killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_machines import results
from test_rasters import ground, save

import fullyconv

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    pytest.importorskip("ray", reason="the extra ray is not installed")  # here: it takes seconds, and is not run by CI
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    made.add_node(num_cpus=1, object_store_memory=100 << 20)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, two dozen photos, a raster, and what one process makes of them."""
    root = tmp_path_factory.mktemp("ray")
    torch.manual_seed(0)
    model = fullyconv.create("fcn16s-squeezenet1_0", 3)
    for weights in model.head_parameters():
        torch.nn.init.normal_(weights, std=0.01)
    model.save_pretrained(root / "model")
    (root / "in").mkdir()
    for i in range(24):
        Image.fromarray(ground(96, 96, seed=i)).save(root / "in" / f"p{i:02d}.png")
    save(root / "in" / "s.tif", ground(600, 750))
    done = asked(root, "one")
    assert done.wait() == 0
    return root


def asked(root: Path, out: str, cluster: object = None, *more: str) -> subprocess.Popen[bytes]:
    """`fullyconv predict` in a process of its own."""
    many = [] if cluster is None else ["--engine", "ray", "--address", cluster.address]  # type: ignore[attr-defined]
    line = ["predict", "model", "in", "-o", out, "--tile", "256", "--no-overlay", "--confidence", *many, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fullyconv", *line], cwd=root, env=environment, stdout=subprocess.DEVNULL
    )


def wait_for(found: object, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while not found():  # type: ignore[operator]
        assert process.poll() is None, "it ended before anything could be killed"
        assert time.monotonic() < end
        time.sleep(0.02)


def workers() -> list[int]:
    """Processes of actors (Ray names them after their class) on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::") and b"_RemoteWorker" in name:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes by /proc")
def test_two_nodes_give_the_bytes_of_one_process_also_when_a_worker_and_a_node_die(work: Path, cluster: object) -> None:
    done = asked(work, "many", cluster)
    wait_for(lambda: len(list((work / "many").glob("p*.png"))) >= 3, done)
    os.kill(workers()[0], signal.SIGKILL)
    wait_for(lambda: len(list((work / "many").glob("p*.png"))) >= 12, done)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)  # type: ignore[attr-defined]
    assert done.wait() == 0
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)  # type: ignore[attr-defined]
    assert results(work / "many") == results(work / "one")
    assert len(results(work / "many")) == 50
    assert not (work / "many/.blocks").exists()


def test_a_killed_asker_is_gone_on_from(work: Path, cluster: object) -> None:
    done = asked(work, "again", cluster)
    wait_for(lambda: len(list((work / "again").glob(".blocks/s-*/*.block"))) >= 2, done)
    done.send_signal(signal.SIGKILL)
    done.wait()
    first = {p.name: p.stat().st_mtime_ns for p in (work / "again").glob("p*.png")}
    blocks = {p: p.stat().st_mtime_ns for p in (work / "again").glob(".blocks/s-*/*.block")}
    assert blocks
    assert not (work / "again/s.tif").exists()
    assert asked(work, "again", cluster, "--resume").wait() == 0
    assert results(work / "again") == results(work / "one")
    kept = {p.name: p.stat().st_mtime_ns for p in (work / "again").glob("p*.png")}
    assert sum(kept[name] != time for name, time in first.items()) <= 16  # at most a unit was not told to be done
    assert not (work / "again/.blocks").exists()
