"""The metrics of a node, for Prometheus and for its status page. They name no patient and no study."""

import platform
import shutil
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, get_args

import numpy as np
from prometheus_client import Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import InfoMetricFamily
from prometheus_client.registry import Collector

from monai_unet_app import __version__
from monai_unet_app.service.maintenance import maintenance_until
from monai_unet_app.service.rows import FOLLOW_UPS, DeliveryState, JobState, ResultState
from monai_unet_app.service.spans import Spans

if TYPE_CHECKING:
    from prometheus_client import Metric

    from monai_unet_app.service.node import Node

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


class Durations:
    """The durations of each stage since the node began: the last thousand, and a histogram of all."""

    def __init__(self) -> None:
        """No duration yet. The stages are "work", "deliver" and "total"."""
        self.last: dict[str, deque[float]] = {
            stage: deque(maxlen=_REMEMBERED) for stage in ("work", "deliver", "total")
        }
        self.histogram = Histogram(
            "monai_unet_stage_seconds",
            "Duration of each stage: work, deliver, and total from complete to delivered",
            # The registry of the process refuses a second histogram of this name, for instance of another node in a
            # test.
            registry=None,
            buckets=_BUCKETS_S,
            labelnames=["stage"],
        )
        self.spans: Spans | None = None
        self.ended: dict[str, float] = {}  # stage -> when it was last done, in seconds since 1970
        # Each stage is exposed from the start, at 0: Prometheus sees no increase in a series whose first value is 1.
        for stage in self.last:
            self.histogram.labels(stage)

    def add(self, stage: str, seconds: float, **about: str | int) -> None:
        """Adds a duration; `about`: attributes of its span, if spans are asked for."""
        if self.spans is not None:
            self.spans.add(stage, seconds, about)
        self.last[stage].append(seconds)
        self.ended[stage] = time.time()
        self.histogram.labels(stage).observe(seconds)


def quantiles(seconds: Collection[float]) -> dict[float, float]:
    """The median and the 95th percentile; empty for no durations."""
    return dict(zip(QUANTILES, np.quantile(list(seconds), QUANTILES).tolist(), strict=True)) if len(seconds) else {}


def exposition(node: "Node") -> bytes:
    """All metrics in the text format of Prometheus."""
    return generate_latest(_NodeCollector(node))


class _NodeCollector(Collector):
    def __init__(self, node: "Node") -> None:
        self.node = node

    def collect(self) -> "Iterator[Metric]":
        for part in (
            self._work, self._waiting, self._destinations, self._machine, self._versions, self._drift, self._challengers,
            self.node.figures.collect,
        ):  # fmt: skip
            yield from part()

    def _work(self) -> "Iterator[Metric]":
        node, counts = self.node, self.node.queue.counts()
        for table, states in _STATES.items():
            yield _gauge(f"monai_unet_{table}", f"{table} by state", "state", dict.fromkeys(states, 0) | counts[table])
        yield from node.durations.histogram.collect()
        verdicts = Counter("monai_unet_verdicts", "results by the quality gate's verdict", labels=["verdict"])
        by_verdict = {verdict or "none": count for verdict, count in node.queue.verdict_counts().items()}
        for verdict, count in (dict.fromkeys(_VERDICTS, 0) | by_verdict).items():
            verdicts.add_metric([verdict], count)
        yield verdicts
        yield Counter("monai_unet_instances_received", "instances that were stored", value=node.instances_stored)
        yield Counter("monai_unet_instances_refused", "instances that were refused", value=node.instances_turned_away)
        yield Counter("monai_unet_callers_rejected", "callers that were rejected", value=node.callers_turned_away)

    def _waiting(self) -> "Iterator[Metric]":
        # Rows have the time of day, which may be set back: no age is below 0.
        waiting, now = self.node.queue.waiting(), time.time()
        ages = {kind: max(0.0, now - waiting.get(kind, (0, now))[1]) for kind in ("job", "delivery", "review")}
        yield _gauge(
            "monai_unet_oldest_pending_seconds",
            "age of the oldest job that is not done, delivery that is not made, and result that waits for a reviewer; 0: none",
            "kind",
            ages,
        )

    def _destinations(self) -> "Iterator[Metric]":
        """Of the destinations of the site, and of other destinations for which a delivery still waits."""
        deliveries, waiting = self.node.deliveries, self.node.queue.waiting_by_destination()
        outages, last = deliveries.outages(), deliveries.last_delivered
        names = dict.fromkeys([*self.node.site.destinations, *waiting])
        pending = {name: waiting.get(name, (0, 0.0))[0] for name in names}
        reachable = {name: name not in outages for name in names}
        paused = {name: name in outages and not outages[name].pause.is_over for name in names}
        last_success = {name: last[name] for name in names if name in last}
        prefix, label = "monai_unet_destination", "destination"
        yield _gauge(f"{prefix}_pending", "deliveries that wait for a destination", label, pending)
        yield _gauge(f"{prefix}_reachable", "0 if the last delivery to a destination failed", label, reachable)
        yield _gauge(f"{prefix}_paused", "1 while nothing is sent to a destination until its next try", label, paused)
        text = "time of the last delivery to a destination, since the start"
        yield _gauge(f"{prefix}_last_success_timestamp_seconds", text, label, last_success)

    def _machine(self) -> "Iterator[Metric]":
        node, disk = self.node, shutil.disk_usage(self.node.folder)
        least_free = node.config.least_free_gb * 1e9
        yield Counter(
            "monai_unet_worker_starts", "starts of a worker, each without a loaded bundle", value=node.workers.started
        )
        yield Gauge(
            "monai_unet_ready", "whether everything that is needed to process a study works", value=float(node.is_ready)
        )
        yield _gauge("monai_unet_memory_bytes", "resident memory by process", "process", node.memory_bytes())
        yield Gauge("monai_unet_disk_free_bytes", "free on the disk of the node's folder", value=disk.free)
        text = "with less free disk nothing is received (least_free_gb)"
        yield Gauge("monai_unet_disk_least_free_bytes", text, value=least_free)
        yield Gauge("monai_unet_time_seconds", "the node's time of day, in seconds since 1970", value=time.time())
        text = "end of the maintenance that was declared, in seconds since 1970; 0: none was"
        yield Gauge("monai_unet_maintenance_until_seconds", text, value=maintenance_until(node.folder))

    def _versions(self) -> "Iterator[Metric]":
        versions = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily("monai_unet_build", "this program", value=versions)
        bundles = InfoMetricFamily("monai_unet_bundle", "what each rule has loaded", labels=["rule"])
        for rule, facts in self.node.bundles().items():
            bundles.add_metric([rule], facts)
        yield bundles

    def _drift(self) -> "Iterator[Metric]":
        """Of rules with a reference, once an hour; a rule without one has no series."""
        known = {rule["rule"]: rule for rule in self.node.drift.rules if rule["reference"]}
        drifted = {name: float(rule["state"] == "drift") for name, rule in known.items()}
        scores = {name: float(rule["score"] or 0.0) for name, rule in known.items()}
        expected = {name: rule["expected_dice"] for name, rule in known.items() if rule["expected_dice"]}
        dice, bias = ({name: one[key] for name, one in expected.items()} for key in ("mean", "bias"))
        yield _gauge("monai_unet_drift", "1 if what a rule sees has drifted from its reference", "rule", drifted)
        yield _gauge("monai_unet_drift_score", "score of the drift test of a rule; 1000 is an alarm", "rule", scores)
        yield _gauge("monai_unet_expected_dice", "expected mean Dice of the last 30 results of a rule", "rule", dice)
        text = "how much better reviewers find the results of a rule than the quality gate predicts, in Dice"
        yield _gauge("monai_unet_dice_bias", text, "rule", bias)

    def _challengers(self) -> "Iterator[Metric]":
        """Of rules with a challenger."""
        states = {one["rule"]: one for one in self.node.challengers.state()}
        for key, text in (
            ("share", "part of the patients whose results are the challenger's"),
            ("score", "evidence that the challenger is worse; 100 rolls it back"),
        ):
            yield _gauge(f"monai_unet_challenger_{key}", text, "rule", {rule: one[key] for rule, one in states.items()})
        withdrawn = {rule: float(bool(one["withdrawn"])) for rule, one in states.items()}
        yield _gauge("monai_unet_challenger_rolled_back", "1 after a challenger was rolled back", "rule", withdrawn)


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> Gauge:
    gauge = Gauge(name, text, labels=[label])
    for key, value in values.items():
        gauge.add_metric([key], value)
    return gauge
