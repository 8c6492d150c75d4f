"""Codes of structures by their names."""

import pytest
from pydicom.sr.coding import Code

from monai_unet_app.data.coding import codes_of

# Values from the standard's context groups (DICOM PS3.16, CID 7192, 244)
LIVER, KIDNEY, HIPPOCAMPUS = "10200004", "64033007", "5366008"
LEFT, RIGHT, ANTERIOR, BOTH = "7771000", "24028007", "255549009", "51440002"


def values(name: str) -> tuple[str | None, str | None]:
    found = codes_of(name)
    assert found is not None
    modifier: Code | None = found.modifier
    return found.type.value, modifier.value if modifier else None


@pytest.mark.parametrize(
    ("name", "type_code", "modifier"),
    [
        ("liver", LIVER, None),
        ("Liver", LIVER, None),
        ("kidney_left", KIDNEY, LEFT),
        ("right kidney", KIDNEY, RIGHT),
        ("Rt Kidney", KIDNEY, RIGHT),
        ("kidneys", KIDNEY, None),
        ("anterior hippocampus", HIPPOCAMPUS, ANTERIOR),
        ("Hippocampus, anterior", HIPPOCAMPUS, ANTERIOR),
    ],
)
def test_a_name_with_its_side_or_position(name: str, type_code: str, modifier: str | None) -> None:
    assert values(name) == (type_code, modifier)


@pytest.mark.parametrize("name", ["structure_4", "object", "ROI 1", "left", "anterior", "liver foo", ""])
def test_what_is_not_wholly_explained_has_no_code(name: str) -> None:
    assert codes_of(name) is None


def test_a_lesion_lies_in_its_organ() -> None:
    found = codes_of("liver tumor")
    assert found is not None
    assert found.region is not None
    assert found.region.value == LIVER
    assert found.type.value != LIVER
