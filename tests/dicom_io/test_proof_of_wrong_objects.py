"""Right files, each made wrong in one way, are refused and deleted by their proofs; right ones of unusual sources pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from phantoms import lopsided_array, lopsided_labels, oblique_affine, write_enhanced_mr, write_mr_series, write_picture
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pack_bits
from result_phantoms import RESULT, SEGMENTS

from dicom_io import proof, rtstruct, seg
from dicom_io.errors import GeometryProofError
from dicom_io.objects import source_grid
from dicom_io.objects.source_images import images_of
from dicom_io.parametric import NO_UNIT, PROBABILITY, UNCERTAINTY, MapMeaning, write_parametric_map
from dicom_io.parametric.proof import prove_map
from dicom_io.presentation import write_gsps
from dicom_io.presentation.proof import joined, prove_outlines
from dicom_io.presentation.write import MAX_POINTS
from dicom_io.read import read_series
from dicom_io.volume import Volume

ENCODINGS = ("binary", "binary-deflated", "labelmap", "labelmap-rle", "labelmap-jpegls", "fractional")
SHAPE = (13, 9, 7)
WITHOUT_FRAMES = {f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "4", "128", "6.1", "7")}  # CT, MR, PET, US, SC
Edit = Callable[[Dataset], None]


@dataclass(frozen=True)
class Case:
    """A source and what was computed on it, in each form that a writer takes."""

    source: Volume
    labels: Volume
    probabilities: Volume

    def result(self, encoding: str) -> Volume:
        return self.probabilities if encoding == "fractional" else self.labels


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    return case_on(tmp_path_factory.mktemp("source"), oblique_affine())


def case_on(folder: Path, affine: np.ndarray, header: dict[str, object] | None = None) -> Case:
    write_mr_series(folder, lopsided_array(SHAPE), affine, header=header)
    source = read_series(folder)
    labels = source.with_array(lopsided_labels(SHAPE))
    inside = np.stack([labels.array == 1, labels.array == 2], axis=-1)
    return Case(source, labels, source.with_array(np.where(inside, 0.8, 0.1).astype(np.float32)))


@pytest.fixture(scope="module")
def written(case, tmp_path_factory) -> dict[str, Path]:
    """A right file of every kind, by encoding or name."""
    folder = tmp_path_factory.mktemp("right")
    paths = {one: folder / f"{one}.dcm" for one in (*ENCODINGS, "rtstruct", "gsps", "map")}
    for one in ENCODINGS:
        seg.write_seg(case.result(one), case.source, paths[one], RESULT, encoding=one)
    rtstruct.write_rtstruct(case.labels, case.source, paths["rtstruct"], RESULT)
    write_gsps(case.labels, case.source, paths["gsps"], RESULT)
    values = case.source.with_array(case.probabilities.array[..., 0])
    write_parametric_map(values, case.source, paths["map"], RESULT, MapMeaning(PROBABILITY, NO_UNIT, "P(Front part)"))
    return paths


def proved(case: Case, name: str, path: Path) -> None:
    """The proof of a file, as its writer calls it."""
    if name == "rtstruct":
        rtstruct.prove_rtstruct(path, case.labels, case.source, SEGMENTS)
    elif name == "gsps":
        prove_outlines(path, case.labels, images_of(case.source), SEGMENTS)
    elif name == "map":
        values = case.source.with_array(case.probabilities.array[..., 0])
        prove_map(path, values, images_of(case.source), MapMeaning(PROBABILITY, NO_UNIT, "P(Front part)"))
    else:
        seg.prove_seg(path, case.result(name), case.source, SEGMENTS)


def copied(written: dict[str, Path], name: str, path: Path, edit: Edit) -> Path:
    dataset = pydicom.dcmread(written[name])
    edit(dataset)
    dataset.save_as(path)
    return path


def is_refused(case: Case, name: str, path: Path) -> None:
    with pytest.raises(GeometryProofError, match="was deleted: "):
        proved(case, name, path)
    assert not path.exists()


# --- edits of every object


def set_to(keyword: str, value: object) -> Edit:
    def edit(dataset: Dataset) -> None:
        assert keyword in dataset
        setattr(dataset, keyword, value)

    return edit


def without(keyword: str) -> Edit:
    def edit(dataset: Dataset) -> None:
        delattr(dataset, keyword)

    return edit


def exchange(sequence: str, keyword: str) -> Edit:
    """Exchange an attribute of the last two items of a sequence (the first of a label map describes its background)."""

    def edit(dataset: Dataset) -> None:
        first, second = list(dataset[sequence].value)[-2:]
        assert first[keyword] != second[keyword]
        first[keyword], second[keyword] = second[keyword], first[keyword]

    return edit


def last_removed(sequence: str) -> Edit:
    def edit(dataset: Dataset) -> None:
        del dataset[sequence].value[-1]

    return edit


def last_repeated(sequence: str) -> Edit:
    def edit(dataset: Dataset) -> None:
        dataset[sequence].value.append(dataset[sequence].value[-1])

    return edit


def another_series(dataset: Dataset) -> None:
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def image_unnamed(dataset: Dataset) -> None:
    del dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[2]


def image_of_another_class(dataset: Dataset) -> None:
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence[
        2
    ].ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"


OF_ANY = {
    "another patient": set_to("PatientID", "STRANGER"),
    "no patient": without("PatientID"),
    "another name": set_to("PatientName", "Stranger^Unknown"),
    "another birth date": set_to("PatientBirthDate", "19010101"),
    "another study": set_to("StudyInstanceUID", "1.2.3"),
}
OF_FRAMES = OF_ANY | {
    "another frame of reference": set_to("FrameOfReferenceUID", "1.2.3"),
    "no frame of reference": without("FrameOfReferenceUID"),
    "another series": another_series,
    "an image that is not named": image_unnamed,
    "an image of another class": image_of_another_class,
    "no references": without("ReferencedSeriesSequence"),
}


# --- edits of a SEG or a map


def every_index_1(dataset: Dataset) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        content = group.FrameContentSequence[0]
        count = 1 if isinstance(content.DimensionIndexValues, int) else len(content.DimensionIndexValues)
        content.DimensionIndexValues = [1] * count


def two_indices_exchanged(dataset: Dataset) -> None:
    first, second = (group.FrameContentSequence[0] for group in dataset.PerFrameFunctionalGroupsSequence[:2])
    first.DimensionIndexValues, second.DimensionIndexValues = second.DimensionIndexValues, first.DimensionIndexValues


def slices_exchanged(dataset: Dataset) -> None:
    first, second = dataset.PerFrameFunctionalGroupsSequence[:2]
    first.DerivationImageSequence, second.DerivationImageSequence = (
        second.DerivationImageSequence,
        first.DerivationImageSequence,
    )


def moved_in_plane(dataset: Dataset) -> None:
    step = oblique_affine()[:3, 0]
    for group in dataset.PerFrameFunctionalGroupsSequence:
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float) + 0.2 * step
        group.PlanePositionSequence[0].ImagePositionPatient = [f"{value:.6f}" for value in position]


def no_dimension_values(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[1].FrameContentSequence[0].DimensionIndexValues


def half_the_pixels(dataset: Dataset) -> None:
    size = len(dataset.PixelData) // 4 * 2
    dataset.PixelData = dataset.PixelData[:size]


def more_pixels(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData + b"\0\0"


def content_shared_too(dataset: Dataset) -> None:
    content = dataset.PerFrameFunctionalGroupsSequence[0].FrameContentSequence
    dataset.SharedFunctionalGroupsSequence[0].FrameContentSequence = content


OF_GROUPS = {
    "a group that is shared as well": content_shared_too,
    "every dimension index 1": every_index_1,
    "two dimension indices exchanged": two_indices_exchanged,
    "a frame without dimension indices": no_dimension_values,
    "slices exchanged": slices_exchanged,
    "moved in plane": moved_in_plane,
    "no number of frames": without("NumberOfFrames"),
    "a frame less": set_to("NumberOfFrames", 2),
    "a group less": last_removed("PerFrameFunctionalGroupsSequence"),
    "other rows": set_to("Rows", 8),
}
OF_SEGS = {
    "numbers exchanged": exchange("SegmentSequence", "SegmentNumber"),
    "labels exchanged": exchange("SegmentSequence", "SegmentLabel"),
    "types exchanged": exchange("SegmentSequence", "SegmentedPropertyTypeCodeSequence"),
    "colours exchanged": exchange("SegmentSequence", "RecommendedDisplayCIELabValue"),
    "a description removed": last_removed("SegmentSequence"),
    "a description twice": last_repeated("SegmentSequence"),
    "white is 0": set_to("PhotometricInterpretation", "MONOCHROME1"),
    "signed": set_to("PixelRepresentation", 1),
    "fewer bits stored": set_to("BitsStored", 4),
    "another class": set_to("SOPClassUID", "1.2.840.10008.5.1.4.1.1.30"),
    "another instance": set_to("SOPInstanceUID", "1.2.3"),
    "no type": without("SegmentationType"),
    "half the pixels": half_the_pixels,
    "more pixels": more_pixels,
    "no pixels": without("PixelData"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("edit", OF_FRAMES | OF_GROUPS | OF_SEGS)
def test_a_seg_that_says_something_wrong_is_refused(case, written, tmp_path, encoding, edit):
    change = (OF_FRAMES | OF_GROUPS | OF_SEGS)[edit]
    is_refused(case, encoding, copied(written, encoding, tmp_path / "wrong.dcm", change))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_right_seg_that_was_written_anew_by_pydicom_passes(case, written, tmp_path, encoding):
    path = copied(written, encoding, tmp_path / "right.dcm", lambda dataset: None)
    proved(case, encoding, path)
    assert path.is_file()


def test_a_binary_frame_of_segment_0_is_no_label_map(tmp_path, case):
    one = case.source.with_array((case.labels.array == 1).astype(np.uint8))
    path = seg.write_seg(one, case.source, tmp_path / "seg.dcm", RESULT)
    dataset = pydicom.dcmread(path)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 0
    dataset.save_as(path)
    with pytest.raises(GeometryProofError, match="names the segment 0; 1 or more is needed"):
        seg.prove_seg(path, one, case.source)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["LABELMAP", "FRACTIONAL"])
def test_a_binary_seg_that_calls_itself_something_else_is_refused(tmp_path, case, kind):
    one = case.source.with_array((case.labels.array == 1).astype(np.uint8))
    path = seg.write_seg(one, case.source, tmp_path / "seg.dcm", RESULT)
    dataset = pydicom.dcmread(path)
    dataset.SegmentationType = kind
    if kind == "LABELMAP":
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    else:
        dataset.MaximumFractionalValue = 1
    dataset.save_as(path)
    with pytest.raises(GeometryProofError):
        seg.prove_seg(path, one, case.source)
    assert not path.exists()


def test_an_empty_frame_of_a_segment_that_is_not_described_is_refused(tmp_path, case):
    path = seg.write_seg(case.labels, case.source, tmp_path / "seg.dcm", RESULT, empty_frames=True)
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.any(axis=(1, 2))
    for shown, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        item = group.SegmentIdentificationSequence[0]
        if item.ReferencedSegmentNumber == 2 and not shown:
            item.ReferencedSegmentNumber = 77
            group.FrameContentSequence[0].DimensionIndexValues = [
                77,
                group.FrameContentSequence[0].DimensionIndexValues[1],
            ]
    dataset.save_as(path)
    with pytest.raises(GeometryProofError, match=r"describes the segments \[1, 2\] and shows \[1, 2, 77\]"):
        seg.prove_seg(path, case.labels, case.source)


def test_a_frame_that_names_no_segment_is_refused(case, written, tmp_path):
    def edit(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence

    is_refused(case, "binary", copied(written, "binary", tmp_path / "wrong.dcm", edit))


def test_a_label_of_257_is_not_1(case, written, tmp_path):
    def edit(dataset: Dataset) -> None:
        pixels = dataset.pixel_array.astype("<u2")
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelData = np.where(pixels == 1, 257, pixels).astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"

    path = copied(written, "labelmap", tmp_path / "wrong.dcm", edit)
    with pytest.raises(GeometryProofError, match="and 9 differ"):
        seg.prove_seg(path, case.labels, case.source)


def test_a_label_map_whose_padding_is_a_segment_is_refused(case, written, tmp_path):
    is_refused(case, "labelmap", copied(written, "labelmap", tmp_path / "wrong.dcm", set_to("PixelPaddingValue", 1)))


def test_pixels_shuffled_within_a_frame_are_refused(case, written, tmp_path):
    def edit(dataset: Dataset) -> None:
        dataset.PixelData = pack_bits(np.roll(dataset.pixel_array, 1, axis=2))

    is_refused(case, "binary", copied(written, "binary", tmp_path / "wrong.dcm", edit))


@pytest.mark.parametrize("gap_mm", [0.04, 0.15])
def test_slices_thinner_than_the_tolerance_are_told_apart(tmp_path, gap_mm):
    affine = oblique_affine()
    affine[:3, 2] *= gap_mm / np.linalg.norm(affine[:3, 2])
    thin = case_on(tmp_path / "thin", affine)
    same = thin.labels.array.copy()
    same[:, :, :] = same[:, :, 1:2]
    labels = thin.source.with_array(same)
    for encoding in ("binary", "labelmap"):
        path = seg.write_seg(labels, thin.source, tmp_path / "seg.dcm", RESULT, encoding=encoding)
        dataset = pydicom.dcmread(path)
        slices_exchanged(dataset)
        dataset.save_as(path)
        with pytest.raises(GeometryProofError, match="off its plane"):
            seg.prove_seg(path, labels, thin.source, SEGMENTS)


# --- RTSTRUCT


def moved(*steps: tuple[int, float]) -> Edit:
    """All contours moved by a part of a voxel along an axis (0: I, 1: J)."""

    def edit(dataset: Dataset) -> None:
        shift_mm = sum(part * oblique_affine()[:3, axis] for axis, part in steps)
        for roi in dataset.ROIContourSequence:
            for contour in roi.get("ContourSequence") or []:
                points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) + shift_mm
                contour.ContourData = [f"{value:.3f}" for value in points.ravel()]

    return edit


def observation_of_another_region(dataset: Dataset) -> None:
    dataset.RTROIObservationsSequence[0].ReferencedROINumber = 2


def exclusive_contours(dataset: Dataset) -> None:
    for roi in dataset.ROIContourSequence:
        for contour in roi.get("ContourSequence") or []:
            contour.ContourGeometricType = "CLOSEDPLANAR_XOR"


def of_referenced_frame(edit: Edit) -> Edit:
    return lambda dataset: edit(dataset.ReferencedFrameOfReferenceSequence[0])


def of_referenced_study(edit: Edit) -> Edit:
    return of_referenced_frame(lambda frame: edit(frame.RTReferencedStudySequence[0]))


def of_referenced_series(edit: Edit) -> Edit:
    return of_referenced_study(lambda study: edit(study.RTReferencedSeriesSequence[0]))


def of_first_region(edit: Edit) -> Edit:
    return lambda dataset: edit(dataset.StructureSetROISequence[0])


OF_RTSTRUCT = OF_ANY | {
    "another frame of reference": set_to("FrameOfReferenceUID", "1.2.3"),
    "a region in another frame of reference": of_first_region(set_to("ReferencedFrameOfReferenceUID", "1.2.3")),
    "references in another frame": of_referenced_frame(set_to("FrameOfReferenceUID", "1.2.3")),
    "references of another study": of_referenced_study(set_to("ReferencedSOPInstanceUID", "1.2.3")),
    "references of another series": of_referenced_series(set_to("SeriesInstanceUID", "1.2.3")),
    "an image that is not named": of_referenced_series(last_removed("ContourImageSequence")),
    "names exchanged": exchange("StructureSetROISequence", "ROIName"),
    "numbers exchanged": exchange("StructureSetROISequence", "ROINumber"),
    "a region removed": last_removed("StructureSetROISequence"),
    "colours exchanged": exchange("ROIContourSequence", "ROIDisplayColor"),
    "contours exchanged": exchange("ROIContourSequence", "ReferencedROINumber"),
    "an observation of another region": observation_of_another_region,
    "observations exchanged": exchange("RTROIObservationsSequence", "ReferencedROINumber"),
    "an observation removed": last_removed("RTROIObservationsSequence"),
    "moved by 0.49 voxels": moved((0, 0.49)),
    "moved by -0.49 voxels": moved((1, -0.49)),
    "moved by 0.24 voxels on both axes": moved((0, 0.24), (1, 0.24)),
    "moved by 0.05 voxels": moved((0, 0.05)),
    "moved by half a voxel": moved((0, 0.5)),
    "moved by half a voxel on both axes": moved((0, 0.5), (1, 0.5)),
    "contours that exclude each other": exclusive_contours,
    "no contours": without("ROIContourSequence"),
    "no regions": without("StructureSetROISequence"),
}


@pytest.mark.parametrize("edit", OF_RTSTRUCT)
def test_an_rtstruct_that_says_something_wrong_is_refused(case, written, tmp_path, edit):
    is_refused(case, "rtstruct", copied(written, "rtstruct", tmp_path / "wrong.dcm", OF_RTSTRUCT[edit]))


# --- presentation states


def outlines_moved(across: float, down: float) -> Edit:
    def edit(dataset: Dataset) -> None:
        for item in dataset.GraphicAnnotationSequence:
            for graphic in item.get("GraphicObjectSequence") or []:
                points = np.array(graphic.GraphicData).reshape(-1, 2) + np.array([across, down])
                graphic.GraphicData = points.ravel().tolist()

    return edit


def layers_exchanged(keyword: str) -> Edit:
    def edit(dataset: Dataset) -> None:
        first, second = dataset.GraphicLayerSequence[:2]
        first[keyword], second[keyword] = second[keyword], first[keyword]

    return edit


def legend_exchanged(dataset: Dataset) -> None:
    first, second = [item for item in dataset.GraphicAnnotationSequence if "TextObjectSequence" in item][1:]
    first.TextObjectSequence, second.TextObjectSequence = second.TextObjectSequence, first.TextObjectSequence


def outline_on_another_layer(dataset: Dataset) -> None:
    item = next(item for item in dataset.GraphicAnnotationSequence if "GraphicObjectSequence" in item)
    item.GraphicLayer = "SEGMENT 2"


def outline_opened(dataset: Dataset) -> None:
    item = next(item for item in dataset.GraphicAnnotationSequence if "GraphicObjectSequence" in item)
    graphic = item.GraphicObjectSequence[0]
    graphic.GraphicData = graphic.GraphicData[:-2]
    graphic.NumberOfGraphicPoints -= 1


def outline_in_display_units(dataset: Dataset) -> None:
    item = next(item for item in dataset.GraphicAnnotationSequence if "GraphicObjectSequence" in item)
    item.GraphicObjectSequence[0].GraphicAnnotationUnits = "DISPLAY"


def outline_on_every_image(dataset: Dataset) -> None:
    item = next(item for item in dataset.GraphicAnnotationSequence if "GraphicObjectSequence" in item)
    del item.ReferencedImageSequence


OF_GSPS = OF_ANY | {
    "half a pixel to the left": outlines_moved(-0.5, 0.0),
    "half a pixel up": outlines_moved(0.0, -0.5),
    "half a pixel on both axes": outlines_moved(-0.5, -0.5),
    "a tenth of a pixel": outlines_moved(0.1, 0.0),
    "a pixel": outlines_moved(1.0, 0.0),
    "names exchanged": layers_exchanged("GraphicLayer"),
    "descriptions exchanged": layers_exchanged("GraphicLayerDescription"),
    "colours exchanged": layers_exchanged("GraphicLayerRecommendedDisplayCIELabValue"),
    "legend exchanged": legend_exchanged,
    "an outline on another layer": outline_on_another_layer,
    "an outline on every image": outline_on_every_image,
    "an open outline": outline_opened,
    "an outline in display units": outline_in_display_units,
    "another series": another_series,
    "an image that is not named": lambda dataset: last_removed("ReferencedImageSequence")(
        dataset.ReferencedSeriesSequence[0]
    ),
    "no outlines": without("GraphicAnnotationSequence"),
    "no layers": without("GraphicLayerSequence"),
}


@pytest.mark.parametrize("edit", OF_GSPS)
def test_a_presentation_state_that_says_something_wrong_is_refused(case, written, tmp_path, edit):
    is_refused(case, "gsps", copied(written, "gsps", tmp_path / "wrong.dcm", OF_GSPS[edit]))


# --- parametric maps


def of_mapping(edit: Edit) -> Edit:
    return lambda dataset: edit(dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0])


def another_unit(mapping: Dataset) -> None:
    mapping.MeasurementUnitsCodeSequence[0].CodeValue = "%"


def another_quantity(mapping: Dataset) -> None:
    concept = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    concept.CodeValue, concept.CodingSchemeDesignator = UNCERTAINTY.value, UNCERTAINTY.scheme_designator


def half_the_values(dataset: Dataset) -> None:
    dataset.FloatPixelData = dataset.FloatPixelData[: len(dataset.FloatPixelData) // 8 * 4]


OF_MAP = (
    OF_FRAMES
    | OF_GROUPS
    | {
        "another unit": of_mapping(another_unit),
        "another quantity": of_mapping(another_quantity),
        "no quantity": of_mapping(without("QuantityDefinitionSequence")),
        "another label": of_mapping(set_to("LUTExplanation", "P(Back part)")),
        "twice the values": of_mapping(set_to("RealWorldValueSlope", 2.0)),
        "other values": of_mapping(set_to("RealWorldValueIntercept", 0.001)),
        "not a mapping": lambda dataset: without("RealWorldValueMappingSequence")(
            dataset.SharedFunctionalGroupsSequence[0]
        ),
        "half the values": half_the_values,
        "no values": without("FloatPixelData"),
    }
)


@pytest.mark.parametrize("edit", OF_MAP)
def test_a_map_that_says_something_wrong_is_refused(case, written, tmp_path, edit):
    is_refused(case, "map", copied(written, "map", tmp_path / "wrong.dcm", OF_MAP[edit]))


@pytest.mark.parametrize("name", ["rtstruct", "gsps", "map"])
def test_a_right_object_that_was_written_anew_by_pydicom_passes(case, written, tmp_path, name):
    path = copied(written, name, tmp_path / "right.dcm", lambda dataset: None)
    proved(case, name, path)
    assert path.is_file()


# --- files that are none


@pytest.mark.parametrize("name", [*ENCODINGS, "rtstruct", "gsps", "map"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9])
def test_a_file_that_breaks_off_is_refused_by_name(case, written, tmp_path, name, part):
    content = written[name].read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(content[: int(part * len(content))])
    is_refused(case, name, path)


@pytest.mark.parametrize("encoding", ["labelmap-rle", "labelmap-jpegls"])
def test_a_frame_that_its_codec_cannot_read_is_refused_by_name(case, written, tmp_path, encoding):
    def edit(dataset: Dataset) -> None:
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\x00\x00" * 5] * int(dataset.NumberOfFrames))

    is_refused(case, encoding, copied(written, encoding, tmp_path / "wrong.dcm", edit))


# --- right results of unusual sources


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [
        ("1.2.840.10008.5.1.4.1.1.1.1", "DX"),
        ("1.2.840.10008.5.1.4.1.1.12.1", "XA"),
        ("1.2.840.10008.5.1.4.1.1.20", "NM"),
    ],
)
def test_slices_of_classes_that_gdcm_places_elsewhere_carry_results(tmp_path, sop_class, modality):
    header = {"SOPClassUID": sop_class, "Modality": modality, "PresentationIntentType": "FOR PRESENTATION"}
    placed = case_on(tmp_path / "source", oblique_affine(), header)
    assert placed.source.has_patient_space
    assert np.ptp(placed.source.spacing_mm[:2]) > 0.1
    assert seg.write_seg(placed.labels, placed.source, tmp_path / "seg.dcm", RESULT).is_file()
    assert rtstruct.write_rtstruct(placed.labels, placed.source, tmp_path / "rt.dcm", RESULT).is_file()


@pytest.mark.parametrize("sop_class", sorted(source_grid.PLACED_BY_GDCM))
def test_itk_sees_slices_of_the_listed_classes_where_their_headers_have_them(tmp_path, sop_class):
    affine = oblique_affine()
    if sop_class in WITHOUT_FRAMES:
        (file,) = write_mr_series(tmp_path, lopsided_array((11, 9, 1)), affine, header={"SOPClassUID": sop_class})
    else:

        def edit(dataset: Dataset, _: int) -> None:
            dataset.SOPClassUID = sop_class

        file = write_enhanced_mr(tmp_path / "one.dcm", lopsided_array((11, 9, 1)), affine, edit=edit)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    steps = np.array(reader.GetDirection()).reshape(3, 3) @ np.diag(reader.GetSpacing())
    np.testing.assert_allclose(reader.GetOrigin(), affine[:3, 3], atol=1e-6)
    np.testing.assert_allclose(steps[:, :2], affine[:3, :2], atol=1e-6)
    view = source_grid._seen_by_itk(file)  # which gives it less of the file, and learns the same
    plane = view.plane
    assert (view.sop_class_uid, view.sop_instance_uid) == (sop_class, pydicom.dcmread(file).SOPInstanceUID)
    np.testing.assert_allclose(plane.origin_mm, affine[:3, 3], atol=1e-6)
    np.testing.assert_allclose(np.column_stack([plane.column_step_mm, plane.row_step_mm]), affine[:3, :2], atol=1e-6)


def jagged_comb(size: int) -> np.ndarray:
    """Shape (size, size): a spine with teeth that have a bump on every third pixel; one part, and no straight edges."""
    mask = np.zeros((size, size), dtype=bool)
    mask[1:-2, 1] = True
    mask[1:-2:4, 1:-2] = True
    mask[2:-2:4, 3:-2:3] = True
    return mask


def test_an_outline_of_more_points_than_two_lines_hold_passes(tmp_path):
    mask = jagged_comb(280)
    source = read_series(write_picture(tmp_path / "picture.dcm", lopsided_array((280, 280, 1))[:, :, 0]))
    labels = source.with_array(mask.T[:, :, None].astype(np.uint8))
    dataset = pydicom.dcmread(write_gsps(labels, source, tmp_path / "state.dcm", RESULT))
    lines = [line for item in dataset.GraphicAnnotationSequence for line in item.get("GraphicObjectSequence") or []]
    assert sum(line.NumberOfGraphicPoints for line in lines) > 2 * MAX_POINTS
    assert len(lines) > 2


def test_lines_end_to_end_are_one_outline_and_others_none():
    square = np.array([(0.5, 0.0), (2.0, 0.5), (2.5, 2.0), (0.0, 2.5), (0.5, 0.0)])
    (whole,) = joined([square[:3], square[2:4], square[3:]])
    np.testing.assert_array_equal(whole, square[:-1])
    assert len(list(joined([square, square + 9.0]))) == 2
    for wrong in ([square[:3]], [square[:3], square[3:]], [square[:3], square]):
        with pytest.raises(GeometryProofError, match="not closed"):
            list(joined(wrong))


# --- the name that a file gets


def test_two_threads_that_write_one_file_do_not_meet(tmp_path):
    both, parts = threading.Barrier(2, timeout=30), []

    def write(part: Path) -> None:
        parts.append(part)
        part.write_bytes(str(part).encode())
        both.wait()
        assert part.read_bytes() == str(part).encode()

    threads = [threading.Thread(target=proof.save_proved, args=(write, tmp_path / "one.dcm", None)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(parts)) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["one.dcm"]
    assert (tmp_path / "one.dcm").read_bytes() in {str(part).encode() for part in parts}


@pytest.mark.parametrize("stage", ["write", "prove"])
def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path, stage):
    (tmp_path / "one.dcm").write_bytes(b"earlier")

    def fail(part: Path) -> None:
        part.write_bytes(b"half")
        raise RuntimeError("on purpose")

    def write(part: Path) -> None:
        part.write_bytes(b"whole")

    what, prove = (fail, None) if stage == "write" else (write, fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        proof.save_proved(what, tmp_path / "one.dcm", prove)
    assert [file.name for file in tmp_path.iterdir()] == ["one.dcm"]
    assert (tmp_path / "one.dcm").read_bytes() == b"earlier"


def test_the_file_has_the_rights_that_a_new_file_has(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    saved = proof.save_proved(lambda part: part.write_bytes(b"x") and None, tmp_path / "one.dcm", None)
    assert saved.stat().st_mode == (tmp_path / "plain").stat().st_mode
