"""Labels to a DICOM Segmentation, back, and the proof of it."""

from dicom_io.seg.proof import prove_seg
from dicom_io.seg.read import described_segments, read_seg, read_segments, segment_numbers
from dicom_io.seg.write import write_seg

__all__ = ["described_segments", "prove_seg", "read_seg", "read_segments", "segment_numbers", "write_seg"]
