"""What SEGs state of their structures, kept in the planned bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from phantoms import lopsided_array, lopsided_labels, oblique_affine, write_mr_series
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from result_phantoms import RESULT
from small_data import plan_bundle

from dicom_io.coding import Segment, load_segments, snomed_ct
from dicom_io.read import read_series
from dicom_io.seg import write_seg
from dicom_io.volume import Volume
from monai_unet_app.convert import label_file
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.structures import dicom_structures, stated_structures
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.network import NetworkPlan
from monai_unet_app.planning.write import write_plan

SHAPE = (24, 20, 12)
LEFT, KIDNEY = Code("7771000", "SCT", "Left"), Code("64033007", "SCT", "Kidney")
MASS = Code("4147007", "SCT", "Mass")
MORPHOLOGY = Code("49755003", "SCT", "Morphologically Altered Structure")
# "Niere" and "Herd" are in no table of names: what is found, the SEG has stated
SEGMENTS = (
    Segment(1, "Niere", codes.SCT.AnatomicalStructure, KIDNEY, type_modifier=LEFT, display_rgb=(200, 30, 90)),
    Segment(2, "Herd", MORPHOLOGY, MASS, anatomic_region=KIDNEY, anatomic_region_modifier=LEFT, display_rgb=(20, 160, 240)),
)  # fmt: skip


def by_us(labels: Volume, source: Volume, path: Path) -> None:
    write_seg(labels, source, path, replace(RESULT, segments=SEGMENTS))


def by_highdicom(labels: Volume, source: Volume, path: Path) -> None:
    descriptions = []
    for segment in SEGMENTS:
        description = hd.seg.SegmentDescription(
            segment_number=segment.number,
            segment_label=segment.label,
            segmented_property_category=segment.category,
            segmented_property_type=segment.type,
            algorithm_type="MANUAL",
            anatomic_regions=[segment.anatomic_region] if segment.anatomic_region else None,
            display_color=hd.color.CIELabColor.from_rgb(*segment.rgb),
        )
        for kind, keyword, modifier in (
            ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence", segment.type_modifier),
            ("AnatomicRegionSequence", "AnatomicRegionModifierSequence", segment.anatomic_region_modifier),
        ):
            if modifier:
                item = hd.sr.CodedConcept(modifier.value, modifier.scheme_designator, modifier.meaning)
                setattr(description[kind].value[0], keyword, [item])
        descriptions.append(description)
    hd.seg.Segmentation(
        source_images=[pydicom.dcmread(file) for file in source.provenance.files],
        pixel_array=labels.array.transpose(2, 1, 0).astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="Nobody",
        manufacturer_model_name="Phantom",
        software_versions="1",
        device_serial_number="1",
    ).save_as(path)


Writer = Callable[[Volume, Volume, Path], None]


def series_with_segs(folder: Path, write: Writer, count: int = 4) -> Path:
    for number in range(count):
        case = folder / f"case{number}"
        write_mr_series(
            case / "mr", lopsided_array(SHAPE) + number, oblique_affine(), header={"PatientID": f"P{number}"}
        )
        source = read_series(case / "mr")
        write(source.with_array(lopsided_labels(SHAPE)), source, case / "seg.dcm")
    return folder


def spoil(path: Path, change: Callable[[Dataset], None]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset.SegmentSequence[0])
    dataset.save_as(path)


def quick(network: NetworkPlan, channels: int, outputs: int) -> float:
    return network.voxels * network.filters[0] / 16e6


@pytest.mark.parametrize("write", [by_us, by_highdicom])
def test_codes_and_colours_of_a_seg_are_those_of_the_planned_bundle(write: Writer, tmp_path: Path) -> None:
    data = series_with_segs(tmp_path / "data", write)
    write_plan(plan_bundle(PlanConfig(data, time_s=5.0), quick), tmp_path / "made")
    planned = load_segments(tmp_path / "made/configs/segments.json")
    assert [segment.label for segment in planned] == ["Left Niere", "Left Herd"]
    for stated, found in zip(SEGMENTS, planned, strict=True):
        for name in ("number", "category", "type", "type_modifier", "anatomic_region", "anatomic_region_modifier"):
            assert getattr(found, name) == getattr(stated, name), name
        assert np.abs(np.subtract(found.rgb, stated.rgb)).max() <= 1  # CIELab has 16 bits, RGB eight


def test_a_label_and_codes_of_opposite_sides_are_refused(tmp_path: Path) -> None:
    data = series_with_segs(tmp_path / "data", by_us, 2)
    spoil(data / "case1/seg.dcm", lambda item: setattr(item, "SegmentLabel", "Right Niere"))
    with pytest.raises(
        InputRefusedError, match="segment 1 is called 'Right Niere', and its label and codes name both left and right"
    ):
        stated_structures(find_data(data), {1, 2})
    with pytest.raises(InputRefusedError, match="name both left and right"):
        label_file(data / "case1/seg.dcm", data / "case1/mr", (), tmp_path / "masks")


def make_private(item: Dataset) -> None:
    item.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator = "99NOBODY"


def make_malformed(item: Dataset) -> None:
    item.SegmentedPropertyTypeCodeSequence[0].CodeValue = "T-71000"


def make_half_private(item: Dataset) -> None:
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    kind.SegmentedPropertyTypeModifierCodeSequence[0].CodingSchemeDesignator = "99NOBODY"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return series_with_segs(tmp_path / "data", by_us, 2)


@pytest.mark.parametrize("change", [make_private, make_malformed, make_half_private])
def test_a_private_or_malformed_code_is_no_code(change: Any, data: Path) -> None:
    for number in range(2):
        spoil(data / f"case{number}/seg.dcm", change)
    stated = stated_structures(find_data(data), {0, 1, 2})
    assert stated[1].codes is None
    assert stated[1].rgb is not None
    assert stated[2].codes is not None


def test_one_file_without_codes_takes_those_of_the_other(data: Path) -> None:
    spoil(data / "case0/seg.dcm", make_private)
    found = stated_structures(find_data(data), {1})[1].codes
    assert found is not None
    assert (found.type, found.modifier) == (KIDNEY, LEFT)


def test_two_files_with_different_codes_are_refused_by_name(data: Path) -> None:
    def liver(item: Dataset) -> None:
        item.SegmentedPropertyTypeCodeSequence[0].CodeValue = "10200004"

    spoil(data / "case1/seg.dcm", liver)
    with pytest.raises(InputRefusedError, match=r"64033007 .* in case0/seg.dcm and .*10200004 .* in case1/seg.dcm"):
        stated_structures(find_data(data), {1, 2})
    assert set(stated_structures(find_data(data), {2})) == {2}  # what no voxel has needs no meaning


def test_two_files_with_different_names_are_refused_by_name(data: Path) -> None:
    spoil(data / "case1/seg.dcm", lambda item: setattr(item, "SegmentLabel", "Leber"))
    with pytest.raises(InputRefusedError, match=r"'Left Niere' in case0/seg.dcm and 'Left Leber' in case1/seg.dcm"):
        stated_structures(find_data(data), {1})


def test_a_folder_with_one_seg_states_the_same(data: Path) -> None:
    (data / "case0/only").mkdir()
    (data / "case0/seg.dcm").rename(data / "case0/only/seg.dcm")
    assert dicom_structures(data / "case0/only") == dicom_structures(data / "case1/seg.dcm")


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (Code("10200004", "SCT", "Liver"), "10200004"),
        (Code("T-62000", "SRT", "Liver"), "10200004"),  # PS3.16 Annex L
        (Code("T-00000000", "SRT", "Nothing"), None),
        (Code("10200004", "99NOBODY", "Liver"), None),
        (Code("102", "SCT", "Liver"), None),
        (Code("10200004", "SCT", "H\u00edgado"), "10200004"),
        (Code("10200004", "SCT", "Liver\n"), None),
        (Code("10200004", "SCT", ""), None),
    ],
)
def test_codes_in_snomed_ct(code: Code, value: str | None) -> None:
    found = snomed_ct(code)
    assert (found and (found.value, found.scheme_designator)) == (value and (value, "SCT"))
