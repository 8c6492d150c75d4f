"""Bundles of nnU-Net's networks beside nnU-Net itself, on this processor: window by window, sum by sum, label by label."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from trained_by_nnunet import RESULTS, painted

sys.path.append(str(RESULTS.parents[1] / "build/peers"))  # where benchmarks keep nnU-Net
peer = pytest.importorskip("nnunetv2.inference.predict_from_raw_data")

from monai_unet_app.bundle import Bundle, load_bundle  # noqa: E402
from monai_unet_app.config import ResultSettings  # noqa: E402
from monai_unet_app.data.read import read_volume  # noqa: E402
from monai_unet_app.inference.predict import predict_rows  # noqa: E402
from monai_unet_app.pipeline import preprocess, segment_case  # noqa: E402
from monai_unet_app.planning.nnunet_results import Import, bundle_of  # noqa: E402

MOST_APART = 1e-4
"""Part of the sums of windows that may be one step of half precision apart."""

RUNS = [
    ("plain3d", ("0",), True),
    ("plain3d", (), False),
    ("plain2d", (), True),
    ("aniso3d", (), True),
    ("aniso3d in RAS", (), False),
    ("channels3d", (), False),
    ("regions3d", (), False),
    ("resenc3d", (), True),
    ("picture2d", (), True),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reoriented(name: str, folder: Path) -> Path:
    """The same results with the reader that turns every image to RAS."""
    copy = shutil.copytree(RESULTS / name, folder / "results")
    plans = (copy / "plans.json").read_text()
    (copy / "plans.json").write_text(plans.replace('"SimpleITKIO"', '"NibabelIOWithReorient"'))
    return copy


def predictor_of(results: Path, folds: tuple[str, ...], *, mirroring: bool) -> peer.nnUNetPredictor:
    predictor = peer.nnUNetPredictor(
        use_mirroring=mirroring, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    chosen = folds or tuple(path.name.removeprefix("fold_") for path in sorted(results.glob("fold_*")))
    predictor.initialize_from_trained_model_folder(str(results), chosen, "checkpoint_final.pth")
    return predictor


def on_nnunet_axes(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """A picture gets the axis of its one slice."""
    return values if values.ndim == wanted.ndim else values[:, None]


@pytest.mark.parametrize(("name", "folds", "mirroring"), RUNS)
def test_labels_sums_and_windows_are_those_of_nnunet(
    name: str, folds: tuple[str, ...], mirroring: bool, tmp_path: Path
) -> None:
    name, is_turned = name.removesuffix(" in RAS"), name.endswith(" in RAS")
    results = reoriented(name, tmp_path) if is_turned else RESULTS / name
    predictor = predictor_of(results, folds, mirroring=mirroring)
    root = bundle_of(Import(results, tmp_path / "bundle", folds, mirroring=mirroring)).root
    bundle, plan = load_bundle(root), predictor.configuration_manager
    preprocessor = plan.preprocessor_class(verbose=False)
    for case in ("test0", "test1"):
        files = sorted((RESULTS / name / "images").glob(f"{case}_*"))
        data, _, properties = preprocessor.run_case(
            [str(file) for file in files], None, predictor.plans_manager, plan, predictor.dataset_json
        )
        image = files[0] if len(files) == 1 else tuple(files)
        item = preprocess(read_volume(image), bundle)
        prepared = on_nnunet_axes(item["image"].as_tensor().numpy(), data)
        np.testing.assert_array_equal(prepared, data)
        window_is_equal(bundle, predictor, data)
        sums = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).numpy()
        rows = predict_rows(item["image"], bundle.engine(ResultSettings()), bundle.windows)
        own = on_nnunet_axes(torch.cat([part for _, part in rows], 1).numpy().astype(np.float16), sums)
        steps = np.abs(own.view(np.int16).astype(int) - sums.view(np.int16).astype(int))
        assert steps.max() <= 1
        assert (steps > 0).mean() <= MOST_APART
        labels = peer.convert_predicted_logits_to_segmentation_with_correct_shape(
            sums, predictor.plans_manager, plan, predictor.label_manager, properties
        ).T
        found = segment_case(image, bundle).segmentation.labels
        if is_turned:  # on nnU-Net's grid, whose axes run to the right, the front and the top
            orientation = nibabel.io_orientation(nibabel.load(files[0]).affine)
            found = nibabel.apply_orientation(found, orientation)
        assert int((painted(found, name) != labels).sum()) == 0


def window_is_equal(bundle: Bundle, predictor: peer.nnUNetPredictor, data: np.ndarray) -> None:
    """The first network's answer to a window of noise."""
    noise = torch.randn(
        (1, len(data), *predictor.configuration_manager.patch_size), generator=torch.Generator().manual_seed(1)
    )
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    network = bundle.network[0] if bundle.is_ensemble else bundle.network
    with torch.inference_mode():
        theirs = predictor._internal_maybe_mirror_and_predict(noise)
        assert float((network(noise) - theirs).abs().max()) <= 1e-5
