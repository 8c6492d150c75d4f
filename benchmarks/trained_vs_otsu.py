"""Does a trained network find bright objects better than a Gaussian and Otsu's threshold, on the same pictures?

    monai-unet plan D --output PLAN --objects nucleus --time 20min --splits splits_final.json
    monai-unet train --bundle PLAN --data D --output B --folds 0 1 2 3 4
    monai-unet evaluate --bundle B --data D --output E --folds
    python benchmarks/trained_vs_otsu.py --data D --bundle B --evaluation E

D is a data set of grey or colour pictures with one structure, as `monai-unet train` takes it; splits_final.json puts each into
one of five folds, or --splits is left out, and folds leave the test cases of the plan out. The width of the Gaussian is the
one of 0.5 to 4 pixels whose masks have the largest mean Dice on the cases that trained, of each fold anew, so that both sides
learn from the same cases; ours answers the cases of the evaluation, and so does the threshold. Prints Dice of both and the
paired difference with its 95 % interval by subject. Exit code 1 if ours is below 0.92, or not surely better. Without data or
bundle it is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK
from claims import judged
from measuring import REPOSITORY
from numpy.typing import NDArray

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.cases import data_row
from monai_unet_app.data.read import read_volume
from monai_unet_app.evaluate.case_selection import Row
from monai_unet_app.evaluate.reference import read_reference
from monai_unet_app.metrics.bootstrap import Bootstrap, bootstrap_mean, bootstrap_paired_difference
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.report.stored_evaluation import MEAN, read_evaluation

DATA, BUNDLE = REPOSITORY.parent / "shared/data/dsb2018_nuclei_2d", REPOSITORY / "build/nuclei"
WIDTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # of the Gaussian, pixels
LEAST_DICE = 0.92


def main() -> int:
    """Measures and prints; 1 if ours is not surely better."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="trained")
    parser.add_argument("--evaluation", type=Path, help="of evaluate (default: evaluation/ in the bundle)")
    options = parser.parse_args()
    folder = options.evaluation or options.bundle / "evaluation"
    if not (options.data.exists() and (folder / "cases.csv").is_file()):
        print(f"left out: {options.data} or {folder / 'cases.csv'} does not exist; the commands above make the second")
        return 0
    bundle, evaluation = load_bundle(options.bundle, "cpu"), read_evaluation(folder)
    if evaluation.document["bundle"]["sha256"] != bundle.sha256:
        raise SystemExit(f"{folder} measured another bundle than {bundle.name}; evaluate again")
    rows = {case.id: data_row(case, case.id) for case in find_data(options.data)}
    found = evaluation.table.values("dice", MEAN)
    otsu: dict[str, float] = {}
    for fold in bundle.folds or (bundle,):
        places = {case: entry["partition"] for case, entry in fold.run_record["cases"].items()}
        trained = [rows[case] for case, place in places.items() if place == "train"]
        answered = [case for case in found if not bundle.folds or places.get(case) == "test"]
        width = max(WIDTHS, key=lambda one: np.mean(list(thresholded(trained, bundle, one))))
        print(f"a Gaussian of {width:g} pixels is the best of {len(WIDTHS)} on {len(trained)} cases that trained")
        otsu |= zip(answered, thresholded([rows[case] for case in answered], bundle, width), strict=True)
    ours, theirs = (np.array([own[case] for case in found]) for own in (found, otsu))
    subjects = [evaluation.table.subjects[case] for case in found]
    for name, values in (("ours", ours), ("Otsu", theirs)):
        mean = bootstrap_mean(values, subjects, Bootstrap())
        print(f"  {name}: Dice {mean.value:.4f} ({mean.low:.4f} to {mean.high:.4f}) on {len(values)} cases")
    gain = bootstrap_paired_difference(ours, theirs, subjects, Bootstrap())
    better = (ours > theirs).sum()
    print(f"  ours - Otsu: {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}), better on {better} of {len(ours)}")
    reached = judged("Dice of ours", float(ours.mean()), LEAST_DICE)
    return int(not (reached and gain.low > 0))


def thresholded(rows: Iterable[Row], bundle: Bundle, width: float) -> Iterable[float]:
    """Dice of what is brighter than Otsu's threshold in each smoothed picture."""
    for row in rows:
        picture = read_volume(row["image"])
        truth = read_reference(row, picture, bundle).classes > 0
        yield dice(truth, bright(picture.array, width).reshape(truth.shape))


def bright(picture: NDArray[np.generic], width: float) -> NDArray[np.bool_]:
    """The pixels above the threshold.

    Args:
        picture: Shape (I, J, 1), or (I, J, 1, C), of which the mean over channels counts.
        width: Standard deviation of the Gaussian, pixels.
    """
    grey = SimpleITK.GetImageFromArray(picture.reshape(*picture.shape[:2], -1).mean(axis=2).astype(np.float32))
    smooth = SimpleITK.SmoothingRecursiveGaussian(grey, width)
    return SimpleITK.GetArrayFromImage(SimpleITK.OtsuThreshold(smooth, 0, 1)).astype(bool)


if __name__ == "__main__":
    raise SystemExit(main())
