"""Several images of one patient -> the channels of one volume, on the grid of the first."""

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
        series_instance_uids: In the order of the channels.
        accept_incomplete: See `ReadOptions`; for each series.

    Returns:
        As `joined`.

    Raises:
        SeriesSelectionError: Fewer than two series; or as `joined`.
        SeriesGeometryError: As `joined`.
        DicomIoError: See `read_series`.
    """
    if len(set(series_instance_uids)) < max(2, len(series_instance_uids)):
        raise SeriesSelectionError(
            f"the channels are named {', '.join(series_instance_uids) or 'nothing'}; two or more different series are needed; "
            "name each SeriesInstanceUID once"
        )
    scan = scan_source(source)
    return joined(
        [read_scanned(scan, ReadOptions(uid, accept_incomplete=accept_incomplete)) for uid in series_instance_uids]
    )


def joined(volumes: Sequence[Volume]) -> Volume:
    """Volumes, or pictures, of one space as the channels of one.

    Args:
        volumes: Grey, in the order of the channels. The first is the reference: its grid stays as it is, and the others are
            interpolated onto it linearly in patient space (not at all if the grids are the same, as those of pictures must be).

    Returns:
        float32 array of shape (I, J, K, C) on the grid of the first, with its provenance; that of the others stands in
        `Provenance.others`. The notes say what was interpolated, and which share of the grid a channel does not reach; there
        it has its least value.

    Raises:
        SeriesSelectionError: A colour picture, several channels in one volume, or pictures beside volumes, or other sizes.
        SeriesGeometryError: Series are of several patients or studies, do not name one and the same frame of reference, or a
            volume lies wholly outside of the first.
    """
    reference, *others = volumes
    _check_kinds(volumes)
    if any(volume.provenance.kind == "dicom" for volume in volumes):
        _check_spaces(volumes)
    channels, notes = [reference.array], list(reference.provenance.notes)
    for number, other in enumerate(others, start=2):
        values, note = _on_grid(other, reference)
        channels.append(values)
        notes.append(f"channel {number} is {_name(other)}: {note}")
    provenance = replace(
        reference.provenance,
        notes=tuple(notes),
        incomplete=any(volume.provenance.incomplete for volume in volumes),
        others=tuple(volume.provenance for volume in others),
    )
    return replace(reference, array=np.stack(channels, axis=-1), provenance=provenance)


def _name(volume: Volume) -> str:
    source = volume.provenance
    if source.series_instance_uid:
        return f"series {source.series_instance_uid}"
    return source.files[0].name if source.files else "an array"


def _check_kinds(volumes: Sequence[Volume]) -> None:
    first, planar = volumes[0], any(volume.planar for volume in volumes)
    for volume in volumes:
        if volume.array.ndim != 3 or (planar and volume.provenance.kind == "dicom"):
            raise SeriesSelectionError(
                f"{_name(volume)} is a picture or has channels of its own; grey images are needed for channels; name others"
            )
        if planar and (not volume.planar or volume.shape != first.shape):
            raise SeriesSelectionError(
                f"{_name(volume)} has {' x '.join(map(str, volume.shape))} pixels, {_name(first)} "
                f"{' x '.join(map(str, first.shape))}; pictures of one size are needed for channels; name others"
            )


def _check_spaces(volumes: Sequence[Volume]) -> None:
    sources = [volume.provenance for volume in volumes]
    if len({source.patient_digest for source in sources}) > 1:
        raise SeriesGeometryError(
            f"{' and '.join(map(_name, volumes))} are of different patients; series of one patient are needed; name others"
        )
    if len({source.study_instance_uid for source in sources}) > 1:
        raise SeriesGeometryError(
            f"{' and '.join(map(_name, volumes))} are of different studies; series of one study are needed; name others"
        )
    if len({source.series_instance_uid for source in sources}) < len(sources):
        raise SeriesSelectionError(
            f"{sources[0].files[0].name if sources[0].files else _name(volumes[0])} and {len(sources) - 1} more are given as "
            "channels, and some are of one series; a series of its own is needed for each; put slices into a folder"
        )
    spaces = {str(source.frame_of_reference_uid) for source in sources}
    if len(spaces) > 1 or "None" in spaces:
        raise SeriesGeometryError(
            f"the series have the frames of reference {', '.join(sorted(spaces))}; one common frame is needed, otherwise their "
            "positions cannot be compared; register them first"
        )


def _on_grid(other: Volume, reference: Volume) -> tuple[NDArray[np.float32], str]:
    """The values of one series on the reference's grid, shape (I, J, K), and a note of what was done."""
    if reference.planar or (other.shape == reference.shape and reference.distance_mm(other) <= _SAME_GRID_MM):
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
            f"{_name(other)} lies wholly outside of the grid of {_name(reference)}; images that overlap are needed for "
            "channels; name others"
        )
    return values, f"interpolated linearly, {share:.1f} % of the grid lie outside of it"
