"""What a network costs: its size, its time on this machine, and what its windows cost in exactness."""

import math
from statistics import median
from typing import Any

from monai_unet_app.bundle import Bundle
from monai_unet_app.inference.seam_difference import SeamDifference, seam_difference
from monai_unet_app.pipeline import Case


class InferenceCost:
    """Collects times and seams of the cases of an evaluation.

    Attributes:
        seconds: Case id -> duration of its segmentation.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._per_litre: list[float] = []
        self._seams: SeamDifference | None = SeamDifference()

    def add(self, case_id: str, case: Case) -> None:
        """Adds a case whose logits were kept.

        The seams of averages over mirror images are not measured: a single window is no such average.
        """
        seconds, bundle = sum(case.seconds.values()), case.bundle
        self.seconds[case_id] = seconds
        if not case.image.planar:
            self._per_litre.append(seconds / (math.prod(case.image.shape) * case.image.voxel_ml / 1000))
        if case.settings.tta or case.logits is None:
            self._seams = None
        elif self._seams is not None:
            rows, image = case.logits.rows, case.logits.item["image"].as_tensor()
            engine = bundle.engine(case.settings)
            self._seams += seam_difference(rows, image, engine, bundle.windows, bundle.outputs)

    def document(self, bundle: Bundle) -> dict[str, Any]:
        """The entry `inference` of metrics.json, for at least one case.

        Args:
            bundle: With a network that answered.
        """
        seams = self._seams
        return {
            "parameters": sum(values.numel() for values in bundle.network.parameters()),
            "weights_mb": round(bundle.weights.stat().st_size / 1e6, 2),
            "device": bundle.device.type,
            "seconds_per_image": round(median(self.seconds.values()), 3),
            "seconds_per_litre": round(median(self._per_litre), 3) if self._per_litre else None,
            "seam_difference": seams
            and {
                "mean": None if seams.mean is None else round(seams.mean, 5),
                "voxels": seams.voxels,
                "places": seams.places,
            },
        }
