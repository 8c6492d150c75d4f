"""The review of a delivered result as a folder: a page that works from disk, and the same as a PDF.

It is made from the files of the result, not from a case in memory. So the review shows what was delivered, can be made later
and on another machine without a second inference, and a decision can name the digest of the reviewed files.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from dicom_io.files import write_whole
from dicom_io.volume import Volume
from monai_unet_app.bundle_folder import BundleFiles
from monai_unet_app.errors import UsageError
from monai_unet_app.report.pdf import typeset

from .embedded import embed
from .key_images import KeySection, key_sections
from .page import render_page
from .patient import IDENTITY_MARK, IDENTITY_TEXT, headline, patient_and_study
from .review_sections import MARK, paper
from .reviewed_case import ReviewedCase, read_reviewed

PAGE, PAPER = "index.html", "review.pdf"


@dataclass(frozen=True)
class ReviewConfig:
    """How a review is written.

    Attributes:
        post_url: Address to which the page sends a decision: a path on the server that it comes from, or an http(s) URL. None:
            the page saves a draft.
        most_embedded_mb: Megabytes of images, as base64, that the page may hold.
        names_patient: Name patient and study if the source is DICOM.
        pdf: Also write the PDF.
        same_patient: The caller has checked that the earlier result is of the same patient; the page says so.
    """

    post_url: str | None = None
    most_embedded_mb: float = 60.0
    names_patient: bool = True
    pdf: bool = True
    same_patient: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.most_embedded_mb < float("inf"):
            raise UsageError(f"{self.most_embedded_mb} MB of images in a page: a number above 0 is needed")


def write_review(
    result: Path,
    output: Path,
    *,
    image: Path | Volume,
    bundle: BundleFiles | None = None,
    prior: Path | None = None,
    how: ReviewConfig | None = None,
) -> dict[str, Path]:
    """Writes the review of one case into a folder and gives the files by kind: "page", "pdf", "identity".

    Args:
        result: A `<case>_result.json` with the files that it names beside it, or the folder that holds it.
        output: Folder for the review; files of an earlier review are replaced.
        image: The image that the result was made from.
        bundle: The bundle that computed it, for colours and measured calibration.
        prior: An earlier `result.json` to compare sizes with.
        how: The settings.

    Raises:
        InputRefusedError: Result, image, bundle or prior do not belong together or cannot be read.
        UsageError: The page cannot send decisions to `post_url`.
    """
    how = how or ReviewConfig()
    case = replace(read_reviewed(result, image, bundle, prior), same_patient=how.same_patient)
    patient = patient_and_study(case.image) if how.names_patient else {}
    sections = key_sections(case)
    page = render_page(
        case, patient, sections, embed(case, how.most_embedded_mb), how.post_url, paper=PAPER if how.pdf else ""
    )
    files = {PAGE: page.encode()}
    if how.pdf:
        files[PAPER] = render_paper(case, patient, sections)
    _publish(files, output, named=bool(patient))
    written = {"page": output / PAGE, "pdf": output / PAPER, "identity": output / IDENTITY_MARK}
    return {kind: path for kind, path in written.items() if path.exists()}


def render_paper(case: ReviewedCase, patient: dict[str, str], sections: list[KeySection]) -> bytes:
    """The review as a PDF file; the same case gives the same bytes."""
    footer = f"{headline(patient, case.id)[:60]}   {MARK}"
    return typeset(paper(case, patient, sections), f"Review of {case.id}", footer)


def _publish(files: dict[str, bytes], output: Path, *, named: bool) -> None:
    """Writes the files into the folder and removes those of an earlier review.

    The warning of identities is written before any file that names a patient, and removed after the last such file is gone.
    """
    output.mkdir(parents=True, exist_ok=True)
    mark = output / IDENTITY_MARK
    if named:
        mark.write_text(IDENTITY_TEXT, encoding="utf-8")
    for name, content in files.items():
        write_whole(output / name, content)
    for name in {PAGE, PAPER} - files.keys():
        (output / name).unlink(missing_ok=True)
    if not named:
        mark.unlink(missing_ok=True)
