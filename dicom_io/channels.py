"""Several series of one frame of reference -> the channels of one volume, on the grid of the first series."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_io.errors import SeriesGeometryError, SeriesSelectionError
from dicom_io.read import ReadOptions, read_scanned
from dicom_io.reading.series import Source, scan_source
from dicom_io.volume import Volume

_SAME_GRID_MM = 0.01  # largest distance of two corner voxels


def read_channels(source: Source, series_instance_uids: Sequence[str], *, accept_incomplete: bool = False) -> Volume:
    """Series that the scanner registered, as the channels of one volume.

    Args:
        source: The source of all series; see `read_series`.
        series_instance_uids: In the order of the channels. The first is the reference: its grid stays as it is, and the
            others are interpolated onto it linearly in patient space (not at all if the grids are the same).
        accept_incomplete: See `ReadOptions`; for each series.

    Returns:
        float32 array of shape (I, J, K, C) on the grid of the first series, with its provenance. The notes say what was
        interpolated, and which share of the grid a series does not reach; there the channel has its least value.

    Raises:
        SeriesSelectionError: Fewer than two series, or a series that is a picture.
        SeriesGeometryError: The series do not name one and the same frame of reference.
        DicomIoError: See `read_series`.
    """
    if len(set(series_instance_uids)) < max(2, len(series_instance_uids)):
        raise SeriesSelectionError(
            f"the channels are named {', '.join(series_instance_uids) or 'nothing'}; two or more different series are needed; "
            "name each SeriesInstanceUID once"
        )
    scan = scan_source(source)
    volumes = [
        read_scanned(scan, ReadOptions(uid, accept_incomplete=accept_incomplete)) for uid in series_instance_uids
    ]
    _check_spaces(volumes)
    reference, notes = volumes[0], list(volumes[0].provenance.notes)
    channels = [reference.array]
    for number, other in enumerate(volumes[1:], start=2):
        values, note = _on_grid(other, reference)
        channels.append(values)
        notes.append(f"channel {number} is series {other.provenance.series_instance_uid}: {note}")
    incomplete = any(volume.provenance.incomplete for volume in volumes)
    provenance = replace(reference.provenance, notes=tuple(notes), incomplete=incomplete)
    return replace(reference, array=np.stack(channels, axis=-1), provenance=provenance)


def _check_spaces(volumes: Sequence[Volume]) -> None:
    for volume in volumes:
        if volume.planar or volume.array.ndim != 3:
            raise SeriesSelectionError(
                f"series {volume.provenance.series_instance_uid} is a picture, not a grey volume; volumes are needed for "
                "channels; name others"
            )
    spaces = {str(volume.provenance.frame_of_reference_uid) for volume in volumes}
    if len(spaces) > 1 or "None" in spaces:
        raise SeriesGeometryError(
            f"the series have the frames of reference {', '.join(sorted(spaces))}; one common frame is needed, otherwise their "
            "positions cannot be compared; register them first"
        )


def _on_grid(other: Volume, reference: Volume) -> tuple[NDArray[np.float32], str]:
    """The values of one series on the reference's grid, shape (I, J, K), and a note of what was done."""
    if other.shape == reference.shape and reference.distance_mm(other) <= _SAME_GRID_MM:
        return other.array, "the same grid"
    step = np.linalg.solve(other.affine_lps, reference.affine_lps)  # reference index -> index in the other
    values = np.empty(reference.shape, dtype=np.float32)
    outside_count, least = 0, other.array.min()
    i, j = np.indices(reference.shape[:2])
    # Slice by slice, because indices for the whole grid would take 24 bytes a voxel.
    for k in range(reference.shape[2]):
        indices = step[:3, :3] @ np.stack([i.ravel(), j.ravel(), np.full(i.size, k)]) + step[:3, 3:]
        last = np.array(other.shape)[:, None] - 1
        # A voxel reaches half a step beyond its centre: up to there, the value at the edge holds.
        plane = ndimage.map_coordinates(other.array, np.clip(indices, 0, last), order=1, output=np.float32)
        outside = ((indices < -0.5) | (indices > last + 0.5)).any(axis=0)
        plane[outside] = least
        outside_count += int(outside.sum())
        values[:, :, k] = plane.reshape(i.shape)
    share = 100.0 * outside_count / values.size
    if outside_count == values.size:
        raise SeriesGeometryError(
            f"series {other.provenance.series_instance_uid} lies wholly outside of the grid of series "
            f"{reference.provenance.series_instance_uid}; series that overlap are needed for channels; name others"
        )
    return values, f"interpolated linearly, {share:.1f} % of the grid lie outside of it"
