"""Does a learnt middle tell touching objects apart better than a watershed of the distance alone, on the same probability map?

    monai-unet plan D --output PLAN --objects nucleus --time 45min
    monai-unet train --bundle PLAN --data D --output B
    monai-unet calibrate --bundle B --data D
    monai-unet evaluate --bundle B --data D --output E
    python benchmarks/counted_nuclei.py --data D --bundle B --evaluation E

D is a data set of pictures whose labels number their objects, as `monai-unet train` takes it. On the test cases of the plan the
panoptic quality of our objects is held against that of scikit-image's watershed: the same probabilities from 0.5 on, the
distance from their edge, its peaks as seeds. The least distance of two peaks is the one of DISTANCES with the largest mean
panoptic quality on the cases that calibrated. Images with touching objects are those in whose labels two numbers meet.

Prints the paired difference with its 95 % interval by image, and how often the stated intervals held the true number. Exit
code 1 unless the interval is above 0 on images with touching objects, and unless the number lies in its interval as often as
so many images allow. Without data or bundle it is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from measuring import REPOSITORY
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.measure import label
from skimage.segmentation import watershed

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.data.case_files import Row, find_data
from monai_unet_app.data.cases import data_row
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.metrics.bootstrap import Bootstrap, bootstrap_mean, bootstrap_paired_difference
from monai_unet_app.metrics.components import match_components
from monai_unet_app.pipeline import segment_case
from monai_unet_app.report.stored_evaluation import read_evaluation

DATA, BUNDLE = REPOSITORY.parent / "shared/data/dsb2018_nuclei_2d", REPOSITORY / "build/nuclei/bundle"
DISTANCES = (1, 2, 3, 4, 5, 6, 8, 10)  # of two peaks, pixels


def main() -> int:
    """Measures and prints; 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="trained and calibrated")
    parser.add_argument("--evaluation", type=Path, help="of evaluate (default: evaluation/ beside the bundle)")
    options = parser.parse_args()
    folder = options.evaluation or options.bundle.parent / "evaluation"
    if not (options.data.exists() and (folder / "cases.csv").is_file()):
        print(f"left out: {options.data} or {folder / 'cases.csv'} does not exist; the commands above make the second")
        return 0
    bundle, evaluation = load_bundle(options.bundle, "cpu"), read_evaluation(folder)
    if evaluation.document["bundle"]["sha256"] != bundle.sha256:
        raise SystemExit(f"{folder} measured another bundle than {bundle.name}; evaluate again")
    rows = {case.id: data_row(case, case.id) for case in find_data(options.data)}
    ids = sorted({case.id for case in bundle.seen if case.partition == "calibration"})
    calibrating = [answered(rows[case], bundle) for case in ids]
    distance = max(DISTANCES, key=lambda one: np.mean([by_distance(*case[:2], one) for case in calibrating]))
    print(f"peaks {distance} pixels apart are the best of {DISTANCES} on {len(calibrating)} cases that calibrated")
    cases = {name: answered(rows[name], bundle) for name in evaluation.table.subjects}
    ours = np.array([match_components(truth, objects).panoptic_quality for truth, _, objects in cases.values()])
    theirs = np.array([by_distance(truth, p, distance) for truth, p, _ in cases.values()])
    touching = np.array([objects_touch(truth) for truth, *_ in cases.values()])
    compared("all images", ours, theirs, list(cases))
    names = np.array(list(cases))
    better = compared("images with touching objects", ours[touching], theirs[touching], names[touching]) > 0
    return int(not (counts_held(evaluation.document["statements"]) and better))


def answered(row: Row, bundle: Bundle) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(the true numbers, the probability of an object, our numbers), shape (I, J) each."""
    picture = read_volume(row["image"])
    truth = read_labels(row["label"], picture, bundle.file_values).array.astype(int)
    found = segment_case(picture, bundle, keep="probabilities").segmentation
    assert found.probabilities is not None
    assert found.objects is not None
    arrays = truth, np.asarray(found.probabilities[0]), found.objects[0]
    return tuple(one[:, :, 0] for one in arrays)  # type: ignore[return-value]


def by_distance(truth: NDArray[Any], probability: NDArray[Any], distance: int) -> float:
    """Panoptic quality of a watershed whose seeds are peaks of the distance from the edge."""
    mask = probability >= 0.5
    depth = ndimage.distance_transform_edt(mask)
    seeds = np.zeros(mask.shape, int)
    peaks = peak_local_max(depth, min_distance=distance, labels=label(mask), exclude_border=False)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return match_components(truth, watershed(-depth, seeds, mask=mask)).panoptic_quality


def objects_touch(truth: NDArray[Any]) -> bool:
    """Whether two numbers meet at a side or a corner of a pixel."""
    pairs = [
        (truth[1:], truth[:-1]),
        (truth[:, 1:], truth[:, :-1]),
        (truth[1:, 1:], truth[:-1, :-1]),
        (truth[1:, :-1], truth[:-1, 1:]),
    ]
    return any(bool(((a != b) & (a > 0) & (b > 0)).any()) for a, b in pairs)


def compared(where: str, ours: NDArray[Any], theirs: NDArray[Any], names: Any) -> float:
    """Prints both and their difference; gives the lower end of its interval."""
    print(f"{where}: {len(ours)}")
    for name, values in (("ours", ours), ("watershed of the distance", theirs)):
        mean = bootstrap_mean(values, list(names), Bootstrap())
        print(f"  {name}: panoptic quality {mean.value:.4f} ({mean.low:.4f} to {mean.high:.4f})")
    gain = bootstrap_paired_difference(ours, theirs, list(names), Bootstrap())
    better, worse = int((ours > theirs).sum()), int((ours < theirs).sum())
    print(
        f"  ours - watershed: {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}), better on {better}, worse on {worse}"
    )
    return gain.low


def counts_held(statements: dict[str, Any]) -> bool:
    """Prints how often the intervals of the number of objects held; whether that is what their coverage allows."""
    if "counts" not in statements:
        print(f"no interval of the number is stated: {statements['not_stated']}")
        return False
    ((name, held),) = statements["counts"].items()
    low, high = held["interval"]
    print(f"{name}: the true number lies in its interval in {held['observed']:.1%} of {held['subjects']} images")
    print(f"  {held['wanted']:.0%} are promised; the interval of the share is {low:.1%} to {high:.1%}")
    print(f"  half the width of an interval is {held['mean_half_width']:.1%} of the number on average")
    return bool(high >= held["wanted"])


if __name__ == "__main__":
    raise SystemExit(main())
