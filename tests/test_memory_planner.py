"""The plan of a run's memory, against what the parts of a run hold."""

from __future__ import annotations

import gzip
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd

from monai_unet_app.bundle import load_bundle
from monai_unet_app.config import PredictConfig
from monai_unet_app.errors import InputRefusedError, NoRoomError
from monai_unet_app.inference.blend import Blend
from monai_unet_app.inference.windows import WindowSettings, plan_windows
from monai_unet_app.memory_planner import Process, Work, memory_plan, working_shape
from monai_unet_app.metrics.outputs import EXCLUSIVE
from monai_unet_app.pipeline import segment_case

CT = Work((512, 512, 300), (342, 342, 200), 1, 105, kept=1, halo=2)
WINDOWS = WindowSettings((96, 96, 96), 0.5, 1, "gaussian", 0.125, "constant", 0.0)
PROCESS = Process(0.6e9, 0.6e9, 4e9)


@pytest.mark.parametrize("channels", [2, 40])
@pytest.mark.parametrize("shape", [(40, 33, 21), (17, 50, 9)])
def test_the_sums_that_the_plan_states_are_those_that_the_blend_holds(shape: tuple[int, ...], channels: int) -> None:
    settings = replace(WINDOWS, window=(16, 16, 8))
    plan = plan_windows(shape, settings.window, settings.overlap)
    blend, most = Blend(plan, settings, torch.device("cpu"), channels), 0
    for window in plan.windows:
        blend.add((window,), torch.zeros(1, channels, *settings.window))
        most = max(most, sum(4 * sums.numel() for sums in blend._held.values()))
        list(blend.finished())
    stated = memory_plan(Work(shape, shape, 1, channels, EXCLUSIVE.result_bytes(channels), halo=0), settings, PROCESS)
    assert stated.on_disk == 0
    assert 0.7 * stated.sums < most <= stated.sums


def test_what_does_not_fit_waits_on_disk_and_what_fits_does_not() -> None:
    plans = [memory_plan(CT, WINDOWS, replace(PROCESS, limit=limit)) for limit in (2.6e9, 4e9, 6e9, 20e9)]
    assert [plan.on_disk > 0 for plan in plans] == [True, True, False, False]
    assert [plan.peak <= plan.limit for plan in plans] == [True] * 4
    assert len({round(plan.sums + plan.on_disk) for plan in plans}) == 1
    assert plans[2].peak == plans[3].peak < 6e9
    assert str(plans[1]) == "memory: 4.00 GB expected, 4.00 GB allowed; sums of windows 1.53 GB, beside 1.26 GB on disk"


def test_what_cannot_fit_is_refused_with_its_figures_and_fits_with_what_they_say() -> None:
    with pytest.raises(InputRefusedError, match=r"needs (2\.\d\d) GB .*105 classes.* 2\.00 GB are allowed") as refused:
        memory_plan(CT, WINDOWS, replace(PROCESS, limit=2e9))
    needed = float(str(refused.value).split("needs ")[1].split()[0]) * 1e9
    assert memory_plan(CT, WINDOWS, replace(PROCESS, limit=needed + 1e7)).on_disk > 0
    with pytest.raises(InputRefusedError, match="--memory-limit"):
        memory_plan(CT, WINDOWS, replace(PROCESS, limit=needed - 1e7))


def test_what_a_machine_has_no_memory_for_now_is_told_from_what_exceeds_a_limit() -> None:
    with pytest.raises(NoRoomError):
        memory_plan(CT, WINDOWS, replace(PROCESS, limit=2e9, ever=4e9))
    with pytest.raises(InputRefusedError) as refused:
        memory_plan(CT, WINDOWS, replace(PROCESS, limit=2e9, ever=2.2e9))
    assert type(refused.value) is InputRefusedError


def test_the_plan_of_an_image_that_cannot_fit_takes_no_memory() -> None:
    metres = Work((40, 40, 40), (50_000, 50_000, 50_000), 1, 3, kept=1, halo=2)  # its header says so of its voxels
    tracemalloc.start()
    try:
        with pytest.raises(InputRefusedError, match="are allowed"):
            memory_plan(metres, WINDOWS, PROCESS)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_a_result_that_is_made_of_the_whole_image_takes_all_probabilities() -> None:
    all_of_them = 4 * 105 * 512 * 512 * 300
    with pytest.raises(InputRefusedError, match="GB are allowed"):
        memory_plan(replace(CT, halo=math.inf), WINDOWS, replace(PROCESS, limit=3.6 * all_of_them))
    plan = memory_plan(replace(CT, halo=math.inf), WINDOWS, replace(PROCESS, limit=200e9))
    assert 3.6 * all_of_them < plan.peak < 5 * all_of_them


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_the_working_grid_is_known_from_the_header_within_a_voxel(turn: float) -> None:
    affine = np.diag([-0.8, 0.9, -2.5, 1.0])[:, [2, 0, 1, 3]]  # voxel to LPS, slices first
    spin = np.array(
        [[np.cos(turn), -np.sin(turn), 0, 0], [np.sin(turn), np.cos(turn), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    image = MetaTensor(torch.zeros(1, 12, 40, 31), affine=torch.from_numpy(np.diag([-1, -1, 1, 1]) @ spin @ affine))
    steps = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", (1.5, 1.2, 2.0))])
    shape = steps({"image": image})["image"].shape[1:]
    found = working_shape((12, 40, 31), spin @ affine, (1.5, 1.2, 2.0))
    assert found[2] > 0
    np.testing.assert_allclose(found, shape, atol=1)


def test_an_image_that_does_not_fit_is_refused_before_its_voxels_are_read(tmp_path: Path) -> None:
    import nibabel

    bundle = load_bundle("hippocampus_mri_unet3d")
    nibabel.save(nibabel.Nifti1Image(np.zeros((300, 300, 300), np.int16), np.eye(4)), tmp_path / "whole.nii")
    # A header, and bytes that could be the packed voxels of 54 MB and are not
    start = (tmp_path / "whole.nii").read_bytes()[:352] + np.random.default_rng(1).bytes(60_000)
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(start))
    with pytest.raises(InputRefusedError, match="cannot be read"):
        segment_case(tmp_path / "cut.nii.gz", bundle, PredictConfig(memory_limit=1e12))
    told: list[str] = []
    with pytest.raises(InputRefusedError, match=r"300 x 300 x 300 voxels.* 0\.50 GB are allowed"):
        segment_case(tmp_path / "cut.nii.gz", bundle, PredictConfig(memory_limit=0.5e9, on_plan=told.append))
    assert not told
    flat = bytearray((tmp_path / "whole.nii").read_bytes())
    flat[296:312] = flat[280:296]  # srow_y is srow_x: two axes run the same way
    (tmp_path / "flat.nii").write_bytes(flat)
    with pytest.raises(InputRefusedError, match="does not say where its voxels lie"):
        segment_case(tmp_path / "flat.nii", bundle, PredictConfig(memory_limit=0.5e9))
