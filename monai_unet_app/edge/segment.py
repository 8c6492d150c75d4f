"""Labels of an image, by the network that lies beside this file. Needs numpy, scipy and onnxruntime, nothing else.

The command line also needs nibabel to read and write NIfTI, or Pillow for pictures. settings.json holds the numbers, README.md
says what the result is and is not.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
Settings = dict[str, Any]
HERE = Path(__file__).resolve().parent
FORMS = ("region", "classwise", "temperature", "none")
UNMOVED = 1e-3  # mm, voxels: a grid that would move less stays, as in MONAI


def segment(
    array: Array, affine: Array | None = None, *, folder: Path = HERE, precision: str = "float32"
) -> NDArray[np.uint8]:
    """The labels of an image on its own grid.

    Args:
        array: Shape (I, J, K), or (I, J, K, C) with channels; of a picture (I, J) or (I, J, C), with I along its width.
        affine: Shape (4, 4): index to millimetres in RAS, as nibabel gives it. None for a picture.
        folder: Holds settings.json and the networks.
        precision: "float32", or "int8" where the folder has network_int8.onnx.

    Returns:
        Shape (I, J, K) or (I, J): label values. Of labels that may overlap (S, I, J, K) or (S, I, J): 0 or 1 for each.

    Raises:
        ValueError: The network was not made for such an image.
    """
    result = probabilities(array, affine, folder=folder, precision=precision)
    settings, _ = _loaded(folder, precision)
    if settings["outputs"] == "exclusive":
        labels = result.argmax(0).astype(np.uint8)
    else:
        labels = (result >= _columns(settings["thresholds"], result)).astype(np.uint8)
    return _tidied(labels, settings, 1.0 if affine is None else abs(np.linalg.det(affine[:3, :3])))


def probabilities(
    array: Array, affine: Array | None = None, *, folder: Path = HERE, precision: str = "float32"
) -> NDArray[np.float32]:
    """Shape (C, I, J, K) or (C, I, J): calibrated probabilities, background first where labels exclude each other.

    Arguments and errors are those of `segment`.
    """
    settings, run = _loaded(folder, precision)
    axes, channels = 2 if settings["input"]["planar"] else 3, settings["input"]["channels"]
    image = np.moveaxis(array.reshape(*array.shape[:axes], -1), -1, 0).astype(np.float32)
    if array.ndim not in (axes, axes + 1) or len(image) != channels or (affine is None) != (axes == 2):
        raise ValueError(
            f"the array has shape {array.shape}; {axes} axes with {channels} channel(s), and an affine for 3 axes, are needed"
        )
    place = np.eye(4) if affine is None else np.asarray(affine, np.float64)
    _check(image, place, settings["input"])
    ways_back: list[Callable[[Array], Array]] = []
    for step in settings["preprocessing"]:
        if step["step"] in _MOVES:
            image, place, back = _MOVES[step["step"]](image, place, step)
            ways_back.append(back)
        else:
            image = _scaled(image, step)
    result = calibrated(_logits(image, settings["window"], run), settings)
    for back in reversed(ways_back):
        result = back(result)
    return result


@lru_cache(maxsize=4)
def _loaded(folder: Path, precision: str) -> tuple[Settings, Callable[[Array], Array]]:
    """The settings, and what gives logits (C, *window) of a window (C_in, *window)."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else ONNX Runtime tells its makers of each import
    import onnxruntime

    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    if precision not in settings["networks"]:
        raise ValueError(f"there is no network in {precision}; one of {', '.join(settings['networks'])} is needed")
    options, axis = onnxruntime.SessionOptions(), settings["window"]["slice_axis"]
    options.log_severity_level = 3  # errors
    file = folder / settings["networks"][precision]["file"]
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(window: Array) -> Array:
        seen = window if axis is None else window.squeeze(axis + 1)
        logits: Array = session.run(None, {name: np.ascontiguousarray(seen[None])})[0][0]
        return logits if axis is None else np.expand_dims(logits, axis + 1)

    return settings, run


def _check(image: Array, affine: Array, rules: Settings) -> None:
    """Raises ValueError if the image is not one that the network was made for."""
    flat = [channel.max() == channel.min() for channel in image]
    names = rules["channel_names"] or range(1, len(image) + 1)
    odd = [name for name, same in zip(names, flat, strict=True) if same and name not in rules["constant_channels"]]
    if not np.isfinite(image).all() or all(flat):
        raise ValueError("the image is constant or has values that are no numbers; an image is needed")
    if odd and not rules["planar"]:
        raise ValueError(f"every voxel of channel {odd[0]} is the same; an image is needed")
    size = np.array(image.shape[1:], float)
    if not rules["planar"]:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        turned = affine[:3, :3] / spacing
        if np.abs(turned.T @ turned - np.eye(3)).max() > UNMOVED:
            raise ValueError(
                "the axes of the image are not at right angles; a right-angled grid is needed; resample it"
            )
        least, most = rules["spacing_mm"] or (0, np.inf)
        if not all(least <= step <= most for step in spacing):
            raise ValueError(f"voxels of {spacing.round(2)} mm are given; {least:g} to {most:g} mm are needed")
        size = (size * spacing)[np.argsort(_orientation(affine)[0])]
    low, high = rules["extent_mm"] or (size, size)
    if (size < low).any() or (size > high).any():
        raise ValueError(
            f"a field of view of {size.round(1)} is given; {low} to {high} is needed (mm; pictures: pixels)"
        )


def _orientation(affine: Array) -> tuple[Array, Array]:
    """For each array axis the patient axis that it is nearest to, and whether it rises along it (1) or falls (-1)."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(columns)
    nearest, axes, signs = left @ right, np.zeros(3, int), np.ones(3, int)
    for column in range(3):
        axes[column] = np.abs(nearest[:, column]).argmax()
        signs[column] = 1 if nearest[axes[column], column] > 0 else -1
        nearest[axes[column]] = 0  # an axis is taken once
    return axes, signs


def _to_ras(image: Array, affine: Array, step: Settings) -> tuple[Array, Array, Callable[[Array], Array]]:
    """As MONAI's Orientation to RAS: the image (C, I, J, K) with axes swapped and reversed, its affine, and the way back."""
    axes, signs = _orientation(affine)
    order = np.argsort(axes)
    turned = tuple(1 + axis for axis in range(3) if signs[axis] < 0)
    swaps, moved = np.array([0, *(order + 1)]), affine.copy()
    ends = np.where(signs < 0, np.array(image.shape[1:]) - 1, 0)
    moved[:3, 3] = affine[:3, :3] @ ends + affine[:3, 3]
    moved[:3, :3] = (affine[:3, :3] * signs)[:, order]
    image = np.flip(image, turned).transpose(swaps)
    return image, moved, lambda values: np.flip(values.transpose(np.argsort(swaps)), turned)


def _to_spacing(image: Array, affine: Array, step: Settings) -> tuple[Array, Array, Callable[[Array], Array]]:
    """As MONAI's Spacing, linear: the image on a grid of another spacing, its affine, and the way back."""
    before, shape, axes = np.linalg.norm(affine[:3, :3], axis=0), image.shape[1:], affine[:3, :3]
    wanted = np.resize(step["pixdim"], 3)
    spacing = np.where(np.abs(before - wanted) <= UNMOVED, before, wanted)
    stretch, moved = np.linalg.cholesky(axes.T @ axes).T, np.eye(4)
    moved[:3, :3] = axes @ np.linalg.inv(stretch) @ np.diag(spacing)
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))]).T
    ends = (np.linalg.solve(moved, affine) @ corners)[:3]
    size = tuple(np.round(np.ptp(ends, axis=1) + 1).astype(int))
    # The grids share a corner, or their middle where rounding leaves the axes not quite at right angles
    first = [n for n in range(8) if np.allclose((ends - ends[:, [n]]).min(1), 0, rtol=UNMOVED)][:1]
    middle = affine[:3, 3] + axes @ (np.array(shape) / 2) - moved[:3, :3] @ (np.array(size) / 2)
    moved[:3, 3] = (affine @ corners)[:3, first[0]] if first else middle
    forth = np.linalg.solve(affine, moved)
    if size == shape and any(np.allclose(a, b, atol=UNMOVED) for a, b in ((affine, moved), (forth, np.eye(4)))):
        return image, moved, lambda values: values
    return _resampled(image, forth, size), moved, lambda values: _resampled(values, np.linalg.inv(forth), shape)


def _resampled(values: Array, matrix: Array, shape: tuple[int, ...]) -> Array:
    """Values (C, *shape) by linear interpolation; `matrix` (4, 4) leads from their index to that of `values`."""
    turn, start, usual = matrix[:3, :3], matrix[:3, 3], {"order": 1, "mode": "nearest"}
    parts = [ndimage.affine_transform(one.astype(np.float64), turn, start, shape, **usual) for one in values]
    return np.stack(parts).astype(np.float32)


_MOVES = {"Orientationd": _to_ras, "Spacingd": _to_spacing}


def _scaled(image: Array, step: Settings) -> Array:
    """The image (C, *spatial) after a step that changes intensities, by channel or as a whole."""
    over = tuple(range(1, image.ndim)) if step.get("channel_wise") else None
    if step["step"] == "NormalizeIntensityd":
        mean, deviation = (_columns(step[name], image) for name in ("subtrahend", "divisor"))
        mean = image.mean(over, np.float64, keepdims=True) if mean is None else mean
        deviation = image.std(over, np.float64, keepdims=True) if deviation is None else deviation
        normal: Array = (image - mean) / np.where(deviation == 0, 1, deviation)
        return normal.astype(np.float32)
    ends: Any = (step.get("a_min"), step.get("a_max"))
    low, high = np.percentile(image, (step["lower"], step["upper"]), over, keepdims=True) if "lower" in step else ends
    least, most = step["b_min"], step["b_max"]
    scaled: Array = (image - low) / np.where(high == low, 1, high - low) * (most - least) + least
    return (scaled.clip(least, most) if step["clip"] else scaled).astype(np.float32)


def _columns(numbers: Any, like: Array) -> Any:
    """A number, or one for each channel, so that it can be combined with (C, *spatial)."""
    return np.asarray(numbers, np.float32).reshape(-1, *[1] * (like.ndim - 1)) if isinstance(numbers, list) else numbers


def _logits(image: Array, window: Settings, run: Callable[[Array], Array]) -> Array:
    """Logits (C, *spatial) of an image (C_in, *spatial): the weighted mean over windows that overlap."""
    shape, size = image.shape[1:], window["window"]
    over = [(max(w - n, 0) // 2, max(w - n, 0) - max(w - n, 0) // 2) for n, w in zip(shape, size, strict=True)]
    padded = np.pad(image, [(0, 0), *over], constant_values=window["padding_value"])
    weights = _weights(size, window)
    sums: Any = None
    for place in _places(padded.shape[1:], size, window["overlap"]):
        logits = run(padded[(slice(None), *place)])
        sums = np.zeros((len(logits) + 1, *padded.shape[1:]), np.float32) if sums is None else sums
        sums[(slice(-1), *place)] += logits * weights
        sums[(-1, *place)] += weights
    inside = [slice(before, before + n) for (before, _), n in zip(over, shape, strict=True)]
    means: Array = sums[:-1] / sums[-1]
    return means[(slice(None), *inside)]


def _places(shape: tuple[int, ...], size: list[int], overlap: float) -> Iterator[tuple[slice, ...]]:
    """Where windows stand: as far apart as the overlap says, the last of each axis at its end."""
    starts = []
    for n, w in zip(shape, size, strict=True):
        step = w if n == w else max(1, int(w * (1 - overlap)))
        starts.append([min(at, n - w) for at in range(0, n - w + step, step)])
    for place in product(*starts):
        yield tuple(slice(at, at + w) for at, w in zip(place, size, strict=True))


def _weights(size: list[int], window: Settings) -> Array:
    """Shape of a window: its weights in the mean, as MONAI's; all 1 for the mode "constant"."""
    if window["mode"] == "constant":
        return np.ones(size, np.float32)
    lines = [np.exp(-((np.arange(n) - (n - 1) / 2) ** 2) / (2 * (window["sigma_scale"] * n) ** 2)) for n in size]
    return np.asarray(np.maximum(reduce(np.multiply.outer, lines), 1e-3), np.float32)


def calibrated(logits: Array, settings: Settings) -> Array:
    """Calibrated probabilities (C, *spatial) of logits (C, *spatial), on the grid of the network."""
    form, numbers = settings["calibration"]["form"], settings["calibration"]["numbers"]
    exclusive = settings["outputs"] == "exclusive"
    if form == "region":
        plain = _by_voxel(logits, exclusive)
        width = (0, *[2 * numbers["reach"] + 1] * (logits.ndim - 1))
        inside = ndimage.uniform_filter(np.ones_like(plain), width, mode="constant")
        near = ndimage.uniform_filter(plain, width, mode="constant") / inside
        mixture = 1 - (near**2).sum(0, keepdims=True) if exclusive else 2 * near * (1 - near)
        logits = logits * np.exp(-(numbers["far"] + numbers["near"] * mixture))
    elif form == "classwise":
        scale = np.exp(-np.array([numbers[f"class_{n}"] for n in range(len(logits))]))
        logits = logits * (scale[logits.argmax(0)] if exclusive else _columns(list(scale), logits))
    elif form == "temperature":
        logits = logits * np.exp(-numbers["log_temperature"])
    return _by_voxel(logits, exclusive)


def _by_voxel(logits: Array, exclusive: bool) -> Array:
    """Softmax over the classes, or the sigmoid of each label."""
    odds = np.exp(logits - logits.max(0) if exclusive else -np.logaddexp(0, -logits))
    return odds / odds.sum(0) if exclusive else odds


def _tidied(labels: Array, settings: Settings, voxel_mm3: float) -> NDArray[np.uint8]:
    """Labels that exclude each other after "largest" (one piece of each structure) and "islands" (no small pieces)."""
    for step in settings["tidy"]:
        if step["step"] == "islands":
            pieces, _ = ndimage.label(labels)
            small = np.bincount(pieces.ravel()) <= np.ceil(step["min_size"] / voxel_mm3)  # <=: as scikit-image 0.26
            labels[small[pieces]] = 0  # the background may be small, too: it stays 0
        for number in step.get("structures", ()):
            pieces, _ = ndimage.label(labels == number, np.ones([3] * labels.ndim))
            sizes = np.bincount(pieces.ravel(), minlength=2)[1:]
            labels[(pieces > 0) & (pieces != len(sizes) - sizes[::-1].argmax())] = 0
    return labels


def main() -> None:
    """Segments a file, and writes its labels: NIfTI of a volume, PNG of a picture."""
    parser = argparse.ArgumentParser(description="Write the labels of an image.")
    parser.add_argument("image", type=Path, help="NIfTI; of a network for pictures a picture")
    parser.add_argument("labels", type=Path, help="the new file: .nii.gz, of a picture .png")
    parser.add_argument("--precision", default="float32", help="float32 or int8")
    parser.add_argument("--repeat", type=int, default=1, help="segment so often, and print the seconds of each")
    given = parser.parse_args()
    is_picture = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))["input"]["planar"]
    if is_picture:
        from PIL import Image, ImageOps

        picture = Image.open(given.image)
        if picture.mode not in ("L", "RGB") or str(picture.tile[0][3]).endswith(";16B"):
            raise SystemExit(f"{given.image.name} is not a grey or RGB picture of 8 bits; save it so, or use predict")
        array, affine = np.asarray(ImageOps.exif_transpose(picture)).swapaxes(0, 1), None
    else:
        import nibabel

        file: Any = nibabel.load(given.image)
        if not (int(file.header["sform_code"]) or int(file.header["qform_code"])):
            raise SystemExit(
                f"{given.image.name} has neither sform nor qform, so left and right are unknown; set one if you know it"
            )
        forms = [np.linalg.det(form[:3, :3]) for form in (file.header.get_sform(), file.header.get_qform())]
        if int(file.header["sform_code"]) and int(file.header["qform_code"]) and forms[0] * forms[1] < 0:
            raise SystemExit(f"{given.image.name} has a sform and a qform that are mirror images; export it again")
        if file.header.get_xyzt_units()[0] not in ("mm", "unknown"):
            raise SystemExit(f"{given.image.name} is in {file.header.get_xyzt_units()[0]}s; save it in mm")
        array, affine = np.asarray(file.dataobj), file.affine
    for _ in range(given.repeat):
        began = time.perf_counter()
        labels = segment(array, affine, precision=given.precision)
        sys.stdout.write(f"{time.perf_counter() - began:.2f} s\n")
    if is_picture:
        if labels.ndim == 3 and len(labels) > 1:
            raise SystemExit("several labels that may overlap do not fit into one picture; call segment() from Python")
        flat = labels if labels.ndim == 2 else labels[0] * 255
        Image.fromarray(flat.swapaxes(0, 1)).save(given.labels)
    else:
        stored = labels if labels.ndim == 3 else np.moveaxis(labels, 0, -1)  # channels last
        nibabel.save(nibabel.Nifti1Image(stored, affine), given.labels)


if __name__ == "__main__":
    main()
