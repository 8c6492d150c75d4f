"""The accumulation: window results, weighted, into one image."""

from __future__ import annotations

import torch
from monai.data.utils import compute_importance_map

from monai_unet_app.inference.windows import Slices, WindowPlan


class Blend:
    """Weighted mean of overlapping window results, as MONAI's SlidingWindowInferer computes it.

    Args:
        plan: Where the windows stand.
        mode: "gaussian" or "constant" weights within a window.
        sigma_scale: Width of the Gaussian as a share of the window.
        device: Where the sums are kept.
    """

    def __init__(self, plan: WindowPlan, mode: str, sigma_scale: float, device: torch.device) -> None:
        self.plan = plan
        self.weight = compute_importance_map(
            plan.window, mode=mode, sigma_scale=sigma_scale, device=device, dtype=torch.float32
        )
        self.total: torch.Tensor | None = None
        self.weights = torch.zeros(plan.padded_shape, device=device)

    def add(self, places: tuple[Slices, ...], results: torch.Tensor) -> None:
        """Adds `results`, shape (len(places), C, *window), at their places."""
        if self.total is None:
            self.total = torch.zeros((results.shape[1], *self.plan.padded_shape), device=self.weights.device)
        weighted = results * self.weight
        for place, result in zip(places, weighted, strict=True):
            self.total[(slice(None), *place)] += result
            self.weights[place] += self.weight

    def result(self) -> torch.Tensor:
        """Shape (C, *image shape): the blended values, without the padding."""
        if self.total is None:
            raise ValueError("no window was added; at least one is needed")
        return (self.total / self.weights)[(slice(None), *self.plan.inside)]
