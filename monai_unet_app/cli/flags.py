"""The flags of the verbs for bundles and cases, one class for each verb, and the flags that verbs share.

To add a flag, add a field with a type and a line under "Attributes:"; see `dataclass_parser`.
"""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from dicom_io.kinds.encodings import SegEncoding
from monai_unet_app.cli.dataclass_parser import Flag, Options, repeated
from monai_unet_app.cli.flag_types import (
    AboveZero,
    BoxSides,
    Bytes,
    FromOne,
    FromTwo,
    FromZero,
    Place,
    Seconds,
    Share,
    ShareFromZero,
    Text,
)
from monai_unet_app.config import EngineName, EngineWish, Precision
from monai_unet_app.errors import UsageError


class Repairs(Options):
    """Repairs that a DICOM series may need.

    Attributes:
        resample_gaps: fill uneven gaps and missing slices by interpolation
        resample_tilt: put a tilted stack (gantry) onto a right-angled grid
        accept_incomplete: read a series that has fewer images than its headers count
    """

    resample_gaps: bool = False
    resample_tilt: bool = False
    accept_incomplete: bool = False


class Reading(Repairs):
    """How to read DICOM.

    Attributes:
        series: SeriesInstanceUID of the series to read, if a DICOM folder holds several
        channels: read these series of one frame of reference, in any folders, as channels on the grid of the first
        time_point: which of several time points or echoes, from 1
        directions: of a NIfTI, NRRD or MetaImage that states none: where its axes run, such as LPS or RAS
    """

    series: str | None = None
    channels: Annotated[str, Flag(metavar="UID,UID")] = ""
    time_point: Annotated[FromOne | None, Flag(metavar="N")] = None
    directions: Annotated[Text | None, Flag(metavar="LPS")] = None


class Labels(Options):
    """Where the labels of images are.

    Attributes:
        labels: folder of labels named as their images
        label_suffix: end of a label's name that its image's name lacks
    """

    labels: Place | None = None
    label_suffix: str = ""


class Trust(Options):
    """Consent to a bundle that is a program.

    Attributes:
        trust: the bundle may run code or start a program: you know who made it; remembered until the code changes (doctor
            --trusted)
    """

    trust: bool = False


class Device(Trust):
    """Where the network runs.

    Attributes:
        device: cuda, cuda:N, mps or cpu (default: the best available)
    """

    device: str = "auto"


class Bits(Options):
    """How many bits the network computes in.

    Attributes:
        precision: %(choices)s: all but float32 are faster and change results; a bundle states something about them where
            bundle certify found that it holds. float16 needs cuda, int8 an export of its own (default: float32)
    """

    precision: Annotated[Precision, Flag(metavar="BITS")] = "float32"


class Cheaper(Options):
    """Less work for a worse result, about which a bundle states nothing.

    Attributes:
        overlap: part of a window that its neighbour covers too, 0 to below 1 (default: the bundle's)
        fast: work on the coarser grid that the bundle names as coarse_spacing_mm
    """

    overlap: Annotated[ShareFromZero | None, Flag(metavar="PART")] = None
    fast: bool = False


class Engine(Bits):
    """What runs the network where results are measured.

    Attributes:
        engine: %(choices)s: what runs the network (default: torch)
    """

    engine: Annotated[EngineName, Flag(metavar="ENGINE")] = "torch"


class Data(Labels):
    """Labelled cases.

    Attributes:
        data: folder with images/ and labels/, or DICOM series with SEG or RTSTRUCT
        images: folder of images, with --labels or --label-suffix
    """

    data: Annotated[Place | None, Flag(group="source")] = None
    images: Annotated[Place | None, Flag(group="source")] = None

    @property
    def source(self) -> Path:
        """--data or --images. Raises UsageError without both."""
        source = self.data or self.images
        if source is None:
            raise UsageError(
                "no cases are named; labelled cases are needed; give --data DIR, or --images DIR and --labels DIR"
            )
        return source


class Cases(Data, Device):
    """Labelled cases for a network. A verb declares `partition` again, with its choices and its help.

    Attributes:
        splits: a splits.json for the cases that the bundle has not seen
        tta: average over mirror images
    """

    splits: Place | None = None
    partition: str | None = None
    tta: bool = False


class Comparison(Cases):
    """Two sides on the same cases.

    Attributes:
        common: take the cases that both have, and leave the others out
        output: gets comparison.json, comparison.csv and new evaluations
    """

    common: bool = False
    output: Place | None = None


class Demo(Options):
    """Flags of `demo`.

    Attributes:
        output: folder for everything (default: demo)
        epochs: length of the training (default: 6)
    """

    output: Place = Path("demo")
    epochs: FromOne = 6


class Network(Options):
    """Flags of the network.

    Attributes:
        network: the network, one of those below, or a bundle, whose network is taken
        network_value: a value of the network, as listed below, such as norm=batch
    """

    network: Annotated[Text | None, Flag(metavar="NETWORK")] = None
    network_value: Annotated[list[Text], repeated("NAME=VALUE")] = field(default_factory=list)


class Plan(Labels, Device, Network):
    """Flags of `plan`.

    Attributes:
        data: images/ and labels/, an nnU-Net or Decathlon folder, DICOM with SEG or RTSTRUCT, or a CSV or JSON list
        output: the new bundle; with several configurations a folder of them
        structure: name of a label value, or of several that it has (1+2=NAME); all values need one (default: as the data say)
        objects: name of the objects that are numbered by label values; they are counted
        ignore: label value of voxels without a class, which count nowhere (default: as the data say)
        splits: splits.json with the place of each case, or nnU-Net's splits_final.json (default: as the data state, else by the
            number of subjects)
        modality: what the images are, if the files do not say
        configuration: %(choices)s; 3d_low has longer voxels, so that a window sees more (default: 2d for pictures; for volumes
            3d, or 3d_low if a window would see less than a fifth). Several: a bundle for each, which train --folds ranks
        memory_limit: memory that a training may take (default: 8GB)
        time: time that a training may take on this machine, such as 90min or 2h (default: 1h)
        networks: number of networks that are trained together; their answer is the mean (default: 1)
        show: draw so many windows as training will see them, augmented, as pictures in OUTPUT/windows
    """

    data: Annotated[Place, Flag(names=("data",))]
    output: Place
    structure: Annotated[list[Text], repeated("VALUE=NAME")] = field(default_factory=list)
    objects: Annotated[Text | None, Flag(metavar="NAME")] = None
    ignore: Annotated[FromOne | None, Flag(metavar="VALUE")] = None
    splits: Place | None = None
    modality: Literal["CT", "MR"] | None = None
    configuration: list[Literal["2d", "3d", "3d_low"]] = field(default_factory=list)
    memory_limit: Annotated[Bytes, Flag(metavar="SIZE")] = 8e9
    time: Annotated[Seconds, Flag(metavar="TIME")] = 3600.0
    networks: FromOne = 1
    show: Annotated[FromOne | None, Flag(metavar="N")] = None


class Train(Labels, Device, Network):
    """Flags of `train`.

    Attributes:
        bundle: template: a name, a folder or a zip; or a folder of several, which are ranked by their folds
        data: folder with images/ and labels/, or images (then --labels), or DICOM series with SEG or RTSTRUCT
        output: the trained bundle; an unfinished run in it is resumed
        name: name of the new bundle in its card (default: its folder's name)
        splits: splits.json with the cases for training, selection, calibration and test, or nnU-Net's splits_final.json
        folds: cross-validation: a network for each of these folds of the plan, 0 to 9; all: also the bundle's own network
        deliver: with --folds all, the bundle's own network: all-data: trained on all but the test cases; ensemble: the mean of
            the networks of the folds (default: all-data)
        parallel: with --folds, number of folds trained at the same time, each with its share of the processor (default: 1)
        donor: weights to begin with: a bundle, or a checkpoint of torch; what does not fit, such as a head for other labels,
            begins at random (default: all do)
        freeze: with --from, beginnings of names of layers that keep its weights, such as input_block downsamples
        first_rate: with --from, the learning rate of the first layer as a part of that of the last (default: 1)
        epochs: length of the training (default: the bundle's)
        seed: seed for windows, augmentation and weights (default: the bundle's)
        learning_rate: largest learning rate (default: the bundle's)
        precision: auto: bf16 where the device computes it fast
        workers: processes that augment (default: 0, in the training process)
        tracking: where curves go (default: tensorboard)
    """

    bundle: Text
    data: Annotated[Place, Flag(names=("--data", "--images"))]
    output: Place
    name: Text | None = None
    splits: Place | None = None
    folds: Annotated[list[Literal["all", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]], Flag(metavar="FOLD")] = (
        field(default_factory=list)
    )
    deliver: Literal["all-data", "ensemble"] | None = None
    parallel: Annotated[FromOne | None, Flag(metavar="N")] = None
    donor: Annotated[Text | None, Flag(names=("--from",), metavar="WEIGHTS")] = None
    freeze: Annotated[list[Text], Flag(metavar="LAYER")] = field(default_factory=list)
    first_rate: Share | None = None
    epochs: FromOne | None = None
    seed: FromZero | None = None
    learning_rate: AboveZero | None = None
    precision: Literal["auto", "bf16", "f32"] | None = None
    workers: FromZero | None = None
    tracking: Literal["tensorboard", "mlflow", "none"] | None = None


class Results(Options):
    """Label files of another program, which are judged instead of a network.

    Attributes:
        results: label maps of another program, named as those in --labels; instead of a network. --images adds what edges tell
        algorithm: of --results: the program and its version
        structure: of --results: name of a label value (default: as a label table or a dataset.json beside the files says)
        probabilities: of --results: folder of the program's probabilities, <case>.npz of nnU-Net, <case>.nii.gz with channels,
            or <case>_<value>.nii.gz
    """

    results: Annotated[Place | None, Flag(metavar="RESULTS")] = None
    algorithm: Annotated[Text | None, Flag(metavar="'NAME VERSION'")] = None
    structure: Annotated[list[Text], repeated("VALUE=NAME")] = field(default_factory=list)
    probabilities: Annotated[Place | None, Flag(metavar="FOLDER")] = None


class Calibrate(Results, Cases, Engine):
    """Flags of `calibrate`.

    Attributes:
        precision: %(choices)s: with fewer bits, fit numbers and statements for results of --engine in these alone (default:
            float32, in which every engine answers as torch does)
        bundle: folder of the bundle; its models/fitted.json and configs/confidence.json are written
        partition: which cases of the plan (default: calibration)
        folds: fit on all cases but the test cases, each by the network of the fold that tests it (default where the training
            left no case to calibrate)
        tta: also fit the statements about averages over mirror images
        unchecked: keep a fit on fewer than 10 subjects, without the check on subjects that were left out
        coverage: coverage of intervals and bounds (default: 0.9)
        risk: part that a cautious mask may miss (default: 0.1)
        unseen: of --results: you know that the program was not trained on these cases
        output: of --results: folder of the new bundle, which dicomize --labels takes
    """

    bundle: Text | None = None
    unseen: bool = False
    output: Place | None = None
    partition: Literal["calibration", "test", "all"] | None = None
    folds: bool = False
    tta: bool = False
    unchecked: bool = False
    coverage: Share = 0.9
    risk: Share = 0.1


class Evaluate(Results, Cases, Engine, Cheaper):
    """Flags of `evaluate`.

    Attributes:
        bundle: a name, a folder or a zip; with --results one that calibrate --results wrote, or none
        partition: which cases of the plan (default: only those that the bundle has not seen)
        folds: all cases but the test cases, each by the network of the fold that tests it
        output: folder for the report
        elsewhere: the images come from another place than those of the calibration; intervals are wider
        targets: TOML file with target values (default: the bundle's own, or usual ones)
        into_bundle: also write the figures into configs/metadata.json and docs/README.md of the bundle, which is a folder
        evaluation: with --into-bundle: folder of an evaluation of the bundle; nothing is measured
    """

    bundle: Text | None = None
    partition: Literal["train", "selection", "calibration", "test", "all"] | None = None
    folds: bool = False
    elsewhere: bool = False
    output: Annotated[Place | None, Flag(group="folder!")] = None
    evaluation: Annotated[Place | None, Flag(group="folder!")] = None
    targets: Place | None = None
    into_bundle: bool = False


class Compare(Comparison):
    """Flags of `compare`.

    Attributes:
        first: folder that evaluate wrote, or with --data a bundle: a name, a folder or a zip
        second: the same; differences are second minus first
        partition: which cases of the plan (default: those that neither bundle has seen)
        fail_if_worse: exit 1 if the second is worse than the first in Dice, boundary IoU or calibration
        margin: with --fail-if-worse, non-inferiority: the data must show that the loss is below this; a number, or
            dice=0.01,ece_band=0.002 (default: none; the data must not show that it is worse)
    """

    first: Text
    second: Text
    partition: Literal["test", "all"] | None = None
    fail_if_worse: bool = False
    margin: str | None = None


class Subgroups(Options):
    """Flags of `subgroups`.

    Attributes:
        evaluation: folder that evaluate wrote
        attributes: CSV: a column case or subject, and one for each attribute
        dicom: DICOM series of the cases, whose headers have age, sex, device, ...
        institution: with --dicom: group by institution too (default: not)
        bands: cut a column of numbers here (default: age 0,40,60,80; others into thirds); may be repeated
        fewest: groups with fewer subjects get no figures (default: 5)
        class_name: a class (default: mean)
        output: gets subgroups.json and subgroups.csv
    """

    evaluation: Place
    attributes: Annotated[Place | None, Flag(group="source!")] = None
    dicom: Annotated[Place | None, Flag(group="source!")] = None
    institution: Literal["numbered", "named"] | None = None
    bands: Annotated[list[Text], repeated("NAME=EDGE,EDGE,...")] = field(default_factory=list)
    fewest: FromTwo = 5
    class_name: Annotated[Text, Flag(names=("--class",))] = "mean"
    output: Place | None = None


class Predict(Reading, Device, Bits, Cheaper):
    """Flags of `predict`.

    Attributes:
        bundle: a name, a folder or a zip
        input: NIfTI, DICOM file or folder, picture, or a folder of cases
        output: folder for the results
        format: comma-separated: nifti, nrrd, mha, png, and DICOM: seg, sr, rtstruct, gsps (outlines), sc (pictures), pm
            (uncertainty) (default: nifti)
        seg_encoding: %(choices)s: how a SEG stores its frames; every viewer shows binary (the default)
        destination: write the formats and the encoding of this destination of --site; instead of --format and --seg-encoding
        site: TOML file that describes destinations
        probabilities: add <case>_prob.nii.gz, channels last
        uncertainty: add <case>_uncertainty.nii.gz, which a review page shows
        cautious: add <case>_cautious.nii.gz, masks that miss little, channels last
        explain: %(choices)s: add <case>_why.png and <case>_why.nii.gz, the parts of the image that the result depends on;
            takes longer
        deliver_rejected: also write results that the quality gate of the bundle rejects
        dicom_source: the DICOM series that a NIfTI input was made from
        dicomize: write a converted DICOM series for a NIfTI input
        uncoded: write DICOM results although structures have no SNOMED CT code; a private code says so
        tta: average over mirror images
        elsewhere: the images come from another place than those of the calibration; intervals are wider
        engine: %(choices)s: what runs the network; auto: openvino where bundle export wrote a certified export, else torch
            (default: auto)
        box: segment this part of the image alone, which ends there: first voxel and end along each axis, from 0, such as
            10:45,0:60,5:40; it is background elsewhere
        memory_limit: memory that the program may take, such as 4GB (default: what is free); more waits on disk
        resume: leave cases alone whose results of the same image, bundle, engine and flags are in --output
    """

    bundle: Text
    input: Place
    output: Place
    format: str | None = None
    seg_encoding: Annotated[SegEncoding | None, Flag(metavar="HOW")] = None
    destination: Annotated[Text | None, Flag(names=("--for",), metavar="NAME")] = None
    site: Place | None = None
    probabilities: bool = False
    uncertainty: bool = False
    cautious: bool = False
    explain: Annotated[Literal["occlusion"] | None, Flag(metavar="METHOD")] = None
    deliver_rejected: bool = False
    dicom_source: Place | None = None
    dicomize: bool = False
    uncoded: bool = False
    tta: bool = False
    elsewhere: bool = False
    engine: Annotated[EngineWish, Flag(metavar="ENGINE")] = "auto"
    box: Annotated[BoxSides | None, Flag(metavar="BOX")] = None
    memory_limit: Annotated[Bytes | None, Flag(metavar="SIZE")] = None
    resume: bool = False
