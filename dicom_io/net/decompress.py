"""Compressed pixels -> uncompressed pixels, for a peer that takes only those. The instance keeps its UID."""

from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_io.reading.codecs import decoder_of


def decompress(dataset: FileDataset) -> None:
    """Changes a data set in place to Explicit VR Little Endian; colour becomes RGB.

    Decoded pixels are the same instance, so its UID stays (PS3.4 B.2.2). LossyImageCompression, which states an earlier loss,
    stays too.

    Raises:
        Exception: Any of `instances.READ_ERRORS`, where the pixels cannot be decoded here.
    """
    decoder = decoder_of(dataset.file_meta.TransferSyntaxUID)
    decoded = list(decoder.iter_array(dataset, as_rgb=True))
    content, properties = b"".join(array.tobytes() for array, _ in decoded), decoded[-1][1]
    # Rows, Columns and BitsAllocated stay as they are in the header, so the decoded frames must have this size.
    needed = len(decoded) * dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    if len(content) != needed:
        raise ValueError(f"{len(content)} bytes of pixels came out, {needed} are needed")
    # A value has an even length (PS3.5 7.1.1).
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated <= 8 else "OW"  # PS3.5 A.2
    # Compressed pixels have an undefined length, uncompressed pixels a length in bytes (PS3.5 A.4, 8.2).
    dataset["PixelData"].is_undefined_length = False
    dataset.PhotometricInterpretation = properties["photometric_interpretation"]
    # PlanarConfiguration is present only where a pixel has several samples (PS3.3 C.7.6.3).
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = properties["planar_configuration"]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
