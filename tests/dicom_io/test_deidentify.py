from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from canaries import (
    ENCAPSULATED_PDF,
    KEY,
    OTHER_KEY,
    SECONDARY_CAPTURE,
    ULTRASOUND,
    only,
    run,
    saved,
)
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, UID_dictionary
from result_phantoms import RESULT, dciodvfy_errors, oblique_case

from dicom_io.confidentiality.pseudonyms import DeidentificationError, Pseudonyms, key_from, new_key
from dicom_io.deidentify import deidentify, files_of
from dicom_io.errors import SeriesSelectionError
from dicom_io.read import read_series
from dicom_io.rtstruct import read_rtstruct, write_rtstruct
from dicom_io.seg import read_seg, write_seg
from dicom_io.sr import write_sr
from monai_unet_app.cli import main

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    made = oblique_case(folder / "phantom")
    shutil.rmtree(folder / "phantom" / "seg.dcm", ignore_errors=True)
    seg = write_seg(made.labels, made.volume, folder / "s.dcm", RESULT)
    write_sr(made.labels, made.volume, folder / "sr.dcm", RESULT, seg=seg)
    write_rtstruct(made.labels, made.volume, folder / "r.dcm", RESULT)
    return folder, made


@pytest.fixture(scope="module")
def shared_out(case, tmp_path_factory):
    """The case without identity, its report's content kept."""
    output = tmp_path_factory.mktemp("out")
    assert run(case[0], output, "clean-structured-content").problems == ()
    return output


def of_kind(output: Path, modality: str, series_description: str | None = None) -> list[Path]:
    return sorted(path for path in output.rglob("*.dcm") if pydicom.dcmread(path).Modality == modality)


def uids_in(path: Path) -> set[str]:
    """Every value of VR UI in a file that names a thing."""
    dataset = pydicom.dcmread(path)
    values = [element.value for element in dataset.iterall() if element.VR == "UI" and element.value]
    single = [str(uid) for value in values for uid in ([value] if isinstance(value, str) else value)]
    return {uid for uid in single if uid not in UID_dictionary}


def test_every_voxel_stays_in_place_relative_to_its_image(case, shared_out):
    made = case[1]
    (image, *_) = of_kind(shared_out, "MR")
    volume = read_series(image.parent)
    np.testing.assert_array_equal(volume.array, read_series(made.volume.provenance.files[0].parent).array)
    np.testing.assert_allclose(volume.affine_lps, made.volume.affine_lps)
    for seg in of_kind(shared_out, "SEG"):
        np.testing.assert_array_equal(read_seg(seg, volume).array, made.labels.array)
    (structures,) = of_kind(shared_out, "RTSTRUCT")
    np.testing.assert_array_equal(read_rtstruct(structures, volume).array, made.labels.array)


def test_every_reference_finds_its_object(shared_out):
    objects = [pydicom.dcmread(path) for path in shared_out.rglob("*.dcm")]
    present = {dataset.SOPInstanceUID for dataset in objects}
    series = {dataset.SeriesInstanceUID for dataset in objects}
    for dataset in objects:
        named = {str(e.value) for e in dataset.iterall() if e.keyword == "ReferencedSOPInstanceUID"}
        assert named <= present | {dataset.StudyInstanceUID}
        assert {str(e.value) for e in dataset.iterall() if e.keyword == "SeriesInstanceUID"} <= series
    (report,) = of_kind(shared_out, "SR")
    content = [e.value for item in pydicom.dcmread(report).ContentSequence for e in item.iterall()]
    assert sum(str(value) in present for value in content) >= 2  # the segments, in the tree itself


def test_measurements_stay_and_texts_of_a_report_go(case, shared_out):
    before = pydicom.dcmread(case[0] / "sr.dcm")
    after = pydicom.dcmread(of_kind(shared_out, "SR")[0])

    def values(dataset: Dataset, keyword: str) -> list[str]:
        return [str(e.value) for e in dataset.iterall() if e.keyword == keyword]

    assert values(after, "NumericValue") == values(before, "NumericValue") != []
    assert values(after, "ValueType") == values(before, "ValueType")
    assert all(re.fullmatch("ANON-[0-9a-f]{11}", text) for text in values(after, "TextValue"))
    seg = [pydicom.dcmread(path) for path in of_kind(shared_out, "SEG")]
    tracked = {(item.TrackingID, item.TrackingUID) for d in seg for item in d.SegmentSequence if "TrackingID" in item}
    texts, uids = set(values(after, "TextValue")), set(values(after, "UID"))
    assert sum(name in texts and uid in uids for name, uid in tracked) == 2


@pytest.mark.parametrize("options", [(), ("clean-structured-content",), ("retain-modified-dates",)], ids=str)
def test_no_object_breaks_a_rule_of_its_iod(case, tmp_path, options):
    run(case[0], tmp_path / "out", *options)
    files = [of_kind(tmp_path / "out", modality)[-1] for modality in ("MR", "SEG", "SR", "RTSTRUCT")]
    assert [dciodvfy_errors(file) for file in files] == [[], [], [], []]


def test_one_key_gives_the_same_bytes_whatever_is_processed_with_it(case, shared_out, tmp_path):
    run(case[0] / "s.dcm", tmp_path / "alone", "clean-structured-content")
    alone = only(tmp_path / "alone")
    assert (shared_out / alone.relative_to(tmp_path / "alone")).read_bytes() == alone.read_bytes()
    run(case[0], tmp_path / "again", "clean-structured-content")
    names = {path.relative_to(shared_out) for path in shared_out.rglob("*") if path.is_file()}
    assert names == {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert all((tmp_path / "again" / name).read_bytes() == (shared_out / name).read_bytes() for name in names)


def test_two_keys_share_no_uid_and_no_key_keeps_one(case, shared_out, tmp_path):
    run(case[0], tmp_path / "other", key=OTHER_KEY)
    own = set().union(*map(uids_in, shared_out.rglob("*.dcm")))
    other = set().union(*map(uids_in, (tmp_path / "other").rglob("*.dcm")))
    source = set().union(*map(uids_in, case[0].rglob("*.dcm")))
    assert own.isdisjoint(other)
    assert source.isdisjoint(own | other)
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in own | other)


def suspect(kind: str) -> Dataset:
    dataset = Dataset()
    dataset.PatientName = "Canary^Name"
    if kind == "flag":
        dataset.BurnedInAnnotation = "YES"
    if kind == "ultrasound":
        dataset.SOPClassUID = ULTRASOUND
    if kind == "capture":
        dataset.SOPClassUID, dataset.BurnedInAnnotation = SECONDARY_CAPTURE, "NO"
    if kind == "screen":
        dataset.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    if kind == "overlay":
        dataset.add(DataElement(Tag(0x60000010), "US", 4))
        dataset.add(DataElement(Tag(0x60000102), "US", 12))
    if kind == "document":
        dataset.SOPClassUID, dataset.EncapsulatedDocument = ENCAPSULATED_PDF, b"%PDF"
    if kind == "slide label":
        dataset.SOPClassUID, dataset.ImageType = WHOLE_SLIDE, ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    if kind == "slide":
        dataset.SOPClassUID, dataset.SpecimenLabelInImage = WHOLE_SLIDE, "YES"
    if kind == "overview":
        dataset.SOPClassUID, dataset.ImageType = WHOLE_SLIDE, ["ORIGINAL", "PRIMARY", "OVERVIEW", "NONE"]
    if kind == "colour":
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.BitsAllocated = 2, 2, 3, 8
        dataset.PixelData = bytes(12)
    if kind == "film":
        dataset.SOPClassUID, dataset.DetectorType = "1.2.840.10008.5.1.4.1.1.1", "FILM"
    if kind == "digitised":
        dataset.SOPClassUID, dataset.ImageType = "1.2.840.10008.5.1.4.1.1.1", ["DERIVED", "PRIMARY", "DIGITIZED FILM"]
    if kind == "paper":
        dataset.ConversionType = "DF"
    if kind.startswith("called "):
        dataset.SeriesDescription = kind.removeprefix("called ")
    if kind.startswith("NM"):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.20"
        dataset.ImageType = ["DERIVED", "SECONDARY", *kind.split("/")[1:]]
    if kind == "eye":
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    return dataset


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("flag", "BurnedInAnnotation is YES"),
        ("ultrasound", "Ultrasound Image Storage"),
        ("capture", "secondary capture"),
        ("screen", "ImageType"),
        ("overlay", "spare bits"),
        ("document", "encapsulated document"),
        ("slide label", "shows a label"),
        ("slide", "SpecimenLabelInImage is YES"),
        ("overview", "overview of a slide"),
        ("colour", "a colour picture of a class of grey images (MR Image Storage)"),
        ("film", "DetectorType"),
        ("digitised", "ImageType says that it was digitised from film"),
        ("paper", "ConversionType says that it was digitised"),
        ("eye", "a photograph of the eye"),
        ("called Dose Report", "its SeriesDescription says"),
        ("called DOSE_INFO", "its SeriesDescription says"),
        ("called Screen Save", "its SeriesDescription says"),
        ("called Brain ScreenSave 2", "its SeriesDescription says"),
        ("called Processed screens", "its SeriesDescription says"),
        ("called Patient Protocol", "its SeriesDescription says"),
        ("called Snapshot", "its SeriesDescription says"),
        ("NM", "does not name a kind of NM image"),
        ("NM/MULTI_FRAME", "does not name a kind of NM image"),
    ],
)
def test_what_may_show_the_name_is_refused_until_someone_has_looked(tmp_path, kind, words):
    saved(suspect(kind), tmp_path / "in" / "Canary.dcm")
    outcome = run(tmp_path / "in", tmp_path / "out")
    (problem,) = outcome.problems
    assert problem.startswith("file 1: ")
    assert words in problem
    assert "--allow-burned-in" in problem
    assert "canary" not in problem.lower()
    assert list((tmp_path / "out").rglob("*.dcm")) == []
    assert run(tmp_path / "in", tmp_path / "out", allow_burned_in=True).problems == ()
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1


@pytest.mark.parametrize(
    "kind",
    [
        "called LOW DOSE CHEST",
        "called Lung screening",
        "called Reported dose 3 mGy",
        "NM/RECON TOMO/EMISSION",
        "NM/STATIC",
    ],
)
def test_what_only_sounds_like_a_screen_is_written(tmp_path, kind):
    saved(suspect(kind), tmp_path / "in" / "a.dcm")
    assert run(tmp_path / "in", tmp_path / "out").problems == ()


def test_a_dose_report_without_pixels_is_written(tmp_path):
    dataset = suspect("called Dose Report")
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    saved(dataset, tmp_path / "in" / "a.dcm")
    assert run(tmp_path / "in", tmp_path / "out").problems == ()


def test_a_broken_file_is_named_by_its_number_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "in"
    for number in (1, 2, 3):
        dataset = Dataset()
        dataset.SOPInstanceUID, dataset.PatientComments = f"1.2.3.4.{number}", "a long comment " * 20
        saved(dataset, folder / f"Canary{number}.dcm")
    cut = folder / "Canary2.dcm"
    cut.write_bytes(cut.read_bytes()[:-30])
    (folder / "notes.txt").write_text("not DICOM")
    outcome = run(folder, tmp_path / "out")
    assert [problem.split(":")[0] for problem in outcome.problems] == ["file 2"]
    assert "canary" not in json.dumps(outcome.report).lower() + "".join(outcome.problems).lower()
    assert len(outcome.report["written"]) == 2
    assert outcome.report["not_dicom"] == 1
    assert sorted(path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()) == [".dcm", ".dcm", ".json"]


def test_an_object_without_uids_is_refused_or_named_by_its_file_header(tmp_path):
    path = saved(Dataset(), tmp_path / "in" / "a.dcm")
    dataset = pydicom.dcmread(path)
    dataset.SOPInstanceUID = ""
    dataset.save_as(path)
    assert run(tmp_path / "in", tmp_path / "out").problems == ()
    assert only(tmp_path / "out").stem == Pseudonyms(KEY).uid("1.2.3.4.5.6.1")
    del dataset.StudyInstanceUID
    dataset.save_as(path)
    (problem,) = run(tmp_path / "in", tmp_path / "out2").problems
    assert "no StudyInstanceUID" in problem


@pytest.mark.parametrize("place", [".", "inside", ".."])
def test_source_and_output_must_lie_apart(tmp_path, place):
    saved(Dataset(), tmp_path / "a" / "in" / "a.dcm")
    with pytest.raises(DeidentificationError, match="must never be mixed"):
        run(tmp_path / "a" / "in", tmp_path / "a" / "in" / place)


def test_an_absent_source_is_refused(tmp_path):
    with pytest.raises(SeriesSelectionError):
        run(tmp_path / "nowhere", tmp_path / "out")


def test_an_object_that_exists_is_not_overwritten_by_another(tmp_path):
    dataset = Dataset()
    dataset.SliceThickness = 1
    saved(dataset, tmp_path / "in" / "a.dcm")
    run(tmp_path / "in", tmp_path / "out")
    before = only(tmp_path / "out").read_bytes()
    assert run(tmp_path / "in", tmp_path / "out").problems == ()  # the same again
    dataset.SliceThickness = 2
    saved(dataset, tmp_path / "in" / "a.dcm")
    (problem,) = run(tmp_path / "in", tmp_path / "out").problems
    assert "different content" in problem
    assert only(tmp_path / "out").read_bytes() == before


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    saved(Dataset(), tmp_path / "in" / "a.dcm")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        run(tmp_path / "in", tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_pixels_pass_through_bit_for_bit(tmp_path):
    rng = np.random.default_rng(5)
    frames = [rng.bytes(size) for size in (1001, 64, 333)]  # nothing that a decoder would take
    for name, pixels, syntax in (("a", encapsulate(frames), JPEG2000Lossless),
                                 ("b", rng.bytes(512), ExplicitVRLittleEndian)):  # fmt: skip
        dataset = Dataset()
        dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.SamplesPerPixel = 16, 16, 16, 1
        dataset.PixelData = pixels
        dataset["PixelData"].VR = "OB" if syntax == JPEG2000Lossless else "OW"
        dataset["PixelData"].is_undefined_length = syntax == JPEG2000Lossless
        saved(dataset, tmp_path / name / "in" / "a.dcm", syntax)
        assert run(tmp_path / name / "in", tmp_path / name / "out").problems == ()
        after = pydicom.dcmread(only(tmp_path / name / "out"))
        assert after.PixelData == pixels
        assert after.file_meta.TransferSyntaxUID == syntax


@pytest.mark.parametrize(("columns", "bits"), [(16, 16), (15, 8), (13, 1)])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_stands_behind_native_pixels_is_left_out(tmp_path, columns, bits, syntax):
    dataset = Dataset()
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.SamplesPerPixel = 15, columns, bits, 1
    length = (15 * columns * bits + 7) // 8
    pixels = np.random.default_rng(5).bytes(length)
    dataset.PixelData = pixels + (b"Canary^Name 4711" + b"!" * (length % 2))
    dataset["PixelData"].VR = "OW"
    saved(dataset, tmp_path / "in" / "a.dcm", syntax)
    assert run(tmp_path / "in", tmp_path / "out").problems == ()
    assert pydicom.dcmread(only(tmp_path / "out")).PixelData == pixels + b"\0" * (length % 2)


@pytest.mark.parametrize("interpretation", ["YBR_FULL_422", "YBR_PARTIAL_422"])
def test_what_stands_behind_pixels_that_share_their_colour_in_pairs_is_left_out(tmp_path, interpretation):
    """PS3.3 C.7.6.3.1.2: four bytes for two pixels of 8 bits, in the retired YBR_PARTIAL_422 too."""
    dataset = Dataset()
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.SamplesPerPixel = 15, 16, 8, 3
    dataset.PhotometricInterpretation = interpretation
    pixels = np.random.default_rng(5).bytes(15 * 16 * 2)
    dataset.PixelData = pixels + b"Canary^Name 4711"
    dataset["PixelData"].VR = "OW"
    saved(dataset, tmp_path / "in" / "a.dcm")
    assert run(tmp_path / "in", tmp_path / "out", allow_burned_in=True).problems == ()
    assert pydicom.dcmread(only(tmp_path / "out")).PixelData == pixels


def test_pixels_that_nothing_counts_are_refused(tmp_path):
    dataset = Dataset()
    dataset.Rows, dataset.BitsAllocated, dataset.SamplesPerPixel = 2, 16, 1
    dataset.PixelData = b"Canary!!"
    dataset["PixelData"].VR = "OW"
    saved(dataset, tmp_path / "in" / "a.dcm")
    (problem,) = run(tmp_path / "in", tmp_path / "out").problems
    assert "does not say how many pixels it has" in problem


def test_the_report_counts_what_was_done(tmp_path):
    dataset = Dataset()
    dataset.PatientName, dataset.SeriesDescription, dataset.AcquisitionTime = "A", "B", "101010"
    dataset.add(DataElement(Tag(0x00310010), "LO", "MAKER"))
    saved(dataset, tmp_path / "in" / "a.dcm")
    run(tmp_path / "in", tmp_path / "out", "retain-full-dates")
    report = json.loads((tmp_path / "out" / "deidentified.json").read_text())
    assert report["options"] == ["retain-full-dates"]
    assert report["codes"] == ["113100", "113106"]
    assert report["written"] == [str(only(tmp_path / "out").relative_to(tmp_path / "out"))]
    assert report["actions"] == {
        "(private)": {"X": 1},
        "AcquisitionTime": {"K": 1},
        "PatientName": {"Z": 1},
        "SOPInstanceUID": {"U": 1},
        "SeriesDescription": {"X": 1},
        "SeriesInstanceUID": {"U": 1},
        "StudyInstanceUID": {"U": 1},
    }


def test_a_key_file_is_made_for_its_owner_only_and_read_again(tmp_path):
    path = tmp_path / "key"
    key = key_from(path, away_from=tmp_path / "out")
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(key) == 32
    assert key_from(path, away_from=tmp_path / "out") == key
    assert new_key() != key


def test_a_key_that_is_none_or_lies_with_the_data_is_refused(tmp_path):
    (tmp_path / "key").write_text("secret")
    with pytest.raises(DeidentificationError, match="does not contain a key"):
        key_from(tmp_path / "key", away_from=tmp_path / "out")
    with pytest.raises(DeidentificationError, match="output folder"):
        key_from(tmp_path / "out" / "key", away_from=tmp_path / "out")
    with pytest.raises(DeidentificationError, match="bytes"):
        Pseudonyms(b"short")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["clean-descriptors"], "not offered"),
        (["clean-graphics"], "not offered"),
        (["clean-pixel-data"], "not offered"),
        (["retain-safe-private"], "not offered"),
        (["keep-everything"], "not an option"),
        (["retain-full-dates", "retain-modified-dates"], "choose one"),
    ],
)
def test_options_that_cannot_be_had_are_refused_with_their_reason(tmp_path, options, words):
    with pytest.raises(DeidentificationError, match=words):
        deidentify([], tmp_path / "out", KEY, options=options)
    assert not (tmp_path / "out").exists()


def identities(dataset: Dataset) -> set[bytes]:
    """Names, numbers, dates and UIDs of a real object, as bytes that must not be found again."""
    found = set()
    numbers = ("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID")
    for element in dataset.iterall():
        who = element.keyword == "PatientName" or element.keyword.endswith(("PhysicianName", "OperatorsName"))
        if who or element.VR in ("DA", "UI") or element.keyword in numbers:
            values = [element.value] if isinstance(element.value, str) or element.VM == 1 else element.value or []
            found.update(str(value) for value in values if value and str(value) not in UID_dictionary)
    classes = {
        str(element.value)
        for element in dataset.iterall()
        if element.keyword.endswith(("ClassUID", "CodingSchemeUID", "ContextUID"))
    }
    words = {word for text in found - classes for word in re.split(r"[\^= ]+", text)}
    return {word.encode() for word in words if len(word) >= 5 and not re.fullmatch("0+|(19|20)0*", word)}


def header_of(path: Path) -> bytes:
    content = path.read_bytes()
    pixels = content.find(b"\xe0\x7f\x10\x00")
    return content if pixels < 0 else content[:pixels]


def check_real(folder: Path, output: Path) -> int:
    """De-identifies a folder of real objects and looks for anything of their identity in every result."""
    sources = files_of([folder], output)
    outcome = deidentify(sources, output, KEY, allow_burned_in=True)
    assert all("different content" in problem for problem in outcome.problems)  # one object in several encodings
    names, seen = Pseudonyms(KEY), set()
    for source in sources:
        try:
            before = pydicom.dcmread(source)
        except pydicom.errors.InvalidDicomError:
            continue
        where = [before.get(f"{level}InstanceUID") or "" for level in ("Study", "Series", "SOP")]
        made = output.joinpath(*map(names.uid, map(str, where))).with_suffix("")
        made = made.with_name(names.uid(str(where[2])) + ".dcm")
        if made.is_file() and where[2] not in seen:
            seen.add(where[2])
            header = header_of(made)
            assert [word for word in identities(before) if word in header] == [], source.name
            pixels = before.get("PixelData", b"")
            assert pydicom.dcmread(made).get("PixelData", b"") in (pixels, pixels + b"\0")  # an odd length is padded
    return len(outcome.report["written"])


@pytest.mark.parametrize("name", ["dcmqi", "highdicom", "rt-utils"])
def test_nothing_of_a_real_segmentation_report_or_structure_set_is_left(shared_data, tmp_path, name):
    assert check_real(shared_data / "dicom_objects" / name, tmp_path / "out") > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ct_small_torchio", "mr_ge_coronal_dcm4che", "dicom2nifti_small", "ct_philips_head_mixed"]
)
def test_nothing_of_a_real_series_is_left(shared_data, tmp_path, name):
    assert check_real(shared_data / "dicom_series" / name, tmp_path / "out") > 0


def test_the_command_line_says_what_became_of_each_file_and_names_nobody(tmp_path, capsys):
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID = "Quixote^Alonso", "Q-774411"
    saved(dataset, tmp_path / "in" / "Quixote.dcm")
    arguments = ["deidentify", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--json"]
    assert main([*arguments, "--key-file", str(tmp_path / "key")]) == 0
    assert len(json.loads(capsys.readouterr().out)["report"]["written"]) == 1
    assert main([*arguments, "--options", "retain-uids,clean-graphics"]) == 2
    assert "clean-graphics" in capsys.readouterr().err
    assert main([*arguments[:4], str(tmp_path / "in"), "--json"]) == 3
    capsys.readouterr()
    saved(suspect("flag"), tmp_path / "in" / "Quixote2.dcm")
    assert main([*arguments[:4], str(tmp_path / "other")]) == 3
    shown = "".join(capsys.readouterr())
    assert "file 2: its BurnedInAnnotation is YES" in " ".join(shown.split())
    assert "quixote" not in shown.lower()
    assert "774411" not in shown


def of_person(folder: Path, number: int, study: str, patient: str = "", issuer: str = "") -> Path:
    dataset = Dataset()
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
        f"1.2.3.4.{number}",
        study,
        f"{study}.1",
    )
    dataset.PatientID, dataset.IssuerOfPatientID, dataset.StudyDate = patient, issuer, "20200102"
    return saved(dataset, folder / f"{number}.dcm")


def pseudonyms_by_number(folder: Path, output: Path) -> dict[int, str]:
    names = {Pseudonyms(KEY).uid(f"1.2.3.4.{number}"): number for number in range(9)}
    assert run(folder, output, "retain-modified-dates").problems == ()
    found = map(pydicom.dcmread, output.rglob("*.dcm"))
    return {names[one.SOPInstanceUID]: one.PatientID + one.StudyDate for one in found}


def test_a_person_is_an_id_with_its_issuer_and_a_study_is_of_one_person(tmp_path):
    """PS3.3 C.7.1.1: IssuerOfPatientID makes the ID unique. One that is absent is unknown, and no other one."""
    folder = tmp_path / "in"
    for number, told in enumerate(
        [
            ("1.2.5", "7", "A"),
            ("1.2.5", "7", ""),
            ("1.2.5", "", ""),
            ("1.2.6", "7", "B"),
            ("1.2.7", "7", "A"),
            ("1.2.8", "7", ""),
        ]
    ):
        of_person(folder, number, *told)
    found = pseudonyms_by_number(folder, tmp_path / "out")
    assert found[0] == found[1] == found[2] == found[4]
    assert len({found[0], found[3], found[5]}) == 3
    of_person(tmp_path / "alone", 5, "1.2.8", "7")
    alone = pseudonyms_by_number(tmp_path / "alone", tmp_path / "out_alone")
    reports = [json.loads((tmp_path / out / "deidentified.json").read_text()) for out in ("out", "out_alone")]
    assert [len(report["notes"]) for report in reports] == [1, 0]
    assert reports[0]["notes"][0].startswith("1 PatientID(s) have an issuer in some studies and none in others")
    assert alone == {5: found[5]}  # without any issuer, the ID decides as ever
    assert alone[5].startswith(Pseudonyms(KEY).token("7"))


def test_an_issuer_and_its_universal_id_are_one(tmp_path):
    """One study states both, the other the universal ID alone."""
    for number, (study, issuer) in enumerate([("1.2.5", "A"), ("1.2.6", "")]):
        path = of_person(tmp_path / "in", number, study, "7", issuer)
        dataset, item = pydicom.dcmread(path), Dataset()
        item.UniversalEntityID, item.UniversalEntityIDType = "1.2.840.1", "ISO"
        dataset.IssuerOfPatientIDQualifiersSequence = [item]
        dataset.save_as(path)
    assert len(set(pseudonyms_by_number(tmp_path / "in", tmp_path / "out").values())) == 1


def test_one_study_gets_one_pseudonym_in_several_runs(tmp_path):
    of_person(tmp_path / "in", 0, "1.2.5", "7", "A")
    of_person(tmp_path / "later", 1, "1.2.5", "7")
    assert len(run(tmp_path / "in", tmp_path / "out").report["written"]) == 1
    outcome = run(tmp_path / "later", tmp_path / "out")
    assert outcome.report["written"] == []
    assert "its study is already in the output folder under another pseudonym" in outcome.problems[0]


def test_an_id_of_persons_with_different_birth_dates_is_said(tmp_path):
    for number, born in enumerate(["19500101", "19600101", ""]):
        path = of_person(tmp_path / "in", number, f"1.2.{number + 5}", "7")
        dataset = pydicom.dcmread(path)
        dataset.PatientBirthDate = born
        dataset.save_as(path)
    (note,) = run(tmp_path / "in", tmp_path / "out").report["notes"]
    assert note.startswith("1 PatientID(s) have several birth dates or sexes")


def test_an_issuer_may_be_stated_by_its_universal_id_alone(tmp_path):
    """PS3.3 C.7.1.1: IssuerOfPatientIDQualifiersSequence."""
    for number, (study, issuer) in enumerate([("1.2.5", "1.2.840.1"), ("1.2.6", "1.2.840.2"), ("1.2.7", "1.2.840.1")]):
        path = of_person(tmp_path / "in", number, study, "7")
        dataset, item = pydicom.dcmread(path), Dataset()
        item.UniversalEntityID, item.UniversalEntityIDType = issuer, "ISO"
        dataset.IssuerOfPatientIDQualifiersSequence = [item]
        dataset.save_as(path)
    found = pseudonyms_by_number(tmp_path / "in", tmp_path / "out")
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ([("7", "A"), ("8", "A")], r"names 2 PatientID\(s\) and 1 IssuerOfPatientID\(s\)"),
        ([("7", "A"), ("7", "B")], r"names 1 PatientID\(s\) and 2 IssuerOfPatientID\(s\)"),
    ],
)
def test_a_study_of_two_persons_is_refused_with_counts(told, words, tmp_path):
    for number, one in enumerate(told):
        of_person(tmp_path / "in", number, "1.2.5", *one)
    of_person(tmp_path / "in", 8, "1.2.6", "9")
    outcome = run(tmp_path / "in", tmp_path / "out")
    assert len(outcome.report["written"]) == 1
    assert [bool(re.search(words, problem)) for problem in outcome.problems] == [True, True]
