"""nnU-Net's sliding window: the weights of a window, half-precision sums, and the mean over networks."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import Transform
from scipy.ndimage import gaussian_filter
from torch import Tensor

_SIGMA = 1 / 8  # of the window
_LARGEST = 10  # weight, in the middle: what half precision needs so that no weight becomes 0 too early


def window_weights(window: Sequence[int]) -> Tensor:
    """Shape (*window), float16, more than 0: a Gaussian around the middle; axes of one voxel have no part in it."""
    sides = [n for n in window if n > 1]
    weights = np.zeros(sides)
    weights[tuple(n // 2 for n in sides)] = 1
    weights = gaussian_filter(weights, [n * _SIGMA for n in sides], 0, mode="constant", cval=0)
    weights /= weights.max() / _LARGEST
    half = torch.from_numpy(weights).to(torch.float16)
    half[half == 0] = half[half > 0].min()
    return half.reshape(tuple(window))


def mean_of_networks(logits: Tensor, networks: int) -> Tensor:
    """The mean over networks, in half precision one after the other; (N * C, *spatial) to (C, *spatial), both float16."""
    if networks == 1:
        return logits
    first, *others = logits.chunk(networks)
    total = first.clone()
    for one in others:
        total += one
    total /= networks
    return total


class MeanOfNetworks(Transform):
    """The mean of the answers of several networks, for MONAI's ensembles.

    Args:
        keys: The answers, each (C, *spatial).
        output_key: The mean, float32 holding half-precision values.
    """

    def __init__(self, keys: Sequence[str], output_key: str) -> None:
        self.keys, self.output_key = keys, output_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the mean."""
        answers = torch.cat([torch.as_tensor(data[key]).as_subclass(Tensor) for key in self.keys]).half()
        return {**data, self.output_key: mean_of_networks(answers, len(self.keys)).float()}


class WindowInferer(SlidingWindowInferer):
    """nnU-Net's sliding window for MONAI's evaluators.

    Args:
        roi_size: Of a window, in voxels, an entry for each axis of the network.
        overlap: Part of a window that its neighbour covers at least; nnU-Net's `tile_step_size` is the rest.
        spatial_dim: Spatial axis along which a 2D network takes one slice at a time; None for a network with all axes.
    """

    def __init__(self, roi_size: Sequence[int], overlap: float = 0.5, spatial_dim: int | None = None) -> None:
        super().__init__(roi_size, 1, overlap, "gaussian", _SIGMA, "constant", 0.0)
        self.spatial_dim, self._share = spatial_dim, overlap

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, C, *spatial), float32 holding half-precision values, of images (B, C_in, *spatial)."""
        from monai_unet_app.inference.engines import answer_of
        from monai_unet_app.inference.predict import predict_rows
        from monai_unet_app.inference.windows import WindowSettings

        window = list(self.roi_size) if not isinstance(self.roi_size, int) else [self.roi_size]
        if self.spatial_dim is not None:
            window.insert(self.spatial_dim, 1)
        settings = WindowSettings(tuple(window), self._share, 1, "gaussian", _SIGMA, "constant", 0.0, of_nnunet=True)

        def engine(windows: Tensor) -> Any:
            return answer_of(lambda one: (network(one, *args, **kwargs), None), windows, self.spatial_dim)

        engine.device = inputs.device  # type: ignore[attr-defined]
        whole = [torch.cat([rows for _, rows in predict_rows(image, engine, settings)], 1) for image in inputs]  # type: ignore[arg-type]
        return torch.stack(whole)
