"""What a bundle says its images must be: every rule refuses with the value found and the value needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from phantoms import lopsided_array, oblique_affine

from dicom_io.volume import Provenance, Volume
from monai_unet_app.data.rules import InputRules, check_rules
from monai_unet_app.errors import BundleError, InputRefusedError

SAID = {
    "modality": ["MR"],
    "channels": 1,
    "spacing_mm": {"least": 0.5, "most": 2.0},
    "extent_mm": {"least": [20, 25, 15], "most": [70, 90, 70]},
}
RULES = InputRules.parse(SAID)
MR = Provenance("dicom", modality="MR")


def volume(
    shape: tuple[int, ...] = (34, 48, 33), affine: np.ndarray | None = None, provenance: Provenance = MR, **more: Any
) -> Volume:
    spatial = (shape[0], shape[1], shape[2])
    array = lopsided_array(spatial)
    array = np.stack([array] * shape[3], -1) if len(shape) == 4 else array
    return Volume(array, np.eye(4) if affine is None else affine, provenance, **more)


def test_a_fitting_image_passes_also_oblique_and_without_a_modality() -> None:
    check_rules(volume(), RULES)
    check_rules(volume(affine=oblique_affine((1.0, 1.0, 1.1))), RULES)
    check_rules(volume(provenance=Provenance("nifti")), RULES)


BAD = {
    "CT": (volume(provenance=Provenance("dicom", modality="CT")), "its modality is CT, MR is needed"),
    "whole head": (
        volume((128, 128, 90), np.diag([2.0, 2.0, 2.0, 1.0])),
        r"field of view is 256 x 256 x 180 mm .*20 x 25 x 15 to 70 x 90 x 70 mm is needed",
    ),
    "too small": (volume((10, 48, 33)), "field of view is 10 x 48 x 33 mm"),
    "thick slices": (volume(affine=np.diag([1.0, 1.0, 7.7, 1.0])), r"1.00 x 1.00 x 7.70 mm apart, 0.5 to 2 mm"),
    "colour": (volume((34, 48, 33, 3)), r"3 channel\(s\), 1 needed"),
    "four time points": (volume((34, 48, 33, 4)), r"4 channel\(s\), 1 needed"),
    "a picture": (volume((34, 48, 1), planar=True), "a 2D picture, a 3D volume is needed"),
    "constant": (volume().with_array(np.full((34, 48, 33), 7.0)), "every voxel is 7, an image is needed"),
}


@pytest.mark.parametrize("kind", BAD)
def test_an_image_far_from_what_the_bundle_was_made_for_is_refused_with_the_reason(kind: str) -> None:
    image, message = BAD[kind]
    with pytest.raises(InputRefusedError, match=message):
        check_rules(image, RULES)


def test_all_reasons_are_told_at_once() -> None:
    image = volume((256, 256, 30), np.diag([1.0, 1.0, 5.0, 1.0]), Provenance("dicom", modality="CT"))
    with pytest.raises(InputRefusedError, match=r"modality is CT.*5.00 mm apart.*field of view"):
        check_rules(image, RULES)


def test_the_field_of_view_is_measured_along_the_patients_axes_whatever_the_arrays_order() -> None:
    """30 mm right-left, 80 mm front-back, 60 mm foot-head: it fits, while the array's order (60, 30, 80) would not."""
    affine = np.zeros((4, 4))
    affine[[2, 0, 1, 3], [0, 1, 2, 3]] = (1.0, -1.0, 1.0, 1.0)
    check_rules(volume((60, 30, 80), affine), RULES)
    with pytest.raises(InputRefusedError, match="field of view is 80 x 60 x 30 mm"):
        check_rules(volume((30, 80, 60), affine), RULES)


def test_a_picture_bundle_counts_pixels_and_refuses_volumes_and_grey() -> None:
    rules = InputRules.parse({"planar": True, "channels": 3, "extent_mm": {"least": [20, 20], "most": [40, 50]}})
    check_rules(volume((30, 45, 1, 3), planar=True), rules)
    for image, message in (
        (volume((30, 55, 1, 3), planar=True), "field of view is 30 x 55 pixels"),
        (volume((30, 45, 1), planar=True), r"1 channel\(s\), 3 needed"),
        (volume((30, 45, 9)), "a 3D volume, a 2D picture is needed"),
    ):
        with pytest.raises(InputRefusedError, match=message):
            check_rules(image, rules)


def test_a_constant_channel_is_refused_by_name_unless_the_rules_allow_it() -> None:
    image = volume((34, 48, 33, 2))
    image.array[..., 1] = 3
    said = {"channels": ["T1", "FLAIR"]}
    with pytest.raises(InputRefusedError, match="every voxel of channel FLAIR is the same"):
        check_rules(image, InputRules.parse(said))
    check_rules(image, InputRules.parse({**said, "constant_channels": ["FLAIR"]}))
    with pytest.raises(InputRefusedError, match="channel FLAIR"):
        check_rules(image, InputRules.parse({**said, "constant_channels": ["T1"]}))
    with pytest.raises(InputRefusedError, match="channel 2 "):
        check_rules(image, InputRules.parse({"channels": 2}))
    nothing = image.with_array(np.full(image.array.shape, 7.0))
    with pytest.raises(InputRefusedError, match="every voxel is 7"):
        check_rules(nothing, InputRules.parse({**said, "constant_channels": ["T1", "FLAIR"]}))
    with pytest.raises(BundleError, match="constant_channels names flair; T1, FLAIR is a channel"):
        InputRules.parse({**said, "constant_channels": ["flair"]})
    red = volume((30, 45, 1, 3), planar=True)
    red.array[..., 1:] = 0
    check_rules(red, InputRules.parse({"planar": True, "channels": 3}))  # a colour picture has no channels of its own


@pytest.mark.parametrize(("size", "scaled"), [((60, 90), (33, 50)), ((10, 16), (20, 32)), ((100, 10), None)])
def test_a_picture_of_another_size_is_refused_with_the_nearest_size_of_its_proportions_that_is_taken(
    size: tuple[int, int], scaled: tuple[int, int] | None
) -> None:
    """20 to 40 and 20 to 50 pixels are taken: 60 x 90 is at most 5 / 9 of it, 10 x 16 at least twice it."""
    rules = InputRules.parse({"planar": True, "channels": 1, "extent_mm": {"least": [20, 20], "most": [40, 50]}})
    with pytest.raises(InputRefusedError) as refused:
        check_rules(volume((*size, 1), planar=True), rules)
    assert "plan and train a bundle on pictures of this size too" in str(refused.value)
    assert ("scale it to" in str(refused.value)) == (scaled is not None)
    if scaled:
        assert f"scale it to {scaled[0]} x {scaled[1]} pixels" in str(refused.value)
        check_rules(volume((*scaled, 1), planar=True), rules)


@pytest.mark.parametrize(
    "rules",
    [{}, {"channels": "many"}, {"channels": 1, "colour": True}, {"channels": 1, "spacing_mm": {"least": 1}}],
    ids=["nothing", "not a number", "unknown rule", "half a range"],
)
def test_rules_that_say_nothing_clear_are_the_bundles_fault(rules: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="input_rules"):
        InputRules.parse(rules)
