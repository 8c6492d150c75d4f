"""The accumulation of window results, weighted, into one image.

This is the only place where the weight of a window is made. Its `mode` and `sigma_scale` are those of `inferer` in a bundle's
`inference.yaml`: `Bundle.windows` reads them into a `WindowSettings`, and `predict_logits` passes them on.
"""

import torch
from monai.data.utils import compute_importance_map

from monai_unet_app.inference.windows import Slices, WindowPlan


class Blend:
    """Weighted mean of overlapping window results, as MONAI's SlidingWindowInferer computes it.

    Args:
        plan: Positions of the windows.
        mode: "gaussian" or "constant" weights within a window.
        sigma_scale: Width of the Gaussian as a share of the window.
        device: Device of the sums.
    """

    def __init__(self, plan: WindowPlan, mode: str, sigma_scale: float, device: torch.device) -> None:
        self.plan = plan
        self.window_weight = compute_importance_map(
            plan.window, mode=mode, sigma_scale=sigma_scale, device=device, dtype=torch.float32
        )
        self.summed_weight = torch.zeros(plan.padded_shape, device=device)
        self.summed_results: torch.Tensor | None = None

    def add(self, windows: tuple[Slices, ...], results: torch.Tensor) -> None:
        """Adds `results`, shape (len(windows), C, *window), at the positions of their windows in the padded image."""
        if self.summed_results is None:
            shape = (results.shape[1], *self.plan.padded_shape)
            self.summed_results = torch.zeros(shape, device=self.summed_weight.device)
        weighted = results * self.window_weight
        for window, result in zip(windows, weighted, strict=True):
            self.summed_results[(slice(None), *window)] += result
            self.summed_weight[window] += self.window_weight

    def result(self) -> torch.Tensor:
        """Shape (C, *image shape): the weighted mean at each voxel, without the padding."""
        if self.summed_results is None:
            raise ValueError("no window was added; at least one is needed")
        # No weight is 0: the windows cover every voxel, and MONAI clamps the weights of a window to 0.001 or more
        return (self.summed_results / self.summed_weight)[(slice(None), *self.plan.inside)]
