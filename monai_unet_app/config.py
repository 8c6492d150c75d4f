"""Settings of one run: how images are read and segmented, and which files are written. The science is in the bundle."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from dicom_io.kinds import FORMATS as DICOM_FORMATS
from dicom_io.kinds.encodings import SegEncoding
from dicom_io.read import ReadOptions
from monai_unet_app.errors import UsageError

if TYPE_CHECKING:
    import torch

ExplainMethod = Literal["occlusion", "gradcam", "gradient"]

FORMATS = ("nifti", "nrrd", "mha", "png", *DICOM_FORMATS)
EXPLANATIONS: tuple[ExplainMethod, ...] = get_args(ExplainMethod)


@dataclass(frozen=True)
class PredictConfig:
    """Settings of one prediction.

    Attributes:
        tta: Average over the mirror images that the bundle was trained with.
        elsewhere: The images are not from where the bundle was calibrated: intervals are the wider ones for such images.
        reading: For DICOM: the series and the time point to read, and the permitted repairs.
        memory_limit: Bytes that the process may take; None: what the machine, its control group and `ulimit` leave.
        on_plan: Called with a sentence about the memory that a large image will take, before its pixels are read.
    """

    tta: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    memory_limit: float | None = None
    on_plan: Callable[[str], None] | None = field(default=None, compare=False)
    elsewhere: bool = False


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
            f"device {name!r} is not usable here; cuda, cuda:N, mps or cpu is needed; leave --device out to take an "
            "available one"
        ) from error
    return device
