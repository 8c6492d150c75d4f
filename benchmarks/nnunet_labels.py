"""Do nnU-Net and this package mean the same voxels by the same files, with two channels and regions?

    pip install --no-deps --target build/peers -r benchmarks/nnunet.txt
    python benchmarks/nnunet_labels.py --data ../shared/data/msd_hippocampus [--cases 12] [--minutes 3]

Each case gets a second channel (the size of the gradient of its image), and its two labels as masks that overlap: the whole
and its posterior part, listed in a JSON. `monai-unet convert` writes them for nnU-Net, which checks, plans and preprocesses
them, trains for some minutes on the CPU, and segments the cases of its fold. Then, voxel by voxel: nnU-Net's own regions of the
label files are the masks of the source; `monai-unet plan` finds the same names, channels and regions in nnU-Net's folder, and
`read_labels` gives them back; and what it reads of nnU-Net's predictions are the masks that nnU-Net's label manager makes of
them. Exit code 1 if a voxel differs. Without data or nnU-Net it is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from measuring import REPOSITORY, environment_of
from nnunet_children import DATASET
from numpy.typing import NDArray
from scipy import ndimage
from trained_vs_nnunet import NEEDED, Fold, NnUNet, measure, train

from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.splits import read_splits

DATA = REPOSITORY.parent / "shared/data/msd_hippocampus"
STRUCTURES = {"hippocampus": (1, 2), "posterior": (2,)}


def main() -> int:
    """Converts, trains, compares and prints; 1 if a voxel differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=3.0, help="of nnU-Net's training")
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build/nnunet_labels")
    parser.add_argument("--peers", type=Path, default=REPOSITORY / "build/peers")
    options = parser.parse_args()
    sys.path.append(str(options.peers))
    if not options.data.exists() or any(find_spec(name) is None for name in NEEDED):
        print(f"left out: {options.data} or nnU-Net in {options.peers} is absent; the first command above installs it")
        return 0
    shutil.rmtree(options.build, ignore_errors=True)
    listed, raw = two_channels(options.data, options.build / "source", options.cases), options.build / "raw" / DATASET
    ours("convert", listed, "--to", "nnunet", "--output", raw)
    ours("plan", raw, "--output", options.build / "plan", "--modality", "MR", "--time", "1min")
    differing = from_source(listed, raw, options.build / "plan")
    predicted = trained(options, raw)
    differing += from_predictions(predicted, raw, options.build / "plan")
    print(f"voxels that differ: {differing}")
    return int(differing > 0)


def two_channels(data: Path, folder: Path, count: int) -> Path:
    """A list of cases with two channels and two masks each, made from a data set of one channel and two label values."""
    folder.mkdir(parents=True)
    rows = []
    known = read_splits(REPOSITORY / "examples/splits.json")  # its test cases would be written as nnU-Net's
    for case in [case for case in find_data(data) if case.id not in known or known[case.id].partition != "test"][
        :count
    ]:
        image, label = nibabel.load(case.image), nibabel.load(case.label)
        values, numbers = np.asarray(image.dataobj, np.float32), np.asarray(label.dataobj)
        arrays = {"T1": values, "gradient": ndimage.gaussian_gradient_magnitude(values, 1.0)}
        arrays |= {name: np.isin(numbers, held).astype(np.uint8) for name, held in STRUCTURES.items()}
        files = {name: f"{case.id}_{name}.nii.gz" for name in arrays}
        for name, array in arrays.items():
            nibabel.save(nibabel.Nifti1Image(array, image.affine), folder / files[name])
        named = {"image": ("T1", "gradient"), "label": tuple(STRUCTURES)}
        rows.append({"id": case.id, **{key: {name: files[name] for name in names} for key, names in named.items()}})
    (folder / "cases.json").write_text(json.dumps(rows))
    return folder / "cases.json"


def ours(*words: object) -> None:
    """A verb of ours; SystemExit if it fails."""
    command = [sys.executable, "-m", "monai_unet_app", *map(str, words)]
    subprocess.run(command, check=True, env=environment_of(), stdout=subprocess.DEVNULL)


def their_masks(raw: Path, file: Path) -> NDArray[np.bool_]:
    """Shape (I, J, K, S): nnU-Net's regions of a label file, by its label manager."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    told = json.loads((raw / "dataset.json").read_text())
    manager = LabelManager(told["labels"], told["regions_class_order"])
    numbers = np.asarray(nibabel.load(file).dataobj)
    return np.stack([np.isin(numbers, region) for region in manager.foreground_regions], axis=-1)


def our_masks(raw: Path, plan: Path, case: Any, file: Path) -> NDArray[np.bool_]:
    """The same as a bundle reads it that was planned for nnU-Net's folder."""
    return np.asarray(read_labels(file, read_volume(case.files), load_bundle(plan).file_values).array > 0)


def from_source(listed: Path, raw: Path, plan: Path) -> int:
    """Voxels of masks, and of channels, that are others in nnU-Net's folder than in the source."""
    rules, names = load_bundle(plan).rules, load_bundle(plan).structure_names
    print(f"channels {', '.join(rules.channel_names)}; structures {', '.join(names)}")
    here, differing = {case.id: case for case in find_data(raw)}, 0
    for case in find_data(listed):
        source, mine = read_volume(case.files), here[case.id]
        differing += int((source.array != read_volume(mine.files).array).sum())
        masks = np.stack([np.asarray(nibabel.load(file).dataobj) > 0 for file in case.label_files], axis=-1)
        assert mine.label is not None
        found = their_masks(raw, mine.label), our_masks(raw, plan, mine, mine.label)
        differing += sum(int((masks != one).sum()) for one in found)
    print(f"{len(here)} cases of the source: nnU-Net's regions and ours, voxels that differ: {differing}")
    return differing


def trained(options: argparse.Namespace, raw: Path) -> Sequence[Path]:
    """nnU-Net's label files of the cases that its training left out."""
    peer = NnUNet(options.build.resolve(), options.peers.resolve(), "3d_fullres", 1, 0)
    peer.run("prepare", peer.configuration)
    ids = [case.id for case in find_data(raw)]
    held = ids[: max(2, len(ids) // 5)]
    split = {"train": ids[len(held) :], "val": held}
    (peer.preprocessed / "splits_final.json").write_text(json.dumps([split]))
    fold = Fold(0, tuple(split["train"]), (), options.minutes, 1)
    train(peer, fold, options.minutes, measure(peer, fold)["iteration_s"])
    folder = peer.fold(0) / "predicted"
    peer.run("predict", peer.configuration, 0, folder, *held)
    return sorted(folder.glob("*.nii.gz"))


def from_predictions(files: Sequence[Path], raw: Path, plan: Path) -> int:
    """Voxels of nnU-Net's predictions that we read as another structure than it does."""
    here, differing, dice = {case.id: case for case in find_data(raw)}, 0, []
    for file in files:
        case = here[file.name.removesuffix(".nii.gz")]
        theirs, mine = their_masks(raw, file), our_masks(raw, plan, case, file)
        differing += int((theirs != mine).sum())
        assert case.label is not None
        truth = their_masks(raw, case.label)
        dice.append(2 * (truth & mine).sum(axis=(0, 1, 2)) / (truth.sum(axis=(0, 1, 2)) + mine.sum(axis=(0, 1, 2))))
    told = ", ".join(f"{value:.3f}" for value in np.mean(dice, axis=0))
    print(f"{len(files)} predictions of nnU-Net: voxels that differ: {differing}; their Dice {told}")
    return differing


if __name__ == "__main__":
    raise SystemExit(main())
