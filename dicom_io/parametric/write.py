"""Values of every voxel (a probability, an uncertainty) to a DICOM Parametric Map.

The values are stored as 32-bit floats (PS3.3 A.75, Float Pixel Data), with an identity mapping to coded real world values. An
object holds a single quantity: dcmqi and OHIF read a map as one volume, and would show two quantities as one stack. So a result
with C channels becomes C objects in one series.
"""

from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io import proof
from dicom_io.errors import LabelError
from dicom_io.objects import identity, source_images
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.result_content import ResultContent
from dicom_io.objects.slice_positions import plane_of
from dicom_io.objects.source_images import SourceImages
from dicom_io.objects.stand_ins import refer, stand_in, thickness_mm
from dicom_io.parametric.meaning import NO_UNIT, UNCERTAINTY, MapMeaning
from dicom_io.parametric.proof import prove_map
from dicom_io.volume import Volume

_STAND_IN = "2.25.1"
"""Root of UIDs that stand in no file; `_name_sources` replaces them."""


@refusing_odd_headers
def write_parametric_map(values: Volume, source: Volume, path: Path, result: ResultInfo, meaning: MapMeaning) -> Path:
    """Write a value for each voxel as a Parametric Map that refers to the source series.

    Args:
        values: On the grid of `source`, shape (I, J, K) or (I, J, K, 1), finite; kept as float32.
        source: DICOM volume in patient space; its files are read again for their headers.
        path: Target file, replaced if it exists.
        result: What computed the values.
        meaning: The quantity, unit and label of the values.

    Returns:
        `path`. The same source, result and meaning give the same UIDs and bytes.

    Raises:
        LabelError: The values do not fit the source or are not finite, their meaning has no suitable code, or the source names
            no frame of reference.
        GeometryProofError: The written file does not hold the values; no file is left.
    """
    _check_meaning(meaning)
    values = _one_channel(values)
    if source.planar:
        raise LabelError(
            "the source is a picture without patient space; a series with positions is needed to place a map; "
            "write a capture instead"
        )
    images = source_images.images_of(source)
    source_images.check_place(values, images)
    dataset = _build(values, images, result, meaning)
    return proof.save_proved(dataset, path, lambda file: prove_map(file, values, images, meaning))


def write_result(content: ResultContent, path: Path) -> None:
    """Write the map of a result's uncertainty; see `write_parametric_map`."""
    write_parametric_map(
        content.known(content.uncertainty),
        content.source,
        path,
        content.info,
        MapMeaning(UNCERTAINTY, NO_UNIT, "entropy of the calibrated probabilities"),
    )


def _check_meaning(meaning: MapMeaning) -> None:
    unit, quantity, label = meaning.unit, meaning.quantity, meaning.label
    if unit.scheme_designator != "UCUM":
        raise LabelError(
            f"the unit {unit.value!r} is coded in {unit.scheme_designator!r}; UCUM is needed (PS3.16 CID 82); "
            "take one of pydicom's codes.UCUM, NoUnits for a bare number"
        )
    if quantity.scheme_designator.startswith("99"):
        raise LabelError(
            f"the quantity {quantity.meaning!r} has the private coding scheme {quantity.scheme_designator!r}; "
            "a published code is needed, for others to understand it; see PS3.16"
        )
    if not 0 < len(label) <= 64 or identity.plain(label) != label:
        raise LabelError(
            f"the label of the map is {label!r}; 1 to 64 ASCII characters without a backslash are needed; shorten it"
        )
    if meaning.number < 1:
        raise LabelError(f"the number of the map is {meaning.number}; 1 or more is needed; count from 1")


def _one_channel(values: Volume) -> Volume:
    array = values.array
    if array.ndim == 4 and array.shape[3] != 1:
        raise LabelError(
            f"the values have {array.shape[3]} channels; a parametric map holds one quantity; write one map for each"
        )
    # A value beyond float32 becomes infinite and is refused below; NumPy's warning would come on top.
    with np.errstate(over="ignore"):
        single = array.reshape(array.shape[:3]).astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(single)))
    if bad:
        raise LabelError(
            f"{bad} of {single.size} values are NaN, infinite or too large for float32; finite values are needed "
            "because readers do not agree on what NaN means; set them to a value outside of the range in use"
        )
    return values.with_array(single)


def _mapping(array: NDArray[np.float32], meaning: MapMeaning) -> hd.pm.RealWorldValueMapping:
    return hd.pm.RealWorldValueMapping(
        # SH: at most 16 characters (PS3.5 6.2).
        lut_label=meaning.label[:16].strip(),
        lut_explanation=meaning.label,
        unit=meaning.unit,
        value_range=(float(array.min()), float(array.max())),
        slope=1.0,
        intercept=0.0,
        quantity_definition=meaning.quantity,
    )


def _build(values: Volume, images: SourceImages, result: ResultInfo, meaning: MapMeaning) -> Dataset:
    source, headers, header = images.source, images.headers, images.headers[0]
    identity.check_has_frame(headers)
    content = (*meaning.content, identity.digest_of(values.array))
    dataset = hd.pm.ParametricMap(
        source_images=_stand_ins(images),
        pixel_array=_planes(values, images),
        instance_number=meaning.number,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(values.array, meaning)],
        voi_lut_transformations=[_window(values.array)],
        pixel_measures=_measures(images),
        content_label="MAP",
        # LO: at most 64 characters with what follows (PS3.5 6.2).
        content_description=f"{meaning.label[:44]}, research use only",
        content_qualification="RESEARCH",
        **identity.for_highdicom("PM", identity.object_uids(source, result, "PM", *content), header, result),
    )
    dataset.SeriesNumber = identity.series_number(header, "PM")  # the same after a correction
    _name_sources(dataset, images)
    identity.stamp(dataset, headers, result, "PM")
    if header.get("BodyPartExamined"):  # no Laterality beside the Frame Laterality (PS3.3 C.7.3.1)
        dataset.BodyPartExamined = header.BodyPartExamined
    dataset.ContentCreatorName = ""  # Type 2, left out by highdicom
    dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [source_images.frame_anatomy(header)]
    _sort_along_normal(dataset)
    if source.shape[2] == 1:  # highdicom then writes 1.0 for any argument
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        del measures.SpacingBetweenSlices
    # highdicom makes this UID at random; it must be the same for the same input.
    dimension_uid = identity.result_uid(source, result, "PM", "dimensions")
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimension_uid
    return dataset


def _stand_ins(images: SourceImages) -> list[Dataset]:
    """The slices as single-frame images without identity, which highdicom takes; each UID ends in the number of its slice."""
    bare = {str(header.SOPInstanceUID): header for header in identity.neutral(images.headers)}
    stand_ins = []
    for k, place in enumerate(images.slices):
        image = stand_in(
            bare[place.sop_instance_uid], place, thickness_mm(images.header(k), place.frame, images.source)
        )
        image.SOPInstanceUID = f"{_STAND_IN}.{k}"
        stand_ins.append(image)
    return stand_ins


def _name_sources(dataset: Dataset, images: SourceImages) -> None:
    """Replace the references to the stand-ins by references to the slices."""
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence") or []:
            for named in derivation.SourceImageSequence:
                k = int(str(named.ReferencedSOPInstanceUID).rpartition(".")[2])
                named.pop("ReferencedFrameNumber", None)
                named.update(images.reference(k))
    refer(dataset, images.source, images.headers, images.slices)


def _sort_along_normal(dataset: Dataset) -> None:
    """Put the frames in the order of their positions along row x column direction.

    highdicom sorts them downwards. dcmqi, and with it 3D Slicer, takes the first frame for the lowest without looking at its
    position, and would show the map upside down.
    """
    frames = list(dataset.PerFrameFunctionalGroupsSequence)
    across = plane_of(dataset, 1)
    normal = np.cross(across.column_step_mm, across.row_step_mm)
    positions = [plane_of(dataset, number).origin_mm @ normal for number in range(1, len(frames) + 1)]
    order = np.argsort(positions, kind="stable")
    pixels = np.frombuffer(dataset.FloatPixelData, dtype="<f4").reshape(len(frames), -1)
    dataset.FloatPixelData = pixels[order].tobytes()
    dataset.PerFrameFunctionalGroupsSequence = [frames[number] for number in order]
    for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        frame.FrameContentSequence[0].DimensionIndexValues = [number]


def _measures(images: SourceImages) -> hd.PixelMeasuresSequence:
    """Pixel size and slice thickness; the gap between slices only where it is the same everywhere."""
    (across, down), gap = images.pixel_size(0), images.source.spacing_mm[2]
    return hd.PixelMeasuresSequence(
        pixel_spacing=(down, across),
        slice_thickness=thickness_mm(images.header(0), images.slices[0].frame, images.source),
        spacing_between_slices=None if images.source.provenance.resampled else gap,
    )


def _planes(values: Volume, images: SourceImages) -> NDArray[np.float32]:
    """Shape (slices, rows, columns)."""
    return np.stack([images.values(k, values) for k in range(len(images.slices))])


def _window(array: NDArray[np.float32]) -> hd.VOILUTTransformation:
    """From the lowest to the highest value; LINEAR would need a width of 1 or more (PS3.3 C.11.2.1.2)."""
    low, high = float(array.min()), float(array.max())
    return hd.VOILUTTransformation(
        window_center=float(f"{(low + high) / 2:.6g}"),
        # A map of equal values has no width, and a window needs more than 0.
        window_width=float(f"{high - low:.6g}") or 1.0,
        voi_lut_function="LINEAR_EXACT",
    )
