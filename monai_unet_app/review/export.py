"""A delivered result to a folder that a clinician can open: one page that works from disk, and the same on paper.

It is made from the files of the result, not from a case in memory: what is reviewed is what was delivered, it can be made
at any later time and on another machine without a second inference, and a verdict can name the very bytes that were looked at.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from dicom_io.files import replace_when_whole
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
        post_url: Where the page sends a decision: a path on the server that it comes from, or an http(s) URL. None: the page
            saves a draft.
        most_embedded_mb: Megabytes of images, as base64, that the page may hold.
        names_patient: Name patient and study, where the source is DICOM.
        pdf: Write the paper too.
        same_patient: Whoever names an earlier result has compared the patients: the page says so.
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
        result: A `<case>_result.json` with the files that it names beside it, or a folder with one.
        output: Folder for the review; what an earlier review left there is replaced.
        image: What the result was made from.
        bundle: What computed it, for colours and measured calibration.
        prior: An earlier `result.json` to compare sizes with.
        how: How it is written.

    Raises:
        InputRefusedError: Result, image, bundle or prior do not belong together or cannot be read.
        UsageError: Decisions cannot be sent to the URL.
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
    """Puts the files into the folder, its mark before anything that names a patient, and takes away what is no more so."""
    output.mkdir(parents=True, exist_ok=True)
    mark = output / IDENTITY_MARK
    if named:
        mark.write_text(IDENTITY_TEXT, encoding="utf-8")
    for name, content in files.items():
        with replace_when_whole(output / name) as part:
            part.write_bytes(content)
    for name in {PAGE, PAPER} - files.keys():
        (output / name).unlink(missing_ok=True)
    if not named:
        mark.unlink(missing_ok=True)
