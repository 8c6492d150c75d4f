"""Each drawn window is a function of (seed, number of the draw), whatever draws it and whenever."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import (
    CastToTyped,
    Compose,
    EnsureChannelFirstd,
    Lambda,
    LoadImaged,
    MapTransform,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandSpatialCropd,
    Spacingd,
    SpatialPadd,
    ToTensord,
)

from monai_unet_app.errors import BundleError, InputRefusedError, UsageError
from monai_unet_app.training.prepared import PreparedDataset
from monai_unet_app.training.replay import CaseLosses, ReplayDataset, ReplayLoader, ReplaySampler, replay_rng
from monai_unet_app.weights import load_checkpoint

KEYS = ["image", "label"]


class Draw(MapTransform):
    """Stands for reading: the case's number becomes a lopsided image and its label."""

    def __call__(self, data: Any) -> dict[str, Any]:
        number = data["number"]
        image = np.random.default_rng(number).normal(number, 1, (1, 12, 15, 9)).astype(np.float32)
        return {"image": torch.from_numpy(image), "label": torch.from_numpy((image > number).astype(np.float32))}


def augmentation() -> list[Any]:
    return [
        RandAffined(
            keys=KEYS, prob=0.7, rotate_range=[0.3, 0.3, 0.3], mode=["bilinear", "nearest"], padding_mode="border"
        ),
        SpatialPadd(keys=KEYS, spatial_size=(8, 8, 8)),
        RandSpatialCropd(keys=KEYS, roi_size=(8, 8, 8), random_size=False),
        RandFlipd(keys=KEYS, prob=0.5, spatial_axis=0),
        RandGaussianNoised(keys="image", prob=0.5, std=0.1),
        ToTensord(keys=KEYS, track_meta=False),
    ]


def dataset(seed: int = 3, cases: int = 5) -> ReplayDataset:
    return ReplayDataset([{"number": n} for n in range(cases)], [Draw(KEYS)], augmentation(), seed, num_workers=1)


def batches(count: int, **changed: Any) -> list[dict[str, torch.Tensor]]:
    step, values = changed.pop("step", 0), {"seed": 3, "batch_size": 2, "num_workers": 0, **changed}
    loader = ReplayLoader(dataset(values.pop("seed")), **values)
    loader.begin_at(step)
    return list(islice(iter(loader), count))


def same(first: list[dict[str, torch.Tensor]], second: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in KEYS)


def test_every_case_comes_once_before_any_comes_again_and_in_another_order() -> None:
    draws = list(islice(iter(ReplaySampler(7, seed=1)), 28))
    rounds = [[case for case, _ in draws[i : i + 7]] for i in range(0, 28, 7)]
    assert all(sorted(order) == list(range(7)) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1
    assert [number for _, number in draws] == list(range(28))


def test_a_stream_begun_in_the_middle_goes_on_as_the_whole_one() -> None:
    whole = list(islice(iter(ReplaySampler(5, seed=2)), 40))
    for first in (1, 5, 13):
        sampler = ReplaySampler(5, seed=2)
        sampler.first_draw = first
        assert list(islice(iter(sampler), 40 - first)) == whole[first:]


def test_two_seeds_give_two_streams() -> None:
    assert list(islice(iter(ReplaySampler(9, 0)), 9)) != list(islice(iter(ReplaySampler(9, 1)), 9))
    assert not same(batches(2), batches(2, seed=4))


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    fresh, used = dataset(), dataset()
    torch.manual_seed(0)
    np.random.seed(0)
    for draw in (40, 3, 17):
        used[(draw % 5, draw)]
    torch.manual_seed(1)
    np.random.seed(1)
    for ticket in ((2, 7), (2, 8), (4, 7)):
        assert torch.equal(fresh[ticket]["image"], used[ticket]["image"])
        assert torch.equal(fresh[ticket]["label"], used[ticket]["label"])


def test_two_draws_of_one_case_differ_and_label_and_image_stay_together() -> None:
    windows = dataset()
    first, second = windows[(1, 0)], windows[(1, 1)]
    assert first["image"].shape == (1, 8, 8, 8)
    assert not torch.equal(first["image"], second["image"])
    cut = ReplayDataset(
        [{"number": 0}], [Draw(KEYS)], [RandSpatialCropd(keys=KEYS, roi_size=(4, 4, 4), random_size=False)], 3, 1
    )
    for draw in range(5):
        window = cut[(0, draw)]
        assert torch.equal(torch.as_tensor(window["label"]), (torch.as_tensor(window["image"]) > 0).float())


def test_drawing_leaves_the_cases_in_memory_as_they_were() -> None:
    windows = dataset(cases=1)
    before = windows.cases[0]["image"].clone()
    for draw in range(12):
        windows[(0, draw)]
    after = windows.cases[0]["image"]
    assert torch.equal(torch.as_tensor(after), torch.as_tensor(before))
    assert not getattr(after, "applied_operations", [])


def test_a_window_is_what_monai_draws_with_metadata_and_carries_none(tmp_path: Path) -> None:
    (tmp_path / "7.txt").write_text("7")
    read, varied = Read(KEYS), Compose(augmentation()[:-1])
    windows = ReplayDataset([{"image": str(tmp_path / "7.txt")}], [read], augmentation()[:-1], 3, 1)
    assert isinstance(windows.cases[0]["image"], MetaTensor)
    for draw in range(6):
        varied.set_random_state(seed=int(replay_rng(3, draw).randint(2**31)))
        expected, found = varied(read({"image": str(tmp_path / "7.txt")})), windows[(0, draw)]
        for key in KEYS:
            assert type(found[key]) is torch.Tensor
            assert torch.equal(found[key], expected[key].as_tensor())
    assert get_track_meta()
    fails = ReplayDataset([{"image": str(tmp_path / "7.txt")}], [read], [Lambda(lambda data: 1 / 0)], 3, 1)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        fails[(0, 0)]
    assert get_track_meta()


def stream(losses: CaseLosses, hard_cases: float, count: int) -> list[int]:
    """The cases of the first draws, when the loss of case n is n + 1 whenever it is drawn."""
    sampler, cases = iter(ReplaySampler(losses.cases, 4, hard_cases, losses)), list[int]()
    for _ in range(count):
        cases.append(next(sampler)[0])
        losses.add(cases[-1:], [cases[-1] + 1.0])
    return cases


def test_hard_cases_come_in_proportion_to_their_loss_from_the_third_epoch_on() -> None:
    cases = stream(CaseLosses(4, 400), 0.5, 800 + 8000)
    assert [cases[:800].count(n) for n in range(4)] == [200] * 4
    # half of the draws alike, half in proportion to 1, 2, 3 and 4
    expected = [0.5 / 4 + 0.5 * n / 10 for n in (1, 2, 3, 4)]
    # the standard deviation of a part of 8,000 draws is 0.0055 at most
    np.testing.assert_allclose([cases[800:].count(n) / 8000 for n in range(4)], expected, atol=0.02)


def test_a_case_that_gets_easier_comes_less_often_two_epochs_later() -> None:
    losses = CaseLosses(2, 2)
    for value in (3.0, 3.0, 1.0, 1.0):
        losses.add([0, 1], [value, 1.0])
    # the draws of the fifth epoch are by the losses of the first three: 3, 3, then half 3 and half 1
    assert losses.chances(8) == pytest.approx([2 / 3, 1 / 3])
    assert losses.chances(10) == pytest.approx([1.5 / 2.5, 1 / 2.5])


def test_hard_cases_do_not_depend_on_how_far_ahead_a_window_is_drawn() -> None:
    at_once, ahead = (CaseLosses(3, 30) for _ in range(2))
    expected, sampler = stream(at_once, 0.7, 150), iter(ReplaySampler(3, 4, 0.7, ahead))
    drawn = [next(sampler)[0] for _ in range(12)]
    for n in range(150 - 12):
        ahead.add(drawn[n : n + 1], [drawn[n] + 1.0])
        drawn.append(next(sampler)[0])
    assert drawn == expected


def test_hard_cases_go_on_where_they_were_saved() -> None:
    whole, first = (CaseLosses(3, 30) for _ in range(2))
    expected = stream(whole, 0.7, 150)
    assert stream(first, 0.7, 90) == expected[:90]
    resumed = CaseLosses(3, 30)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    sampler = ReplaySampler(3, 4, 0.7, resumed)
    sampler.first_draw = 90
    draws, cases = iter(sampler), list[int]()
    for _ in range(60):
        cases.append(next(draws)[0])
        resumed.add(cases[-1:], [cases[-1] + 1.0])
    assert cases == expected[90:]


def test_hard_cases_in_epochs_shorter_than_what_workers_draw_ahead_are_refused() -> None:
    with pytest.raises(UsageError, match="raise windows_per_case"):
        ReplayLoader(dataset(), batch_size=2, windows_per_case=1, num_workers=1, hard_cases=0.5)
    ReplayLoader(dataset(), batch_size=2, windows_per_case=2, num_workers=1, hard_cases=0.5)


@pytest.mark.parametrize("part", [-0.1, 30])
def test_hard_cases_are_a_part_of_the_windows(part: float) -> None:
    with pytest.raises(UsageError, match="0 to 1"):
        ReplayLoader(dataset(), batch_size=2, hard_cases=part)


def test_a_loader_resumed_in_the_middle_gives_the_same_batches() -> None:
    assert same(batches(6)[4:], batches(2, step=4))


def test_a_worker_process_draws_the_same_windows() -> None:
    assert same(batches(4), batches(4, num_workers=1))
    assert same(batches(5)[3:], batches(2, step=3, num_workers=1))


def test_the_batch_size_only_cuts_the_same_stream_at_other_places() -> None:
    twos, fours = batches(4, batch_size=2), batches(2, batch_size=4)
    assert torch.equal(torch.cat([batch["image"] for batch in twos]), torch.cat([batch["image"] for batch in fours]))


def test_an_epoch_is_so_many_windows_of_each_case() -> None:
    assert len(ReplayLoader(dataset(), batch_size=2, windows_per_case=4)) == 5 * 4 // 2
    assert len(ReplayLoader(dataset(), batch_size=16, windows_per_case=1)) == 1


class Read(MapTransform):
    """Reads the numbers of a text file as a lopsided image and its label, and counts how often."""

    times = 0

    def __call__(self, data: Any) -> dict[str, Any]:
        type(self).times += 1
        drawn = Draw(KEYS)({"number": int(Path(data["image"]).read_text())})
        # as what LoadImage reads: with numpy arrays among its metadata
        return {key: MetaTensor(drawn[key], meta={"spatial_shape": np.array(drawn[key].shape)}) for key in KEYS}


def prepared(folder: Path, cases: int = 3) -> ReplayDataset:
    rows = [{"image": str(folder / f"{n}.txt"), "id": str(n)} for n in range(cases)]
    cast = CastToTyped(keys="label", dtype=torch.uint8)
    return ReplayDataset(rows, [Read(KEYS)], augmentation(), 3, prepare=[cast], cache_dir=str(folder / "cache"))


def test_what_is_prepared_on_disk_gives_the_same_windows_and_is_done_once(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(str(number))
    Read.times = 0
    in_memory, on_disk = dataset(), prepared(tmp_path)
    draws = [(case, number) for number, case in enumerate((0, 2, 1, 0, 0, 2))]
    for draw in draws:
        expected, found = in_memory[draw], on_disk[draw]
        assert all(torch.equal(expected[key], found[key].to(expected[key].dtype)) for key in KEYS)
    assert Read.times == 3
    again = prepared(tmp_path)[draws[3]]  # another process that goes on
    assert Read.times == 3
    assert torch.equal(again["image"], in_memory[draws[3]]["image"])


class Code:
    """Runs when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.ran,)


def test_what_is_prepared_on_disk_runs_no_code(tmp_path: Path) -> None:
    """The metadata of an image hold arrays, which come back; anything else in a file is refused, as in `last.pt`."""
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.int16), np.diag([1.0, 2, 3, 1])), tmp_path / "a.nii.gz")
    rows = [{"image": str(tmp_path / "a.nii.gz")}]
    steps = [LoadImaged("image"), EnsureChannelFirstd("image"), Spacingd("image", (1, 1, 1))]
    made = [PreparedDataset(rows, steps, str(tmp_path / "cache"))[0]["image"] for _ in range(2)]
    assert made[0].meta.keys() == made[1].meta.keys()
    assert torch.equal(made[0].affine, made[1].affine)
    (file,) = (tmp_path / "cache").glob("*.pt")
    for harmful in (file, tmp_path / "run/last.pt"):
        harmful.parent.mkdir(exist_ok=True)
        torch.save({"image": torch.ones(3), "state": Code(tmp_path / "ran")}, harmful)
    with pytest.raises(InputRefusedError, match=r"holds more than arrays, numbers and text .* remove the folder cache"):
        PreparedDataset(rows, steps, str(tmp_path / "cache"))[0]
    with pytest.raises(BundleError, match=r"last\.pt is damaged, or holds more than weights"):
        load_checkpoint(tmp_path / "run/last.pt")
    assert not (tmp_path / "ran").exists()


class Large(MapTransform):
    """Stands for reading: 4 MB of the case's number."""

    def __call__(self, data: Any) -> dict[str, Any]:
        return {"image": torch.full((1, 1024, 1024), float(data["number"]))}


@pytest.fixture
def held_mb() -> Callable[[], float]:
    """Of all tensors that Python has made since the test began; the process also holds what earlier tests have left."""

    def held() -> float:
        storages = [found.untyped_storage() for found in gc.get_objects() if isinstance(found, torch.Tensor)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / 1e6

    gc.freeze()  # what is there now is not among the objects of gc
    return held


@pytest.mark.parametrize("on_disk", [True, False])
def test_memory_grows_with_the_number_of_cases_only_where_they_are_kept_in_memory(
    tmp_path: Path, on_disk: bool, held_mb: Callable[[], float]
) -> None:
    varied = [RandSpatialCropd(keys="image", roi_size=(8, 8), random_size=False)]
    cases, folder = [{"number": n} for n in range(60)], str(tmp_path) if on_disk else None
    windows = ReplayDataset(cases, [Large("image")], varied, num_workers=1, cache_dir=folder)
    assert [float(windows[(case, case)]["image"].mean()) for case in range(60)] == list(range(60))
    assert (held_mb() < 80) == on_disk  # the cases are 250 MB


def test_a_case_that_another_process_prepares_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.txt").write_text("4")
    save, seen = torch.save, []

    def slow_save(item: object, path: Path) -> None:
        save(item, path)
        whole = path.read_bytes()
        path.write_bytes(whole[:100])  # half of it is on the disk when another process asks for the case
        monkeypatch.setattr(torch, "save", save)
        seen.append(prepared(tmp_path, 1)[(0, 0)])
        path.write_bytes(whole)

    monkeypatch.setattr(torch, "save", slow_save)
    first = prepared(tmp_path, 1)[(0, 0)]
    assert torch.equal(first["image"], seen[0]["image"])
    assert torch.equal(first["image"], prepared(tmp_path, 1)[(0, 0)]["image"])


def test_a_changed_file_is_prepared_again(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(str(number))
    before = prepared(tmp_path)[(1, 0)]
    (tmp_path / "1.txt").write_text("41")
    after = prepared(tmp_path)[(1, 0)]
    assert not torch.equal(before["image"], after["image"])
    assert torch.equal(prepared(tmp_path)[(0, 0)]["image"], dataset()[(0, 0)]["image"])
