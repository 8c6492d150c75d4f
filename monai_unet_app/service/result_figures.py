"""Figures of the results of each bundle, for Prometheus: outcomes, predicted Dice, confidence and processor time."""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram

from monai_unet_app.service.observed import CONFIDENCE, PREDICTED
from monai_unet_app.service.rows import Job, NewResult

if TYPE_CHECKING:
    from prometheus_client import Metric

OUTCOMES = ("accept", "review", "reject", "none", "not processed")
_LABELS = ("bundle", "version", "slot")
_DICE = (0.3, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_CONFIDENCE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_MOST_BUNDLES = 40
"""Bundles with figures of their own, in all slots; those that come later are "other". Each has some 40 series."""


class ResultFigures:
    """Counters and histograms since the node began. The registry of the process is not used: a test has several nodes."""

    def __init__(self) -> None:
        """No result yet."""
        self._known: set[tuple[str, str, str]] = set()
        outcomes = ("monai_unet_outcomes", "results by bundle and outcome", (*_LABELS, "outcome"))
        processor = ("monai_unet_processor_seconds", "processor time of segmenting", _LABELS)
        dice = ("monai_unet_predicted_dice", "mean predicted Dice of a result", _LABELS)
        confidence = ("monai_unet_confidence", "mean probability in the structures of a result", _LABELS)
        self._outcomes, self._processor = Counter(*outcomes, registry=None), Counter(*processor, registry=None)
        self._dice = Histogram(*dice, registry=None, buckets=_DICE)
        self._confidence = Histogram(*confidence, registry=None, buckets=_CONFIDENCE)

    def add(self, new: NewResult, job: Job, loaded: Mapping[str, str]) -> None:
        """Counts a result.

        Args:
            new: The result.
            job: It was made for it.
            loaded: "name" and "version" of the bundle of its rule, for a result that no bundle made.
        """
        model, slot = new.observed.get("model") or loaded, job.plans.get(new.rule, {}).get("slot", "champion")
        labels = (model.get("name", "none"), model.get("version", ""), slot)
        if labels not in self._known and len(self._known) >= _MOST_BUNDLES:
            labels = ("other", "", slot)
        self._known.add(labels)
        # Each series from 0 on: Prometheus sees no increase in one whose first value is 1
        for outcome in OUTCOMES:
            self._outcomes.labels(*labels, outcome)
        for metric in (self._dice, self._confidence):
            metric.labels(*labels)
        is_made = new.folder and new.state != "not processed"
        self._outcomes.labels(*labels, (new.verdict or "none") if is_made else "not processed").inc()
        numbers = new.observed.get("numbers", {})
        for histogram, name in ((self._dice, PREDICTED), (self._confidence, CONFIDENCE)):
            if values := [value for key, value in numbers.items() if key.endswith(name)]:
                histogram.labels(*labels).observe(fmean(values))
        self._processor.labels(*labels).inc(new.observed.get("processor_s", 0.0))

    def collect(self) -> "Iterator[Metric]":
        """For Prometheus' client."""
        for metric in (self._outcomes, self._processor, self._dice, self._confidence):
            yield from metric.collect()
