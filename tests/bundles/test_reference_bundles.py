"""Every bundle that is there obeys MONAI's rules, names nothing but MONAI and torch, and agrees with itself."""

from __future__ import annotations

import json
import math
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pydicom
import pytest
import scipy.ndimage
import torch
import yaml
from conftest import BUNDLES, EXAMPLES, SHIPPED
from monai.bundle import ComponentLocator, ConfigWorkflow
from pydicom.sr.codedict import codes
from small_data import FEW, calibration_of, drawn_eyes, few_examples, set_calibration

from dicom_io.dicomize import dicomize
from dicom_io.read import read_series
from dicom_io.seg import read_seg
from dicom_io.sr.read import MeasurementReport, read_sr
from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.calibration.fitted import change_fitted
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError
from monai_unet_app.inference.windows import plan_windows
from monai_unet_app.pipeline import segment_case
from monai_unet_app.training.run import run_overlay

NAMES = [folder.name for folder in BUNDLES]
VOLUME_BUNDLES = [name for name in NAMES if name.startswith("hippocampus")]
each_bundle = pytest.mark.parametrize("folder", BUNDLES, ids=NAMES)
each_shipped = pytest.mark.parametrize("folder", SHIPPED, ids=[folder.name for folder in SHIPPED])
each_name = pytest.mark.parametrize("name", NAMES)
CPU = torch.device("cpu")
MOST_WEIGHT_BYTES = 10 * 1024 * 1024
MONAI_SCHEMA = json.loads((Path(__file__).parent / "monai_schema/meta_schema_20240725.json").read_text())


def inference_yaml(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "configs/inference.yaml").read_text())


def metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "configs/metadata.json").read_text())


def leaves(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a parsed YAML with the key it stands under."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from leaves(value, str(name))
    elif isinstance(config, list):
        for value in config:
            yield from leaves(value, key)
    else:
        yield key, config


@cache
def as_shipped(folder: Path) -> Bundle:
    """A bundle that no test changes, loaded once."""
    return load_bundle(folder)


def small_data(name: str, folder: Path) -> Path:
    return drawn_eyes(folder) if name.startswith("retina") else few_examples(folder)


def test_the_three_reference_bundles_are_there() -> None:
    assert {"hippocampus_mri_unet3d", "hippocampus_mri_unet2d", "retina_vessel_unet2d"} <= set(NAMES)


@each_shipped
def test_a_bundle_has_the_files_that_the_model_zoo_asks_for_and_no_code(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    overlays = {f"configs/{name}.yaml" for name in ("inference", "train", "evaluate", "calibrate")}
    assert files >= {"LICENSE", "configs/metadata.json", "configs/segments.json", *overlays}
    assert not [file for file in files if file.endswith((".py", ".yml", ".pyc", ".sh", ".partial"))]


@each_shipped
def test_metadata_fits_monais_own_schema(folder: Path) -> None:
    found = metadata(folder)
    assert found["schema"].endswith("/meta_schema_20240725.json")
    jsonschema.validate(found, MONAI_SCHEMA)
    del found["task"]
    with pytest.raises(jsonschema.ValidationError, match="'task' is a required property"):
        jsonschema.validate(found, MONAI_SCHEMA)


@each_shipped
def test_metadata_names_versions_and_every_channel(folder: Path) -> None:
    found = metadata(folder)
    for key in ("version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors"):
        assert isinstance(found[key], str)
        assert found[key]
    assert found["version"] in found["changelog"]
    assert list(found["network_data_format"]["inputs"]) == ["image"]
    assert list(found["network_data_format"]["outputs"]) == ["pred"]
    for tensor in (found["network_data_format"]["inputs"]["image"], found["network_data_format"]["outputs"]["pred"]):
        needed = {
            "type",
            "format",
            "num_channels",
            "spatial_shape",
            "dtype",
            "value_range",
            "is_patch_data",
            "channel_def",
        }
        assert tensor.keys() >= needed
        assert len(tensor["channel_def"]) == tensor["num_channels"]


@each_shipped
def test_inference_yaml_names_nothing_but_monai_and_torch(folder: Path) -> None:
    locator = ComponentLocator()
    targets = [value for key, value in leaves(inference_yaml(folder)) if key == "_target_"]
    assert len(targets) > 10
    for target in targets:
        assert target.startswith(("monai.", "torch.")) if "." in target else locator.get_component_module_name(target)


@each_shipped
def test_no_expression_in_inference_yaml_mentions_our_packages_or_imports_more_than_python(folder: Path) -> None:
    values = [value for _, value in leaves(inference_yaml(folder)) if isinstance(value, str)]
    assert not [value for value in values if "monai_unet_app" in value or "dicom_io" in value]
    imports = [value for key, value in leaves(inference_yaml(folder)) if key == "imports"]
    assert set(imports) <= {"$import glob", "$import json", "$import os", "$import pathlib"}


@each_shipped
def test_labels_segments_network_and_metadata_tell_one_story(folder: Path) -> None:
    bundle, formats = as_shipped(folder), metadata(folder)["network_data_format"]
    numbers = [segment.number for segment in bundle.segments]
    assert numbers == list(range(1, len(bundle.labels) + (0 if bundle.outputs.one_map else 1)))
    assert (bundle.labels[0] == "background") is bundle.outputs.one_map
    for label, segment in zip(
        bundle.labels[1:] if bundle.outputs.one_map else bundle.labels, bundle.segments, strict=True
    ):
        assert label in segment.label.lower()
    channels = formats["inputs"]["image"]["num_channels"]
    assert bundle.rules.channels == channels
    assert formats["outputs"]["pred"]["num_channels"] == len(bundle.labels)
    network = bundle.part("new_network")().eval()
    sizes = [int(shape.split("*")[0]) * 2 for shape in formats["inputs"]["image"]["spatial_shape"]]
    with torch.inference_mode():
        assert network(torch.zeros(1, channels, *sizes)).shape == (1, len(bundle.labels), *sizes)


@each_bundle
def test_the_window_is_smaller_than_the_images_so_that_it_really_slides(folder: Path) -> None:
    bundle = as_shipped(folder)
    if bundle.rules.planar:
        assert bundle.rules.extent_mm is not None
        shapes = [tuple(int(size) for size in bundle.rules.extent_mm[0])]
    else:
        shapes = [nibabel.load(path).shape for path in sorted((EXAMPLES / "images").glob("*.nii.gz"))]
    windows = [len(plan_windows(shape, bundle.windows.window, bundle.windows.overlap).windows) for shape in shapes]
    if bundle.slice_axis is None:
        assert min(windows) >= 2
    else:  # some slices are no larger than the window of one
        sliding = [n >= 2 * shape[bundle.slice_axis] for n, shape in zip(windows, shapes, strict=True)]
        assert np.mean(sliding) > 0.9


@each_bundle
def test_shipped_weights_are_small_and_fit_the_network(folder: Path) -> None:
    weights = folder / "models/model.pt"
    assert weights.stat().st_size <= MOST_WEIGHT_BYTES
    network = as_shipped(folder).network
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())


@each_name
def test_monai_finds_every_property_of_inference(name: str, tiny_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    root = tiny_bundle(name)
    small_data(name, tmp_path / "data")
    data = tmp_path / "data" / "images" if (tmp_path / "data" / "images").is_dir() else tmp_path / "data"
    workflow = ConfigWorkflow(
        config_file=str(root / "configs/inference.yaml"),
        meta_file=str(root / "configs/metadata.json"),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(root),
        dataset_dir=str(data),
        device=CPU,
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@each_name
def test_monai_finds_every_property_of_training(name: str, tiny_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    root = tiny_bundle(name)
    workflow = ConfigWorkflow(
        config_file=[str(root / f"configs/{config}.yaml") for config in ("inference", "train")],
        meta_file=str(root / "configs/metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(root),
        dataset_dir=str(small_data(name, tmp_path / "data")),
        device=CPU,
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@each_name
def test_a_calibration_of_zeros_is_the_identity(name: str, tiny_bundle: Callable[[str], Path]) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle(name), 0.0))
    logits = torch.randn((len(bundle.labels), 9, 8, 7)[: 3 if bundle.rules.planar else 4])
    assert torch.equal(bundle.part("calibrate")(logits.clone()), logits)


@each_name
def test_calibration_keeps_the_decision_of_every_voxel(name: str, tiny_bundle: Callable[[str], Path]) -> None:
    bundle = load_bundle(set_calibration(tiny_bundle(name), 0.6, -2.3))
    generator = torch.Generator().manual_seed(3)
    shape = (len(bundle.labels), 13, 12, 11)[: 3 if bundle.rules.planar else 4]
    logits = 4 * torch.randn(shape, generator=generator)
    calibrated = bundle.part("calibrate")(logits.clone())
    assert not torch.allclose(calibrated, logits)
    if bundle.outputs.one_map:
        assert torch.equal(calibrated.argmax(0), logits.argmax(0))
    else:
        assert torch.equal(calibrated > 0, logits > 0)


def test_the_digest_changes_with_what_can_change_a_result_and_with_nothing_else(
    tiny_bundle: Callable[..., Path],
) -> None:
    root = tiny_bundle()
    before = load_bundle(root).sha256
    for file in ("configs/metadata.json", "configs/train.yaml", "configs/evaluate.yaml", "LICENSE"):
        (root / file).write_bytes((root / file).read_bytes() + b"\n")
    (root / "models/run.json").write_text("{}")
    (root / "docs").mkdir(exist_ok=True)
    (root / "docs/README.md").write_text("changed")
    assert load_bundle(root).sha256 == before
    seen = {before}
    for file in ("models/model.pt", "configs/inference.yaml", "configs/segments.json"):
        (root / file).write_bytes((root / file).read_bytes() + b"\n")
        seen.add(load_bundle(root).sha256)
    assert len(seen) == 4


def test_a_bundle_is_the_same_by_folder_and_by_zip(tiny_bundle: Callable[..., Path], tmp_path: Path) -> None:
    root = tiny_bundle()
    for name, top in (("bundle.zip", root.name), (f"{root.name}.zip", "")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in root.rglob("*"):
                archive.write(file, Path(top) / file.relative_to(root))
        zipped = load_bundle(tmp_path / name)
        assert (zipped.name, zipped.sha256) == (root.name, load_bundle(root).sha256)
        place = next(parent for parent in zipped.root.parents if parent.name.startswith("monai-unet-bundle-"))
        assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("broken", ["stored", "deflate", "bzip2", "LZMA", "password", "method", "list"])
def test_the_zip_of_a_bundle_that_is_broken_is_refused_in_our_words(tmp_path: Path, broken: str) -> None:
    methods = {"bzip2": zipfile.ZIP_BZIP2, "LZMA": zipfile.ZIP_LZMA, "stored": zipfile.ZIP_STORED}
    with zipfile.ZipFile(tmp_path / "b.zip", "w", methods.get(broken, zipfile.ZIP_DEFLATED)) as archive:
        archive.writestr("configs/metadata.json", json.dumps({"version": list(range(999))}))
    content = bytearray((tmp_path / "b.zip").read_bytes())
    listed = content.index(b"PK\1\2")
    if broken == "password":
        content[6] |= 1
        content[listed + 8] |= 1
    elif broken == "method":
        content[8], content[listed + 10] = 99, 99
    elif broken == "list":
        content[listed + 20 : listed + 28] = bytes(range(200, 208))
    else:
        content[60:70] = bytes(10)
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(BundleError, match=r"^b\.zip cannot be unpacked: "):
        load_bundle(tmp_path / "b.zip")


def test_the_zip_of_a_bundle_is_looked_at_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unpacked"))
    (tmp_path / "unpacked").mkdir()
    with zipfile.ZipFile(tmp_path / "zeros.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(9):
            archive.writestr(f"{number}", bytes(30_000_000))
    with pytest.raises(BundleError, match=r"its 0\.26\d MB become 270 MB; at most 268 MB are accepted"):
        load_bundle(tmp_path / "zeros.zip")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(10_001):
            archive.writestr(f"{number}", b"")
    with pytest.raises(BundleError, match="it has 10001 files; at most 10000 are accepted"):
        load_bundle(tmp_path / "many.zip")
    assert not [path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()]


def test_a_name_stands_for_a_shipped_bundle_or_one_of_the_user_s_folder(
    tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_bundle("retina_vessel_unet2d").root.samefile(BUNDLES[NAMES.index("retina_vessel_unet2d")])
    root = tiny_bundle()
    monkeypatch.setenv("MONAI_UNET_BUNDLES", str(root.parent))
    assert load_bundle(root.name).root.samefile(root)


def test_an_unknown_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match="retina_vessel_unet2d"):
        load_bundle("hippocampus_mri_unet4d")


def test_what_is_no_bundle_is_refused_and_the_missing_file_named(tiny_bundle: Callable[..., Path]) -> None:
    root = tiny_bundle()
    (root / "configs/segments.json").unlink()
    with pytest.raises(BundleError, match=r"configs/segments\.json missing"):
        load_bundle(root)


@pytest.mark.parametrize("content", [None, b"no weights", b""], ids=["absent", "damaged", "empty"])
def test_weights_that_cannot_be_used_are_refused(tiny_bundle: Callable[..., Path], content: bytes | None) -> None:
    root = tiny_bundle()
    (root / "models/model.pt").unlink()
    if content is not None:
        (root / "models/model.pt").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.pt"):
        _ = load_bundle(root).network


def test_weights_of_another_network_are_refused(tiny_bundle: Callable[[str], Path]) -> None:
    root, other = tiny_bundle("hippocampus_mri_unet3d"), tiny_bundle("hippocampus_mri_unet2d")
    (root / "models/model.pt").write_bytes((other / "models/model.pt").read_bytes())
    with pytest.raises(BundleError, match="does not fit network_def"):
        _ = load_bundle(root).network


def volumes_of(report: MeasurementReport) -> dict[str, float | None]:
    """Tracking UID -> volume in mL of every group of a report."""
    return {
        group.tracking_uid: one.value
        for group in report.groups
        for one in group.measurements
        if one.name == codes.SCT.Volume
    }


@pytest.mark.parametrize("name", VOLUME_BUNDLES)
def test_dicom_in_seg_and_sr_out_by_monai_bundle_run_hold_the_labels_of_segment_case(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    root = set_calibration(tiny_bundle(name), 0.3, -0.9)
    made = dicomize(crop, tmp_path / "data" / "case_1", case_id="case_1")
    run_overlay(
        root,
        "inference_dicom",
        {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out"), "device": CPU},
    )
    (seg_path,), (sr_path,) = (sorted((tmp_path / "out").glob(f"*_{kind}.dcm")) for kind in ("seg", "sr"))
    source = read_series(made.series_folder)
    bundle = load_bundle(root)
    expected = segment_case(source, bundle, keep="probabilities").segmentation.labels
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(read_seg(seg_path, source).array, expected)

    seg, report = pydicom.dcmread(seg_path), read_sr(sr_path)
    assert seg.SOPInstanceUID in {one.sop_instance_uid for group in report.groups for one in group.segments}
    volumes = volumes_of(report)
    by_number = {int(item.SegmentNumber): item.TrackingUID for item in seg.SegmentSequence}
    for number, uid in by_number.items():
        voxels = int((expected == number).sum())
        if voxels:
            assert any(
                math.isclose(volumes[uid], voxels * source.voxel_ml * scale, rel_tol=1e-3) for scale in (1, 1000)
            )


def with_largest_pieces(root: Path) -> Path:
    """Has the bundle keep the largest piece of each structure, as `calibrate` would."""
    numbers = [segment.number for segment in load_bundle(root).segments]
    change_fitted(root, "tidy", steps=[{"step": "largest", "structures": numbers, "why": "for a test"}])
    return root


@each_name
def test_the_step_largest_keeps_the_largest_piece_of_each_structure_and_no_other(
    name: str, tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    root = set_calibration(tiny_bundle(name), 0.3, -0.9)
    source = crop
    if name.startswith("retina"):
        drawn_eyes(tmp_path / "eyes", 1)
        source = read_volume(tmp_path / "eyes/eye_1.png")
    before = segment_case(source, load_bundle(root), keep="probabilities")
    after = segment_case(source, load_bundle(with_largest_pieces(root)), keep="probabilities")
    np.testing.assert_array_equal(before.segmentation.probabilities, after.segmentation.probabilities)
    pieces = 0
    for old, new in zip(before.segmentation.structures, after.segmentation.structures, strict=True):
        labelled, count = scipy.ndimage.label(old.mask_on_grid, np.ones((3,) * old.mask.ndim))
        largest = np.argmax(np.bincount(labelled.ravel())[1:]) + 1
        np.testing.assert_array_equal(new.mask_on_grid, labelled == largest)
        pieces += count
    assert pieces > len(before.segmentation.structures)


def test_seg_and_report_of_largest_pieces_hold_these_pieces(
    tiny_bundle: Callable[[str], Path], crop: Volume, tmp_path: Path
) -> None:
    root = with_largest_pieces(set_calibration(tiny_bundle("hippocampus_mri_unet3d"), 0.3, -0.9))
    made = dicomize(crop, tmp_path / "data" / "case_1", case_id="case_1")
    overrides = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out"), "device": CPU}
    run_overlay(root, "inference_dicom", overrides)
    (seg_path,), (sr_path,) = (sorted((tmp_path / "out").glob(f"*_{kind}.dcm")) for kind in ("seg", "sr"))
    source = read_series(made.series_folder)
    written = read_seg(seg_path, source).array
    volumes = volumes_of(read_sr(sr_path))
    for item in pydicom.dcmread(seg_path).SegmentSequence:
        piece = written == int(item.SegmentNumber)
        assert scipy.ndimage.label(piece, np.ones((3, 3, 3)))[1] == 1
        assert volumes[item.TrackingUID] == pytest.approx(piece.sum() * source.voxel_ml, rel=1e-3)


def test_the_overlay_for_dicom_refuses_an_image_that_breaks_the_bundle_s_rules(
    tiny_bundle: Callable[..., Path], crop: Volume, tmp_path: Path
) -> None:
    wide = Volume(np.tile(crop.array, (3, 2, 1)), crop.affine_lps)
    dicomize(wide, tmp_path / "data" / "case_1", case_id="case_1")
    with pytest.raises(InputRefusedError, match="field of view"):
        run_overlay(
            tiny_bundle(),
            "inference_dicom",
            {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out"), "device": CPU},
        )
    assert not list((tmp_path / "out").glob("*.dcm"))


def test_windows_of_the_settings_are_those_of_the_config(tiny_bundle: Callable[[str], Path]) -> None:
    for name, window in (
        ("hippocampus_mri_unet3d", lambda given: tuple(given)),
        ("hippocampus_mri_unet2d", lambda given: (1, *given)),
        ("retina_vessel_unet2d", lambda given: tuple(given)),
    ):
        root = tiny_bundle(name)
        config, settings = inference_yaml(root), load_bundle(root).windows
        assert settings.window == window(config["window"])
        assert settings.overlap == config["inferer"]["overlap"]
        assert settings.batch == config["inferer"]["sw_batch_size"]
        assert settings.mode == config["inferer"]["mode"]


def test_an_override_replaces_a_value_of_inference_yaml(tiny_bundle: Callable[..., Path]) -> None:
    root = tiny_bundle()
    changed = load_bundle(root, calibration={"reach": 1, "far": 0.5, "near": 0.0})
    assert isinstance(changed, Bundle)
    logits = torch.randn(3, 6, 6, 6)
    torch.testing.assert_close(changed.part("calibrate")(logits.clone()), logits * math.exp(-0.5))
    assert calibration_of(root) != changed.part("calibration")


def test_the_examples_used_here_lie_in_the_partitions_that_tests_count_on() -> None:
    plan = json.loads((EXAMPLES.parent / "splits.json").read_text())["datasets"]["msd_hippocampus"]["cases"]
    place = {row["id"]: row["partition"] for row in plan}
    assert [place[case] for case in FEW] == ["train", "train", "selection", "calibration", "test"]
    assert read_volume(EXAMPLES / "images" / f"{FEW[0]}.nii.gz").spacing_mm == (1.0, 1.0, 1.0)
