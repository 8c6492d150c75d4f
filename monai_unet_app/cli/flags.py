"""The flags of the verbs for bundles, cases and DICOM nodes, one class for each verb, and the flags that verbs share.

To add a flag, add a field with a type and a line under "Attributes:"; see `dataclass_parser`.
"""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from dicom_io.kinds.encodings import SegEncoding
from monai_unet_app.cli.dataclass_parser import Flag, Options, repeated
from monai_unet_app.cli.flag_types import AboveZero, FromOne, FromTwo, FromZero, Place, Share, Text
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
        series: SeriesInstanceUID, where a DICOM folder holds several
        channels: read these series of one frame of reference, in whatever folders, as channels on the grid of the first
        time_point: which of several time points or echoes, from 1
    """

    series: str | None = None
    channels: Annotated[str, Flag(metavar="UID,UID")] = ""
    time_point: Annotated[FromOne | None, Flag(metavar="N")] = None


class Labels(Options):
    """Where the labels of images are.

    Attributes:
        labels: folder of labels named as their images
        label_suffix: what a label's name has that its image's has not
    """

    labels: Place | None = None
    label_suffix: str = ""


class Device(Options):
    """Where the network runs.

    Attributes:
        device: cuda, cuda:N, mps or cpu (default: what is there)
    """

    device: str = "auto"


class Cases(Labels, Device):
    """Labelled cases for a network. A verb declares `partition` again, with its choices and its help.

    Attributes:
        data: folder with images/ and labels/, or DICOM series with SEG or RTSTRUCT
        images: folder of images, with --labels or --label-suffix
        splits: a splits.json for the cases that the bundle has not seen
        tta: average over mirror images
    """

    data: Annotated[Place | None, Flag(group="source")] = None
    images: Annotated[Place | None, Flag(group="source")] = None
    splits: Place | None = None
    partition: str | None = None
    tta: bool = False

    @property
    def source(self) -> Path:
        """--data or --images. Raises UsageError without both."""
        source = self.data or self.images
        if source is None:
            raise UsageError(
                "no cases are named; labelled cases are needed; give --data DIR, or --images DIR and --labels DIR"
            )
        return source


class Comparison(Cases):
    """Two sides on the same cases.

    Attributes:
        common: take the cases that both have, leave the others out
        output: gets comparison.json, comparison.csv and new evaluations
    """

    common: bool = False
    output: Place | None = None


class Target(Options):
    """A DICOM node or DICOMweb service.

    Attributes:
        to: AET@host:port, an http(s) URL, or a name in --site
        site: TOML file that describes destinations
        aet: our AE title (default: the site's, or MONAIUNET)
    """

    to: Text
    site: Place | None = None
    aet: Text | None = None


class Conditions(Target):
    """Conditions of a query to a node or service.

    Attributes:
        study: Study Instance UID
        series: Series Instance UID; with --study
        patient_id: * and ? stand for any text
        patient_name: FAMILY^GIVEN; * and ? stand for any text
        accession: accession number
        date: of the study: YYYYMMDD, or a range YYYYMMDD-YYYYMMDD
        modality: MR, CT, SEG, ...
    """

    study: Text | None = None
    series: Text | None = None
    patient_id: Text | None = None
    patient_name: Text | None = None
    accession: Text | None = None
    date: Text | None = None
    modality: Text | None = None


class Demo(Options):
    """Flags of `demo`.

    Attributes:
        output: folder for everything (default: demo)
        epochs: length of the training (default: 6)
    """

    output: Place = Path("demo")
    epochs: FromOne = 6


class Dicomize(Labels):
    """Flags of `dicomize`.

    Attributes:
        images: a NIfTI file, or a folder of them
        bundle: whose segments.json says what the label values mean; needed with labels
        output: gets one folder for each case
        modality: what the images are; CT: values in HU (default: MR)
    """

    images: Place
    bundle: str | None = None
    output: Place
    modality: Literal["MR", "CT"] = "MR"


class Regions(Reading):
    """Flags of `regions`.

    Attributes:
        structure_set: a structure set, by whatever software
        image: the series that it was drawn on
        roi: ROIName: the first becomes label 1, and so on; where two overlap, the later one counts
        output: label file, .nrrd or .mha
    """

    structure_set: Annotated[Place, Flag(names=("structure_set",), metavar="RTSTRUCT")]
    image: Place
    roi: Annotated[list[str], Flag(metavar="NAME")]
    output: Place


class Inspect(Labels, Reading):
    """Flags of `inspect`.

    Attributes:
        data: images/ and labels/ in a folder, a folder of images, DICOM, or one file
        bundle: also hold every case to this bundle's input rules and labels
    """

    data: Annotated[Place, Flag(names=("data",))]
    bundle: str | None = None


class Train(Labels, Device):
    """Flags of `train`.

    Attributes:
        bundle: template: a name, a folder or a zip
        data: folder with images/ and labels/, or images (then --labels), or DICOM series with SEG or RTSTRUCT
        output: the trained bundle; an unfinished run in it goes on
        name: of the new bundle, in its card (default: its folder's name)
        splits: who trains, selects, calibrates and tests (splits.json)
        fold: cross-validation: this fold of the plan tests
        epochs: length of the training (default: the bundle's)
        seed: of windows, augmentation and weights (default: the bundle's)
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
    fold: Literal[0, 1, 2, 3, 4] | None = None
    epochs: FromOne | None = None
    seed: FromZero | None = None
    learning_rate: AboveZero | None = None
    precision: Literal["auto", "bf16", "f32"] | None = None
    workers: FromZero | None = None
    tracking: Literal["tensorboard", "mlflow", "none"] | None = None


class Calibrate(Cases):
    """Flags of `calibrate`.

    Attributes:
        bundle: folder of the bundle; its inference.yaml is rewritten
        partition: which cases of the plan (default: calibration)
        folds: bundles of a cross-validation, which say how far sizes are off
        form: how the temperature depends on a voxel: as the bundle has it; or all known forms compared on selection cases,
            and nothing else done; or the best of them taken (default: keep)
        tta: state also what holds for averages over mirror images
        unchecked: keep what is fitted on fewer than 10 subjects without checking that it helps subjects left out
        coverage: of intervals and bounds (default: 0.9)
        risk: part that a cautious mask may miss (default: 0.1)
    """

    bundle: Text
    partition: Literal["calibration", "test", "all"] | None = None
    folds: list[Place] = field(default_factory=list)
    form: Literal["keep", "compare", "choose"] = "keep"
    tta: bool = False
    unchecked: bool = False
    coverage: Share = 0.9
    risk: Share = 0.1


class Evaluate(Cases):
    """Flags of `evaluate`.

    Attributes:
        bundle: a name, a folder or a zip
        partition: which cases of the plan (default: only those that the bundle has not seen)
        output: folder for the report
        targets: TOML file with what should be reached (default: the bundle's own, or usual ones)
    """

    bundle: Text
    partition: Literal["train", "selection", "calibration", "test", "all"] | None = None
    output: Place
    targets: Place | None = None


class Report(Options):
    """Flags of `report`.

    Attributes:
        evaluation: folder that evaluate wrote
        bundle: folder of the bundle; configs/metadata.json, docs/README.md change
    """

    evaluation: Place
    bundle: Text


class Compare(Comparison):
    """Flags of `compare`.

    Attributes:
        first: folder that evaluate wrote, or with --data a bundle: a name, a folder or a zip
        second: the same; differences are second minus first
        partition: which cases of the plan (default: those that neither bundle has seen)
    """

    first: Text
    second: Text
    partition: Literal["test", "all"] | None = None


class Gate(Comparison):
    """Flags of `gate`.

    Attributes:
        bundle: a name, a folder or a zip; needs --data
        evaluation: its evaluation, instead
        against: the bundle that is in use; needs --data
        against_evaluation: its evaluation, instead
        margin: non-inferiority: how much worse it must be shown not to be; a number, or dice=0.01,ece_band=0.002 (default:
            none, it must not be shown to be worse)
        partition: which cases of the plan (default: those that neither bundle has seen)
    """

    bundle: Annotated[Text | None, Flag(metavar="NEW")] = None
    evaluation: Annotated[Place | None, Flag(metavar="NEW")] = None
    against: Annotated[Text | None, Flag(metavar="OLD")] = None
    against_evaluation: Annotated[Place | None, Flag(metavar="OLD")] = None
    margin: str | None = None
    partition: Literal["test"] | None = None


class Subgroups(Options):
    """Flags of `subgroups`.

    Attributes:
        evaluation: folder that evaluate wrote
        attributes: CSV: a column case or subject, and one for each attribute
        dicom: the cases' DICOM series, whose headers say age, sex, device, ...
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


class Predict(Reading, Device):
    """Flags of `predict`.

    Attributes:
        bundle: a name, a folder or a zip
        input: NIfTI, DICOM file or folder, picture, or a folder of cases
        output: folder for the results
        format: comma-separated: nifti, nrrd, mha, png, and DICOM: seg, sr, rtstruct, gsps (outlines), sc (pictures), pm
            (uncertainty) (default: nifti)
        seg_encoding: %(choices)s: how a SEG stores its frames; every viewer shows binary (the default)
        destination: write what this destination of --site wants, as it wants it; instead of --format and --seg-encoding
        site: TOML file that describes destinations
        probabilities: add <case>_prob.nii.gz, channels last
        cautious: add <case>_cautious.nii.gz, masks that miss little, channels last
        explain: %(choices)s: add <case>_why.png and <case>_why.nii.gz, what in the image the result hangs on; takes longer
        deliver_rejected: write results that the bundle's quality gate rejects as well
        dicom_source: the DICOM series that a NIfTI input was made from
        dicomize: write a converted DICOM series for a NIfTI input
        tta: average over mirror images
    """

    bundle: Text
    input: Place
    output: Place
    format: str | None = None
    seg_encoding: Annotated[SegEncoding | None, Flag(metavar="HOW")] = None
    destination: Annotated[Text | None, Flag(names=("--for",), metavar="NAME")] = None
    site: Place | None = None
    probabilities: bool = False
    cautious: bool = False
    explain: Annotated[Literal["occlusion", "gradcam", "gradient"] | None, Flag(metavar="METHOD")] = None
    deliver_rejected: bool = False
    dicom_source: Place | None = None
    dicomize: bool = False
    tta: bool = False


class Send(Target):
    """Flags of `send`.

    Attributes:
        files: DICOM files, or folders however deep
        commit: then ask the node to say that it keeps what it has (storage commitment)
        listen: with --commit: PORT or HOST:PORT at which the node knows us and reports (default: that of --site; else it
            must report over the association that asks)
        wait_s: with --commit: seconds to wait for the report (default: 60)
    """

    files: Annotated[list[Place], Flag(names=("files",))]
    commit: bool = False
    listen: Text | None = None
    wait_s: AboveZero = 60.0


class Find(Conditions):
    """Flags of `find`.

    Attributes:
        level: series needs --study, image needs --study and --series (default: study)
        limit: most answers; 0: all (default: 200)
        patients: show names and IDs of patients in the table
    """

    level: Literal["study", "series", "image"] = "study"
    limit: FromZero = 200
    patients: bool = False


class Fetch(Conditions):
    """Flags of `fetch`.

    Attributes:
        instance: SOP Instance UID; with --study and --series
        output: gets <study>/<series>/<instance>.dcm
        move: PORT or HOST:PORT to listen on: by C-MOVE, which the archive must know us for
    """

    instance: Text | None = None
    output: Place
    move: Text | None = None


class Deidentify(Options):
    """Flags of `deidentify`.

    Attributes:
        input: DICOM files, or folders however deep
        output: gets <study>/<series>/<instance>.dcm
        key_file: same key, same new UIDs; made where absent (default: a key that is forgotten)
        options: comma-separated: retain-uids, retain-device-identity, retain-institution-identity,
            retain-patient-characteristics, retain-full-dates or retain-modified-dates, clean-structured-content
        allow_burned_in: write what may show a name in its pixels: someone has looked
    """

    input: list[Place]
    output: Place
    key_file: Place | None = None
    options: str = ""
    allow_burned_in: bool = False
