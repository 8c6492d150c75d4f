from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from jsonschema import Draft202012Validator
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from result_phantoms import oblique_case, tool

from dicom_io.coding import Segment, load_segments, load_wholes, uncoded
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


def test_structures_that_state_no_colour_have_one_each(tmp_path):
    items = [document(labelID=n, SegmentLabel=f"Part {n}")["segmentAttributes"][0][0] for n in range(1, 34)]
    found = [one.rgb for one in load_segments(written(tmp_path, {"segmentAttributes": [items]}))]
    assert found[0] == (0x4C, 0xC3, 0xFF)
    assert len(set(found[:32])) == 32
    assert found[32] == found[0]


def test_two_structures_of_one_label_are_refused(tmp_path):
    content = document()
    content["segmentAttributes"].append(document(labelID=2)["segmentAttributes"][0])
    with pytest.raises(SegmentCodingError, match=r"labelIDs 1 and 2 both 'Hippocampus'; .* rename one"):
        load_segments(written(tmp_path, content))


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
        (
            document(SegmentLabel="a\\b"),
            r"segments\.json at segmentAttributes/0/0/SegmentLabel holds .* without a backslash",
        ),
        (document(SegmentLabel="Liver\n"), r"holds '\\n'"),
        (document(SegmentLabel="x" * 65), "has 65 characters .* at most 64"),
        (document(SegmentLabel="海馬" * 11), "66 bytes in UTF-8 .* at most 64"),
        (document(SegmentLabel=" "), "is blank"),
        (document(recommendedDisplayRGBValue=[0, 0, 256]), "256"),
        ({"schema_version": "1.0", "segmentAttributes": [[]]}, "segmentAttributes"),
    ],
)
def test_a_file_that_does_not_say_what_labels_mean_is_refused_with_the_reason(tmp_path, content, says):
    with pytest.raises(SegmentCodingError, match=says):
        load_segments(written(tmp_path, content))


UNFIT = {
    "label": ["x" * 65, "海馬" * 11, "", " ", "a\\b", "two\nlines", "ends\n", "\x07", "right\u202eleft"],
    "description": ["x" * 1025, "a\\b", "two\nlines"],
    "number": [0, 65536, 1.5],
    "display_rgb": [(0, 0, 256), (0, 0)],
    "type": [
        Code("", "SCT", "Liver"),
        Code("10 200 004", "SCT", "Liver"),
        Code("10200004", "S" * 17, "Liver"),
        Code("10200004", "SCT", "L" * 65),
        Code("10200004", "SCT", ""),
    ],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in UNFIT.items() for value in values])
def test_a_segment_that_no_dicom_object_can_hold_is_refused_where_it_is_made(field, value):
    segment = Segment(1, "Liver", codes.SCT.AnatomicalStructure, codes.SCT.Liver)
    with pytest.raises(SegmentCodingError, match=r"^segment \S+ (at|has).*(needed|minimum|maximum|integer)"):
        replace(segment, **{field: value})


def test_labels_of_any_script_and_numbers_of_numpy_are_taken():
    kind = codes.SCT.AnatomicalStructure, codes.SCT.Liver
    for label in ("Hippocampe antérieur", "Größe", "海馬", "x" * 64):
        rgb = tuple(np.array([1, 2, 255], np.uint8))
        assert Segment(np.uint16(65535), label, *kind, display_rgb=rgb, description="Größe " * 128).label == label


def test_a_label_is_drawn_in_the_letters_that_pictures_have():
    segment = Segment(2, "Hippocampe antérieur", codes.SCT.AnatomicalStructure, codes.SCT.Hippocampus)
    assert segment.drawn_label == "Hippocampe anterieur"
    assert replace(segment, label="海馬").drawn_label == f"2 {codes.SCT.Hippocampus.meaning}"


def test_the_same_label_twice_is_refused(tmp_path):
    content = document()
    content["segmentAttributes"][0] *= 2
    with pytest.raises(SegmentCodingError, match=r"\[1, 1\]"):
        load_segments(written(tmp_path, content))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SegmentCodingError, match=r"segments\.json cannot be read"):
        load_segments(tmp_path / "segments.json")


HIPPOCAMPUS = {
    "SegmentedPropertyCategoryCodeSequence": _code("91723000", "Anatomical Structure"),
    "SegmentedPropertyTypeCodeSequence": _code("5366008", "Hippocampus"),
}


def parts(*wholes: dict, modifiers: tuple[str, ...] = ("Left", "Right", "Left")) -> dict:
    """A document of three segments of one type that differ in their type modifiers, with these wholes."""
    items = []
    for number, modifier in enumerate(modifiers, start=1):
        (item,) = document(labelID=number, SegmentLabel=f"Part {number}")["segmentAttributes"][0]
        item["SegmentedPropertyTypeModifierCodeSequence"] = _code(f"25554{number}009", modifier)
        items.append(item)
    return {"schema_version": "1.1", "segmentAttributes": [items]} | ({"wholes": list(wholes)} if wholes else {})


def whole(label: str = "Both", numbers: object = (1, 2), **changes: object) -> dict:
    return HIPPOCAMPUS | {"label": label, "parts": list(numbers) if isinstance(numbers, tuple) else numbers} | changes


@pytest.mark.parametrize("name", ["hippocampus_mri_unet3d", "hippocampus_mri_unet2d"])
def test_the_shipped_hippocampus_is_stated_as_the_whole_of_its_anterior_and_posterior_part(name: str) -> None:
    (found,) = load_wholes(REPOSITORY / "bundles" / name / "configs/segments.json")
    assert (found.label, found.numbers, found.type.value) == ("Hippocampus", (1, 2), "5366008")


@pytest.mark.parametrize("modifiers", [("Left", "Right"), ("Anterior", "Posterior"), ("Left", "Right", "Accessory")])
def test_codes_alone_make_no_whole(modifiers: tuple[str, ...], tmp_path: Path) -> None:
    assert load_wholes(written(tmp_path, parts(modifiers=modifiers))) == ()


def test_stated_wholes_come_in_the_order_of_the_file_with_their_parts_ascending(tmp_path: Path) -> None:
    stated = parts(
        whole("All", (3, 1, 2)), whole("Left ones", (1, 3), AnatomicRegionSequence=_code("119235005", "Brain"))
    )
    found = load_wholes(written(tmp_path, stated))
    assert [(one.label, one.numbers) for one in found] == [("All", (1, 2, 3)), ("Left ones", (1, 3))]
    assert [one.anatomic_region and one.anatomic_region.meaning for one in found] == [None, "Brain"]


@pytest.mark.parametrize(
    ("wholes", "says"),
    [
        ([whole(numbers=(1, 4))], r"wholes/0 \('Both'\).* \[1, 4\], and there is no labelID 4; .* labelIDs 1 to 3"),
        ([whole(numbers=(0, 1))], "wholes/0/parts/0.*less than the minimum"),
        ([whole(numbers=(1,))], "wholes/0/parts.*too short"),
        ([whole(numbers=(1, 1))], "wholes/0/parts.*non-unique"),
        ([whole(numbers="1+2")], "wholes/0/parts.*not of type 'array'"),
        ([{"label": "Both", "parts": [1, 2]}], "wholes/0.*SegmentedProperty.*required"),
        ([whole(colour="red")], "wholes/0.*'colour' was unexpected"),
        ([whole("Both", (1, 2)), whole("Both", (2, 3))], "wholes/1 .* has the label of another whole"),
        ([whole("Both", (1, 2)), whole("Pair", (2, 1))], "wholes/1 .* has the parts of another whole"),
        ([whole("PART 2", (1, 2))], r"wholes/0 \('PART 2'\) has the label of labelID 2; .* rename it"),
    ],
)
def test_a_whole_that_cannot_be_is_refused_with_its_place_and_reason(wholes: list, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, parts(*wholes))
    for load in (load_segments, load_wholes):
        with pytest.raises(SegmentCodingError, match=says):
            load(path)


@pytest.mark.parametrize("key", ["whole", "Wholes", "parts", "schemaVersion", "segments", ""])
def test_a_key_at_the_top_that_means_nothing_is_refused_by_name(key: str, tmp_path: Path) -> None:
    content = parts() | {key: [whole()]}
    with pytest.raises(
        SegmentCodingError, match=rf"has the key '{key}' at its top level, which has no meaning; wholes, "
    ):
        load_segments(written(tmp_path, content))


def test_a_structure_that_nobody_has_coded_says_so(tmp_path: Path) -> None:
    private = {
        "SegmentedPropertyCategoryCodeSequence": _code("UNKNOWN", "Not coded", "99MUA_UNCODED"),
        "SegmentedPropertyTypeCodeSequence": _code("STRUCTURE_1", "Blob, not coded", "99MUA_UNCODED"),
    }
    (segment,) = load_segments(written(tmp_path, document(SegmentLabel="Blob", **private)))
    assert not segment.is_coded
    assert "for Blob;" in uncoded([segment])
    (coded,) = load_segments(written(tmp_path, document()))
    assert coded.is_coded
    assert uncoded([coded]) == ""
    other = {"SegmentedPropertyTypeCodeSequence": _code("STRUCTURE_1", "Blob", "99OTHER")}
    with pytest.raises(SegmentCodingError, match="SNOMED CT"):
        load_segments(written(tmp_path, document(**other)))


def test_keys_of_dcmqi_at_the_top_pass(tmp_path: Path) -> None:
    keys = (
        "ContentCreatorName",
        "ClinicalTrialSeriesID",
        "SeriesDescription",
        "SeriesNumber",
        "BodyPartExamined",
        "@schema",
    )
    content = parts() | dict.fromkeys((*keys, "segmentAttributesFileMapping"), "1")
    assert len(load_segments(written(tmp_path, content))) == 3
