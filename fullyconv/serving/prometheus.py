"""The figures of /metrics, in Prometheus' text format."""

from __future__ import annotations

from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from fullyconv.serving.gate import ROUTES
from fullyconv.serving.pool import Pool
from fullyconv.serving.protocol import Connections

__all__ = ["Figures"]

# Seconds: the client library's own from 10 ms (no network answers sooner) to 10 s, and the usual deadline of 30.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@final
class Figures:
    """Counters of one server, in a registry of its own."""

    def __init__(self, pool: Pool, shared: Connections) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fullyconv_requests", "Requests that reached the application.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fullyconv_predict_seconds", "From a whole request to its answer.", ["status"], buckets=BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self.abandoned = Counter(
            "fullyconv_abandoned", "Images whose client left before the answer.", registry=self.registry
        )
        gauges = {
            "fullyconv_waiting": ("Images that wait.", lambda: len(pool.waiting)),
            "fullyconv_working": ("Images in work.", lambda: int(pool.working is not None)),
            "fullyconv_ready": ("Whether a worker is ready.", lambda: int(pool.about is not None)),
            "fullyconv_worker_starts": ("Workers that were started.", lambda: pool.starts),
            "fullyconv_connections": ("Open connections.", lambda: len(shared.open)),
            "fullyconv_body_bytes": ("Bytes of images that are held.", lambda: shared.held),
        }
        for name, (words, value) in gauges.items():
            Gauge(name, words, registry=self.registry).set_function(value)
        self.registry.register(_Refused(shared))

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answer; paths that are none of ours count as one, so that strangers cannot add rows."""
        known = path if path in ROUTES else "other"
        self.requests.labels(known, str(status)).inc()
        if known == "/v1/predict":
            self.seconds.labels(str(status)).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


@final
class _Refused(Collector):
    """What the protocol refused before the application saw it."""

    def __init__(self, shared: Connections) -> None:
        self.shared = shared

    def collect(self) -> list[CounterMetricFamily]:
        family = CounterMetricFamily("fullyconv_refused", "Refused on the headers or while receiving.", labels=["code"])
        for code, count in sorted(self.shared.refused.items()):
            family.add_metric([code], count)
        return [family]
