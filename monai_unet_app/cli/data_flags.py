"""The flags of the verbs for data: `inspect`, `convert`, `dicomize`, `regions`. See `dataclass_parser`."""

from dataclasses import field
from typing import Annotated, Literal

from dicom_io.kinds.encodings import SegEncoding
from monai_unet_app.cli.dataclass_parser import Flag, repeated
from monai_unet_app.cli.flag_types import FromOne, Place, Text
from monai_unet_app.cli.flags import Labels, Reading


class Dicomize(Labels, Reading):
    """Flags of `dicomize`.

    Attributes:
        images: a NIfTI file, or a folder of them, to be written as series
        source: the series that a label file of another program, or a folder of its masks, belongs to; instead of --images
        algorithm: the program that made the labels of --source, with its version
        manual: a person made the labels of --source
        structure: name of a label value of --source (default: as a dataset.json beside the labels says)
        format: comma-separated, of --source: seg, sr, rtstruct, gsps, sc (default: seg)
        seg_encoding: %(choices)s: how the SEG of --source stores its frames (default: binary)
        uncoded: write labels of --source although structures have no SNOMED CT code; a private code says so
        looked_at: somebody has seen that the labels lie right on --source; write them although edges of the image disagree
        deliver_rejected: write objects of labels of --source that the statements of --bundle reject
        probabilities: of the labels of --source, where --bundle was fitted with probabilities: nnU-Net's .npz, or a file with
            channels
        bundle: bundle whose segments.json names the label values; needed with --images and labels. One of calibrate --results
            also judges labels of --source
        output: gets one folder for each case; of --source the objects
        modality: what the images are; CT: values in HU (default: MR)
    """

    images: Place | None = None
    source: Annotated[Place | None, Flag(metavar="SERIES")] = None
    algorithm: Annotated[Text | None, Flag(metavar="'NAME VERSION'")] = None
    manual: bool = False
    structure: Annotated[list[Text], repeated("VALUE=NAME")] = field(default_factory=list)
    format: str | None = None
    seg_encoding: Annotated[SegEncoding | None, Flag(metavar="HOW")] = None
    uncoded: bool = False
    looked_at: bool = False
    deliver_rejected: bool = False
    probabilities: Annotated[Place | None, Flag(metavar="FILE")] = None
    bundle: str | None = None
    output: Place
    modality: Literal["MR", "CT"] | None = None


class Regions(Reading):
    """Flags of `regions`.

    Attributes:
        result: a SEG or RTSTRUCT from any software
        image: the series that it was made on
        roi: SegmentLabel or ROIName: the first becomes label 1, and so on; where two overlap, the later one counts (default:
            all, a SEG with its segment numbers)
        output: label file, .nii.gz, .nii, .nrrd or .mha; or a folder, which gets a mask file for each structure
        by_place: take what names images of other time points by its place (default: it is left out)
    """

    result: Annotated[Place, Flag(names=("result",), metavar="RESULT")]
    image: Place
    roi: Annotated[list[str], Flag(metavar="NAME")] = field(default_factory=list)
    output: Place
    by_place: bool = False


class Convert(Labels):
    """Flags of `convert`.

    Attributes:
        data: images/ and labels/, an nnU-Net or Decathlon folder, DICOM with SEG or RTSTRUCT, or a CSV or JSON list
        to: the form that is written
        output: the new folder, named as nnU-Net wants it, such as nnUNet_raw/Dataset101_Liver
        bundle: its segments.json names the label values, and its configs/splits.json is the plan
        structure: name of a label value, or of several that it has (1+2=NAME); all need one (default: as the data name them)
        objects: name of the objects that are numbered by label values; all are one structure
        ignore: label value of voxels without a class, which count nowhere (default: as the data say)
        modality: what the images are, if the data do not say
        splits: splits.json: its test cases go to imagesTs, its folds into splits_final.json
    """

    data: Annotated[Place, Flag(names=("data",))]
    to: Literal["nnunet"]
    output: Place
    bundle: Text | None = None
    structure: Annotated[list[Text], repeated("VALUE=NAME")] = field(default_factory=list)
    objects: Annotated[Text | None, Flag(metavar="NAME")] = None
    ignore: Annotated[FromOne | None, Flag(metavar="VALUE")] = None
    modality: Literal["CT", "MR"] | None = None
    splits: Place | None = None


class Inspect(Labels, Reading):
    """Flags of `inspect`.

    Attributes:
        data: images/ and labels/ in a folder, an nnU-Net or Decathlon folder, a folder of images, DICOM, a CSV or JSON list of
            cases, or one file
        bundle: also check every case against the input rules and labels of this bundle
        strict: also compare the cases with each other, as train and plan do: the same image twice, labels that are of another
            image, exchanged structures, subjects on two sides of the plan
        splits: with --strict, the plan of training, selection, calibration and test (default: the one that train would take)
    """

    data: Annotated[Place, Flag(names=("data",))]
    bundle: str | None = None
    strict: bool = False
    splits: Place | None = None
