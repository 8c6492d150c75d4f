"""The bridge to MONAI: a `Volume` as the MetaTensor that `LoadImaged` would give, and a reader for `LoadImaged`.

    LoadImaged(keys="image", reader=VolumeReader())          # in any bundle, for NIfTI, DICOM and pictures

MONAI's own DICOM readers are silently wrong on gaps, tilt, mixed series and multi-frame objects; this reader refuses them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from numpy.typing import NDArray

from dicom_io.volume import Volume
from monai_unet_app.data.case_files import Row, case_of_row
from monai_unet_app.data.labels import FileValues, read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.rules import InputRules, check_channel_names, check_rules


def array_and_meta(volume: Volume) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """The array and the metadata that a MONAI `ImageReader` returns.

    The affine of a DICOM series is rounded to float32, the precision of NIfTI, so that a case gives the same tensors as
    DICOM and as the NIfTI made from it.

    Returns:
        float32, shape (I, J, K) or (I, J, K, C); planar (I, J) or (I, J, C). The affine in the metadata is in RAS mm.
    """
    array = np.asarray(volume.array, dtype=np.float32)
    meta: dict[str, Any] = {
        MetaKeys.SPATIAL_SHAPE: np.asarray(volume.shape[:2] if volume.planar else volume.shape),
        # NaN is MONAI's sign for an array without a channel axis
        MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if volume.array.ndim == 4 else float("nan"),
    }
    if volume.planar:
        # MONAI takes a picture as two spatial axes, and it has no position in the patient
        return array[:, :, 0], meta
    affine = volume.affine_ras
    if volume.provenance.kind == "dicom":
        affine = affine.astype(np.float32).astype(np.float64)
    meta |= {MetaKeys.AFFINE: affine, MetaKeys.ORIGINAL_AFFINE: affine.copy(), MetaKeys.SPACE: SpaceKeys.RAS}
    return array, meta


def to_metatensor(volume: Volume, *, copied: bool = True) -> MetaTensor:
    """The tensor that `LoadImaged` gives for this volume; shapes as in `array_and_meta`, affine in RAS mm.

    Args:
        volume: The image.
        copied: False for a tensor that may share the memory of the volume, and may have another order of axes in memory. Its
            values are equal; what is computed by sums may then differ by rounding.
    """
    array, meta = array_and_meta(volume)
    files = volume.provenance.files
    meta["filename_or_obj"] = str(files[0]) if files else ""
    if copied or min(array.strides) < 0 or not array.flags.writeable:
        array = np.ascontiguousarray(array)
    tensor: MetaTensor = MetaTensor.ensure_torch_and_prune_meta(torch.from_numpy(array), meta)
    return tensor


class VolumeReader(ImageReader):
    """Reads through `read_volume`; usable as `LoadImaged(reader=...)`.

    When `read` raises, `LoadImage` tries MONAI's other readers, and a refused image would be read wrongly. So `read` returns
    the error, and `get_data` raises it.

    Args:
        cases: Dicts with "image" and "label". A label that is a DICOM object (SEG, RTSTRUCT) is read on the grid of its
            image; every other label must have the grid of its image.
        rules: The bundle's `input_rules`; images that break them are refused.
        values: The bundle's `label_values`.
        ignored: The bundle's `ignore_label`.
        label_values: Of some cases, by their ids, as of `CaseFiles`.
    """

    def __init__(
        self,
        cases: Mapping[str, Sequence[Row]] | Sequence[Row] | None = None,
        rules: Mapping[str, Any] | None = None,
        values: object = None,
        ignored: int | None = None,
        label_values: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        rows = [row for part in cases.values() for row in part] if isinstance(cases, Mapping) else cases or []
        self.rules = InputRules.parse(rules) if rules else None
        if self.rules:
            check_channel_names(((row.get("id", ""), row.get("channels", ())) for row in rows), self.rules)
        own = FileValues.parse(values, ignored)
        named = {name: {"label_values": told} for name, told in (label_values or {}).items()}
        labelled = [{**row, **named.get(row.get("id", ""), {})} for row in rows if "label" in row]
        self.of_label = {case_of_row(row).label_files: (row["image"], own.of_row(row)) for row in labelled}

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Volume | Exception:
        try:
            paths = ensure_tuple(data)
            files = tuple(map(Path, paths))
            if files in self.of_label:
                image, values = self.of_label[files]
                return read_labels(files, read_volume(image), values)
            volume = read_volume(files)
            if self.rules is not None:
                check_rules(volume, self.rules, files[0].name)
            return volume
        except Exception as error:  # after any error another reader would take over
            return error

    def get_data(self, img: Volume | Exception) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """The intensities, shape (I, J, K) or (I, J, K, C), and their metadata, as `array_and_meta`."""
        if isinstance(img, Exception):
            raise img
        return array_and_meta(img)
