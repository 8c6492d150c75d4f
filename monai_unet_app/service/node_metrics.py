"""The metrics of a node, for Prometheus and for its status page. They name no patient and no study."""

import platform
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import InfoMetricFamily
from prometheus_client.registry import Collector

from monai_unet_app import __version__
from monai_unet_app.service.rows import FOLLOW_UPS, DeliveryState, JobState, ResultState

if TYPE_CHECKING:
    from prometheus_client import Metric

    from monai_unet_app.service.node import Node
    from monai_unet_app.service.sending import DestinationState

QUANTILES = (0.5, 0.95)
_STATES = {
    "studies": ("arriving", "complete"),
    "jobs": get_args(JobState),
    "results": get_args(ResultState),
    "deliveries": get_args(DeliveryState),
}
_VERDICTS = ("accept", "review", "reject", "none", *FOLLOW_UPS)
_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 900, 1800, 3600, 6 * 3600, 24 * 3600)
_REMEMBERED = 1000
_SUCCESS = "last_success_timestamp_seconds"


class Durations:
    """The durations of a stage since the node began: the last thousand, and a histogram of all."""

    def __init__(self, stage: str) -> None:
        """No duration yet. `stage`: "work", "deliver" or "total"."""
        self.last: deque[float] = deque(maxlen=_REMEMBERED)
        self.histogram = Histogram(
            "monai_unet_stage_seconds",
            "Duration of each stage: work, deliver, and total from complete to delivered",
            registry=None,
            buckets=_BUCKETS_S,
            labelnames=["stage"],
        )
        self._stage = self.histogram.labels(stage)

    def append(self, seconds: float) -> None:
        """Adds a duration."""
        self.last.append(seconds)
        self._stage.observe(seconds)

    def __len__(self) -> int:
        return len(self.last)

    def __iter__(self) -> Iterator[float]:
        return iter(list(self.last))


def quantiles(seconds: Durations | Sequence[float]) -> dict[float, float]:
    """The median and the 95th percentile; empty for no durations."""
    return dict(zip(QUANTILES, np.quantile(list(seconds), QUANTILES).tolist(), strict=True)) if len(seconds) else {}


def exposition(node: "Node") -> bytes:
    """All metrics in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_NodeCollector(node))
    return generate_latest(registry)


class _NodeCollector(Collector):
    def __init__(self, node: "Node") -> None:
        self.node = node

    def describe(self) -> "list[Metric]":
        """Empty, so that registering collects nothing."""
        return []

    def collect(self) -> "Iterator[Metric]":
        yield from self._work()
        yield from self._waiting()
        yield from self._destinations()
        yield from self._machine()
        yield from self._versions()

    def _work(self) -> "Iterator[Metric]":
        node, counts = self.node, self.node.queue.counts()
        for table, states in _STATES.items():
            yield _gauge(f"monai_unet_{table}", f"{table} by state", "state", dict.fromkeys(states, 0) | counts[table])
        stages = [metric for times in node.seconds.values() for metric in times.histogram.collect()]
        for other in stages[1:]:  # one family for all stages
            stages[0].samples.extend(other.samples)
        yield from stages[:1]
        verdicts = Counter("monai_unet_verdicts", "results by the quality gate's verdict", labels=["verdict"])
        by_verdict = {verdict or "none": count for verdict, count in node.queue.verdict_counts().items()}
        for verdict, count in (dict.fromkeys(_VERDICTS, 0) | by_verdict).items():
            verdicts.add_metric([verdict], count)
        yield verdicts
        yield Counter("monai_unet_instances_received", "instances that were stored", value=node.instances_stored)
        yield Counter("monai_unet_instances_refused", "instances that were not", value=node.instances_turned_away)
        yield Counter("monai_unet_callers_rejected", "callers that were not let in", value=node.callers_turned_away)

    def _waiting(self) -> "Iterator[Metric]":
        oldest, now = self.node.queue.oldest(), time.time()
        ages = {kind: max(0.0, now - oldest.get(kind, now)) for kind in ("job", "delivery", "review")}
        yield _gauge(
            "monai_unet_oldest_pending_seconds",
            "age of the oldest job that is not done, delivery that is not made, and result that waits for a reviewer; 0: none",
            "kind",
            ages,
        )

    def _destinations(self) -> "Iterator[Metric]":
        rows: tuple[tuple[str, str, Callable[[DestinationState], float | None]], ...] = (
            ("pending", "deliveries that wait for a destination", lambda state: state.pending),
            (
                "reachable",
                "0 where the last try to give a destination something failed",
                lambda state: state.is_reachable,
            ),
            ("paused", "1 where a destination is left alone until its next try", lambda state: state.is_paused),
            (_SUCCESS, "when a destination was last given something, since the start", lambda state: state.delivered),
        )
        states = self.node.sending.states().items()
        for name, text, value_of in rows:
            values = {
                destination: float(value) for destination, state in states if (value := value_of(state)) is not None
            }
            yield _gauge(f"monai_unet_destination_{name}", text, "destination", values)

    def _machine(self) -> "Iterator[Metric]":
        node, disk = self.node, shutil.disk_usage(self.node.folder)
        least_free = node.config.least_free_gb * 1e9
        yield Counter("monai_unet_worker_starts", "starts of a worker, each of them cold", value=node.workers.started)
        yield Gauge(
            "monai_unet_ready", "whether all that is needed to work at a study works", value=float(node.is_ready)
        )
        yield _gauge("monai_unet_memory_bytes", "resident memory by process", "process", node.memory_bytes())
        yield Gauge("monai_unet_disk_free_bytes", "free on the disk of the node's folder", value=disk.free)
        text = "less free, and nothing is received (least_free_gb)"
        yield Gauge("monai_unet_disk_least_free_bytes", text, value=least_free)

    def _versions(self) -> "Iterator[Metric]":
        versions = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily("monai_unet_build", "this program", value=versions)
        bundles = InfoMetricFamily("monai_unet_bundle", "what each rule has loaded", labels=["rule"])
        for rule, facts in self.node.bundles().items():
            bundles.add_metric([rule], facts)
        yield bundles


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Gauge:
    gauge = Gauge(name, text, labels=[label])
    for key, value in values.items():
        gauge.add_metric([key], value)
    return gauge
