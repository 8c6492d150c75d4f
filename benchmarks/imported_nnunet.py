"""Is an imported network of nnU-Net as fast as nnU-Net, and do its intervals hold on cases that it has not seen?

    pip install --no-deps --target build/peers -r benchmarks/nnunet.txt
    python benchmarks/imported_nnunet.py --data ../shared/data/msd_hippocampus [--minutes 10] [--rounds 3]

nnU-Net gets the cases by `monai-unet convert` without the test cases of --splits, makes its own plan, and trains its five folds
on the CPU, one thread; of its plan only the batch (2), the patch and the width of the network (a quarter) are edited, so that
minutes are enough. `monai-unet bundle import-nnunet --data` then makes one calibrated bundle of them. Mirror images are left
out on both sides, which takes an eighth of the time. Printed are

- time of the test cases by nnU-Net's predictor, five folds, and by the bundle (array to labels, both loaded),
  in turns, medians and their ratio, for test cases and for four of them side by side; and the labels that differ,
- of the test cases: calibration error before and after, whole and within the band, and how many sizes the 90 % intervals
  covered, beside the band in which a valid statement lies at this number of subjects.

Exit code 1 if a label differs, the ratio is above 1.05, or coverage lies below its band. What is trained stays in --build, and
the same command goes on from there. Without data or nnU-Net it is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from claims import judged
from measuring import REPOSITORY
from nnunet_children import DATASET
from nnunet_labels import ours
from numpy.typing import NDArray
from trained_vs_nnunet import NEEDED, Fold, NnUNet, measure, train

from monai_unet_app.bundle import load_bundle
from monai_unet_app.pipeline import segment_case

sys.path.append(str(REPOSITORY / "tests"))

from coverage_band import coverage_band

DATA = REPOSITORY.parent / "shared/data/msd_hippocampus"
FOLDS, BATCH, PATCH, NARROWER, TIMED = 5, 2, [24, 40, 24], 4, 4
SIDE_BY_SIDE = (2, 2, 1)
MOST_TIME, MOST_ECE = 1.05, {"whole": 1.0, "band_2mm": 0.5}


def main() -> int:
    options = parsed()
    sys.path.append(str(options.peers))
    if not options.data.exists() or any(find_spec(name) is None for name in NEEDED):
        print(f"left out: {options.data} or nnU-Net in {options.peers} is absent; the first command above installs it")
        return 0
    peer = NnUNet(options.build.resolve(), options.peers.resolve(), "3d_fullres", 1, 0)
    prepare(peer, options)
    for fold in folds_of(peer):
        train(peer, fold, options.minutes, measure(peer, fold)["iteration_s"])
    bundle = imported(peer)
    reached = [as_fast(peer, bundle, images, options.rounds) for images in to_segment(peer)]
    return int(not all([*reached, believed(peer, bundle, options)]))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--splits", type=Path, default=REPOSITORY / "examples/splits.json")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build/imported_nnunet")
    parser.add_argument("--peers", type=Path, default=REPOSITORY / "build/peers")
    return parser.parse_args()


def prepare(peer: NnUNet, options: argparse.Namespace) -> None:
    """nnU-Net's folder of the cases, its plan, narrowed, and its preprocessed copy; what is finished stays."""
    raw, finished = peer.build / "raw" / DATASET, peer.build / "prepared"
    if not raw.is_dir():
        ours("convert", options.data, "--to", "nnunet", "--splits", options.splits, "--output", raw)
    if finished.exists():
        return
    peer.run("prepare", peer.configuration)
    file = peer.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configuration = plans["configurations"][peer.configuration]
    configuration |= {"batch_size": BATCH, "patch_size": PATCH}
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [count // NARROWER for count in network["features_per_stage"]]
    file.write_text(json.dumps(plans))
    shutil.copy(raw / "splits_final.json", peer.preprocessed)
    finished.touch()


def folds_of(peer: NnUNet) -> Sequence[Fold]:
    """The folds that nnU-Net trains."""
    splits = json.loads((peer.preprocessed / "splits_final.json").read_text())
    return [Fold(number, tuple(split["train"]), (), 0.0, 1) for number, split in enumerate(splits)]


def trained_folder(peer: NnUNet) -> Path:
    """What nnU-Net has trained."""
    return peer.build / "results" / DATASET / f"nnUNetTrainer__nnUNetPlans__{peer.configuration}"


def imported(peer: NnUNet) -> Path:
    """The calibrated bundle, by one command."""
    bundle, raw = peer.build / "bundle", peer.build / "raw" / DATASET
    if not (bundle / "configs/confidence.json").is_file():  # absent where a calibration was cut short
        shutil.rmtree(bundle, ignore_errors=True)
        ours("bundle", "import-nnunet", trained_folder(peer), "--data", raw, "--no-mirroring", "--output", bundle)
    return bundle


def to_segment(peer: NnUNet) -> Iterator[list[Path]]:
    """Test cases, which are smaller than a window, and one volume of four of them side by side."""
    tests = sorted((peer.build / "raw" / DATASET / "imagesTs").glob("*.nii.gz"))[:TIMED]
    yield tests
    image, large = nibabel.load(tests[0]), peer.build / "large_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.tile(np.asarray(image.dataobj), SIDE_BY_SIDE), image.affine), large)
    yield [large]


def as_fast(peer: NnUNet, root: Path, images: Sequence[Path], rounds: int) -> bool:
    """Times both from file to labels, in turns, each loaded; True if no label differs and the ratio is small enough."""
    theirs_of = labels_by_nnunet(peer, tuple(range(FOLDS)))
    bundle = load_bundle(root, "cpu")

    def theirs() -> list[NDArray[Any]]:
        return [theirs_of(file) for file in images]

    def ours_too() -> list[NDArray[Any]]:
        return [segment_case(file, bundle).segmentation.labels for file in images]

    seconds, answers = np.empty((rounds, 2)), []
    for turn in range(-1, rounds):  # the first does not count
        found = [timed(side) for side in ((theirs, ours_too) if turn % 2 else (ours_too, theirs))]
        (theirs_s, wanted), (ours_s, labels) = found if turn % 2 else found[::-1]
        seconds[turn], answers = (theirs_s, ours_s), [wanted, labels]
    differing = sum(int((one != other).sum()) for one, other in zip(*answers, strict=True))
    size = " x ".join(map(str, answers[0][0].shape))
    print(
        f"{len(images)} image(s), the first of {size} voxels: {sum(one.size for one in answers[0])} labels, {differing} differ"
    )
    middle, ratio = np.median(seconds, axis=0), float(np.median(seconds[:, 1] / seconds[:, 0]))
    print(f"  nnU-Net {middle[0]:.2f} s, the bundle {middle[1]:.2f} s, {peer.threads} thread(s), {rounds} rounds")
    return judged("time of the bundle / time of nnU-Net", ratio, MOST_TIME, at_most=True) and differing == 0


def labels_by_nnunet(peer: NnUNet, folds: tuple[int, ...]) -> Callable[[Path], NDArray[Any]]:
    """nnU-Net's predictor of these folds, loaded, without mirror images: from an image file to labels (I, J, K)."""
    import torch
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(peer.threads)
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(trained_folder(peer)), folds, "checkpoint_final.pth")

    def labels_of(file: Path) -> NDArray[Any]:
        return predictor.predict_single_npy_array(*SimpleITKIO().read_images([str(file)]), None, None, False).T

    return labels_of


def timed(run: Callable[[], list[NDArray[Any]]]) -> tuple[float, list[NDArray[Any]]]:
    """Seconds, and the answer."""
    start = time.perf_counter()
    answer = run()
    return time.perf_counter() - start, answer


def believed(peer: NnUNet, bundle: Path, options: argparse.Namespace) -> bool:
    """Measures the calibration and the intervals on the test cases; True if they are as good as they should be."""
    folder = peer.build / "evaluation"
    if not folder.is_dir():
        ours("evaluate", "--bundle", bundle, "--data", options.data, "--splits", options.splits, "--output", folder)
    document = json.loads((folder / "metrics.json").read_text())
    data, score = document["data"], document["dice"]["mean"]
    print(f"{data['cases']} test cases of {data['subjects']} subjects; Dice {score:.4f}")
    reached = []
    for where in ("whole", "band_2mm"):
        before, after = (document[name][where]["top_label"]["ece"] for name in ("calibration_before", "calibration"))
        print(f"  ECE, {where}: {before:.4f} -> {after:.4f}")
        reached.append(
            judged(f"calibration error, {where}: after / before", after / before, MOST_ECE[where], at_most=True)
        )
    fitted = fitted_subjects(bundle)
    for name, stated in document["statements"]["sizes"].items():
        low, high = coverage_band(stated["wanted"], fitted, stated["subjects"])
        print(
            f"  {name}: {stated['observed']:.3f} of the sizes lie in their interval, {low:.3f} to {high:.3f} is to be expected "
            f"of {stated['wanted']:g} fitted to {fitted} and tested on {stated['subjects']} subjects; half width "
            f"{stated['mean_half_width']:.3f}"
        )
        reached.append(stated["observed"] >= low)
    return all(reached)


def fitted_subjects(bundle: Path) -> int:
    """Whose sizes the intervals are fitted to."""
    (stated,) = json.loads((bundle / "configs/confidence.json").read_text())["settings"].values()
    return int(stated["sizes"]["subjects"])


if __name__ == "__main__":
    raise SystemExit(main())
