"""Conversions between DICOM and other formats.

NIfTI cases become an MR or CT series, with a SEG of their labels, so that DICOM work can be tried on any images. Structures
of a SEG or RTSTRUCT become label files.
"""

import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.coding import Segment, not_labelled, printable, uncoded
from dicom_io.dicomize import ConversionOptions, ConvertedModality, dicomize, plain_case_id
from dicom_io.errors import DicomIoError, LabelError
from dicom_io.files import replace_when_whole
from dicom_io.itk_files import ITK_ENDINGS, write_itk
from dicom_io.kinds import kind_of_class
from dicom_io.objects.slice_positions import check_belongs
from dicom_io.read import ReadOptions
from dicom_io.reading.headers import shown_uid
from dicom_io.reading.instances import load_dataset, refusing
from dicom_io.reading.titles import without_patient
from dicom_io.rtstruct import read_regions, region_names
from dicom_io.seg import described_segments, read_segments
from dicom_io.segmentation import OBJECT_NUMBERS, Segmentation
from dicom_io.volume import Volume, number_type
from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.data.coding import codes_of
from monai_unet_app.data.labels import AS_NUMBERED, FileValues, read_labels
from monai_unet_app.data.naming import check_side
from monai_unet_app.data.nifti import write_nifti
from monai_unet_app.data.read import VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.data.structures import name_of
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError, refusing_as

LABEL_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""File name endings that `label_file` writes."""

_UNSAFE = re.compile(r'[\s/\\:*?"<>|]+')  # in names of files, on some system
_LONGEST_BYTES = 200  # of a file name without its ending; most systems take 255


def dicomize_cases(
    cases: Sequence[CaseFiles],
    output: Path,
    segments: tuple[Segment, ...] | None = None,
    step: Callable[[str], None] = lambda case_id: None,
    modality: ConvertedModality = "MR",
    values: FileValues = AS_NUMBERED,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Writes `output`/<case>/mr/*.dcm (or ct) and, for labelled cases, `output`/<case>/seg.dcm.

    An earlier conversion is replaced.

    Args:
        cases: NIfTI images, with or without labels.
        output: Gets one folder for each case.
        segments: The meaning of the label values; needed with labels.
        step: Called with the id of each case when it is done.
        modality: Modality of the series: MR, or CT with values in HU.
        values: What the values of label files stand for.

    Returns:
        One row for each converted case with the largest rounding error of an intensity (in the image's own units), and one
        sentence for each case that failed.

    Raises:
        BundleError: A structure has no code.
    """
    if problem := uncoded(segments or ()):
        raise BundleError(problem)
    rows, problems = [], []
    for case in cases:
        try:
            image = read_volume(case.files)
            labels = read_labels(case.label_files, image, values) if case.label else None
            written, own = _as_segments(labels, segments, values)
            converted = dicomize(
                image,
                output / case.id,
                labels=written,
                segments=own,
                case_id=plain_case_id(case.id),
                options=ConversionOptions(modality, overwrite=True),
            )
        except (InputRefusedError, DicomIoError) as error:
            problems.append(f"{case.id}: {error}")
        except OSError as error:
            problems.append(
                f"{case.id}: its series could not be written ({error.strerror}); free space or choose another output"
            )
        else:
            row = {
                "id": case.id,
                "series": str(converted.series_folder),
                "seg": str(converted.seg) if converted.seg else None,
                "max_rounding_error": converted.max_rounding_error,
            }
            rows.append(row)
        step(case.id)
    return rows, problems


def _as_segments(
    labels: Volume | None, segments: tuple[Segment, ...] | None, values: FileValues
) -> tuple[Volume | None, tuple[Segment, ...] | None]:
    """Labels, and the segments that they need: one for each object; voxels without a class are those of one more, the last."""
    if labels is not None and segments is not None and values.instances:
        objects = Segmentation(labels, labels.array[None].astype(OBJECT_NUMBERS), segments).by_object()
        return objects.label_volume, objects.segments
    ignored = values.ignored
    if labels is None or segments is None or ignored is None or not (without := labels.array == ignored).any():
        return labels, segments
    number = len(segments) + 1
    if labels.array.ndim == 3:
        array = np.where(without, number, labels.array)
    else:
        array = np.concatenate([np.where(without, 0, labels.array), without[..., :1]], axis=3)
    return labels.with_array(array), (*segments, not_labelled(number))


def label_file(
    result: Path, image: Path, names: Sequence[str], output: Path, options: ReadOptions | None = None
) -> dict[str, Any]:
    """Writes structures of a SEG or RTSTRUCT on the grid of their series: one label map, or a mask for each in a folder.

    Args:
        result: A SEG (BINARY or LABELMAP) or RTSTRUCT by any software.
        image: The series that it was made on: a folder or a file.
        names: SegmentLabels or ROINames; the first becomes label 1, and so on. Where they overlap, the voxel gets the label of
            the later name. Empty for all structures: those of a SEG with their segment numbers, those of an RTSTRUCT as 1, 2
            ... in the order of their ROINumbers; these may not overlap in one label map.
        output: Ends in one of `LABEL_ENDINGS`. A name without the ending of a volume is a folder, new or empty, which gets a
            NIfTI file of 0 and 1 for each structure, called as the structure.
        options: How to read the series.

    Returns:
        "regions": a row for each structure: label, name, number of voxels in the file, number of voxels that a later structure
        took, and in a folder the file; "shared": number of voxels that lie in several structures; "notes": what is left out of
        contours, a sentence each. Words of the patient's name or ID in a name are replaced by "...".

    Raises:
        UsageError: The output has another ending, or is a folder that is not empty.
        InputRefusedError: The series, the result or a name is refused; the result refers to another series or is FRACTIONAL;
            structures overlap; the grid is sheared, for NRRD and MetaImage; a file cannot be written.
    """
    in_folder = not has_ending(output, VOLUME_ENDINGS)
    if not in_folder and not has_ending(output, LABEL_ENDINGS):
        raise UsageError(
            f"--output {output.name} is not a label file; give a name that ends in {', '.join(LABEL_ENDINGS[:-1])} or "
            f"{LABEL_ENDINGS[-1]}, or a folder"
        )
    if in_folder and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and is not an empty folder; nothing is replaced; choose another --output")
    volume = read_volume(image, options)
    with refusing_as(result.name):
        masks, known = _structures(result, volume, names)
    labels, drawn, shared = _numbered(masks, known)
    if shared and not names and not in_folder:
        raise InputRefusedError(
            f"{result.name}: {shared} voxel(s) lie in several structures; one label map has one structure a voxel; name a "
            "folder as --output, which gets a mask for each, or choose structures by --roi"
        )
    files = _file_names(known) if in_folder else {}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with refusing_as(output.name):
            _write_masks(masks, files.values(), output) if in_folder else _write_labels(labels, volume, known, output)
    except OSError as error:
        raise InputRefusedError(
            f"{output.name} could not be written ({error.strerror}); free space or choose another --output"
        ) from error
    # Counted in the written labels, so that an overlap shows as the difference to what was drawn
    held = drawn if in_folder else np.bincount(labels.ravel(order="K"), minlength=max(known) + 1)[list(known)].tolist()
    rows = [
        {"label": number, "name": name, "voxels": count, "overlapped": whole - count}
        | ({"file": files[number]} if in_folder else {})
        for (number, name), count, whole in zip(known.items(), held, drawn, strict=True)
    ]
    notes = masks.provenance.notes[len(volume.provenance.notes) :]
    return {"regions": rows, "shared": shared, "notes": list(notes)}


def _structures(result: Path, volume: Volume, names: Sequence[str]) -> tuple[Volume, dict[int, str]]:
    """Structures of a SEG or RTSTRUCT as masks, shape (I, J, K, C), and the name of each by its label value."""
    header = load_dataset(result)
    with refusing(result):
        kind = kind_of_class(uid := str(header.get("SOPClassUID") or ""))
        check_belongs(header, volume)
    if kind is None or kind.name not in ("SEG", "RTSTRUCT"):
        raise LabelError(
            f"it has SOP class {shown_uid(uid)}; a SEG or an RT Structure Set is needed; check which it is"
        )
    described = described_segments(result) if kind.name == "SEG" else ()
    # A table of them names a side that only codes state
    labels = {segment.label for segment in described}
    called = {name_of(segment): segment.label for segment in described}
    wanted = [name if name in labels else called.get(name, name) for name in names]
    for segment in described:
        if not names or segment.label in wanted:
            check_side(segment)
    masks = (read_segments if kind.name == "SEG" else read_regions)(result, volume, wanted or None)
    if masks.array.dtype.kind == "f":
        raise LabelError(
            "it is a FRACTIONAL segmentation, which holds a probability a voxel; a BINARY or LABELMAP one is needed; export it "
            "so, or read its probabilities with dicom_io.read_segments"
        )
    if not masks.array.size:
        raise LabelError("it describes no structure; one or more are needed; check which file it is")
    if names:
        return masks, dict(enumerate(names, 1))
    if kind.name == "SEG":
        told = {segment.number: name_of(segment) for segment in described}
    else:
        told = {number: " ".join(name.split()) for number, name in enumerate(region_names(result).values(), 1)}
    # A word of anatomy stays, though a patient may be called so: PANCREAS_0001
    known = {number: name if codes_of(name) else without_patient(header, name) for number, name in told.items()}
    return masks, {number: name or f"structure {number}" for number, name in known.items()}


def _numbered(masks: Volume, known: Mapping[int, str]) -> tuple[NDArray[Any], list[int], int]:
    """The label map (I, J, K) of masks (I, J, K, C), voxels of each mask, and number of voxels that lie in several."""
    size = math.prod(masks.shape)
    labels, several, drawn = np.zeros(size, number_type(max(known))), np.zeros(size, bool), []
    for number, mask in zip(known, masks.channels, strict=True):
        inside = np.flatnonzero(mask.T)  # in their order in memory
        several[inside] |= labels[inside] > 0
        labels[inside] = number
        drawn.append(len(inside))
    return labels.reshape(masks.shape[::-1]).T, drawn, int(np.count_nonzero(several))


def _write_labels(labels: NDArray[Any], volume: Volume, known: Mapping[int, str], path: Path) -> None:
    if has_ending(path, ITK_ENDINGS):
        write_itk(labels, volume, path)
        return
    with replace_when_whole(path) as part:
        write_nifti(labels, volume, part, known)


def _write_masks(masks: Volume, files: Iterable[str], folder: Path) -> None:
    """A file for each mask; the folder appears when it is complete."""
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder.parent) as place:
        part = Path(place) / folder.name
        part.mkdir()
        for file, mask in zip(files, masks.channels, strict=True):
            write_nifti(mask, masks, part / file)
        part.rename(folder)


def _file_names(known: Mapping[int, str]) -> dict[int, str]:
    """A file name for each structure, on every system a name of its own."""
    stems: dict[int, str] = {}
    for number, name in known.items():
        stem = printable(_UNSAFE.sub("_", name), _LONGEST_BYTES).strip("._") or f"structure_{number}"
        while stem.lower() in {other.lower() for other in stems.values()}:
            stem += f"_{number}"
        stems[number] = stem
    return {number: f"{stem}.nii.gz" for number, stem in stems.items()}
