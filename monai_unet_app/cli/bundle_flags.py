"""The flags of the verbs about the files of bundles and of this installation."""

from typing import Annotated, Literal

from monai_unet_app.cli.dataclass_parser import Flag, Options
from monai_unet_app.cli.flag_types import FromOne, Place, Seconds, Text
from monai_unet_app.cli.flags import Cases, Data, Device, Engine


class Export(Data):
    """Flags of `bundle export`.

    Attributes:
        bundle: folder of the bundle; files of the export and models/parity.json are written
        to: %(choices)s: the program that will run the network; edge: a folder that runs without torch and this package
        precision: %(choices)s: int8 is smaller and faster, and changes results; it needs labelled cases that made the bundle
            (default: float32)
        output: for edge, the new folder
    """

    bundle: Text
    to: Annotated[Literal["openvino", "onnxruntime", "edge"], Flag(metavar="TARGET")]
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


class Upgrade(Options):
    """Flags of `bundle upgrade`.

    Attributes:
        bundle: folder of the bundle; configs, models/fitted.json and digests in its records are replaced
    """

    bundle: Text


class Doctor(Options):
    """Flags of `doctor`.

    Attributes:
        bundles: only list the bundles, at once: name, version, task, sha256 of the weights
    """

    bundles: bool = False
