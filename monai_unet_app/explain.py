"""Explanations: the parts of the image on which the network's answer depends, as numbers and a picture, by occlusion.

A segmentation network answers at every voxel, but occlusion explains a single number. For each structure this number is
the mean log-odds, log p / (1 - p), over the voxels of the structure in the window of the sliding window that holds most of
them. The calibration, which rescales log-odds, is left out.
"""

import io
import textwrap
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.transforms import Invertd
from monai.visualize import OcclusionSensitivity
from numpy.typing import NDArray
from PIL import Image

from dicom_io.boxes import Box
from dicom_io.segmentation import Segmentation, Structure
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.gathering import on_grid, on_volume
from monai_unet_app.inference.predict import Progress, padded, predict_rows
from monai_unet_app.inference.spool import IN_MEMORY_BYTES
from monai_unet_app.inference.way_back import WayBack, way_back
from monai_unet_app.inference.windows import Slices, WindowPlan, plan_windows, shape_of, whole_box, within
from monai_unet_app.metrics.boxes import Region, bounding_box, regions_of
from monai_unet_app.pipeline import Case, preprocess
from monai_unet_app.report.case_pictures import case_figure, png
from monai_unet_app.report.evaluation_report import CasePicture

PARTS = 8
"""Number of masks, side by side, into which an axis of the window is divided for occlusion."""

SHOWN = "how much the answer falls when this place is hidden"
UNIT = "fall of the mean log-odds; below 0 it rises"
"""The meaning of the colours, and of the numbers of a map."""

_LEAST_COVERED = 0.49  # part of a source voxel in the window: half, less rounding, to keep a slice midway between two


@dataclass(frozen=True)
class Explanation:
    """The parts of an image that the answers for one case depend on.

    Attributes:
        maps: For each structure of the bundle in its order, where it was explained; None for a structure that was not found.
        answers: The number that was explained for each structure, its mean log-odds; None for a structure that was not found.
        slice_axis: For a 2D network on a volume, the axis of the source across which the explained slice lies; else None.
    """

    maps: "tuple[StructureMap | None, ...]"
    answers: tuple[float | None, ...]
    slice_axis: int | None = None

    def on_grid(self, structure: int, shape: tuple[int, int, int]) -> NDArray[np.float32]:
        """Shape (I, J, K): the map of a structure, counted from 0, on the whole source grid; NaN where it has no value."""
        whole, own = np.full(shape, np.nan, np.float32), self.maps[structure]
        if own is not None:
            whole[own.box] = own.values
        return whole


@dataclass(frozen=True)
class StructureMap:
    """What the answer for one structure depends on, in the box of the source grid that holds the window that was explained.

    Attributes:
        box: On the source grid, along I, J, K.
        values: Shape (*box), float32, NaN outside the window; as `UNIT` says.
    """

    box: Box
    values: NDArray[np.float32]


class StructureAnswers(torch.nn.Module):
    """A bundle's network with one answer for each structure, like a classifier, for MONAI's tool.

    Args:
        bundle: The bundle.
        regions: Shape (S, *window), boolean, none of them empty: the voxels over which each answer is averaged.
        structures: Indices of these S structures in the bundle, from 0.
        step: Called with the number of windows after each pass through the network.
    """

    def __init__(
        self, bundle: Bundle, regions: torch.Tensor, structures: Sequence[int], step: Callable[[int], None]
    ) -> None:
        super().__init__()
        self.network = bundle.network
        self.regions = regions.flatten(1).to(bundle.device)
        self.outputs, self.structures = bundle.outputs, structures
        self.step = step
        self.eval()

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Shape (B, C_in, *window) to mean log-odds, shape (B, S)."""
        logits = self.network(windows).flatten(2)
        self.step(len(windows))
        pairs = zip(self.regions, self.structures, strict=True)
        return torch.stack([self.outputs.log_odds(logits[:, :, region], n).mean(1) for region, n in pairs], 1)


def explain_case(case: Case, progress: Progress | None = None) -> Explanation:
    """The parts of the image that the answers for a segmented case depend on.

    The image passes through the network once more, which gives the regions of the structures on the working grid. Then parts of
    a window, an eighth of each axis long, are replaced one by one by the window's mean.

    Args:
        case: As `segment_case` gives it.
        progress: Called with (windows done, windows in all).

    Source: Zeiler and Fergus 2014, arXiv:1311.2901, as in monai.visualize.
    """
    bundle = case.bundle
    # The structures on the grid of the network, a window for each, the map of each window, each map on the source grid
    image, settings, across = preprocess(case.image, bundle)["image"], bundle.windows, bundle.slice_axis
    plan = settings.plan(tuple(image.shape[1:]))
    regions = _regions(image, case, plan)
    padded_image = padded(image.as_tensor(), plan, settings)
    shared = _windows(regions, plan, across)
    step = _counter(len(shared) * (1 + plan_windows(plan.window, _mask_size(plan.window), 0.0).count), progress)
    slice_axis, reach = _slab(image, case.image, across)
    way = way_back(image)
    maps: list[StructureMap | None] = [None] * len(regions)
    answers: list[float | None] = [None] * len(regions)
    for place, structures in shared:
        window = _for_network(padded_image[(slice(None), *place)], across)[None].to(bundle.device)
        inside = torch.stack([torch.from_numpy(_mask(regions[n], place)) for n in structures])
        network = StructureAnswers(bundle, _for_network(inside, across), structures, step)
        with torch.no_grad():
            window_answers = network(window)[0]
        window_maps = _occlusion(network, window, window_answers, settings.batch).cpu()
        covered = within(_widened(place, across, reach), plan.inside)
        for n, answer, window_map in zip(structures, window_answers, window_maps, strict=True):
            answers[n] = float(answer)
            whole = window_map if across is None else window_map.unsqueeze(across)
            # The map of a slice is repeated across the slices that it covers
            filling = whole[within(plan.inside, place)].expand(shape_of(covered))
            maps[n] = _on_source(filling, covered, way, image, case)
    return Explanation(tuple(maps), tuple(answers), slice_axis)


def _regions(image: MetaTensor, case: Case, plan: WindowPlan) -> list[Region]:
    """The voxels of the structures that the network finds in a preprocessed image, on the padded working grid.

    A structure that the network does not find has no box.
    """
    # Post-processing may have removed a structure that the network found: it has no box either
    outputs, absent = case.bundle.outputs, [structure.voxels == 0 for structure in case.segmentation.structures]
    # Of a large image, sums of windows wait on disk
    settings = replace(
        case.bundle.windows,
        mirror_axes=case.bundle.mirror_axes if case.settings.tta else (),
        most_bytes=IN_MEMORY_BYTES,
    )
    rows = [
        outputs.labels(values).cpu().numpy().astype(outputs.label_type(len(absent)))
        for _, values in predict_rows(image, case.bundle.engine(case.settings), settings)
    ]
    around = [(side.start, size - side.stop) for side, size in zip(plan.inside, plan.padded_shape, strict=True)]
    labels = np.pad(np.concatenate(rows, axis=1), [(0, 0), *around])
    found = regions_of(labels, len(plan.inside), len(absent))
    return [region._replace(box=None) if out else region for out, region in zip(absent, found, strict=True)]


def _mask(region: Region, place: Slices) -> NDArray[np.bool_]:
    """Shape of a box of the padded grid, boolean: the voxels of a structure."""
    return np.asarray(region.labels[place] == region.value)


def _windows(regions: Sequence[Region], plan: WindowPlan, slice_axis: int | None) -> list[tuple[Slices, list[int]]]:
    """The windows that are explained, each with the indices of its structures; a structure without a voxel has no window."""
    shared: dict[tuple[int, ...], tuple[Slices, list[int]]] = {}
    for n, region in enumerate(regions):
        if region.box is not None:
            place = _best_window(_mask(region, region.box), region.box, plan, slice_axis)
            # Structures with the same window share its passes through the network
            shared.setdefault(tuple(side.start for side in place), (place, []))[1].append(n)
    return list(shared.values())


def _best_window(mask: NDArray[np.bool_], box: Slices, plan: WindowPlan, slice_axis: int | None) -> Slices:
    """The window that holds most of a region; of a 2D network, among the windows of the slice with the region's largest area.

    Ties are broken by the distance between the centres of window and region.

    Args:
        mask: The region in its box.
        box: Of the padded grid.
        plan: The windows.
        slice_axis: Of a 2D network on a volume.
    """
    areas = [_areas(mask, axis) for axis in range(mask.ndim)]
    centre = np.array([side.start + np.arange(len(n)) @ n / n.sum() for side, n in zip(box, areas, strict=True)])
    places = [window.place for window in plan.windows]
    if slice_axis is not None:
        largest = box[slice_axis].start + int(areas[slice_axis].argmax())
        places = [place for place in places if place[slice_axis].start == largest]

    def fit(place: Slices) -> tuple[int, float]:
        middle = np.array([(side.start + side.stop - 1) / 2 for side in place])
        return int(np.count_nonzero(mask[within(place, box)])), -float(np.linalg.norm(middle - centre))

    return max(places, key=fit)


def _areas(mask: NDArray[np.bool_], axis: int) -> NDArray[np.int_]:
    """Shape of this axis: the voxels of a mask in each slice across it."""
    return np.asarray(mask.sum(axis=tuple(other for other in range(mask.ndim) if other != axis)))


def _for_network(tensor: torch.Tensor, slice_axis: int | None) -> torch.Tensor:
    """A window, shape (C, *window), without the axis along which a 2D network takes slices."""
    return tensor if slice_axis is None else tensor.squeeze(1 + slice_axis)


def _counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """A function that adds a number of windows to those done and reports the progress."""
    done = 0

    def step(windows: int) -> None:
        nonlocal done
        done += windows
        if progress is not None:
            progress(done, total)

    return step


def _mask_size(window: Sequence[int]) -> tuple[int, ...]:
    return tuple(ceil(size / PARTS) for size in window)


def _occlusion(network: StructureAnswers, window: torch.Tensor, answers: torch.Tensor, batch: int) -> torch.Tensor:
    """Shape (S, *window): the answer minus the answer when this place is hidden."""
    tool = OcclusionSensitivity(
        network,
        mask_size=_mask_size(window.shape[2:]),
        n_batch=batch,
        verbose=False,
        mode="mean_img",
        overlap=0.0,
        activate=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # MONAI's own indexing
        hidden = torch.as_tensor(tool(window)[0])[0]
    return answers.view(-1, *[1] * (hidden.ndim - 1)) - hidden


def _slab(image: MetaTensor, volume: Volume, slice_axis: int | None) -> tuple[int | None, int]:
    """The source's axis across the slices of a 2D network, and on how many neighbours on each side the explained slice's map
    is repeated, so that a thicker slice of the source is covered by the map.
    """
    if slice_axis is None:
        return None, 0
    steps = np.abs((np.linalg.inv(np.asarray(image.affine)) @ volume.affine_ras)[slice_axis, :3])
    return int(steps.argmax()), max(0, ceil((float(steps.max()) - 1) / 2 - 1e-3))


def _widened(place: Slices, slice_axis: int | None, reach: int) -> Slices:
    """The place of a window with `reach` more slices on each side along the slice axis."""
    return tuple(
        slice(side.start - reach, side.stop + reach) if axis == slice_axis else side for axis, side in enumerate(place)
    )


def _on_source(
    values: torch.Tensor, covered: Slices, way: WayBack | None, image: MetaTensor, case: Case
) -> StructureMap | None:
    """The map of a window on the source; None where it covers no voxel of the source.

    Args:
        values: Shape (*covered), on the working grid.
        covered: The part of the working grid that the window covers.
        way: The way back in boxes; None: MONAI's on the whole image.
        image: The preprocessed image.
        case: Its bundle's preprocessing made the image of the source.
    """
    box = _touched(way, covered) if way else None
    if way and box is None:
        return None
    needed = way.needed(box) if way and box else whole_box(image.shape[1:])
    # A second image counts where the window was, because 0 is a value that a map may have
    both = torch.zeros(2, *shape_of(needed))
    to = within(covered, needed)
    both[0][to] = values[within(needed, covered)]
    both[1][to] = 1.0
    if way and box:
        moved = way(both, box)
    else:
        inverse = Invertd("pred", transform=case.bundle.preprocessing, orig_keys="image", nearest_interp=False)
        with_maps: dict[Hashable, MetaTensor] = {"image": image, "pred": MetaTensor(both)}
        moved = torch.as_tensor(inverse(with_maps)["pred"])
        box = whole_box(moved.shape[1:])
    found, part = on_volume(moved, case.image)
    tight = bounding_box(part >= _LEAST_COVERED, (0, 0, 0))
    if tight is None:
        return None
    # Resampling mixes the edge of a window with zeros around it; division by the equally resampled coverage undoes it
    found, part = found[tight], part[tight]
    found = np.where(part >= _LEAST_COVERED, found / np.maximum(part, _LEAST_COVERED), np.float32(np.nan))
    i, j, k = (
        slice(whole.start + own.start, whole.start + own.stop) for whole, own in zip(on_grid(box), tight, strict=True)
    )
    return StructureMap((i, j, k), found)


def _touched(way: WayBack, covered: Slices) -> Slices | None:
    """A box of the source grid outside of which nothing depends on a box of the working grid; None if nothing does."""
    whole = whole_box(way.source_shape)
    sides = []
    for axis, length in enumerate(way.source_shape):
        needed = [way.needed((*whole[:axis], slice(n, n + 1), *whole[axis + 1 :])) for n in range(length)]
        planes = [n for n, box in enumerate(needed) if min(shape_of(within(covered, box))) > 0]
        if not planes:
            return None
        sides.append(slice(planes[0], planes[-1] + 1))
    return tuple(sides)


_WIDTH_INCHES, _DPI, _OPACITY = 7.2, 130, 0.75  # the last of the strongest colour
_GROUND, _TEXT = "#101214", "#c6ccd4"


def explanation_png(segmentation: Segmentation, case_id: str, explanation: Explanation) -> bytes:
    """A PNG with the window of each structure in grey, its map in colour and its outline, each below a line of text."""
    strips = []
    rows = zip(segmentation.structures, explanation.answers, explanation.maps, strict=True)
    for structure, answer, own in rows:
        segment = structure.segment
        if answer is None or own is None:
            strips.append(_headline(f"{segment.label}: not found, so there is nothing to explain"))
            continue
        most = float(np.nanmax(np.abs(own.values)))
        scale = ScalarMappable(Normalize(-most, most), colormaps["coolwarm"])  # red above 0 and blue below
        text = f"{segment.label}: {SHOWN}"
        if most == 0:
            strips.append(_headline(f"{text}: 0 everywhere"))
        else:
            strips.append(_headline(text, f"{UNIT} (the answer is {answer:.2f})", scale))
        strips.append(_planes(structure, case_id, own, scale, explanation.slice_axis))
    return _stacked(strips)


def _coloured(grey: NDArray[np.float32], values: NDArray[np.float32], scale: ScalarMappable) -> NDArray[np.float32]:
    """The colours of a map on a grey image.

    Args:
        grey: Any shape, 0 to 1.
        values: Same shape. The colour is stronger the larger the value; 0 and NaN leave the grey.
        scale: The colours.

    Returns:
        That shape and 3 channels, 0 to 1.
    """
    values = np.nan_to_num(values)
    opacity = _OPACITY * np.abs(values)[..., None] / (scale.norm.vmax or 1.0)
    colours = scale.to_rgba(values.reshape(-1, 1))[:, 0, :3].reshape(*values.shape, 3)
    return (grey[..., None] * (1 - opacity) + colours * opacity).astype(np.float32)


def _planes(
    structure: Structure, case_id: str, own: StructureMap, scale: ScalarMappable, slice_axis: int | None
) -> Figure:
    """The explained window in planes through the structure; of a 2D network the explained slice."""
    image, values, mask = structure.grid.array[own.box], own.values, structure.mask_in(own.box)
    if slice_axis is not None:
        areas = _areas(mask & ~np.isnan(values), slice_axis)
        index = int(areas.argmax()) if areas.any() else mask.shape[slice_axis] // 2
        cut = tuple(slice(index, index + 1) if axis == slice_axis else slice(None) for axis in range(3))
        image, values, mask = image[cut], values[cut], mask[cut]
    everywhere = np.ones_like(mask)  # a class without an outline that keeps the picture from being cropped
    outlines = np.stack([mask, everywhere])
    picture = CasePicture.of(case_id, "best", structure.grid, np.zeros_like(outlines), outlines)
    picture = replace(picture, image=_coloured(_grey(image), values, scale))
    if slice_axis is not None:
        picture = replace(picture, slices_along=slice_axis)
    return case_figure(picture, ("structure", "window"), (structure.segment.colour, _GROUND))


def _grey(image: NDArray[Any]) -> NDArray[np.float32]:
    """Shape (I, J, K), 0 to 1, percentile 1 to 99.5: the brightness of colours, else the first channel."""
    plain = image.astype(np.float32)
    if plain.ndim == 4:
        plain = plain @ np.array([0.299, 0.587, 0.114], np.float32) if plain.shape[-1] == 3 else plain[..., 0]  # BT.601
    # Percentiles, because single bright voxels would leave the rest dark
    low, high = np.percentile(plain, [1, 99.5])
    return np.asarray(np.clip((plain - low) / max(high - low, 1e-9), 0, 1), dtype=np.float32)


def _headline(text: str, unit: str = "", scale: ScalarMappable | None = None) -> Figure:
    """A strip with a line of text, and below it the scale of the colours if there is one."""
    lines = textwrap.wrap(text, 92)
    height = 0.25 + 0.2 * len(lines) + (0.6 if scale else 0)
    figure = Figure(figsize=(_WIDTH_INCHES, height), facecolor=_GROUND)
    figure.text(0.04, 1 - 0.12 / height, "\n".join(lines), color=_TEXT, fontsize=10, va="top", parse_math=False)
    if scale:
        axis = figure.add_axes((0.04, 0.5 / height, 0.6, 0.13 / height))
        figure.colorbar(scale, cax=axis, orientation="horizontal", format="{x:.2g}")
        axis.tick_params(colors=_TEXT, labelsize=8)
        axis.set_xlabel(unit, color=_TEXT, fontsize=8, loc="left")
    return figure


def _stacked(figures: Sequence[Figure]) -> bytes:
    """The figures below each other as one PNG."""
    images = [Image.open(io.BytesIO(png(figure, _DPI))).convert("RGB") for figure in figures]
    whole = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), _GROUND)
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    stream = io.BytesIO()
    whole.save(stream, "PNG")
    return stream.getvalue()
