"""What a result object is called and whom it belongs to: UIDs that differ where bytes differ, and the source's own identity."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import source_phantoms as phantoms
from once import made_once
from phantoms import CT_IMAGE, lopsided_array, oblique_affine, write_enhanced_mr, write_mr_series, write_picture
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from result_phantoms import RESULT, SEGMENTS, dciodvfy_errors

from dicom_io.capture import write_captures
from dicom_io.coding import load_segments
from dicom_io.errors import GeometryProofError, LabelError, SegmentCodingError, UnreadableFileError
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.result_content import ReportFacts
from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning, write_parametric_map
from dicom_io.pdf import write_pdf
from dicom_io.presentation import write_gsps
from dicom_io.read import read_series
from dicom_io.rtstruct import write_rtstruct
from dicom_io.seg import described_segments, prove_seg, read_seg, write_seg
from dicom_io.sr import write_sr
from dicom_io.volume import Volume

KINDS = ("SEG", "SR", "RTSTRUCT", "GSPS", "SC", "PDF", "PM")
CHANGES = {
    "quality": "rejected: too small",
    "calibration": "ECE 0.1",
    "algorithm_name": "another",
    "algorithm_version": "9",
    "series_description": "Other parts",
    "manufacturer": "others",
    "algorithm_type": "MANUAL",
    "algorithm_family": codes.DCM.Segmentation,
    "settings": (("tta", "on"),),
    "segments": (replace(SEGMENTS[0], label="Other part", display_rgb=(1, 2, 3)), SEGMENTS[1]),
    "bundle_sha256": "f" * 64,
}


def write(kind: str, labels: Volume, source: Volume, folder: Path, result: ResultInfo = RESULT) -> Path:
    """An object of a kind in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.dcm"
    if kind == "SEG":
        return write_seg(labels, source, path, result)
    if kind == "SR":
        return write_sr(labels, source, path, result, seg=write_seg(labels, source, folder / "for_sr.dcm", result))
    if kind == "RTSTRUCT":
        return write_rtstruct(labels, source, path, result)
    if kind == "GSPS":
        return write_gsps(labels, source, path, result)
    if kind == "SC":
        return write_captures(labels, source, folder / "sc", result, slices=[0])[0]
    if kind == "PDF":
        return write_pdf(b"%PDF-1.4\n%%EOF", source, path, result, title="t")
    values = source.with_array(labels.array.astype(np.float32) / 4)
    return write_parametric_map(values, source, path, result, MapMeaning(PROBABILITY, NO_UNIT, "P"))


def write_variants(kind: str, folder: Path) -> None:
    """Writes RESULT as an object of a kind into `0` and `0 again`, and each of CHANGES into a folder named after its field."""
    source = phantoms.oblique_mr(folder / "mr")
    labels = phantoms.lopsided(source)
    results = {"0": RESULT, "0 again": RESULT} | {
        field: replace(RESULT, **{field: value}) for field, value in CHANGES.items()
    }
    for name, result in results.items():
        write(kind, labels, source, folder / name, result)


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """The objects that `write_variants` writes, by name of their folder."""

    def of(kind: str) -> dict[str, Path]:
        folder = made_once(tmp_path_factory, f"variants_of_{kind}", partial(write_variants, kind))
        file = "sc/capture_001.dcm" if kind == "SC" else f"{kind}.dcm"
        return {name: folder / name / file for name in ("0", "0 again", *CHANGES)}

    return of


def uids(path: Path) -> tuple[str, str]:
    """SOP and Series Instance UID."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    return str(dataset.SOPInstanceUID), str(dataset.SeriesInstanceUID)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Volume:
    return phantoms.oblique_mr(tmp_path_factory.mktemp("mr") / "mr")


@pytest.fixture(scope="module")
def labels(source: Volume) -> Volume:
    return phantoms.lopsided(source)


# --- UIDs


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_contents_have_one_uid_whatever_is_said_of_the_computation(kind, variants):
    paths = variants(kind)
    assert paths["0 again"].read_bytes() == paths["0"].read_bytes()
    for field in CHANGES:
        assert uids(paths[field])[0] != uids(paths["0"])[0], field


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_is_that_of_one_model_its_settings_and_what_the_series_says_of_itself(kind, variants):
    first, *others = (pydicom.dcmread(variants(kind)[name], stop_before_pixels=True) for name in ("0", *CHANGES))
    for field, other in zip(CHANGES, others, strict=True):
        same = other.SeriesInstanceUID == first.SeriesInstanceUID
        assert same == (field in ("quality", "calibration", "algorithm_type", "algorithm_family", "segments")), field
        keywords = (
            "SeriesDescription",
            "Manufacturer",
            "ManufacturerModelName",
            "SoftwareVersions",
            "DeviceSerialNumber",
        )
        if same:
            assert [other.get(keyword) for keyword in keywords] == [first.get(keyword) for keyword in keywords]


def two_time_points(folder: Path) -> tuple[Volume, Volume]:
    """An enhanced MR of six frames: three places, at two moments."""

    def edit(dataset: Dataset, _: int) -> None:
        affine_lps = oblique_affine()
        for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            moment, k = number // 3 + 1, number % 3
            position = affine_lps[:3, 3] + k * affine_lps[:3, 2]
            group.PlanePositionSequence[0].ImagePositionPatient = [f"{value:.6f}" for value in position]
            content, time = Dataset(), Dataset()
            content.TemporalPositionIndex, content.DimensionIndexValues = moment, [moment, k + 1]
            time.TemporalPositionTimeOffset = float(moment)
            group.FrameContentSequence, group.TemporalPositionSequence = [content], [time]

    path = write_enhanced_mr(folder / "e.dcm", lopsided_array((11, 9, 6)), oblique_affine(), edit=edit)
    return read_series(path, time_point=1), read_series(path, time_point=2)


@pytest.mark.parametrize("kind", ["SEG", "SR", "RTSTRUCT", "GSPS"])
def test_two_time_points_of_one_object_are_two_sources(kind, tmp_path):
    first, second = two_time_points(tmp_path)
    assert first.provenance.sop_instance_uids == second.provenance.sop_instance_uids
    assert set(first.provenance.frame_numbers).isdisjoint(second.provenance.frame_numbers)
    array = np.zeros(first.shape, np.uint8)
    array[2:5, 3:6, 1] = 1
    paths = [write(kind, one.with_array(array), one, tmp_path / str(n)) for n, one in enumerate((first, second))]
    assert set(uids(paths[0])).isdisjoint(uids(paths[1]))
    if kind == "SEG":
        tracked = [pydicom.dcmread(path).SegmentSequence[0].TrackingUID for path in paths]
        assert tracked[0] != tracked[1]


def test_another_version_never_takes_the_uid_of_the_report_before_it(source, labels, tmp_path):
    first = write("SR", labels, source, tmp_path / "1")
    other = replace(RESULT, algorithm_version="99")
    seg = write_seg(labels, source, tmp_path / "seg.dcm", other)
    second = write_sr(labels, source, tmp_path / "2.dcm", other, seg=seg, facts=ReportFacts(earlier=first))
    assert uids(second)[0] != uids(first)[0]
    (study,) = pydicom.dcmread(second).PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == uids(first)[0]


@pytest.mark.parametrize("kind", ["SEG", "GSPS", "SC", "RTSTRUCT"])
@pytest.mark.parametrize("dtype", [np.int32, np.float64, ">u2"])
def test_labels_of_another_number_type_are_the_same_labels(kind, dtype, source, labels, tmp_path):
    first = write(kind, labels, source, tmp_path / "1")
    second = write(kind, labels.with_array(labels.array.astype(dtype)), source, tmp_path / "2")
    assert second.read_bytes() == first.read_bytes()


def test_a_result_without_a_name_version_or_manufacturer_is_refused():
    for field in ("algorithm_name", "algorithm_version", "manufacturer"):
        for value in ("", "  ", "\n"):
            with pytest.raises(
                LabelError, match=f"the {field} of the result is .* 1 to 64 printable characters are needed"
            ):
                replace(RESULT, **{field: value})


# --- patient and study

SHIFTED = {
    "Latin-1 under UTF-8": ("ISO_IR 192", b"M\xfcller^J\xf6rg", b"Sch\xe4del"),
    "Latin-1 under none": (None, b"M\xfcller^J\xf6rg", b"Sch\xe4del"),
    "UTF-8 under none": (None, "Müller^Jörg".encode(), "Schädel".encode()),
    "Kanji alone": (["ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=", b"\x1b$BF,It\x1b(B CT"),
    "Kanji": (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=", b"\x1b$BF,It\x1b(B CT"),
    "broken GB18030": ("GB18030", b"Wang\xff\xff^X", b"\xff\xff\xff\xffx"),
}


def series_with(folder: Path, character_set: object, name: bytes, text: bytes) -> Volume:
    """An MR series with these very bytes as PatientName, StudyDescription and CodeMeaning of its procedure."""
    name, text = name + b" " * (len(name) % 2), text + b" " * (len(text) % 2)
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "C" * len(text)
    header = {"StudyDescription": "D" * len(text), "PatientName": "P" * len(name), "ProcedureCodeSequence": [code]}
    if character_set is not None:
        header["SpecificCharacterSet"] = character_set
    for path in write_mr_series(folder, lopsided_array(), oblique_affine(), header=header):
        content = path.read_bytes()
        for letter, value in ((b"D", text), (b"P", name), (b"C", text)):
            assert content.count(letter * len(value)) == 1
            content = content.replace(letter * len(value), value)
        path.write_bytes(content)
    return read_series(folder)


def bytes_of_identity(path: Path) -> tuple[object, ...]:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    values = [bytes(dataset.get_item(keyword).value) for keyword in ("PatientName", "StudyDescription")]
    return (
        *values,
        bytes(dataset.ProcedureCodeSequence[0].get_item("CodeMeaning").value),
        dataset.get("SpecificCharacterSet"),
    )


@pytest.mark.parametrize("case", SHIFTED)
@pytest.mark.filterwarnings("ignore")
def test_text_is_carried_over_byte_for_byte_even_where_its_character_set_is_wrong(case, tmp_path):
    source = series_with(tmp_path / "mr", *SHIFTED[case])
    wanted = bytes_of_identity(source.provenance.files[0])
    labels = phantoms.lopsided(source)
    for kind in KINDS:
        assert bytes_of_identity(write(kind, labels, source, tmp_path / kind)) == wanted, kind


def test_sources_in_implicit_vr_or_big_endian_give_the_same_identity(tmp_path):
    header = {
        "PatientWeight": "71.5",
        "PregnancyStatus": 4,
        "PatientName": "Müller^Jörg",
        "SpecificCharacterSet": "ISO_IR 100",
    }
    paths = write_mr_series(tmp_path / "explicit", lopsided_array(), oblique_affine(), header=header)
    for folder, syntax in (("implicit", ImplicitVRLittleEndian), ("big", ExplicitVRBigEndian)):
        (tmp_path / folder).mkdir()
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset["PixelData"].value = dataset.pixel_array.astype(">i2" if folder == "big" else "<i2").tobytes()
            dataset.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(tmp_path / folder / path.name, dataset)
        source = read_series(tmp_path / folder)
        dataset = pydicom.dcmread(write("SEG", phantoms.lopsided(source), source, tmp_path / f"{folder} seg"))
        assert (dataset.PatientWeight, dataset.PregnancyStatus, str(dataset.PatientName)) == (71.5, 4, "Müller^Jörg")


@pytest.mark.parametrize("method", ["", None])
def test_a_source_that_does_not_say_how_it_was_deidentified_gives_valid_objects_that_say_so(method, tmp_path):
    header = {"PatientIdentityRemoved": "YES"} | ({} if method is None else {"DeidentificationMethod": method})
    source = phantoms.oblique_mr(tmp_path / "mr", header)
    labels = phantoms.lopsided(source)
    for kind in KINDS:
        path = write(kind, labels, source, tmp_path / kind)
        assert dciodvfy_errors(path) == []
        assert pydicom.dcmread(path).DeidentificationMethod == "Not named by the source"


def without_frame_of_reference(path: Path) -> Path:
    dataset = pydicom.dcmread(path)
    dataset.FrameOfReferenceUID = ""
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("sop_class_uid", "modality"), [("1.2.840.10008.5.1.4.1.1.1", "CR"), ("1.2.840.10008.5.1.4.1.1.1.1", "DX")]
)
def test_an_empty_frame_of_reference_of_a_picture_is_not_repeated(sop_class_uid, modality, tmp_path):
    header = {"SOPClassUID": sop_class_uid, "Modality": modality, "PresentationIntentType": "FOR PRESENTATION"}
    picture = write_picture(tmp_path / "x.dcm", lopsided_array((13, 9, 1))[:, :, 0], header)
    source = read_series(without_frame_of_reference(picture))
    labels = phantoms.lopsided(source)
    for kind in ("SEG", "GSPS", "SC", "PDF"):
        path = write(kind, labels, source, tmp_path / kind)
        assert "FrameOfReferenceUID" not in pydicom.dcmread(path)
        assert dciodvfy_errors(path) == [], kind


def test_only_objects_with_places_need_a_frame_of_reference(tmp_path):
    for path in write_mr_series(tmp_path / "mr", lopsided_array(), oblique_affine()):
        without_frame_of_reference(path)
    source = read_series(tmp_path / "mr")
    labels = phantoms.lopsided(source)
    for kind in ("SC", "PDF", "GSPS"):
        write(kind, labels, source, tmp_path / kind)
    for kind in ("SEG", "RTSTRUCT", "PM"):
        with pytest.raises(LabelError, match="no FrameOfReferenceUID; an object with positions in patient space"):
            write(kind, labels, source, tmp_path / kind)
        assert list((tmp_path / kind).iterdir()) == []


# --- what the source says of itself


def test_the_side_of_a_paired_part_is_in_every_result(tmp_path):
    source = phantoms.oblique_mr(tmp_path / "mr", {"BodyPartExamined": "KNEE", "Laterality": "R"})
    labels = phantoms.lopsided(source)
    for kind in ("SEG", "SR", "RTSTRUCT", "GSPS", "SC"):
        path = write(kind, labels, source, tmp_path / kind)
        dataset = pydicom.dcmread(path)
        assert dataset.get("Laterality" if kind != "SEG" else "ImageLaterality") == "R", kind
        assert dataset.BodyPartExamined == "KNEE"
        assert dciodvfy_errors(path) == []


def test_an_unpaired_part_has_no_side(tmp_path):
    source = phantoms.oblique_mr(tmp_path / "mr", {"BodyPartExamined": "BRAIN", "Laterality": "R"})
    labels = phantoms.lopsided(source)
    for kind in ("SEG", "SR", "RTSTRUCT", "GSPS"):
        dataset = pydicom.dcmread(write(kind, labels, source, tmp_path / kind))
        assert "Laterality" not in dataset
        assert dataset.get("ImageLaterality") == ("U" if kind == "SEG" else None)  # unpaired, PS3.3 C.7.6.1


@pytest.mark.parametrize("part", ["KNEE", ""])
def test_the_image_laterality_of_a_seg_is_empty_where_the_source_states_no_side(part, tmp_path):
    """Laterality is needed for a paired part where Image Laterality is absent (PS3.3 C.7.3.1)."""
    source = phantoms.oblique_mr(tmp_path / "mr", {"BodyPartExamined": part})
    path = write("SEG", phantoms.lopsided(source), source, tmp_path / "SEG")
    dataset = pydicom.dcmread(path)
    assert dataset.ImageLaterality == ""
    assert "Laterality" not in dataset
    assert dciodvfy_errors(path) == []


def test_the_slice_thickness_of_an_enhanced_source_is_that_of_its_frames(tmp_path):
    def edit(dataset: Dataset, _: int) -> None:
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = "1.5"

    source = read_series(write_enhanced_mr(tmp_path / "e.dcm", lopsided_array(), oblique_affine(), edit=edit))
    assert source.spacing_mm[2] == pytest.approx(2.5)
    for kind in ("SEG", "PM"):
        dataset = pydicom.dcmread(write(kind, phantoms.lopsided(source), source, tmp_path / kind))
        assert dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 1.5


@pytest.mark.parametrize(("rescale_type", "is_told"), [("HU", True), ("", True), ("US", False)])
def test_only_hounsfield_units_are_called_attenuation(rescale_type, is_told, tmp_path):
    def edit(dataset: Dataset, _: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
        if rescale_type:
            dataset.RescaleType = rescale_type

    write_mr_series(tmp_path / "ct", lopsided_array(), oblique_affine(), header=CT_IMAGE, edit=edit)
    source = read_series(tmp_path / "ct")
    report = pydicom.dcmread(write("SR", phantoms.lopsided(source), source, tmp_path / "sr")).to_json()
    assert ("hnsf" in report, "112031" in report) == (is_told, is_told)  # UCUM; DCM Attenuation Coefficient


UNFIT_CREATORS = ["C" * 65, "=".join("CCCC"), "C\\D", "C\nD"]


@pytest.mark.parametrize("creator", UNFIT_CREATORS)
def test_a_creator_whose_name_does_not_fit_is_refused_without_showing_it(creator):
    with pytest.raises(LabelError, match=r"content_creator .* three groups of 64 characters") as refusal:
        replace(RESULT, content_creator=creator)
    assert creator not in str(refusal.value)


@pytest.mark.parametrize("segments", [SEGMENTS[::-1], SEGMENTS[1:], (SEGMENTS[0], SEGMENTS[0])])
def test_segments_that_are_not_numbered_from_1_are_refused(segments):
    with pytest.raises(LabelError, match=r"have the numbers \[.*\]; 1 to \d in this order are needed"):
        replace(RESULT, segments=segments)


FOREIGN = "Hippocampe antérieur ß 海馬"


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "Mueller^Joerg"),
        ("ISO_IR 100", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "Müller^Жанна"),
    ],
)
def test_labels_of_any_script_are_in_valid_objects_in_utf8_with_the_patients_own_name(charset, name, tmp_path):
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", name[:6]
    header = {"PatientName": name, "ProcedureCodeSequence": [code]}
    source = phantoms.oblique_mr(tmp_path / "mr", header | ({"SpecificCharacterSet": charset} if charset else {}))
    segment = replace(SEGMENTS[0], label=FOREIGN, description="Größe – 海马", type=Code("1" * 17, "99X", "Leberläsion"))
    result, labels = replace(RESULT, segments=(segment, SEGMENTS[1])), phantoms.lopsided(source)
    for kind in KINDS:
        path = write(kind, labels, source, tmp_path / kind, result)
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        assert dciodvfy_errors(path) == [], kind
        assert (dataset.SpecificCharacterSet, str(dataset.PatientName)) == ("ISO_IR 192", name), kind
        assert dataset.ProcedureCodeSequence[0].CodeMeaning == name[:6]
        if kind in ("SEG", "SR", "RTSTRUCT", "GSPS"):
            assert FOREIGN in json.dumps(dataset.to_json_dict(), ensure_ascii=False), kind
    assert described_segments(tmp_path / "SEG/SEG.dcm")[0] == segment


def test_a_source_whose_text_cannot_be_put_into_utf8_is_refused_by_the_attribute(tmp_path):
    source = series_with(tmp_path / "mr", *SHIFTED["Latin-1 under none"])
    result = replace(RESULT, segments=(replace(SEGMENTS[0], label=FOREIGN), SEGMENTS[1]))
    with pytest.raises(LabelError, match=r"PatientName|StudyDescription|ProcedureCode") as refusal:
        write("SEG", phantoms.lopsided(source), source, tmp_path / "seg", result)
    assert "ller" not in str(refusal.value)


def test_the_proof_refuses_a_label_in_another_character_set_than_the_object_names(tmp_path):
    source = phantoms.oblique_mr(tmp_path / "mr", {})
    segments = (replace(SEGMENTS[0], label=FOREIGN), SEGMENTS[1])
    labels = phantoms.lopsided(source)
    path = write("SEG", labels, source, tmp_path / "seg", replace(RESULT, segments=segments))
    content = path.read_bytes()
    for other, says in ((b"ISO_IR 100", "segment of number 1 has the label"), (b"ISO_IR 144", "cannot be read back")):
        path.write_bytes(content.replace(b"ISO_IR 192", other))
        with pytest.raises(GeometryProofError, match=says):
            prove_seg(path, labels, source, segments)


@pytest.mark.parametrize("keyword", ["ReferencedStudySequence", "ProcedureCodeSequence"])
def test_sequences_of_the_source_in_each_other_without_end_are_left_out_of_results(keyword, tmp_path, caplog):
    inner = Dataset()
    inner.CodeMeaning = "in the middle"
    shallow, deep = inner, inner
    for level in range(300):
        outer = Dataset()
        outer.add_new(Tag(keyword), "SQ", [deep])
        deep, shallow = outer, outer if level == 8 else shallow
    limit = sys.getrecursionlimit()
    for sequence, is_repeated in ((shallow, True), (deep, False)):
        try:
            sys.setrecursionlimit(20_000)  # pydicom writes such a file only so
            folder, header = tmp_path / str(is_repeated) / "mr", {keyword: [sequence]}
            write_mr_series(folder, lopsided_array((11, 9, 2)), oblique_affine(), header=header)
            source = read_series(folder)
        finally:
            sys.setrecursionlimit(limit)
        labels = phantoms.lopsided(source)
        for kind in KINDS:
            path = write(kind, labels, source, tmp_path / str(is_repeated) / kind)
            assert (keyword in pydicom.dcmread(path, stop_before_pixels=True)) == is_repeated, kind
    assert f"{keyword} of the source has more than 16 levels" in caplog.text


def test_segments_json_takes_a_printable_line_as_description_only(tmp_path):
    code = {"CodeValue": "5366008", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Hippocampus"}
    segment = {
        "labelID": 1,
        "SegmentLabel": "x",
        "SegmentedPropertyCategoryCodeSequence": code,
        "SegmentedPropertyTypeCodeSequence": code,
    }
    path = tmp_path / "segments.json"
    for description, fits in (("Head [1]; 5 mm", True), ("", True), ("Größe", True), ("a\nb", False), ("a\\b", False)):
        path.write_text(json.dumps({"segmentAttributes": [[segment | {"SegmentDescription": description}]]}))
        if fits:
            assert load_segments(path)[0].description == description
        else:
            with pytest.raises(SegmentCodingError, match="SegmentDescription"):
                load_segments(path)


# --- channels and number types


def test_every_number_that_is_not_zero_marks_a_voxel_of_a_channel(source, tmp_path):
    marked = np.zeros((*source.shape, 2), bool)
    marked[2:6, 3:8, 1:4, 0] = True
    marked[5:8, 3:5, 1:4, 1] = True
    paths = []
    for number, value in enumerate((np.uint8(1), np.float32(0.5), np.int32(65536), np.int16(-256), np.float16(1e-7))):
        channels = source.with_array(marked * value)
        paths.append(write_seg(channels, source, tmp_path / f"{number}.dcm", RESULT))
        found = hd.seg.segread(paths[-1]).get_pixels_by_source_instance(
            list(source.provenance.sop_instance_uids), assert_missing_frames_are_empty=True
        )
        np.testing.assert_array_equal(found.transpose(2, 1, 0, 3) != 0, marked)
        contours = write_rtstruct(channels, source, tmp_path / f"rt{number}.dcm", RESULT)
        assert [
            len(item.get("ContourSequence") or []) > 0 for item in pydicom.dcmread(contours).ROIContourSequence
        ] == [
            True,
            True,
        ]
    assert len({path.read_bytes() for path in paths}) == 1


def test_labels_that_are_no_whole_numbers_of_a_segment_are_refused(source, tmp_path):
    for value in (0.5, 2.5, 3, 256, 65537, -1, np.nan):
        array = np.zeros(source.shape, np.float64)
        array[2, 3, 4] = value
        for kind in ("SEG", "RTSTRUCT", "GSPS"):
            with pytest.raises(LabelError, match="the labels hold the value"):
                write(kind, source.with_array(array), source, tmp_path / kind)
    nans = source.with_array(np.full((*source.shape, 2), np.nan, np.float32))
    with pytest.raises(LabelError, match="the channels contain NaN"):
        write("SEG", nans, source, tmp_path / "nan")


def test_probabilities_in_half_precision_are_rounded_as_their_values_say(source, tmp_path):
    values = np.random.default_rng(0).random((*source.shape, 2)).astype(np.float16)
    path = write_seg(source.with_array(values), source, tmp_path / "16.dcm", RESULT, encoding="fractional")
    found = hd.seg.segread(path).get_pixels_by_source_instance(
        list(source.provenance.sop_instance_uids), assert_missing_frames_are_empty=True, rescale_fractional=False
    )
    exact = np.array([round(float(value) * 255) for value in values.ravel()]).reshape(values.shape)
    np.testing.assert_array_equal(found.transpose(2, 1, 0, 3), exact)
    single = write_seg(
        source.with_array(values.astype(np.float32)), source, tmp_path / "32.dcm", RESULT, encoding="fractional"
    )
    assert single.read_bytes() == path.read_bytes()


# --- single-frame pictures of classes that may have frames


@pytest.mark.parametrize(
    ("sop_class_uid", "modality"),
    [
        ("1.2.840.10008.5.1.4.1.1.77.1.5.1", "OP"),  # Ophthalmic Photography 8 Bit, then 16 Bit, then OCT en face
        ("1.2.840.10008.5.1.4.1.1.77.1.5.2", "OP"),
        ("1.2.840.10008.5.1.4.1.1.77.1.5.4", "OPT"),
        ("1.2.840.10008.5.1.4.1.1.12.1", "XA"),
        ("1.2.840.10008.5.1.4.1.1.6.1", "US"),
    ],
)
@pytest.mark.parametrize("encoding", ["binary", "labelmap"])
def test_a_fundus_photograph_carries_a_seg(sop_class_uid, modality, encoding, tmp_path):
    header = {
        "SOPClassUID": sop_class_uid,
        "Modality": modality,
        "ImageLaterality": "R",
        "BodyPartExamined": "EYE",
        "NumberOfFrames": 1,
    }
    source = phantoms.colour_picture(tmp_path, header)
    labels = phantoms.lopsided(source)
    path = write_seg(labels, source, tmp_path / "seg.dcm", RESULT, encoding=encoding)
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_seg(path, source).array, labels.array)
    dataset = pydicom.dcmread(path)
    (image,) = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert image.ReferencedSOPClassUID == sop_class_uid
    assert image.ReferencedSOPInstanceUID == source.provenance.sop_instance_uids[0]
    assert dataset.ImageLaterality == "R"


def test_the_dimensions_of_a_seg_on_a_picture_count_its_segments_or_its_one_frame(tmp_path):
    source = phantoms.radiograph(tmp_path)
    labels = phantoms.lopsided(source)
    dataset = pydicom.dcmread(write_seg(labels, source, tmp_path / "seg.dcm", RESULT))
    for group in dataset.PerFrameFunctionalGroupsSequence:
        counted = group.FrameContentSequence[0].DimensionIndexValues
        assert counted == group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    dataset = pydicom.dcmread(write_seg(labels, source, tmp_path / "map.dcm", RESULT, encoding="labelmap"))
    (dimension,), (group,) = dataset.DimensionIndexSequence, dataset.PerFrameFunctionalGroupsSequence
    assert group.FrameContentSequence[0].DimensionIndexValues == 1
    assert dimension.DimensionIndexPointer in group.FrameContentSequence[0]


@pytest.mark.parametrize("sop_class_uid", ["1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.20"])
def test_slices_of_a_class_that_may_have_frames_carry_every_object(sop_class_uid, tmp_path):
    header = {"SOPClassUID": sop_class_uid, "Modality": "OT"}
    write_mr_series(tmp_path / "series", lopsided_array(), oblique_affine(), header=header)
    source = read_series(tmp_path / "series")
    labels = phantoms.lopsided(source)
    for kind in KINDS:
        dataset = pydicom.dcmread(write(kind, labels, source, tmp_path / kind))
        named = {
            str(item.ReferencedSOPClassUID)
            for item in referenced(dataset)
            if item.ReferencedSOPInstanceUID in source.provenance.sop_instance_uids
        }
        assert named == {sop_class_uid}, kind


def referenced(dataset: Dataset) -> list[Dataset]:
    """Every item below that names an instance, not as the study."""
    found = [dataset] if "ReferencedSOPInstanceUID" in dataset else []
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                found += referenced(item)
    return found


# --- reports


def test_a_report_finds_its_seg_whether_or_not_that_has_empty_frames(source, labels, tmp_path):
    for encoding in ("binary", "labelmap-rle"):
        for empty_frames in (False, True):
            seg = write_seg(labels, source, tmp_path / "seg.dcm", RESULT, encoding=encoding, empty_frames=empty_frames)
            report = pydicom.dcmread(write_sr(labels, source, tmp_path / "sr.dcm", RESULT, seg=seg))
            assert uids(seg)[0] in str(report)


@pytest.mark.parametrize("kind", ["DX", "RGB"])
def test_a_picture_is_not_measured_in_millimetres(kind, tmp_path):
    source = phantoms.ALL[kind](tmp_path / "source")
    labels = phantoms.lopsided(source)
    seg = write_seg(labels, source, tmp_path / "seg.dcm", RESULT)
    with pytest.raises(
        LabelError, match=r"a picture without patient space.* write a SEG, a presentation state or captures"
    ):
        write_sr(labels, source, tmp_path / "sr.dcm", RESULT, seg=seg)
    assert not (tmp_path / "sr.dcm").exists()


def test_several_intensities_a_voxel_are_not_reported_on(source, labels, tmp_path):
    seg = write_seg(labels, source, tmp_path / "seg.dcm", RESULT)
    several = source.with_array(np.stack([source.array, source.array], axis=-1))
    with pytest.raises(LabelError, match="the source has 2 channels"):
        write_sr(labels, several, tmp_path / "sr.dcm", RESULT, seg=seg)


def test_reports_on_one_fractional_seg_with_other_labels_are_other_instances(source, labels, tmp_path):
    chances = np.stack([(labels.array == number) * np.float32(0.7) for number in (1, 2)], axis=-1)
    seg = write_seg(source.with_array(chances), source, tmp_path / "seg.dcm", RESULT, encoding="fractional")
    one = labels.with_array((labels.array == 1).astype(np.uint8))
    reports = [write_sr(each, source, tmp_path / f"{n}.dcm", RESULT, seg=seg) for n, each in enumerate((labels, one))]
    assert uids(reports[0])[0] != uids(reports[1])[0]
    assert uids(reports[0])[1] == uids(reports[1])[1]


def test_intervals_are_numbers_of_any_type_and_of_segments_that_exist(source, labels, tmp_path):
    seg = write_seg(labels, source, tmp_path / "seg.dcm", RESULT)

    def report(intervals: dict) -> bytes:
        return write_sr(
            labels, source, tmp_path / "sr.dcm", RESULT, seg=seg, facts=ReportFacts(volumes_ml=intervals)
        ).read_bytes()

    assert report({1: (0.0, 9.0), 2: (0, 1)}) == report({np.int64(2): (0.0, np.float32(1)), 1: (np.float64(0), 9)})
    with pytest.raises(LabelError, match=r"of segment 3; the segments are \[1, 2\]"):
        report({1: (0.0, 9.0), 3: (0.0, 1.0)})


def test_what_is_no_seg_is_refused_as_the_seg_of_a_report(source, labels, tmp_path):
    (tmp_path / "junk").write_bytes(b"x" * 300)
    for path in (tmp_path / "junk", tmp_path / "absent"):
        with pytest.raises(UnreadableFileError):
            write_sr(labels, source, tmp_path / "sr.dcm", RESULT, seg=path)
    with pytest.raises(LabelError, match="must refer to its own SEG"):
        write_sr(labels, source, tmp_path / "sr.dcm", RESULT, seg=source.provenance.files[0])


OWNERS = {
    "one": {"PatientID": "A-1", "IssuerOfPatientID": "North"},
    "another": {"PatientID": "B-2", "IssuerOfPatientID": "North"},
    "another issuer": {"PatientID": "A-1", "IssuerOfPatientID": "South"},
    "another study": {"PatientID": "A-1", "IssuerOfPatientID": "North", "StudyInstanceUID": "1.2.3.4"},
    "one again": {"PatientID": "A-1 ", "IssuerOfPatientID": "North"},
}


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Volume]:
    """One series as each of the OWNERS has it: with the same UIDs of its images."""
    root = tmp_path_factory.mktemp("moved")
    files = write_mr_series(root / "source", lopsided_array(), oblique_affine())
    for name, header in OWNERS.items():
        (root / name).mkdir()
        for file in files:
            dataset = pydicom.dcmread(file)
            for keyword, value in header.items():
                setattr(dataset, keyword, value)
            dataset.save_as(root / name / file.name)
    return {name: read_series(root / name) for name in OWNERS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_that_is_moved_to_another_patient_has_results_of_its_own(
    kind: str, moved: dict[str, Volume], tmp_path: Path
) -> None:
    """The image UIDs are kept, as when an archive corrects whose a study is; so no two patients share a result's UIDs."""
    made = {
        name: uids(write(kind, phantoms.lopsided(source), source, tmp_path / name)) for name, source in moved.items()
    }
    assert made.pop("one again") == made["one"]
    for part in zip(*made.values(), strict=True):
        assert len(set(part)) == 4


def test_a_series_in_memory_is_of_the_same_patient_as_its_files(tmp_path: Path) -> None:
    files = write_mr_series(
        tmp_path, lopsided_array(), oblique_affine(), header={"PatientID": "Ä-1", "SpecificCharacterSet": "ISO_IR 100"}
    )
    from_files = read_series(tmp_path).provenance.patient_digest
    in_memory = [pydicom.dcmread(file) for file in files]
    for dataset in in_memory:
        str(dataset.PatientID)  # decoded
    assert read_series(in_memory).provenance.patient_digest == from_files != ""
