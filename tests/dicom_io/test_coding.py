from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from jsonschema import Draft202012Validator
from pydicom.sr._concepts_dict import concepts
from result_phantoms import oblique_case, tool

from dicom_io.coding import load_segments, wholes_of
from dicom_io.errors import SegmentCodingError

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "bundles").glob("*/configs/segments.json"))


def document(**changes: object) -> dict:
    segment = {
        "labelID": 1,
        "SegmentLabel": "Hippocampus",
        "SegmentedPropertyCategoryCodeSequence": _code("91723000", "Anatomical Structure"),
        "SegmentedPropertyTypeCodeSequence": _code("5366008", "Hippocampus"),
    }
    return {"schema_version": "1.0", "segmentAttributes": [[segment | changes]]}


def _code(value: str, meaning: str, scheme: str = "SCT") -> dict:
    return {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning}


def written(folder: Path, content: object) -> Path:
    path = folder / "segments.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_schema_is_itself_a_valid_schema():
    schema = json.loads((REPOSITORY / "dicom_io" / "segments.schema.json").read_text())
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parts[-3])
def test_every_code_of_a_shipped_bundle_is_in_the_snomed_subset_of_dicom_under_its_own_meaning(path):
    published = {value: meaning for entry in concepts["SCT"].values() for value, (meaning, _) in entry.items()}
    meanings = {(v, m.lower()) for entry in concepts["SCT"].values() for v, (m, _) in entry.items()}
    for segment in load_segments(path):
        for code in (segment.category, segment.type, segment.type_modifier, segment.anatomic_region):
            if code is not None:
                assert code.value in published
                assert (code.value, code.meaning.lower()) in meanings


def test_hippocampus_labels_are_anterior_1_and_posterior_2():
    for name in ("hippocampus_mri_unet3d", "hippocampus_mri_unet2d"):
        front, back = load_segments(REPOSITORY / "bundles" / name / "configs" / "segments.json")
        assert (front.number, front.type.value, front.type_modifier.value) == (1, "5366008", "255549009")
        assert (back.number, back.type.value, back.type_modifier.value) == (2, "5366008", "255551008")
        assert front.rgb != back.rgb


def test_retina_vessels_name_their_region():
    (vessel,) = load_segments(REPOSITORY / "bundles" / "retina_vessel_unet2d" / "configs" / "segments.json")
    assert (vessel.type.value, vessel.anatomic_region.value) == ("59820001", "5665001")


def test_dcmqi_itself_accepts_the_shipped_file_and_writes_the_same_codes(tmp_path):
    case = oblique_case(tmp_path / "case")
    import nibabel

    nibabel.save(
        nibabel.Nifti1Image(case.labels.array.astype(np.int16), case.labels.affine_ras),
        tmp_path / "labels.nii",
    )
    segments = REPOSITORY / "bundles" / "hippocampus_mri_unet3d" / "configs" / "segments.json"
    command = [tool("itkimage2segimage"), "--inputDICOMDirectory", str(case.series_folder)]
    command += ["--inputImageList", str(tmp_path / "labels.nii"), "--inputMetadata", str(segments)]
    subprocess.run([*command, "--outputDICOM", str(tmp_path / "seg.dcm")], capture_output=True, check=False)
    items = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    modifiers = [
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning
        for item in items
    ]
    assert modifiers == ["Anterior", "Posterior"]


def test_a_plain_dcmqi_file_without_schema_version_is_read(tmp_path):
    content = document()
    del content["schema_version"]
    assert load_segments(written(tmp_path, content))[0].label == "Hippocampus"


def test_segments_of_several_dcmqi_files_come_in_the_order_of_their_numbers(tmp_path):
    content = document(labelID=2)
    content["segmentAttributes"].append(document(SegmentLabel="First")["segmentAttributes"][0])
    assert [s.label for s in load_segments(written(tmp_path, content))] == ["First", "Hippocampus"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{not json", "cannot be read"),
        ([1, 2], "list|array|object"),
        (document() | {"schema_version": "2.0"}, "schema_version 2.0"),
        (document(SegmentedPropertyTypeCodeSequence=_code("T-A2800", "Hippocampus", "SRT")), "SRT|T-A2800"),
        (document(SegmentedPropertyTypeCodeSequence=_code("12345678", "Mine", "99MINE")), "99MINE"),
        (document(labelID=2), r"\[2\]"),
        (document(labelID=0), "minimum"),
        (document(SegmentLabel="Hippocampe antérieur"), "antérieur"),
        (document(recommendedDisplayRGBValue=[0, 0, 256]), "256"),
        ({"schema_version": "1.0", "segmentAttributes": [[]]}, "segmentAttributes"),
    ],
)
def test_a_file_that_does_not_say_what_labels_mean_is_refused_with_the_reason(tmp_path, content, says):
    with pytest.raises(SegmentCodingError, match=says):
        load_segments(written(tmp_path, content))


def test_the_same_label_twice_is_refused(tmp_path):
    content = document()
    content["segmentAttributes"][0] *= 2
    with pytest.raises(SegmentCodingError, match=r"\[1, 1\]"):
        load_segments(written(tmp_path, content))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SegmentCodingError, match=r"segments\.json cannot be read"):
        load_segments(tmp_path / "segments.json")


def parts(*modifiers: str | None, **changes: dict[str, object]) -> dict:
    """A document of one structure's parts, the first with further changes."""
    items = []
    for number, modifier in enumerate(modifiers, start=1):
        (item,) = document(labelID=number, SegmentLabel=f"Part {number}")["segmentAttributes"][0]
        if modifier:
            item["SegmentedPropertyTypeModifierCodeSequence"] = _code(f"25554{modifier}009", f"Modifier {modifier}")
        items.append(item | (changes if number == 1 else {}))
    return {"schema_version": "1.0", "segmentAttributes": [items]}


def test_anterior_and_posterior_hippocampus_are_a_hippocampus() -> None:
    (whole,) = wholes_of(load_segments(REPOSITORY / "bundles/hippocampus_mri_unet3d/configs/segments.json"))
    assert (whole.label, whole.numbers, whole.type.value) == ("Hippocampus", (1, 2), "5366008")


def test_three_parts_are_one_whole_whatever_else_there_is(tmp_path: Path) -> None:
    content = parts("1", "2", "3", None)
    content["segmentAttributes"][0][3]["SegmentedPropertyTypeCodeSequence"] = _code("4958002", "Amygdala")
    (whole,) = wholes_of(load_segments(written(tmp_path, content)))
    assert whole.numbers == (1, 2, 3)


@pytest.mark.parametrize(
    "content",
    [
        parts("1"),
        parts("1", None),
        parts("1", "1"),
        parts("1", "2", SegmentedPropertyTypeCodeSequence=_code("4958002", "Amygdala")),
        parts("1", "2", AnatomicRegionSequence=_code("119235005", "Brain part")),
    ],
    ids=["one part", "one without a modifier", "the same modifier", "another type", "another region"],
)
def test_segments_that_are_no_parts_of_one_structure_have_no_whole(content: dict, tmp_path: Path) -> None:
    assert wholes_of(load_segments(written(tmp_path, content))) == ()
