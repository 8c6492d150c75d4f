"""What the header of a file claims, held against the file itself before any memory is taken for voxels."""

import math
from collections.abc import Sequence

from dicom_io.errors import UnreadableFileError

MAX_VOXELS = 2**30
"""The most voxels of one volume, 4 GiB as float32; a header that claims more is refused before anything is allocated."""

MOST_INFLATION = 1032
"""The most by which deflate shrinks: a length of at most 258 bytes takes one bit and its distance another (RFC 1951, 3.2.5)."""


def check_claim(name: str, shape: Sequence[int], voxel_bytes: int, held: float, *, is_packed: bool) -> None:
    """Passes if a file can hold the voxels that its header claims, and they are not too many.

    Args:
        name: Of the file, for a message.
        shape: (I, J, K) in voxels, then channels if there are several.
        voxel_bytes: Of one value.
        held: Bytes of the file behind its header.
        is_packed: The voxels may be deflated, and so take fewer bytes in the file than in memory.

    Raises:
        UnreadableFileError: More than MAX_VOXELS are claimed, or more bytes than the file can become.
    """
    voxels, claimed = math.prod(shape[:3]), math.prod(shape) * voxel_bytes
    by = " x ".join(map(str, shape))
    if voxels > MAX_VOXELS:
        raise UnreadableFileError(
            f"{name} claims {by} voxels, {voxels} in all; at most {MAX_VOXELS} fit; check the file, or split it"
        )
    most = held * (MOST_INFLATION if is_packed else 1)
    if claimed > most:
        unpacked = f", which unpack to {most:.0f} at most" if is_packed else ""
        raise UnreadableFileError(
            f"{name} claims {by} voxels, {claimed} bytes, and holds {held:.0f} bytes{unpacked}; a whole file is needed; copy "
            "it again"
        )
