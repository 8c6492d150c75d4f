"""Does a gate that was fitted to nnU-Net's label files know faults that it was never shown, and keep sound results?

    pip install --no-deps --target build/peers -r benchmarks/nnunet.txt
    python benchmarks/imported_nnunet.py --data ../shared/data/msd_hippocampus   # trains nnU-Net's five folds
    python benchmarks/results_of_others.py

nnU-Net's predictor segments the cases that each of its folds has not seen, without mirror images. `monai-unet calibrate
--results` fits statements to the label files of half of these people. Those of the other half are judged as they are, and
spoiled: in the ways that the gate was shown (halved, moved, mirrored), and in others (with a star): collapsed to a seventh,
another person's labels, two voxels too large, exchanged names; with images and without them. Printed are the area under the
curve of predicted Dice, each kind against sound results, the part of the people whose results are held back, and how many
intervals hold the true size.

Exit code 1 if an area of a starred kind is below 0.9 (without images: of those that form or place can tell), more than one in
ten people with sound results is held back, or fewer intervals than 90 % of the people allow hold. Without data or nnU-Net's
folds it is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from claims import judged
from imported_nnunet import FOLDS, labels_by_nnunet, trained_folder
from measuring import REPOSITORY
from nnunet_children import DATASET
from nnunet_labels import ours
from numpy.typing import NDArray
from scipy import ndimage
from trained_vs_nnunet import NnUNet

from dicom_io.segmentation import Segmentation
from monai_unet_app.calibration.label_statements import SPOILT, spoilt
from monai_unet_app.confidence.assessment import Assessment, assess
from monai_unet_app.confidence.label_features import features_of_image
from monai_unet_app.confidence.results_bundle import ResultsBundle, results_bundle
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.cases import subjects_of
from monai_unet_app.data.read import read_volume

sys.path.append(str(REPOSITORY / "tests"))

from coverage_band import coverage_band

VERSION, COVERAGE = "2.8.1", 0.9
UNSEEN = ("collapsed", "another person's", "too large", "exchanged")
FORM_TELLS = {True: UNSEEN, False: ("collapsed", "too large", "exchanged")}
LEAST_AREA, MOST_HELD = 0.9, 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build/imported_nnunet")
    parser.add_argument("--peers", type=Path, default=REPOSITORY / "build/peers")
    options = parser.parse_args()
    sys.path.append(str(options.peers))
    peer = NnUNet(options.build.resolve(), options.peers.resolve(), "3d_fullres", 1, 0)
    if not all((trained_folder(peer) / f"fold_{n}/checkpoint_final.pth").is_file() for n in range(FOLDS)):
        print(f"left out: {peer.build} has no trained folds; benchmarks/imported_nnunet.py makes them")
        return 0
    raw, files = peer.build / "raw" / DATASET, predicted(peer)
    people = subjects_of(find_data(raw))
    names = sorted(set(people.values()))
    np.random.default_rng(0).shuffle(names)
    fitting = set(names[::2])
    fitted, tested = ([name for name in files if (people[name] in fitting) == first] for first in (True, False))
    reached = []
    for images in (True, False):
        model = fit(peer.build / "others", raw, {name: files[name] for name in fitted}, images=images)
        reached.append(
            measured(model, raw, {name: files[name] for name in tested}, people, len(fitting), images=images)
        )
    return int(not all(reached))


def predicted(peer: NnUNet) -> dict[str, Path]:
    """nnU-Net's label file of each case, by the fold that has not seen it."""
    files = {}
    for number, split in enumerate(splits(peer)):
        folder = peer.fold(number) / "predicted"
        folder.mkdir(exist_ok=True)
        files |= {name: folder / f"{name}.nii.gz" for name in split}
        labels_of = labels_by_nnunet(peer, (number,))
        for name in [name for name in split if not files[name].is_file()]:
            image = peer.build / "raw" / DATASET / f"imagesTr/{name}_0000.nii.gz"
            made = nibabel.Nifti1Image(labels_of(image).astype(np.uint8), nibabel.load(image).affine)
            nibabel.save(made, part := folder / f"part_{name}.nii.gz")
            part.rename(files[name])
    return files


def splits(peer: NnUNet) -> list[list[str]]:
    """The cases that each fold tests."""
    listed = json.loads((peer.preprocessed / "splits_final.json").read_text())
    return [sorted(split["val"]) for split in listed]


def fit(folder: Path, raw: Path, files: Mapping[str, Path], *, images: bool) -> ResultsBundle:
    """The bundle that the command makes of these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("results", "labels", "images"):
        (folder / part).mkdir(parents=True)
    for name, file in files.items():
        (folder / f"results/{name}.nii.gz").symlink_to(file)
        (folder / f"labels/{name}.nii.gz").symlink_to(raw / f"labelsTr/{name}.nii.gz")
        (folder / f"images/{name}.nii.gz").symlink_to(raw / f"imagesTr/{name}_0000.nii.gz")
    shutil.copy(raw / "dataset.json", folder / "results")
    given = ("--images", folder / "images") if images else ()
    made = ("--algorithm", f"nnU-Net {VERSION}", "--unseen", "--output", folder / "model")
    ours("calibrate", "--results", folder / "results", "--labels", folder / "labels", *given, *made)
    bundle = results_bundle(folder / "model")
    assert bundle is not None
    return bundle


def measured(
    model: ResultsBundle, raw: Path, files: Mapping[str, Path], people: Mapping[str, str], fitted: int, *, images: bool
) -> bool:
    """Judges sound and spoiled results of people that nothing was fitted to, and prints."""
    confidence, rows, within = model.confidence_about(model.program), [], {}
    read = {name: on_image(name, file, raw, model) for name, file in files.items()}
    for number, (name, (result, truth)) in enumerate(read.items()):
        other = list(read.values())[(number + 7) % len(read)][0].labels
        for kind, labels in kinds(result, other, number):
            one = Segmentation(result.image, labels, result.segments)
            features = features_of_image(result.image) if confidence.shift else None
            assessment = assess(confidence, one, features)
            rows.append((kind, people[name], lowest(assessment), assessment.verdict))
            if kind == "sound":
                pairs = zip(assessment.structures, truth.structures, strict=True)
                held = [
                    own.size_interval[0] <= true.size <= own.size_interval[1]
                    for own, true in pairs
                    if own.size_interval
                ]
                within.setdefault(people[name], []).extend(held)
    return report(rows, within, fitted, images=images)


def report(
    rows: Sequence[tuple[str, str, float, str | None]], within: Mapping[str, list[bool]], fitted: int, *, images: bool
) -> bool:
    print(f"{'with' if images else 'without'} images: fitted to {fitted} people, {len(within)} others")
    sound, reached = np.array([dice for kind, _, dice, _ in rows if kind == "sound"]), []
    for kind in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == kind]
        persons = {person for _, person, _, _ in own}
        held = len({person for _, person, _, verdict in own if verdict != "accept"}) / len(persons)
        dice = np.array([row[2] for row in own])
        area = float((sound[:, None] > dice).mean() + (sound[:, None] == dice).mean() / 2)
        mark = "*" if kind in UNSEEN else " "
        print(
            f" {mark}{kind:18} predicted Dice {dice.mean():.2f}, area under the curve {area:.3f}, of {held:4.0%} people held"
        )
        if kind in FORM_TELLS[images]:
            reached.append(judged(f"area, {kind}", area, LEAST_AREA))
        if kind == "sound":
            reached.append(judged("people with sound results that are held", held, MOST_HELD, at_most=True))
    parts = float(np.mean([np.mean(held) for held in within.values()]))
    low, high = coverage_band(COVERAGE, fitted, len(within))
    print(f"  {parts:.3f} of the intervals hold the true size; of valid ones {low:.3f} to {high:.3f}")
    return all([*reached, parts >= low])


def lowest(assessment: Assessment) -> float:
    """The least predicted Dice of a structure."""
    return min(one.grade.dice for one in assessment.structures if one.grade)


def on_image(name: str, file: Path, raw: Path, model: ResultsBundle) -> tuple[Segmentation, Segmentation]:
    """nnU-Net's labels and the true ones, on their image."""
    image = read_volume(raw / f"imagesTr/{name}_0000.nii.gz")
    maps = [np.asarray(nibabel.load(path).dataobj).astype(np.uint8) for path in (file, raw / f"labelsTr/{name}.nii.gz")]
    result, truth = (Segmentation(image, numbers, model.segments) for numbers in maps)
    return result, truth


def kinds(result: Segmentation, other: NDArray[Any], seed: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """The labels as they are, and with every fault."""
    labels = result.labels
    yield "sound", labels
    for kind in SPOILT:
        yield kind, spoilt(result, kind, seed).labels
    yield "collapsed", collapsed(result)
    yield "another person's", around_the_middle(other, labels.shape)
    far, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    yield "too large", np.where(far <= 2, labels[tuple(nearest)], 0).astype(labels.dtype)
    yield "exchanged", np.array([0, 2, 1], labels.dtype)[labels]


def collapsed(result: Segmentation) -> NDArray[Any]:
    """Of each structure the seventh that lies nearest to its middle."""
    out = np.zeros_like(result.labels)
    for structure in result.structures:
        if structure.voxels:
            places = np.array(np.nonzero(result.labels == structure.number))
            away = np.square(places - places.mean(axis=1, keepdims=True)).sum(axis=0)
            kept = places[:, np.argsort(away)[: max(1, structure.voxels // 7)]]
            out[tuple(kept)] = structure.number
    return out


def around_the_middle(labels: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Labels on a grid of another shape, with the same middle."""
    out = np.zeros(shape, labels.dtype)
    pairs = [(min(own, new), own, new) for own, new in zip(labels.shape, shape, strict=True)]
    of = tuple(slice((own - size) // 2, (own - size) // 2 + size) for size, own, _ in pairs)
    to = tuple(slice((new - size) // 2, (new - size) // 2 + size) for size, _, new in pairs)
    out[to] = labels[of]
    return out


if __name__ == "__main__":
    raise SystemExit(main())
