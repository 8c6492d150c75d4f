"""NIfTI cases to DICOM: an MR or CT series and the labels' SEG for each, so that DICOM work can be tried on any images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dicom_io.coding import Segment
from dicom_io.dicomize import ConvertedModality, dicomize
from dicom_io.errors import DicomIoError
from monai_unet_app.data.cases import CaseFiles
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError


def dicomize_cases(
    cases: Sequence[CaseFiles],
    output: Path,
    segments: tuple[Segment, ...] | None = None,
    step: Callable[[str], None] = lambda case_id: None,
    modality: ConvertedModality = "MR",
) -> tuple[list[dict[str, Any]], list[str]]:
    """Writes `output`/<case>/mr/*.dcm (or ct) and, for labelled cases, `output`/<case>/seg.dcm.

    An earlier conversion is replaced.

    Args:
        cases: NIfTI images, with or without labels.
        output: Gets one folder for each case.
        segments: What the label values mean; needed with labels.
        step: Told each case's id when it is done.
        modality: What the series are: MR, or CT with values in HU.

    Returns:
        One row a case with the largest rounding of an intensity (in the image's own units), and what went wrong.
    """
    rows, problems = [], []
    for case in cases:
        try:
            image = read_volume(case.image)
            labels = read_labels(case.label, image) if case.label else None
            made = dicomize(
                image,
                output / case.id,
                labels=labels,
                segments=segments,
                case_id=case.id,
                overwrite=True,
                modality=modality,
            )
        except (InputRefusedError, DicomIoError) as error:
            problems.append(f"{case.id}: {error}")
        except OSError as error:
            problems.append(
                f"{case.id}: its series could not be written ({error.strerror}); free space or choose another output"
            )
        else:
            rows.append(
                {
                    "id": case.id,
                    "series": str(made.series_folder),
                    "seg": str(made.seg) if made.seg else None,
                    "max_rounding_error": made.max_rounding_error,
                }
            )
        step(case.id)
    return rows, problems
