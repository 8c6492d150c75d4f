"""The flags of the verbs about the files of bundles and of this installation."""

from dataclasses import field
from typing import Annotated, Literal

from monai_unet_app.cli.dataclass_parser import Flag, Options, repeated
from monai_unet_app.cli.flag_types import Bytes, FromOne, Place, Seconds, Text
from monai_unet_app.cli.flags import Cases, Data, Device, Engine, Trust
from monai_unet_app.config import RuntimeName


class Export(Data, Trust):
    """Flags of `bundle export`.

    Attributes:
        bundle: folder of the bundle; files of the export and models/parity.json are written
        to: %(choices)s: the program that will run the network; edge: a folder that runs without torch and this package
        precision: %(choices)s: int8 is smaller, faster with openvino, and changes results; it needs labelled cases that made it
            (default: float32)
        output: for edge, the new folder
    """

    bundle: Text
    to: Annotated[Literal[RuntimeName, "edge"], Flag(metavar="TARGET")]
    precision: Literal["float32", "int8"] = "float32"
    output: Place | None = None


class Certify(Cases, Engine):
    """Flags of `bundle certify`.

    Attributes:
        bundle: folder of the bundle; its models/parity.json is written
        partition: which cases of the plan (default: only those that the bundle has not seen)
    """

    bundle: Text
    partition: Literal["test", "all"] | None = None


class Bench(Device):
    """Flags of `bundle bench`.

    Attributes:
        bundle: a name, a folder or a zip
        size: of the image, in voxels of the working grid, such as 512x512 (default: one window)
        budget: exit 1 if no engine answers 95 of 100 images within this time, such as 50ms
        rounds: of each engine
        into_bundle: also write the table into docs/README.md of the bundle, which is a folder
    """

    bundle: Text
    size: Annotated[Text | None, Flag(metavar="SIZE")] = None
    budget: Annotated[Seconds | None, Flag(metavar="TIME")] = None
    rounds: FromOne = 20
    into_bundle: bool = False


class ImportNnunet(Options):
    """Flags of `bundle import-nnunet`.

    Attributes:
        results: trained folder of nnU-Net v2, such as nnUNetTrainer__nnUNetPlans__3d_fullres
        output: folder of the new bundle
        data: labelled cases that trained it, such as nnUNet_raw/Dataset004_Hippocampus; the bundle then knows what it has seen,
            and is calibrated on what its networks have not seen
        splits: splits_final.json of nnU-Net (default: that beside the data, else the names in fold_N/validation)
        fold: a fold whose network answers, such as 0 or all; several answer with their mean (default: all if it is there,
            else every fold)
        checkpoint: name of the file in each fold (default: checkpoint_final.pth)
        no_mirroring: leave mirror images out; faster, as nnU-Net with --disable_tta
    """

    results: Annotated[Place, Flag(names=("results",), metavar="RESULTS")]
    output: Place
    data: Place | None = None
    splits: Place | None = None
    fold: Annotated[list[Text], repeated("FOLD")] = field(default_factory=list)
    checkpoint: Text = "checkpoint_final.pth"
    no_mirroring: bool = False


class ImportMonai(Options):
    """Flags of `bundle import-monai`.

    Attributes:
        source: bundle in the form of MONAI's model zoo: a folder or a zip, with models/model.pt
        output: folder of the new bundle
        structure: name of a channel of its answer, such as 1=spleen (default: as its metadata.json says)
    """

    source: Annotated[Place, Flag(names=("source",), metavar="BUNDLE")]
    output: Place
    structure: Annotated[list[Text], repeated("CHANNEL=NAME")] = field(default_factory=list)


class External(Options):
    """Flags of `bundle external`.

    Attributes:
        model: bundle that calibrate --results wrote: what label files of the program are worth
        command: how the program is started, such as 'TotalSegmentator -i {image} -o {output} --ml'; no shell reads it
        version_command: prints the version of the program
        labels: name of the label map that it writes (default: labels.nii.gz)
        time: it may take for one image, such as 10min
        memory: it may take, such as 8GB
        disk: it may write, such as 4GB
        output: folder of the new bundle
    """

    model: Annotated[Place, Flag(names=("model",), metavar="MODEL")]
    command: Text
    version_command: Text
    labels: Text = "labels.nii.gz"
    time: Annotated[Seconds, Flag(metavar="TIME")] = 600.0
    memory: Annotated[Bytes, Flag(metavar="SIZE")] = 8e9
    disk: Annotated[Bytes, Flag(metavar="SIZE")] = 4e9
    output: Place


class Doctor(Options):
    """Flags of `doctor`.

    Attributes:
        bundles: only list the bundles, at once: name, version, task, sha256 of the weights
        trusted: only list the bundles that may run code, by --trust
        revoke: take back the consent to the bundle whose code digest begins so
    """

    bundles: bool = False
    trusted: bool = False
    revoke: Annotated[Text | None, Flag(metavar="DIGEST")] = None
