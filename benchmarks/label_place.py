"""Labels that were mirrored or moved are refused by the edges of their image, and right ones are not: `dicomize --labels`.

    python benchmarks/label_place.py --data ../shared/data [--cases 40]

The labels of a data set as they are, mirrored along each axis, and moved by five voxels to both sides of each axis. What is
counted are labels that `lie_of` calls mirrored or moved. Its thresholds were chosen on right labels of these hippocampi, none
of them a test case, and on moved ones of 60 of them and of the abdomens: of new cases somewhat more may be refused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
from claims import judged

from monai_unet_app.data.sketch import lie_of

SPLITS = Path(__file__).resolve().parents[1] / "examples/splits.json"
MOVED = 5  # voxels


def main() -> None:
    """Prints the shares for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=40, help="of each data set at most")
    options = parser.parse_args()
    reached = []
    for name, pairs in data_sets(options.data).items():
        found: dict[str, list[bool]] = {"right": [], "mirrored": [], "moved": []}
        for image, label in pairs[: options.cases]:
            array, numbers = (np.asarray(nibabel.load(file).dataobj) for file in (image, label))
            for kind, changed in variants(numbers.astype(np.uint8)):
                found[kind].append(lie_of(array, changed)[0] in ("mirrored", "moved"))
        shares = {kind: sum(flags) / len(flags) for kind, flags in found.items()}
        print(
            f"{name}: {len(found['right'])} cases",
            *(f"{kind} {share:.1%} refused" for kind, share in shares.items()),
            sep="; ",
        )
        reached += [
            judged(f"right labels refused, {name}", shares["right"], 0.01, at_most=True),
            judged(f"mirrored labels refused, {name}", shares["mirrored"], 0.9),
            judged(f"labels moved by {MOVED} voxels refused, {name}", shares["moved"], 0.8),
        ]
    raise SystemExit(not all(reached))


def data_sets(data: Path) -> dict[str, list[tuple[Path, Path]]]:
    """(image, label) of each case, by data set."""
    plan = json.loads(SPLITS.read_text())["datasets"]["msd_hippocampus"]["cases"]
    own = [case["id"] for case in plan if case["partition"] != "test"]
    folder, total = data / "msd_hippocampus", data / "totalsegmentator_ct"
    chaos = sorted((data / "chaos_t2spir_mr/images").iterdir())
    return {
        "hippocampi": [(folder / f"images/{one}.nii.gz", folder / f"labels/{one}.nii.gz") for one in own],
        "abdomens (CHAOS)": [(file, data / "chaos_t2spir_mr/labels" / file.name) for file in chaos],
        "CT and MR (TotalSegmentator)": [
            (total / f"example_{kind}.nii.gz", total / f"example_{label}.nii.gz")
            for kind, label in (("ct_sm", "seg"), ("mr_sm", "seg_mr"))
        ],
    }


def variants(numbers: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The labels as they are, mirrored, and moved."""
    yield "right", numbers
    for axis in range(3):
        yield "mirrored", np.flip(numbers, axis)
        for far in (MOVED, -MOVED):
            moved = np.roll(numbers, far, axis)
            np.moveaxis(moved, axis, 0)[slice(0, far) if far > 0 else slice(far, None)] = 0
            yield "moved", moved


if __name__ == "__main__":
    main()
