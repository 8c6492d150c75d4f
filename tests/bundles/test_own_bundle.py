"""A bundle of one's own that contradicts itself is refused in one sentence, with a remedy, before any data are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BUNDLES
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNetPlusPlus, DynUNet, UNet
from pydicom.sr.coding import Code
from small_data import FEW, few_examples, set_calibration

from dicom_io.coding import Segment
from dicom_io.volume import Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.cli import main
from monai_unet_app.cli.common import cheaper
from monai_unet_app.cli.flags import Cheaper
from monai_unet_app.data.coding import named_segment
from monai_unet_app.data.naming import contradiction, side_of
from monai_unet_app.data.structures import StatedStructure
from monai_unet_app.errors import BundleError
from monai_unet_app.inference.network_check import Demands, UnfitNetworkError, check_network
from monai_unet_app.pipeline import segment_case
from monai_unet_app.training.checkpoints import half_weights, save_atomically

CODE = Code("91723000", "SCT", "Anatomical Structure")
LABELS = ("background", "liver", "spleen")


def segments(*labels: str) -> list[Segment]:
    return [Segment(n, label, CODE, Code("1", "SCT", label.split()[-1])) for n, label in enumerate(labels, start=1)]


def edit(root: Path, old: str, new: str, file: str = "inference.yaml") -> Path:
    path = root / "configs" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return root


def rewrite_segments(root: Path, change: Callable[[list[dict[str, Any]]], Any]) -> Path:
    path = root / "configs/segments.json"
    document = json.loads(path.read_text())
    document.pop("wholes", None)
    change(document["segmentAttributes"][0])
    path.write_text(json.dumps(document))
    return root


def swapped(root: Path) -> Path:
    def swap(items: list[dict[str, Any]]) -> None:
        for item, number in zip(items, (2, 1), strict=True):
            item["labelID"] = number

    return rewrite_segments(root, swap)


def labels_swapped(root: Path) -> Path:
    def swap(items: list[dict[str, Any]]) -> None:
        first, second = items
        first["SegmentLabel"], second["SegmentLabel"] = second["SegmentLabel"], first["SegmentLabel"]

    return rewrite_segments(root, swap)


def one_segment_too_few(root: Path) -> Path:
    return rewrite_segments(root, lambda items: items.pop())


def of_another_organ(root: Path) -> Path:
    return edit(root, "labels: [background, anterior, posterior]", "labels: [background, liver, spleen]")


def with_sides(root: Path) -> Path:
    def name(items: list[dict[str, Any]]) -> None:
        for item, side in zip(items, ("Left", "Right"), strict=True):
            item["SegmentLabel"] = f"{side} kidney"
            item["SegmentedPropertyTypeModifierCodeSequence"]["CodeMeaning"] = side

    edit(root, "labels: [background, anterior, posterior]", "labels: [background, kidney_left, kidney_right]")
    return rewrite_segments(root, name)


def odd_window(root: Path) -> Path:
    return edit(root, "window: [32, 48, 32]", "window: [30, 50, 32]")


def unknown_layer(root: Path) -> Path:
    return edit(root, "feature_layer: \"$'bottleneck'", "feature_layer: \"$'botleneck'")


def another_channel(root: Path) -> Path:
    edit(root, 'out_channels: "$len(@labels)"', "out_channels: 4")
    network = load_bundle(root).part("network_def")
    save_atomically(half_weights(network), root / "models/model.pt")
    return root


def several_outputs(root: Path) -> Path:
    path = root / "configs/inference.yaml"
    network = (
        "network_def: {_target_: BasicUNetPlusPlus, spatial_dims: 3, out_channels: 3, features: [4, 4, 4, 4, 4, 4]}\n"
    )
    text = re.sub(r"^network_def: .*\n", network, path.read_text(), flags=re.MULTILINE)
    path.write_text(re.sub(r"^feature_layer: .*\n", "feature_layer: conv_0_0\n", text, flags=re.MULTILINE))
    save_atomically(half_weights(load_bundle(root).part("network_def")), root / "models/model.pt")
    return root


def diverged(root: Path) -> Path:
    weights = torch.load(root / "models/model.pt", weights_only=True)
    next(iter(weights.values()))[0] = float("nan")
    save_atomically(weights, root / "models/model.pt")
    return root


FAULTS: dict[Callable[[Path], Path], tuple[str, ...]] = {
    swapped: ("'anterior'", "'Posterior hippocampus'", "segments.json"),
    labels_swapped: ("'anterior'", "segment 1 is 'Posterior hippocampus'", "segment 2 is 'Anterior hippocampus'"),
    one_segment_too_few: ("2 structure(s)", "segments.json has 1", "one segment for each"),
    of_another_organ: ("'liver'", "'Anterior hippocampus'", "correct"),
    with_sides: ("`mirror_axes` is [0]", "axis 0 is right-left", "'Left kidney'", "take the axis out"),
    odd_window: ("30 x 50 x 32", "24 x 48 x 32", "32 x 56 x 32", "change `window`"),
    unknown_layer: ("'botleneck'", "bottleneck", "leave `feature_layer` out"),
    another_channel: ("gives 4 channel(s)", "`labels` names 3", "out_channels"),
    several_outputs: ("a list of 1", "deep supervision"),
    diverged: ("not finite", "diverged", "train again"),
}


def one_sentence(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("error:")]
    assert text.count("\n") <= 2
    assert "Traceback" not in text
    return line


@pytest.mark.parametrize(
    ("verb", "fault"),
    [*(("predict", fault) for fault in FAULTS), *(("train", fault) for fault in FAULTS if fault is not diverged)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_bundle_that_contradicts_itself_is_refused_before_an_image_is_read_or_anything_is_written(
    verb: str,
    fault: Callable[[Path], Path],
    tiny_bundle: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, data = fault(tiny_bundle()), tmp_path / "data"
    data.mkdir()
    (data / "image.nii.gz").write_bytes(b"no image: whoever reads it says so")
    arguments = ["--bundle", str(root), {"predict": "--input", "train": "--data"}[verb], str(data)]
    assert main([verb, *arguments, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 1
    said = one_sentence(capsys.readouterr().err)
    for word in (root.name, *FAULTS[fault]):
        assert word in said
    assert not (tmp_path / "out").exists()


def test_inspect_names_the_contradiction_of_labels_and_segments(
    tiny_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = few_examples(tmp_path / "data", FEW[:1])
    assert main(["inspect", str(data), "--bundle", str(swapped(tiny_bundle()))]) == 1
    assert "'anterior'" in one_sentence(capsys.readouterr().err)


def test_calibrate_that_fails_at_its_last_step_leaves_the_bundle_as_it_was(
    tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = set_calibration(tiny_bundle(), 0.0)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    monkeypatch.setattr("monai_unet_app.calibration.statement_fit.state_confidence", lambda *_, **__: 1 / 0)
    arguments = ["--bundle", str(root), "--data", str(few_examples(tmp_path / "data", FEW[3:4]))]
    with pytest.raises(ZeroDivisionError):
        main(["calibrate", *arguments, "--device", "cpu", "--unchecked"])
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_checks_change_neither_results_nor_random_numbers(
    tiny_bundle: Callable[..., Path], crop: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_bundle()
    torch.manual_seed(3)
    checked = load_bundle(root)
    with_checks, after = segment_case(crop, checked, keep="probabilities"), torch.rand(4)
    checked.check_network()
    monkeypatch.setattr("monai_unet_app.inference.network_check.check_network", lambda *_, **__: None)
    torch.manual_seed(3)
    without = segment_case(crop, load_bundle(root), keep="probabilities")
    assert torch.equal(after, torch.rand(4))
    np.testing.assert_array_equal(with_checks.segmentation.probabilities, without.segmentation.probabilities)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    checked.check_network()
    assert torch.equal(expected, torch.rand(4))


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("liver", "spleen"), ("Liver", "Spleen")),
        (("kidney_left", "kidney_right"), ("Left kidney", "Right kidney")),
        (("lk", "rk"), ("Left kidney", "Right kidney")),
        (("pz", "tz"), ("Peripheral zone", "Transition zone")),
        (("ant", "post"), ("Anterior hippocampus", "Posterior hippocampus")),
        (("liver", "tumor"), ("Liver", "Liver tumour")),
        (("gallbladder", "vertebrae_L1"), ("Gall bladder", "L1 vertebra")),
        (("class_1", "class_2"), ("Liver", "Spleen")),
    ],
)
def test_names_that_fit_their_segments_pass(names: tuple[str, ...], labels: tuple[str, ...]) -> None:
    assert contradiction(names, segments(*labels)) is None


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("spleen", "liver"), ("Liver", "Spleen")),
        (("kidney_right", "kidney_left"), ("Left kidney", "Right kidney")),
        (("kidney_right",), ("Left kidney",)),
        (("tz", "pz"), ("Peripheral zone", "Transition zone")),
        (("vertebrae_L2", "vertebrae_L1"), ("L1 vertebra", "L2 vertebra")),
        (("ureter",), ("Urethra",)),
        (("nuclei",), ("Retinal blood vessel",)),
    ],
)
def test_names_that_mean_another_structure_do_not_pass(names: tuple[str, ...], labels: tuple[str, ...]) -> None:
    assert contradiction(names, segments(*labels)) is not None


def test_a_segment_whose_label_has_the_other_side_than_its_codes_does_not_pass() -> None:
    codes = (Code("7771000", "SCT", "Left"), Code("24028007", "SCT", "Right"))
    kidneys = [
        replace(one, type_modifier=code)
        for one, code in zip(segments("Right kidney", "Left kidney"), codes, strict=True)
    ]
    assert "segment 2 is 'Left kidney'" in (contradiction(("kidney_left", "kidney_right"), kidneys) or "")
    assert "segment 1 is 'Right kidney'" in (contradiction(("kidney_left",), kidneys[:1]) or "")
    assert contradiction(("kidney_right", "kidney_left"), kidneys) is not None  # the codes have the other side


def test_a_segment_has_a_side_by_its_codes_or_by_its_label() -> None:
    left = Code("7771000", "SCT", "Left")
    assert side_of(Segment(1, "Kidney A", CODE, Code("64033007", "SCT", "Kidney"), type_modifier=left)) == "left"
    assert side_of(segments("Right kidney")[0]) == "right"
    assert side_of(segments("Right and left kidney")[0]) is None
    assert side_of(segments("Spleen")[0]) is None


def tried(
    network: torch.nn.Module, window: tuple[int, ...], labels: tuple[str, ...] = LABELS, channels: int = 1
) -> str:
    try:
        check_network(network.eval(), Demands(channels, window, labels))
    except UnfitNetworkError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("answer", [None, SimpleNamespace(logits=1)])
def test_a_network_that_gives_no_tensor_is_refused_in_words(answer: object) -> None:
    network = torch.nn.Identity()
    network.forward = lambda image: answer  # type: ignore[assignment]
    assert f"gives a {type(answer).__name__} where one tensor of logits is needed" in tried(network, (16, 16, 16))


def test_the_sizes_that_are_named_are_those_that_a_network_really_takes() -> None:
    network = UNet(3, 1, 3, channels=(4, 8, 16, 16), strides=(2, 2, 2)).eval()
    said = tried(network, (33, 48, 29))
    sizes = [tuple(map(int, found)) for found in re.findall(r"(\d+) x (\d+) x (\d+)", said.split(";")[1])]
    assert len(sizes) == 2
    for size in sizes:
        assert network(torch.zeros(1, 1, *size)).shape[2:] == size
    assert max(abs(n - 33) for n, _, _ in sizes) < 8
    assert {middle for _, middle, _ in sizes} == {48}


def test_networks_that_fit_pass_also_with_deep_supervision_and_channels_made_by_preprocessing() -> None:
    kernel, strides = [3] * 4, [1, 2, 2, 2]
    small = {"filters": [4, 4, 4, 4], "deep_supervision": True, "deep_supr_num": 2}
    assert tried(DynUNet(3, 1, 3, kernel, strides, strides[1:], **small), (16, 32, 16)) == ""
    assert tried(UNet(2, 3, 3, channels=(4, 8), strides=(2,)), (16, 16), channels=1) == ""


def test_a_network_that_gives_a_list_and_one_that_divides_by_zero_are_told() -> None:
    assert "a list of 1" in tried(BasicUNetPlusPlus(2, 1, 3, features=(4, 4, 4, 4, 4, 4)), (32, 32))

    class Standardised(torch.nn.Conv2d):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward((image - image.mean()) / image.std())

    assert "window of zeros is not finite" in tried(Standardised(1, 3, 1), (32, 32))


def test_a_network_whose_shapes_depend_on_numbers_is_really_run() -> None:
    class Asking(torch.nn.Conv2d):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image if float(image.mean()) == 0 else image[..., ::2])

    check_network(Asking(1, 3, 1).eval(), Demands(1, (8, 8), LABELS))


@pytest.mark.parametrize(
    "more", ["", "+labels: [other]", "added: {a: 1}\nadded::a: 2", "rate: 1.0e-5\nname: M\u00fcller"]
)
def test_a_config_holds_what_monai_reads_in_it(tiny_bundle: Callable[..., Path], more: str) -> None:
    config = (root := tiny_bundle()) / "configs/inference.yaml"
    config.write_text(f"{config.read_text()}\n{more}\n", encoding="utf-8")
    parser = ConfigParser()
    parser.read_config(str(config))
    parser.parse()
    ours, theirs = load_bundle(root).parser.get(), parser.get()
    given = {"_meta_", "bundle_root", "device"}
    assert {key: ours[key] for key in ours.keys() - given} == {key: theirs[key] for key in theirs.keys() - given}


def test_what_reads_a_config_without_monai_sees_its_keys_merged(tiny_bundle: Callable[..., Path]) -> None:
    config = (root := tiny_bundle()) / "configs/inference.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(f"{text}\n+input_rules: {{channels: [T1, FLAIR]}}\ninferer::overlap: 0.25\n", encoding="utf-8")
    files = BundleFiles(root)
    assert files.channel_names == ("T1", "FLAIR")
    assert cheaper(Cheaper(overlap=0.25), files) == {}
    assert cheaper(Cheaper(overlap=0.5), files) == {"inferer::overlap": 0.5}
    assert files.only_segments
    config.write_text(f"{text}\n+inferer: {{more: $import ignite}}\n", encoding="utf-8")
    assert not BundleFiles(root).only_segments
    for wrong in ("+labels: 3", "absent::part: 3"):
        config.write_text(f"{text}\n{wrong}\n", encoding="utf-8")
        with pytest.raises(BundleError, match=r"has a key that cannot be merged: "):
            _ = BundleFiles(root).inference_document


def test_exchanged_codes_contradict_the_labels() -> None:
    """The label alone would match, and so would label and codes together."""
    liver, spleen = (named_segment(n, StatedStructure(name)) for n, name in enumerate(("liver", "spleen"), 1))
    names = ("liver", "spleen")
    assert contradiction(names, [liver, spleen]) is None
    assert contradiction(names, [replace(liver, type=spleen.type), replace(spleen, type=liver.type)]) is not None
    (bundle,) = [one for one in BUNDLES if one.name == "hippocampus_mri_unet3d"]
    front, back = load_bundle(bundle).segments
    exchanged = [replace(front, type_modifier=back.type_modifier), replace(back, type_modifier=front.type_modifier)]
    assert contradiction((front.label, back.label), exchanged) is not None
