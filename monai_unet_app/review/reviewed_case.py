"""A delivered result for a review: it is read back from its files and compared with its record, `result.json`."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.coding import NOT_STATED, Segment
from dicom_io.parametric import read_parametric_map
from dicom_io.reading.instances import load_dataset
from dicom_io.rtstruct import read_regions
from dicom_io.seg import read_segments
from dicom_io.segmentation import OBJECT_NUMBERS, Segmentation, Structure, normalised_entropy
from dicom_io.volume import Volume
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.data.label_files import on_grid_of_image
from monai_unet_app.data.labels import FileValues, read_label_numbers, unknown_values
from monai_unet_app.data.read import VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.data.schemas import json_of, validate
from monai_unet_app.errors import InputRefusedError, refusing_as

from .display_window import Shown, shown_channel, shown_window

Mask = NDArray[np.bool_]

LABEL_KINDS = ("nifti", "nrrd", "mha", "seg", "rtstruct", "mask")
"""Kinds of files that hold the labels of a result. Files on the image's own grid come first."""


@dataclass(frozen=True)
class ReviewedCase:
    """A delivered result and its image.

    Attributes:
        document: Content of its `result.json`.
        folder: Folder of `result.json` and of the files that it names.
        result_sha256: Hex digest of `result.json`; a decision names it.
        labels_sha256: Hex digest of the file that the masks were read from; None for a result without labels.
        segmentation: The image and the delivered labels; no voxel belongs to a segment where no labels were delivered.
        uncertainty: Shape (I, J, K), 0 sure to 1 undecided; None where none was delivered.
        bundle: The bundle that computed the result; None if it is not on this machine.
        prior: Content of an earlier `result.json` to compare with; None without an earlier result.
        same_patient: True if the caller has checked that both results are of the same patient.
    """

    document: Mapping[str, Any]
    folder: Path
    result_sha256: str
    labels_sha256: str | None
    segmentation: Segmentation
    uncertainty: NDArray[np.float32] | None
    bundle: BundleFiles | None = None
    prior: Mapping[str, Any] | None = None
    same_patient: bool = False

    @property
    def id(self) -> str:
        """Name of the case."""
        return str(self.document["case"])

    @property
    def image(self) -> Volume:
        """The image that the result was computed from."""
        return self.segmentation.image

    @property
    def structures(self) -> tuple[Structure, ...]:
        """The structures of the result, in the order of their numbers."""
        return self.segmentation.structures

    @cached_property
    def window(self) -> Shown | None:
        """(black, white) of the image, with a note if the window of its header does not fit; None in colour."""
        image = shown_channel(self.image)
        return None if image.array.ndim == 4 else shown_window(image)

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The entries of `result.json`, one for each of `structures`."""
        return list(self.document["structures"])

    @property
    def has_labels(self) -> bool:
        """False for a result without labels, such as a result that the quality gate rejected."""
        return self.labels_sha256 is not None


def read_reviewed(
    result: Path, image: Path | Volume, bundle: BundleFiles | None = None, prior: Path | None = None
) -> ReviewedCase:
    """A delivered result with its image.

    Args:
        result: A `<case>_result.json`, or the folder that holds it.
        image: The image that it was made from: a path, or the volume.
        bundle: The bundle that computed it, which gives colours and measured figures.
        prior: An earlier `result.json` of the same structures.

    Raises:
        InputRefusedError: A file is absent or contradicts the record: another image, bundle, grid, or number of voxels.
    """
    path = find_result(result)
    document = read_result(path)
    _check_bundle(document, bundle)
    volume = image if isinstance(image, Volume) else read_volume(image)
    _check_image(document, volume)
    earlier = None if prior is None else read_result(find_result(prior))
    labels = labels_file(path, document)
    if labels is not None and "series" in document["files"] and has_ending(labels, VOLUME_ENDINGS):
        volume = _as_labelled(volume, labels)
    segments = _segments(document, bundle)
    if labels is None:
        segmentation = Segmentation(volume, np.zeros(volume.shape, np.uint8), segments)
    else:
        segmentation = read_segmentation(labels, volume, document, segments)
        _check_counts(document, segmentation)
    if earlier is not None:
        _check_comparable(document, earlier)
    return ReviewedCase(
        document=document,
        folder=path.parent,
        result_sha256=file_sha256(path),
        labels_sha256=None if labels is None else file_sha256(labels),
        segmentation=segmentation,
        uncertainty=_uncertainty(path, document, volume),
        bundle=bundle,
        prior=earlier,
    )


def made_series(result: Path) -> Path | None:
    """The series that `predict --dicomize` has made of the image of a result; None where it has made none."""
    path = find_result(result)
    document = read_result(path)
    return named_file(path, document, "series") if "series" in document["files"] else None


def _as_labelled(series: Volume, labels: Path) -> Volume:
    """A series made of an image, with the axes of that image, on which labels lie: a viewer wants them in another direction."""
    stored = read_volume(labels)
    with suppress(ValueError):  # reading the labels gives the reason
        return series if np.allclose(series.affine_lps, stored.affine_lps, atol=1e-3) else series.on_grid_of(stored)
    return series


def file_name(case_id: str) -> str:
    """The name of a case in the names of files: letters, digits, points, - and _."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", case_id)[:100] or "case"


def find_result(path: Path) -> Path:
    """The `result.json` at a path, or in the folder there. Raises InputRefusedError if the folder has none, or several."""
    if path.is_file():
        return path
    results = sorted(path.glob("*_result.json")) if path.is_dir() else []
    if len(results) != 1:
        raise InputRefusedError(
            f"{path.name} holds {len(results)} result.json; one is needed; name the right <case>_result.json"
        )
    return results[0]


def read_result(path: Path) -> dict[str, Any]:
    """The content of a `result.json`. Raises InputRefusedError if it cannot be read or breaks its schema."""
    document: dict[str, Any] = read_json(path, "a result.json")
    validate(document, "result")
    return document


def read_json(path: Path, needed: str) -> Any:
    """The content of a JSON file. Raises InputRefusedError, with what is `needed` instead, if it cannot be read."""
    try:
        return json_of(path)
    except (OSError, ValueError) as error:
        raise InputRefusedError(
            f"{path.name} cannot be read as JSON ({type(error).__name__}); {needed} is needed; check the path"
        ) from error


def is_exclusive(document: Mapping[str, Any]) -> bool:
    """True if a voxel belongs to one structure at most: then channel 0 of the probabilities is the background."""
    return all(row["channel"] == row["number"] for row in document["structures"])


def counts_objects(document: Mapping[str, Any]) -> bool:
    """Whether its label files number the objects of the only structure."""
    return any("objects" in row for row in document["structures"])


def labels_file(result: Path, document: Mapping[str, Any]) -> Path | None:
    """The file with the labels of a result; None if it was delivered without labels.

    Raises:
        InputRefusedError: The record names a file that is not there.
    """
    kind = next((kind for kind in LABEL_KINDS if kind in document["files"]), None)
    return None if kind is None else named_file(result, document, kind)


def named_file(result: Path, document: Mapping[str, Any], kind: str) -> Path:
    """The file of this kind, or folder of a series, beside a `result.json`. Raises InputRefusedError if it is not there."""
    name = str(document["files"][kind])
    path = result.parent / name
    # A record from elsewhere may name "../../file" or hold a link; only files of the result are read
    if not path.resolve().is_relative_to(result.parent.resolve()) or not path.exists():
        raise InputRefusedError(
            f"{result.name} names {name}, which is not in the same folder; all files of a result are needed; copy the "
            "whole folder"
        )
    return path


def read_segmentation(
    path: Path, volume: Volume, document: Mapping[str, Any], segments: Sequence[Segment]
) -> Segmentation:
    """The labels of a result from one of its files.

    Args:
        path: NIfTI, NRRD, MetaImage, grey picture, SEG or RTSTRUCT: label values, or channels last where structures overlap.
        volume: The image.
        document: The `result.json`.
        segments: The structures of the result.

    Raises:
        InputRefusedError: The file has another grid or other structures, or cannot be read.
    """
    if counts_objects(document):
        objects = read_label_numbers(path, volume).array
        return Segmentation(volume, objects[None].astype(OBJECT_NUMBERS), tuple(segments))
    cuts = [row.get("threshold", 0.5) for row in document["structures"] if row["channel"] != row["number"]]
    labels = volume.with_array(_label_array(path, volume, cuts, FileValues(white=len(segments) == 1)))
    if labels.array.ndim == 4:
        if labels.array.shape[3] != len(segments):
            raise InputRefusedError(
                f"{path.name} has {labels.array.shape[3]} channels, the result {len(segments)} structure(s); one channel for "
                "each is needed; take the file of this result"
            )
        return replace(Segmentation.of_volume(labels, segments), image=volume)
    # An editor may save a label file with further values; none of them may become part of a structure unseen
    numbers = [segment.number for segment in segments]
    unknown = unknown_values(labels, {0, *numbers})
    if unknown:
        raise InputRefusedError(
            f"{path.name} holds the value(s) {unknown}; 0 and the result's {numbers} are needed; draw with these values in the "
            "program that made the file, or remove the others there"
        )
    return Segmentation.of_numbers(volume, labels.array, segments, exclusive=is_exclusive(document))


def _label_array(path: Path, volume: Volume, cuts: Sequence[float], values: FileValues) -> NDArray[Any]:
    """Shape (I, J, K) with label values, which `values` explain, or (I, J, K, S) with a channel for each structure.

    `cuts` are the probabilities from which on a voxel belongs to each of structures that may overlap.
    """
    if path.suffix == ".dcm" and cuts:
        with refusing_as(path.name):
            if "SegmentSequence" in load_dataset(path):
                channels = read_segments(path, volume).array
                # A FRACTIONAL SEG holds probabilities; by these the labels were decided
                fractional = channels.dtype.kind == "f" and channels.shape[3] == len(cuts)
                return channels >= np.asarray(cuts, np.float32) if fractional else channels
            return read_regions(path, volume).array
    if cuts and path.name.endswith((".nii", ".nii.gz", ".nrrd", ".mha")):
        stored = read_volume(path)
        if stored.array.ndim == 4:
            return on_grid_of_image(stored, volume, path.name).array
    return read_label_numbers(path, volume, values).array


def _check_bundle(document: Mapping[str, Any], bundle: BundleFiles | None) -> None:
    maker = document["bundle"]
    if bundle is not None and bundle.sha256 != maker["sha256"]:
        raise InputRefusedError(
            f"the result is of {maker['name']} {maker['version']} ({maker['sha256'][:12]}), the bundle is {bundle.name} "
            f"{bundle.version} ({bundle.sha256[:12]}); the figures of one bundle are not valid for another; name the "
            "bundle that "
            "computed the result, or leave it out"
        )


def _check_image(document: Mapping[str, Any], volume: Volume) -> None:
    source = document["source"]
    series = volume.provenance.series_instance_uid
    if list(volume.shape) != source["shape"]:
        raise InputRefusedError(
            f"the image has the shape {list(volume.shape)}, the result was made from {source['shape']}; the same image is "
            "needed; name the source of this result, with the same choice of series and repairs"
        )
    if source["series_instance_uid"] and series and source["series_instance_uid"] != series:
        raise InputRefusedError(
            "the image is of another series than the result; the same one is needed; name the source of this result"
        )


def _check_counts(document: Mapping[str, Any], segmentation: Segmentation) -> None:
    """Raises InputRefusedError if a mask has another number of voxels than the record.

    Results of a resampled image are not compared: their labels may lie on the original slices.
    """
    if segmentation.image.provenance.resampled:
        return
    for row, structure in zip(document["structures"], segmentation.structures, strict=True):
        if structure.voxels != row["voxels"]:
            raise InputRefusedError(
                f"structure {row['number']} has {structure.voxels} voxels in its file and {row['voxels']} in result.json; "
                "files of one run are needed; run predict again"
            )


def _segments(document: Mapping[str, Any], bundle: BundleFiles | None) -> tuple[Segment, ...]:
    """The structures of a `result.json`, in the colours of the bundle where it is at hand."""
    colours = {segment.number: segment.rgb for segment in bundle.segments} if bundle else {}
    return tuple(
        Segment(int(row["number"]), str(row["label"]), NOT_STATED, NOT_STATED, display_rgb=colours.get(row["number"]))
        for row in document["structures"]
    )


def _check_comparable(document: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    """Raises InputRefusedError if the results share no structure, or measure in different units."""
    rows = {str(row["label"]): row for row in earlier["structures"]}
    shared = [row for row in document["structures"] if row["label"] in rows]
    if not shared or earlier["source"]["unit"] != document["source"]["unit"]:
        raise InputRefusedError(
            f"the earlier result has the structures {', '.join(rows) or 'none'} in {earlier['source']['unit']}; at least one "
            f"of {', '.join(row['label'] for row in document['structures'])} in {document['source']['unit']} is needed to "
            "compare; name another, or leave it out"
        )


def _uncertainty(path: Path, document: Mapping[str, Any], volume: Volume) -> NDArray[np.float32] | None:
    """Entropy of the calibrated probabilities: from its own file, from the file of probabilities or from the parametric map."""
    files = document["files"]
    if "uncertainty" in files:
        own = read_volume(named_file(path, document, "uncertainty"))
        return np.asarray(on_grid_of_image(own, volume, files["uncertainty"]).array, dtype=np.float32)
    if "probabilities" in files:
        probabilities = read_volume(named_file(path, document, "probabilities"))
        probabilities = on_grid_of_image(probabilities, volume, files["probabilities"])
        return normalised_entropy(probabilities.channels, exclusive=is_exclusive(document))
    if "pm" in files:
        with refusing_as(files["pm"]):
            values = read_parametric_map(named_file(path, document, "pm"), volume).array
        # A voxel without a value in the map is shown as sure
        return np.asarray(np.nan_to_num(values), dtype=np.float32)
    return None
