"""What an answer hangs on, of networks whose answer hangs on a known place: the image 3 voxels further along one axis."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import nibabel
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from numpy.typing import NDArray
from PIL import Image

from dicom_io.volume import Volume
from monai_unet_app import explain
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.cli import main
from monai_unet_app.cli.parser import build_parser
from monai_unet_app.config import EXPLANATIONS, ExplainMethod, OutputConfig
from monai_unet_app.data.schemas import validate
from monai_unet_app.errors import UsageError
from monai_unet_app.explain import Explanation, explain_case, explanation_png
from monai_unet_app.pipeline import preprocess, segment_case
from monai_unet_app.results import write_results

OFFSET = 3
SHAPE = (32, 48, 32)  # one window of the 3D bundle
MASK = (4, 6, 4)  # an eighth of it
BRIGHT = (slice(16, 24), slice(24, 36), slice(12, 20))
Make = Callable[[str], Path]


def first_of(dimensions: int, channels: int) -> str:
    line = [7, *[1] * (dimensions - 1)], [OFFSET, *[0] * (dimensions - 1)]
    return f"torch.nn.Conv{dimensions}d({channels}, 1, {line[0]}, padding={line[1]})"


def looking_aside(folder: Path) -> Bundle:
    """The bundle with a network whose first layer gives the image OFFSET voxels along the network's first axis.

    The first structure is where that is more than 3, others are nowhere.
    """
    config = folder / "configs/inference.yaml"
    text = config.read_text()
    dimensions = int(re.findall(r"spatial_dims: (\d)", text)[0])
    channels = int(re.findall(r"in_channels: (\d)", text)[0])
    overlapping = "outputs: overlapping" in text
    first, classes = first_of(dimensions, channels), 1 if overlapping else 3
    network = f'network_def: "$torch.nn.Sequential({first}, torch.nn.Conv{dimensions}d(1, {classes}, 1))"\n'
    network += "feature_layer: '0'\n"
    config.write_text(
        re.sub(r"^network_def: .*?(?=^network:)", lambda _: network, text, flags=re.DOTALL | re.MULTILINE)
    )
    (folder / "configs/confidence.json").unlink(missing_ok=True)
    weight = torch.zeros(1, channels, 7, *[1] * (dimensions - 1))
    weight[0, 0, 3 + OFFSET] = 1
    state = {
        "0.weight": weight,
        "0.bias": torch.zeros(1),
        "1.weight": torch.tensor([1.0] if overlapping else [0.0, 1.0, 0.0]).view(-1, 1, *[1] * dimensions),
        "1.bias": torch.tensor([-3.0] if overlapping else [0.0, -3.0, -100.0]),
    }
    torch.save(state, folder / "models/model.pt")
    return load_bundle(folder)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So little work is done faster by one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 parts of a window are hidden instead of 512: for what does not depend on their size."""
    monkeypatch.setattr(explain, "PARTS", 2)


@pytest.fixture
def bundle(tiny_bundle: Make) -> Bundle:
    return looking_aside(tiny_bundle("hippocampus_mri_unet3d"))


def upright() -> Volume:
    """On the working grid already: a bright box in noise."""
    array = np.random.default_rng(3).normal(100, 5, SHAPE)
    array[BRIGHT] += 100
    affine = np.eye(4)
    affine[:3, 3] = [-12.0, 20.0, 7.0]
    return Volume.from_ras(array.astype(np.float32), affine)


def turned(volume: Volume) -> Volume:
    """The same voxels in the same places, axes swapped and two of them reversed."""
    step = np.zeros((4, 4))  # turned index -> index
    step[2, 0], step[0, 1], step[1, 2], step[3, 3] = -1, 1, -1, 1
    step[:3, 3] = [0, SHAPE[1] - 1, SHAPE[2] - 1]
    return Volume(there(volume.array).copy(), volume.affine_lps @ step)


def on_grid(found: Explanation, volume: Volume) -> NDArray:
    """The map of the first structure, on the whole grid."""
    return found.on_grid(0, volume.shape)


def there(array: NDArray) -> NDArray:
    return array.transpose(2, 0, 1)[::-1, :, ::-1]


def back(array: NDArray) -> NDArray:
    return array[::-1, :, ::-1].transpose(1, 2, 0)


def expected(image: NDArray, box: tuple[slice, ...], mask: tuple[int, ...]) -> NDArray:
    """The map of the first structure in closed form: its answer is the mean of a box of a window, less 3.

    Args:
        image: The window as the network gets it.
        box: Of the structure.
        mask: Sides of the parts that are hidden one by one.
    """
    inside = np.zeros(image.shape)
    inside[box] = 1 / inside[box].size
    lost = (image - image.mean()) * inside
    sizes = [n for size, side in zip(image.shape, mask, strict=True) for n in (size // side, side)]
    blocks = lost.reshape(sizes).sum(axis=tuple(range(1, len(sizes), 2)))
    for axis, size in enumerate(mask):
        blocks = blocks.repeat(size, axis=axis)
    return blocks


@pytest.mark.parametrize("turn", [False, True], ids=["upright", "turned"])
def test_the_map_is_the_closed_form_on_the_source_grid(turn: bool, bundle: Bundle) -> None:
    volume = turned(upright()) if turn else upright()
    found = explain_case(segment_case(volume, bundle))
    image = preprocess(upright(), bundle)["image"].numpy()[0]
    drawn = back(on_grid(found, volume)) if turn else on_grid(found, volume)
    np.testing.assert_allclose(drawn, expected(image, BRIGHT, MASK), rtol=2e-3, atol=1e-5)
    assert found.answers[0] == pytest.approx(image[BRIGHT].mean() - 3, rel=1e-4)


def test_of_an_oblique_source_of_another_spacing_the_map_lies_where_the_answer_comes_from(
    bundle: Bundle,
) -> None:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (36, 52, 35)), indexing="ij"), axis=-1)
    inside = (((grid - (13.0, 30.0, 16.0)) / (4.0, 6.0, 4.0)) ** 2).sum(-1) < 1
    angle = np.deg2rad(12.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([1.0, 1.0, 1.1]), [-12.5, 31.25, -40.0]
    array = np.random.default_rng(5).normal(100, 5, inside.shape) + 100 * inside
    volume = Volume(array.astype(np.float32), affine)
    case = segment_case(volume, bundle)
    found = explain_case(case)

    def centre_ras(weights: NDArray) -> NDArray:
        index = (grid * weights[..., None]).sum(axis=(0, 1, 2)) / weights.sum()
        return (volume.affine_ras @ [*index, 1])[:3]

    drawn = centre_ras(np.maximum(np.nan_to_num(on_grid(found, volume)), 0))
    aside = OFFSET * np.array([np.cos(angle), np.sin(angle), 0])  # RAS: the oblique grid's axis next to right
    np.testing.assert_allclose(centre_ras(inside) - centre_ras(case.segmentation.labels == 1), aside, atol=0.3)
    np.testing.assert_allclose(drawn, centre_ras(inside), atol=1.2)


def test_of_a_volume_larger_than_a_window_only_the_window_around_the_structure_is_explained(bundle: Bundle) -> None:
    array = np.random.default_rng(3).normal(100, 5, (60, 48, 20))
    array[44:50, 20:30, 8:16] += 100
    volume = Volume.from_ras(array, np.eye(4))
    found = explain_case(segment_case(volume, bundle))
    drawn = on_grid(found, volume)
    seen = np.isfinite(drawn)
    assert found.maps[0] is not None
    assert found.maps[0].values.shape == (32, 48, 20), "nothing is kept beside the window"
    assert seen.sum() == 32 * 48 * 20  # a window of 32 voxels along K, whose padding is not in the image
    assert seen[28:60].all()  # of windows from 0, 16 and 28 on, the last two hold it, the last nearer its middle
    window = np.pad(preprocess(volume, bundle)["image"].numpy()[0, 28:], ((0, 0), (0, 0), (6, 6)))
    box = slice(44 - 28, 50 - 28), slice(20, 30), slice(8 + 6, 16 + 6)
    np.testing.assert_allclose(drawn[28:], expected(window, box, MASK)[..., 6:26], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("thickness", "slices", "explained"), [(1.0, [17], 17), (2.0, [7, 8], 15)])
def test_a_2d_network_explains_the_slice_with_the_largest_section(
    thickness: float, slices: list[int], explained: int, tiny_bundle: Make
) -> None:
    bundle = looking_aside(tiny_bundle("hippocampus_mri_unet2d"))
    array = np.random.default_rng(3).normal(100, 5, (32, 48, 32))
    array[14:20, 24:32, 12:22] += 100
    array[17, 24:34, 12:22] += 100 * (array[17, 24:34, 12:22] < 150)
    array = array if thickness == 1 else array[1::2]
    volume = Volume.from_ras(array.astype(np.float32), np.diag([thickness, 1, 1, 1]))
    found = explain_case(segment_case(volume, bundle))
    drawn = on_grid(found, volume)
    seen = np.flatnonzero(np.isfinite(drawn).any(axis=(1, 2)))
    assert found.slice_axis == 0
    # Slice 8, of 2 mm, is the network's 16th, of 1 mm; its 15th, midway to slice 7, has the same section and comes first.
    assert seen.tolist() == slices
    closed = expected(preprocess(volume, bundle)["image"].numpy()[0, explained], (slice(24, 34), slice(12, 22)), (6, 4))
    for index in slices:
        np.testing.assert_allclose(drawn[index], closed, rtol=2e-3, atol=1e-5)


def test_of_a_picture_one_window_is_explained(tiny_bundle: Make) -> None:
    bundle = looking_aside(tiny_bundle("retina_vessel_unet2d"))
    array = np.random.default_rng(3).integers(90, 110, (720, 704, 1, 3)).astype(np.uint8)
    array[300:320, 400:440, 0, 0] = 250
    case = segment_case(Volume(array, np.eye(4), planar=True), bundle)
    found = explain_case(case)
    drawn = on_grid(found, case.image)
    assert drawn.shape == (720, 704, 1)
    assert np.isfinite(drawn).sum() == 256 * 256
    seen = np.isfinite(drawn)
    image = np.moveaxis(preprocess(case.image, bundle)["image"].numpy(), 0, -1)
    answer = image[300:320, 400:440, ..., 0].mean() - 3
    assert found.answers[0] == pytest.approx(answer, rel=1e-3)
    # Each part of 32 x 32 pixels loses what its share of the structure has above the mean of the window
    mean = image.reshape(*drawn.shape[:2], 3)[seen[..., 0]].mean()
    assert drawn[seen].sum() / 32**2 == pytest.approx(answer + 3 - mean, rel=1e-3)
    assert drawn[seen].max() == drawn[300:320, 400:440].max()
    assert Image.open(io.BytesIO(explanation_png(case.segmentation, "eye", found))).width > 500


def test_a_map_taken_back_in_its_box_is_that_of_monai_on_the_whole_image(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(8).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([0.9, 1.2, 0.8]), [-12.5, 31.25, -40.0]
    array = np.random.default_rng(3).normal(100, 5, (70, 56, 40))
    array[50:60, 20:34, 8:22] += 100
    volume = Volume(array.astype(np.float32), affine)
    case, maps, occlusion = segment_case(volume, bundle), list[torch.Tensor](), explain._occlusion
    monkeypatch.setattr(explain, "_occlusion", lambda *args: maps.append(occlusion(*args)) or maps[-1])
    found = explain_case(case)
    boxed = found.maps[0]
    assert boxed is not None
    assert boxed.values.size < volume.array.size / 2
    assert len(maps) == 1
    monkeypatch.setattr(explain, "_occlusion", lambda *args: maps[0].clone())  # of the same window
    monkeypatch.setattr(explain, "way_back", lambda image: None)
    whole = explain_case(case)
    np.testing.assert_allclose(on_grid(found, volume), on_grid(whole, volume), atol=1e-7)


@pytest.mark.usefixtures("few_parts")
def test_a_structure_that_was_not_found_has_no_map(bundle: Bundle) -> None:
    case = segment_case(upright(), bundle)
    found = explain_case(case)
    assert found.answers[1] is None
    assert found.maps[1] is None
    none = Explanation((None, None), (None, None))
    alone = Image.open(io.BytesIO(explanation_png(case.segmentation, "case", none)))
    both = Image.open(io.BytesIO(explanation_png(case.segmentation, "case", found)))
    assert alone.height < 150 < both.height  # two lines of words; a line of words and planes


def test_what_the_result_left_out_is_not_explained(bundle: Bundle) -> None:
    case = segment_case(upright(), bundle)
    segmentation = replace(case.segmentation, labels=np.zeros_like(case.segmentation.labels))
    nothing = replace(case, segmentation=segmentation)
    assert explain_case(nothing).answers == (None, None)


@pytest.mark.usefixtures("few_parts")
def test_logits_that_rise_together_are_no_answer(bundle: Bundle) -> None:
    before = explain_case(segment_case(upright(), bundle)).answers[0]
    with torch.no_grad():
        bundle.network[1].bias += 50
    assert explain_case(segment_case(upright(), bundle)).answers[0] == pytest.approx(before)


@pytest.mark.usefixtures("few_parts")
def test_the_network_and_the_random_numbers_are_left_as_they_were(
    tiny_bundle: Make, crop: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_bundle("hippocampus_mri_unet3d")
    (folder / "configs/confidence.json").unlink(missing_ok=True)
    bundle = load_bundle(folder, window=[16, 16, 16])
    case, state = segment_case(crop, bundle), torch.get_rng_state()
    first, second = (on_grid(explain_case(case), crop) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first).any()
    assert torch.equal(torch.get_rng_state(), state)
    for part in bundle.network.modules():
        assert not part.training
        assert not part._forward_hooks
        assert not part._backward_hooks
    assert all(weight.grad is None and weight.requires_grad for weight in bundle.network.parameters())


def test_the_progress_counts_every_window(bundle: Bundle) -> None:
    told: list[tuple[int, int]] = []
    explain_case(segment_case(upright(), bundle), progress=lambda *step: told.append(step))
    assert told[-1] == (513, 513)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_picture_and_map_are_named_in_the_result(bundle: Bundle, tmp_path: Path) -> None:
    volume = turned(upright())
    what = OutputConfig(explain="occlusion")
    document = write_results(segment_case(volume, bundle), "case", what, tmp_path / "out")
    validate(document, "result")
    assert document["files"] == {"nifti": "case_seg.nii.gz", "why": "case_why.png", "why_map": "case_why.nii.gz"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*document["files"].values(), "case_result.json"}
    written = nibabel.load(tmp_path / "out/case_why.nii.gz")
    assert written.shape == (*volume.shape, 2)
    np.testing.assert_allclose(written.affine, volume.affine_ras, atol=1e-5)
    first = np.asarray(written.dataobj)[..., 0]
    place = np.unravel_index(back(first).argmax(), SHAPE)
    assert all(side.start <= n < side.stop for n, side in zip(place, BRIGHT, strict=True))
    assert np.isnan(np.asarray(written.dataobj)[..., 1]).all()
    with Image.open(tmp_path / "out/case_why.png") as picture:
        assert picture.size[0] > 500


def test_the_methods_are_the_same_everywhere() -> None:
    assert get_args(ExplainMethod) == EXPLANATIONS
    (predict,) = [action.choices["predict"] for action in build_parser()._actions if isinstance(action.choices, dict)]
    (flag,) = [action for action in predict._actions if "--explain" in action.option_strings]
    assert tuple(flag.choices or ()) == EXPLANATIONS
    with pytest.raises(UsageError, match="--explain why: one of occlusion is needed"):
        OutputConfig(explain="why")  # type: ignore[arg-type]


def test_a_flag_that_cannot_be_is_refused_before_any_work(
    tiny_bundle: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = looking_aside(tiny_bundle("hippocampus_mri_unet3d"))
    nibabel.save(nibabel.Nifti1Image(upright().array, upright().affine_ras), tmp_path / "case.nii.gz")
    where = ["--input", str(tmp_path / "case.nii.gz"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--bundle", str(bundle.root), *where, "--explain", "saliency"])
    assert stop.value.code == 2
    assert "choose from 'occlusion'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few_parts")
def test_the_command_line_explains(tiny_bundle: Make, tmp_path: Path) -> None:
    bundle = looking_aside(tiny_bundle("hippocampus_mri_unet3d"))
    nibabel.save(nibabel.Nifti1Image(upright().array, upright().affine_ras), tmp_path / "case.nii.gz")
    where = ["--input", str(tmp_path / "case.nii.gz"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", "--bundle", str(bundle.root), *where, "--explain", "occlusion", "--json"]) == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"case_seg.nii.gz", "case_why.png", "case_why.nii.gz", "case_result.json"}


def test_the_how_to_names_the_method() -> None:
    page = (REPOSITORY / "docs/how-to/explain.md").read_text()
    assert all(f"--explain {method}" in page for method in EXPLANATIONS)
    assert "Sanity checks for saliency maps" in page
