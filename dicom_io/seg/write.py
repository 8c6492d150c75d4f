"""Labels to a DICOM Segmentation and back.

The default is BINARY, with one frame for each segment and slice: every viewer shows it. Frames without voxels are left out. A
segment without voxels has no frames but is described all the same, because its number is its label value, and "looked for, not
found" is a result. If all segments are empty, the empty frames of one segment are written: an image needs at least one frame.
"""

from pathlib import Path

from dicom_io import proof
from dicom_io.kinds.encodings import SegEncoding
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.labels import Fractions, check_labels, in_slices
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.result_content import ResultContent
from dicom_io.objects.source_grid import check_grid
from dicom_io.objects.source_images import images_of
from dicom_io.seg.dataset import build_seg
from dicom_io.seg.proof import prove_seg
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume


@refusing_odd_headers
def write_seg(
    labels: Volume | Fractions,
    source: Volume,
    path: Path,
    result: ResultInfo,
    *,
    encoding: SegEncoding = "binary",
    empty_frames: bool = False,
) -> Path:
    """Write labels as a SEG that refers to the series they were made from.

    Args:
        labels: On the grid of `source`. Shape (I, J, K) with whole values 0 (background) to N, of any type, or
            (I, J, K, C) with channel c non-zero where segment c + 1 is (segments may overlap); for "fractional"
            (I, J, K, C) with the probability of segment c + 1, 0 to 1, kept as float32, or `Fractions`.
        source: DICOM volume; its files are read again for their headers. A picture without patient space is
            welcome: its segments lie in pixels.
        path: Target file, replaced if it exists.
        result: What computed the labels.
        encoding: "binary", which every viewer shows, plain or with the whole data set deflated; "labelmap", plain,
            with run lengths or JPEG-LS; "fractional", in steps of 1/255.
        empty_frames: Write a frame for every slice and segment, also where there is no voxel: some viewers want them.

    Returns:
        `path`.

    Raises:
        LabelError: The labels do not fit the source, the segments or the encoding.
        GeometryProofError: The written file does not hold the labels; no file is left.
    """
    if isinstance(labels, Volume):
        check_labels(labels, result, encoding)
    images = images_of(source, of_each=False)
    check_grid(labels if isinstance(labels, Volume) else labels[1], source, images.slices)
    held: Volume | Fractions
    content: Segmentation | Fractions
    if isinstance(labels, Volume) and encoding != "fractional":
        held = in_slices(labels)
        content = Segmentation.of_volume(held, result.segments)
    else:
        held = content = Fractions.of_volume(labels) if isinstance(labels, Volume) else labels
    built = build_seg(content, images, result, encoding, empty_frames=empty_frames)
    return proof.save_proved(
        built.save, path, lambda file: prove_seg(file, held, source, result.segments, images.headers)
    )


def write_result(content: ResultContent, path: Path) -> None:
    """Write the SEG of a result; see `write_seg`."""
    fractional = content.encoding == "fractional"
    write_seg(
        content.known(content.probabilities) if fractional else content.labels,
        content.source,
        path,
        content.info,
        encoding=content.encoding,
        empty_frames=content.empty_frames,
    )
