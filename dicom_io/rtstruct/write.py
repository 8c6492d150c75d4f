"""Labels to a DICOM RT Structure Set.

Contours are CLOSED_PLANAR, in LPS mm with three decimals. They run half-way between the centre of a voxel inside and the centre
of its neighbour outside (level 0.5), so every voxel centre stays at least 0.35 voxels away from a contour, and rounding cannot
move it to the other side. Holes are joined to their outer contour by a keyhole, a bridge that is walked forth and back. PS3.3
C.8.8.6.3 names this technique for CLOSED_PLANAR; it fills correctly under the even-odd and the winding rule. Parts that touch
only by a corner are contours of their own.
"""

from pathlib import Path

from dicom_io import proof
from dicom_io.errors import LabelError
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.result_content import ResultContent
from dicom_io.objects.source_images import labelled
from dicom_io.rtstruct.dataset import build_rtstruct
from dicom_io.rtstruct.proof import prove_rtstruct
from dicom_io.volume import Volume

MIN_SPACING_MM = 0.01  # below, three decimals of a millimetre could move a contour over a voxel centre


@refusing_odd_headers
def write_rtstruct(labels: Volume, source: Volume, path: Path, result: ResultInfo) -> Path:
    """Write labels as contours on the slices of their source; approval status UNAPPROVED.

    Args and errors are those of `write_seg`; labels that overlap (4D) are welcome. A segment without voxels
    becomes a region without contours.
    """
    if source.planar:
        raise LabelError(
            "the source is a picture without patient space; contours are in millimetres of the patient; write a SEG"
        )
    if min(source.spacing_mm[:2]) < MIN_SPACING_MM:
        raise LabelError(
            f"the pixels are {min(source.spacing_mm[:2]):.5f} mm apart; at least {MIN_SPACING_MM} mm is "
            "needed because contours are written with three decimals; write a SEG instead"
        )
    segmentation, images = labelled(labels, source, result, of_each=False)
    built, in_slices = build_rtstruct(segmentation, images, result), segmentation.label_volume
    return proof.save_proved(
        built.save, path, lambda file: prove_rtstruct(file, in_slices, source, result.segments, images.headers)
    )


def write_result(content: ResultContent, path: Path) -> None:
    """Write the structure set of a result; see `write_rtstruct`."""
    write_rtstruct(content.labels, content.source, path, content.info)
