"""A program of somebody else: reads an image, writes labels, or does what its FAULT says.

It imports the packages that it needs when it needs them: tests start it many times, mostly for its version or for a fault.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def segmented(image: np.ndarray) -> np.ndarray:
    """3 where an image of `other_program.case` is bright, 7 where it is brightest; some percent too small."""
    import numpy as np
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(image.astype(float), 1.0)
    smooth += 150 - np.median(smooth)  # the level of what lies around
    wide = np.select([smooth > 400, smooth > 240], [7, 3]).astype(np.uint8)
    kept = np.zeros_like(wide)
    for value in (3, 7):
        parts, count = ndimage.label(ndimage.binary_opening(wide == value))
        if count:
            largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
            kept[parts == largest] = value
    return kept


def main() -> None:
    if "--version" in sys.argv:
        print(f"Segmenter, version {os.environ.get('SEGMENTER_VERSION', '1.0')}")
        return
    source, output, fault = sys.argv[1], Path(sys.argv[2]), os.environ.get("FAULT", "")
    print("the patient's name is Doe")
    if fault == "code":
        sys.exit(4)
    if fault == "sleep":
        time.sleep(300)
    if fault == "disk":
        while True:
            with open("large", "ab") as stream:
                stream.write(b"x" * 1_000_000)
    if fault == "nothing":
        return
    if fault == "garbage":
        output.write_bytes(b"no NIfTI at all")
        return
    import nibabel
    import numpy as np

    stored = nibabel.load(source)
    labels = segmented(np.asarray(stored.dataobj))
    if fault == "grid":
        labels = labels[:-5]
    nibabel.save(nibabel.Nifti1Image(labels, stored.affine), place := output.with_name("made.nii.gz"))
    if fault == "link":
        place.rename("elsewhere.nii.gz")
        output.symlink_to("elsewhere.nii.gz")
    else:
        place.rename(output)


if __name__ == "__main__":
    main()
