"""Says whether the border of the image cuts a structure off, which is then larger than its part in the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dicom_io.segmentation import Structure
from dicom_io.volume import Volume

from .conformal import by_structure, conformal_quantile
from .features import on_border
from .json_document import JsonDocument
from .shift import LEAST_SUBJECTS, USUAL

LEAST_PART = 0.01
"""Part of a structure's surface that may lie on the border of the image, whatever is usual: a few voxels there are no cut."""

# LPS coordinates increase to the left, to the back and to the head.
_LPS_SIDES = (("right", "left"), ("front", "back"), ("foot", "head"))
_PICTURE_SIDES = (("left", "right"), ("upper", "lower"))


@dataclass(frozen=True)
class BorderContact:
    """One structure of one sound image.

    Attributes:
        subject: The person that the image is of.
        structure: Number of the structure.
        part: Part of its surface on the border of the image, 0 to 1.
    """

    subject: str
    structure: int
    part: float


@dataclass(frozen=True)
class BorderCut:
    """A structure that touches the border of the image more than it usually does.

    Attributes:
        sides: Of the image, in words.
        part: Part of the structure's surface that lies there, 0 to 1.
        usual: Largest part that usually lies there on sound images.
    """

    sides: tuple[str, ...]
    part: float
    usual: float

    @property
    def reason(self) -> str:
        """In words."""
        sides, usual = " and ".join(self.sides), f"usual: {self.usual:.0%} or less"
        return (
            f"it touches the border of the image on the {sides} side ({self.part:.0%} of its surface; {usual}): part of it may "
            "be missing; no interval of its size is stated, since intervals hold for whole structures"
        )


@dataclass(frozen=True)
class BorderStatement(JsonDocument):
    """How much of each structure's surface usually lies on the border of the image.

    Attributes:
        limits: Structure number -> part of its surface, 0 to 1, above which it counts as cut off.
        subjects: Number of subjects that it was fitted on.
    """

    limits: Mapping[int, float]
    subjects: int

    @classmethod
    def fit(cls, contacts: Sequence[BorderContact]) -> "BorderStatement":
        """The part that sound images of new subjects seldom exceed, LEAST_PART at least.

        Raises:
            ValueError: A structure was found on images of fewer than LEAST_SUBJECTS subjects.
        """
        limits = {}
        for number, rows in by_structure(contacts).items():
            subjects = [row.subject for row in rows]
            count = len(set(subjects))
            if count < LEAST_SUBJECTS:
                raise ValueError(
                    f"structure {number}: {count} subject(s); {LEAST_SUBJECTS} are needed to say what is usual"
                )
            # From J subjects no bound of a coverage above J / (J + 1) follows; it would be infinite.
            usual = conformal_quantile([row.part for row in rows], subjects, min(USUAL, count / (count + 1)))
            limits[number] = max(LEAST_PART, usual)
        if not limits:
            raise ValueError("no structure is found on any sound image; some are needed to say what is usual")
        return cls(limits, len({contact.subject for contact in contacts}))

    def cut(self, structure: Structure) -> BorderCut | None:
        """Where a structure is cut off; None if it touches the border no more than usual."""
        touching = on_border(structure)
        limit = self.limits.get(structure.number, LEAST_PART)
        if touching.sum() <= limit:
            return None
        names = np.array(sides_of(structure.grid))
        # A side with only a trace of the surface is not named, unless no side has more.
        cut_sides = touching >= min(LEAST_PART, touching.max())
        return BorderCut(tuple(names[cut_sides].tolist()), float(touching.sum()), limit)


def sides_of(volume: Volume) -> list[tuple[str, str]]:
    """For each array axis the names of its first and its last layer: sides of the patient, or of a picture."""
    if volume.planar:
        return list(_PICTURE_SIDES)
    if not volume.has_patient_space:
        return [(f"first (axis {axis})", f"last (axis {axis})") for axis in range(3)]
    sides = []
    for step in volume.affine_lps[:3, :3].T:
        # The patient axis that is nearest to the array axis, since a grid may be oblique.
        along = int(np.argmax(np.abs(step)))
        low, high = _LPS_SIDES[along]
        sides.append((low, high) if step[along] > 0 else (high, low))
    return sides
