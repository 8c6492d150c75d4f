"""Settings of one run: how images are read and segmented, and which files are written. The science is in the bundle."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from dicom_io.kinds import FORMATS as DICOM_FORMATS
from dicom_io.kinds.encodings import SegEncoding
from dicom_io.read import ReadOptions
from dicom_io.volume import Provenance
from monai_unet_app.errors import UsageError

if TYPE_CHECKING:
    import torch

ExplainMethod = Literal["occlusion"]
InferenceSetting = str
"""Keys of what is fitted, in `configs/confidence.json` and `models/fitted.json`: "plain", "tta" for averages over mirror
images, or an engine in fewer bits, such as "openvino bfloat16"."""

RuntimeName = Literal["openvino", "onnxruntime"]
EngineName = Literal["torch", RuntimeName]
EngineWish = Literal[EngineName, "auto"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]

FORMATS = ("nifti", "nrrd", "mha", "png", *DICOM_FORMATS)
EXPLANATIONS: tuple[ExplainMethod, ...] = get_args(ExplainMethod)


Sides = tuple[tuple[int, int], ...]

_OF_STATEMENTS = {"of_statements": True}
_SELDOM = ("overrides", "box")


@dataclass(frozen=True)
class ResultSettings:
    """Everything that can change a result of the same bundle and image.

    `PredictConfig` holds what is asked for, `pipeline.Case.settings` what a result was computed with. Fields that are marked
    with `_OF_STATEMENTS` also change what a bundle states about its results.

    Attributes:
        device: Type of the network's device: cpu, cuda or mps. It is asked for in `load_bundle`.
        tta: Logits are averages over the mirror images that the bundle was trained with.
        elsewhere: Intervals are the wider ones for images that are not from where the bundle was calibrated.
        repairs: Names of the repairs of `ReadOptions` that were applied. They are asked for there.
        engine, precision: A row of `inference.engines.chooser.ENGINES`. float32 is as PyTorch computes it by default; on CUDA
            its convolutions may round their factors to TF32.
        overrides: Values that replace those of the bundle's `inference.yaml`, as "id=value". They are asked for in
            `load_bundle`.
        box: (first, end) along I, J, K, in voxels: the part of the image that was segmented; None for the whole image.
    """

    device: str = "cpu"
    tta: bool = field(default=False, metadata=_OF_STATEMENTS)
    elsewhere: bool = field(default=False, metadata=_OF_STATEMENTS)
    repairs: tuple[str, ...] = ()
    engine: EngineName = field(default="torch", metadata=_OF_STATEMENTS)
    precision: Precision = field(default="float32", metadata=_OF_STATEMENTS)
    overrides: tuple[str, ...] = field(default=(), metadata=_OF_STATEMENTS)
    box: Sides | None = None

    @property
    def of_statements(self) -> "ResultSettings":
        """The marked fields; all others have their defaults."""
        return ResultSettings(**{row.name: getattr(self, row.name) for row in fields(self) if row.metadata})

    @property
    def key(self) -> InferenceSetting:
        """The key of what is fitted for such results in float32."""
        return "tta" if self.tta else "plain"

    @property
    def own_key(self) -> InferenceSetting | None:
        """The key of what `calibrate --precision` fits for such results alone; None where they have none."""
        has_own = self.precision != ResultSettings.precision and not self.tta
        return f"{self.engine} {self.precision}" if has_own else None

    @classmethod
    def of_key(cls, key: InferenceSetting) -> "ResultSettings":
        """The settings that a key is about."""
        if key in ("plain", "tta"):
            return cls(tta=key == "tta")
        engine, precision = key.split(" ")
        return cls(engine=cast(EngineName, engine), precision=cast(Precision, precision))

    def document(self) -> dict[str, Any]:
        """The entry `settings` of result.json and metrics.json; without what is seldom asked for where it is not."""
        listed = asdict(self) | {"repairs": list(self.repairs), "overrides": list(self.overrides)}
        listed |= {"box": [list(side) for side in self.box or ()]}
        return {name: value for name, value in listed.items() if value or name not in _SELDOM}

    def texts(self) -> tuple[tuple[str, str], ...]:
        """The name and the value of each field, as DICOM objects state them; their UIDs depend on these."""
        listed = self.document() | {"repairs": ", ".join(self.repairs) or "none"}
        texts = {"overrides": ", ".join(self.overrides), "box": box_text(self.box or ())}
        return tuple((name, str(texts.get(name, value)).lower()) for name, value in listed.items())


def box_text(sides: Sides) -> str:
    """A box as --box takes it, such as 10:45,0:60,5:40."""
    return ",".join(f"{first}:{end}" for first, end in sides)


def applied_repairs(reading: ReadOptions, source: Provenance) -> tuple[str, ...]:
    """Names of the permitted repairs that a series needed."""
    applied = {
        "resample_gaps": reading.resample_gaps and source.resampled,
        "resample_tilt": reading.resample_tilt and source.resampled,
        "accept_incomplete": source.incomplete,
    }
    return tuple(name for name, is_applied in applied.items() if is_applied)


@dataclass(frozen=True)
class PredictConfig:
    """Settings of one prediction.

    Attributes:
        settings: What is asked for of the result.
        reading: For DICOM: the series and the time point to read, and the permitted repairs.
        memory_limit: Bytes that the process may take; None: what the machine, its control group and `ulimit` leave.
        on_plan: Called with a sentence about the memory that a large image will take, before its pixels are read.
        certifying: Statements are made although nothing certifies these settings yet: that is about to be measured.
    """

    settings: ResultSettings = ResultSettings()
    reading: ReadOptions = field(default_factory=ReadOptions)
    memory_limit: float | None = None
    on_plan: Callable[[str], None] | None = field(default=None, compare=False)
    certifying: bool = False


@dataclass(frozen=True)
class OutputConfig:
    """The files to write, and the DICOM series that they refer to.

    Attributes:
        formats: Some of `FORMATS`.
        probabilities: Add `<case>_prob.nii.gz`, channels last.
        uncertainty: Add `<case>_uncertainty.nii.gz`: entropy of the calibrated probabilities, 0 sure to 1 undecided.
        cautious: Add `<case>_cautious.nii.gz`, channels last: masks that miss little of a structure, as the bundle states.
        explain: Add `<case>_why.png` and `<case>_why.nii.gz`, channels last: the explanation by one of EXPLANATIONS.
        deliver_rejected: Write a result that the bundle's quality gate rejects like any other result.
        dicom_source: The series that a NIfTI input was made from; DICOM results refer to it.
        dicomize: Write a converted series for a NIfTI input and refer to that.
        seg_encoding: One of `dicom_io.kinds.encodings.SEG_ENCODINGS`; "fractional" writes probabilities.
        empty_frames: A SEG has a frame for every slice and segment, also where there is no voxel.
        uncoded: Write DICOM results although structures have no SNOMED CT code; a private code says so.
        resume: Leave cases alone whose results of the same request are there.
        earlier_sr: The report of an earlier run, which the new report names as its predecessor if it differs; None: the report
            that the new report would replace.
    """

    formats: tuple[str, ...] = ("nifti",)
    probabilities: bool = False
    uncertainty: bool = False
    cautious: bool = False
    explain: ExplainMethod | None = None
    deliver_rejected: bool = False
    dicom_source: Path | None = None
    dicomize: bool = False
    seg_encoding: SegEncoding = "binary"
    empty_frames: bool = False
    uncoded: bool = False
    resume: bool = False
    earlier_sr: Path | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise UsageError(f"--format {','.join(unknown) or 'nothing'}: some of {', '.join(FORMATS)} are needed")
        if self.explain not in (None, *EXPLANATIONS):
            raise UsageError(f"--explain {self.explain}: one of {', '.join(EXPLANATIONS)} is needed")
        if self.dicomize and self.dicom_source is not None:
            raise UsageError("--dicomize and --dicom-source: one series to refer to is needed; give one of them")

    @property
    def keep(self) -> Literal["evidence", "cautious", "probabilities"]:
        """What of the probabilities the files need, as `pipeline.segment_case` takes it."""
        if self.probabilities or self.seg_encoding == "fractional":
            return "probabilities"
        return "cautious" if self.cautious else "evidence"

    @property
    def wants_dicom(self) -> bool:
        """Whether any of the formats is DICOM."""
        return any(name in DICOM_FORMATS for name in self.formats)


def resolve_device(name: str) -> "torch.device":
    """The torch device for the value of a flag: "auto" takes CUDA, else Apple's MPS, else the CPU; or for instance "cuda:1".

    Raises:
        UsageError: No such device on this machine.
    """
    import torch  # the import takes seconds

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        # torch.device accepts the name of an absent device; only a tensor shows that it works. Without CUDA, torch
        # raises AssertionError.
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used here; cuda, cuda:N, mps or cpu is needed; leave --device out to take an "
            "available one"
        ) from error
    return device
