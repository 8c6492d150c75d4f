"""Labels to a DICOM Segmentation, back, and the proof of it."""

from dicom_io.kinds.encodings import SegEncoding
from dicom_io.objects.labels import check_labels, in_slices
from dicom_io.seg.proof import prove_seg
from dicom_io.seg.read import described_segments, read_seg, read_segments, segment_numbers
from dicom_io.seg.write import write_seg

__all__ = [
    "SegEncoding", "check_labels", "described_segments", "in_slices", "prove_seg", "read_seg", "read_segments",
    "segment_numbers", "write_seg",
]  # fmt: skip
