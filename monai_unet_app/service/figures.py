"""What the node measures of itself, for Prometheus and for its status page. No patient and no study is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client import Metric

    from monai_unet_app.service.node import Node

QUANTILES = (0.5, 0.95)


def quantiles(seconds: Sequence[float]) -> dict[float, float]:
    """The median and the 95th percentile; empty for no times at all."""
    return dict(zip(QUANTILES, np.quantile(list(seconds), QUANTILES).tolist(), strict=True)) if seconds else {}


def exposition(node: Node) -> bytes:
    """All figures in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Figures(node))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, node: Node) -> None:
        self.node = node

    def describe(self) -> list[Metric]:
        """Nothing is collected when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        node = self.node
        for table, counts in node.queue.counts().items():
            found = GaugeMetricFamily(f"monai_unet_{table}", f"{table} by state", labels=["state"])
            for state, count in counts.items():
                found.add_metric([state], count)
            yield found
        stages = GaugeMetricFamily(
            "monai_unet_stage_seconds", "seconds of the last thousand, by stage", labels=["stage", "quantile"]
        )
        for stage, seconds in node.seconds.items():
            for quantile, value in quantiles(seconds).items():
                stages.add_metric([stage, f"{quantile:g}"], value)
        yield stages
        verdicts = CounterMetricFamily(
            "monai_unet_verdicts", "results by the quality gate's verdict", labels=["verdict"]
        )
        for verdict, count in node.queue.verdicts().items():
            verdicts.add_metric([verdict or "none"], count)
        yield verdicts
        yield CounterMetricFamily("monai_unet_instances_received", "instances that were stored", value=node.received)
        yield CounterMetricFamily("monai_unet_instances_refused", "instances that were not", value=node.refused)
        yield CounterMetricFamily("monai_unet_callers_rejected", "callers that were not let in", value=node.rejected)
        yield CounterMetricFamily(
            "monai_unet_worker_starts", "starts of a worker, each of them cold", value=node.workers.started
        )
        yield GaugeMetricFamily(
            "monai_unet_ready", "whether all that is needed to work at a study works", value=float(node.is_ready)
        )
        memory = GaugeMetricFamily("monai_unet_memory_bytes", "resident memory by process", labels=["process"])
        for name, size in node.memory_bytes().items():
            memory.add_metric([name], size)
        yield memory
