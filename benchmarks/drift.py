"""Is drift found soon and called by its name, how rare are false alarms, and how near is the expected Dice to the true one?

    python benchmarks/drift.py [--data ../shared/data/msd_hippocampus] [--cases 34] [--streams 20]

Images of subjects that the shipped 3D hippocampus bundle has not seen are segmented as they are and as other scanners,
protocols and mistakes would have made them. What a node watches of each result (`service.observed`) is kept in --build, and
studies are drawn from it at random, with replacement.

1. Planted drifts: 60 sound studies are the reference; 20 more follow, then every second study has the change, with a tag
   planted in its header that has a usual value in all others (the data have no tags). Printed: after how many studies the
   alarm came (median, most), and how often its first tag was the planted one. The same without the tag.
2. False alarms in studies among which nothing changes, of the real numbers and made-up tags.
3. Expected Dice: sets of images with one change of one strength, true mean Dice 0.5 to 0.9. Printed: mean absolute error,
   that of the best constant, and how many intervals hold the true mean; corrected by a reviewer who saw what was held and a
   tenth of the rest, accepted a Dice of 0.85, corrected one of 0.5, and rejected others; and without reviews, for comparison.

Exit code 1 if a target is missed: found within 50 studies and rightly named in 95 of 100 streams, at most 1 false alarm in
1,000 studies, mean absolute error at most 0.05 and half of the best constant's, coverage at least 85 %. Without data it is
left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from claims import judged
from measuring import REPOSITORY
from numpy.typing import NDArray
from scipy import ndimage

from dicom_io.segmentation import Segmentation
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.evaluate import choose_cases
from monai_unet_app.evaluate.reference import read_reference
from monai_unet_app.lifecycle.drift import find_drift
from monai_unet_app.lifecycle.expected_dice import Graded, expected_dice
from monai_unet_app.lifecycle.watch import Seen, dice_found, quantities_of
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.pipeline import segment_case
from monai_unet_app.result_files import structure_rows
from monai_unet_app.service.observed import PREDICTED, observed

DATA = REPOSITORY.parent / "shared/data/msd_hippocampus"
Floats = NDArray[np.float32]
Change = Callable[[Floats, float, np.random.Generator], Floats]
REFERENCE, SOUND, AFTER = 60, 20, 60
LATEST, NAMED, FALSE = 50, 0.95, 1.0
MOST_ERROR, MOST_OF_CONSTANT, LEAST_COVERED = 0.05, 0.5, 0.85
DRAWN = 0.1
FINE, USELESS = 0.85, 0.5


def _noise(image: Floats, strength: float, chance: np.random.Generator) -> Floats:
    return image + strength * image.std() * chance.normal(size=image.shape)


def _smooth(image: Floats, strength: float, _: np.random.Generator) -> Floats:
    return ndimage.gaussian_filter(image, strength)


def _sharp(image: Floats, strength: float, _: np.random.Generator) -> Floats:
    return image + strength * (image - ndimage.gaussian_filter(image, 1.0))


def _thick(image: Floats, strength: float, _: np.random.Generator, axes: tuple[int, ...] = (1,)) -> Floats:
    coarse = ndimage.zoom(image, [1 / strength if axis in axes else 1 for axis in range(3)], order=1)
    return ndimage.zoom(coarse, [n / m for n, m in zip(image.shape, coarse.shape, strict=True)], order=1)


def _coarse(image: Floats, strength: float, chance: np.random.Generator) -> Floats:
    return _thick(image, strength, chance, (0, 1, 2))


def _gamma(image: Floats, strength: float, _: np.random.Generator) -> Floats:
    low, high = np.percentile(image, (1, 99))
    return np.clip((image - low) / (high - low), 0, 1) ** strength * (high - low) + low


def _uneven(image: Floats, strength: float, _: np.random.Generator) -> Floats:
    return image * np.exp(strength * np.linspace(-1, 1, image.shape[0]))[:, None, None]


def _ghosts(image: Floats, strength: float, _: np.random.Generator) -> Floats:
    return image + strength * (np.roll(image, image.shape[1] // 3, 1) + np.roll(image, -image.shape[1] // 3, 1))


def _stripes(image: Floats, strength: float, _: np.random.Generator) -> Floats:
    return image + strength * image.std() * np.sin(np.arange(image.shape[2]) * np.pi / 2)


def _moved(image: Floats, strength: float, _: np.random.Generator) -> Floats:
    steps = (ndimage.shift(image, (0, step * strength, 0), order=1, mode="nearest") for step in (-1, 0, 1))
    return sum(steps, np.zeros_like(image)) / 3


def _flipped(image: Floats, axis: float, _: np.random.Generator) -> Floats:
    return np.flip(image, int(axis))


def _brighter(image: Floats, strength: float, _: np.random.Generator) -> Floats:
    return image * strength


PLANTED: dict[str, tuple[Change, float, str, str]] = {
    "kernel": (_sharp, 1.5, "ConvolutionKernel", "B70f"),
    "thickness": (_thick, 2.0, "SliceThickness", "2"),
    "vendor": (_gamma, 0.6, "Manufacturer", "ACME"),
    "intensity": (_brighter, 3.0, "SoftwareVersions", "VE11"),
    "resolution": (_coarse, 1.5, "PixelSpacing", "1.5\\1.5"),
    "flipped series": (_flipped, 1, "PatientPosition", "FFP"),
}
"""Name -> change, its strength, keyword and value of the tag that is planted with it."""

SHIFTED: dict[str, tuple[Change, tuple[float, ...]]] = {
    "noise": (_noise, (1.0, 2.0, 3.0)),
    "smooth": (_smooth, (1.5, 2.0, 2.5, 2.8)),
    "thick": (_thick, (4.0, 6.0, 8.0)),
    "coarse": (_coarse, (2.0, 3.0, 4.0)),
    "gamma": (_gamma, (3.0, 5.0, 7.0)),
    "uneven": (_uneven, (1.5, 2.5)),
    "ghosts": (_ghosts, (0.4, 0.6, 0.8)),
    "stripes": (_stripes, (1.0, 2.0, 3.0)),
    "moved": (_moved, (2.5, 4.0, 5.5)),
}
"""Kinds of images that the gate was not fitted for -> change, strengths."""

WORDS = {
    "Manufacturer": (["SIEMENS", "Philips"], [0.8, 0.2]),
    "SliceThickness": (["1"], [1.0]),
    "PatientPosition": (["HFS"], [1.0]),
    "ConvolutionKernel": (["B30f"], [1.0]),
    "SoftwareVersions": (["VE10"], [1.0]),
    "PixelSpacing": (["1\\1"], [1.0]),
}
"""Tags of sound studies: made up, since the data have none."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cases", type=int, default=34)
    parser.add_argument(
        "--partition", default="test", choices=("test", "train"), help="train: cases that the bundle has seen"
    )
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build/drift")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"left out: {options.data} does not exist")
        return 0
    kept = options.build / f"{options.partition}_{options.cases}.json"
    seen = json.loads(kept.read_text()) if kept.exists() else {}
    bundle = load_bundle("hippocampus_mri_unet3d")
    rows = choose_cases(bundle, find_data(options.data), options.partition).rows[: options.cases]
    for name, change, strength in kinds():
        if name not in seen:
            seen[name] = [found for row in rows if (found := _seen(bundle, row, change, strength))]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(seen))
    subjects = {row["subject"] for row in rows}
    print(f"{bundle.name}: {len(rows)} image(s) of {len(subjects)} subject(s), partition {options.partition}")
    return int(not all([planted(seen, options.streams), false_alarms(seen, 3 * options.streams), expected(seen)]))


def kinds() -> Iterator[tuple[str, Change | None, float]]:
    """Name, change and strength of all images."""
    yield "sound", None, 0.0
    yield from ((name, change, strength) for name, (change, strength, _, _) in PLANTED.items())
    for name, (change, strengths) in SHIFTED.items():
        yield from ((f"{name} {strength:g}", change, strength) for strength in strengths)


def _seen(bundle: Bundle, row: Mapping[str, Any], change: Change | None, strength: float) -> dict[str, Any] | None:
    """What is watched of one result, and its true mean Dice; None where the image was refused."""
    volume = read_volume(row["image"])
    truth = read_reference(row, volume, bundle)
    labels = truth.label_volume.array
    if change is not None:
        chance = np.random.default_rng(len(str(row["image"])))
        array = change(volume.array.astype(np.float32), strength, chance)
        volume = replace(volume, array=np.ascontiguousarray(array, np.float32))
        labels = np.flip(labels, int(strength)) if change is _flipped else labels
    try:
        case = segment_case(volume, bundle)
    except InputRefusedError:
        return None
    stated = case.assessment
    document = {
        "structures": structure_rows(case.segmentation, stated),
        "assessment": {"shift": stated.shift if stated else None},
    }
    found: Segmentation = case.segmentation
    numbers = observed(volume, None, document)["numbers"]
    scores = [dice(labels == one.number, one.mask_on_grid) for one in found.structures]
    return {"numbers": numbers, "dice": float(np.mean(scores)), "verdict": (stated.verdict if stated else None) or ""}


def _stream(
    seen: Mapping[str, Any],
    kind: str,
    studies: int,
    seed: int,
    tag: tuple[str, str] | None = None,
    since: int | None = None,
) -> dict[str, list[float | str | None]]:
    """Studies drawn at random; from `since` on every second one has the change, and the tag."""
    chance = np.random.default_rng(seed)
    drawn = []
    for study in range(studies):
        changed = since is not None and study >= since and (study - since) % 2 == 0
        rows = seen[kind if changed else "sound"]
        row = rows[chance.integers(len(rows))]
        words = {name: str(chance.choice(values, p=shares)) for name, (values, shares) in WORDS.items()}
        tags = words | (dict([tag]) if changed and tag else {})
        drawn.append(Seen(study, "", "", "", row["verdict"], tags, row["numbers"]))
    return quantities_of(drawn)


def planted(seen: Mapping[str, Any], streams: int) -> bool:
    """Prints a line for each planted drift."""
    print(f"planted drifts, in every second study, {streams} streams each:")
    soon, named, tries = 0, 0, 0
    begin = REFERENCE + SOUND
    for kind, (_, _, keyword, value) in PLANTED.items():
        late: dict[bool, list[int]] = {True: [], False: []}
        right = 0
        for seed, with_tag in ((seed, with_tag) for seed in range(streams) for with_tag in (True, False)):
            tag = (keyword, value) if with_tag else None
            drift = find_drift(_stream(seen, kind, begin + AFTER, seed, tag, begin), REFERENCE, str(seed))
            late[with_tag].append(
                drift.alarm - begin + 1 if drift.alarm is not None and drift.alarm >= begin else AFTER + 1
            )
            told = [change.name for change in drift.changes if change.word]
            right += with_tag and told[:1] == [keyword]
        soon, named, tries = soon + sum(one <= LATEST for one in late[True]), named + right, tries + streams
        with_tag, without = ((np.median(late[one]), max(late[one])) for one in (True, False))
        print(
            f"  {kind:15} found after {with_tag[0]:.0f} studies (median; most {with_tag[1]}), named {keyword} in {right} of "
            f"{streams}; without a tag after {without[0]:.0f} (most {without[1]}; {AFTER + 1}: not in {AFTER})"
        )
    return all(
        [
            judged(f"found within {LATEST} studies, part of the streams", soon / tries, NAMED),
            judged("named by the planted tag, part of the streams", named / tries, NAMED),
        ]
    )


def false_alarms(seen: Mapping[str, Any], streams: int) -> bool:
    """Prints the rate of alarms while nothing changes."""
    alarms = studies = 0
    for seed in range(streams):
        values, begin = _stream(seen, "sound", 1000, 1000 + seed), 0
        while 1000 - begin > REFERENCE:
            drift = find_drift({name: row[begin:] for name, row in values.items()}, REFERENCE, f"{seed} {begin}")
            studies += len(drift.scores)
            if drift.alarm is None:
                break
            alarms, begin = alarms + 1, begin + drift.alarm + 1
    print(f"nothing changes: {alarms} alarm(s) in {studies} studies")
    return judged("false alarms in 1,000 studies", 1000 * alarms / studies, FALSE, at_most=True)


def expected(seen: Mapping[str, Any]) -> bool:
    """Prints how near the expected Dice comes to the true one."""
    sets = {name: rows for name, rows in seen.items() if rows and 0.5 <= np.mean([row["dice"] for row in rows]) <= 0.9}
    true = np.array([np.mean([row["dice"] for row in rows]) for rows in sets.values()])
    constant = float(np.abs(true - np.median(true)).mean())
    print(f"expected Dice of {len(sets)} sets of images, true mean {true.min():.2f} to {true.max():.2f}:")
    reached = []
    for share in (0.0, DRAWN):
        found = [expected_dice([_graded(row, share, n) for n, row in enumerate(rows)]) for rows in sets.values()]
        errors = np.array([abs(one.mean - value) for one, value in zip(found, true, strict=True) if one])
        held = np.mean([one.low <= value <= one.high for one, value in zip(found, true, strict=True) if one])
        reviewed = f"a reviewer saw what was held, and {share:.0%} of the rest" if share else "nobody reviewed any"
        worst = f"{errors.max():.3f} ({list(sets)[int(errors.argmax())]})"
        print(
            f"  {reviewed}: mean absolute error {errors.mean():.3f}, of the best constant {constant:.3f}; worst {worst}; "
            f"intervals that hold the true mean {held:.0%}"
        )
        if not share:
            continue
        reached += [
            judged("mean absolute error", float(errors.mean()), MOST_ERROR, at_most=True),
            judged("of the best constant's", float(errors.mean()) / constant, MOST_OF_CONSTANT, at_most=True),
            judged("intervals that hold the true mean", float(held), LEAST_COVERED),
        ]
    return all([judged("sets", len(sets), 20), *reached])


def _graded(row: Mapping[str, Any], share: float, number: int) -> Graded:
    predicted = float(np.mean([value for name, value in row["numbers"].items() if name.endswith(PREDICTED)]))
    held = row["verdict"] != "accept"
    if not share or not (held or np.random.default_rng(number).random() < share):
        return Graded(predicted)
    decision = "accepted" if row["dice"] >= FINE else "corrected" if row["dice"] >= USELESS else "rejected"
    found = dice_found(decision, row["dice"] if decision == "corrected" else None, predicted)
    return Graded(predicted, found, 1.0 if held else share)


if __name__ == "__main__":
    raise SystemExit(main())
