"""Many cases, one after the other: a case that fails stops none, and one is written while the next is segmented."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dicom_io.read import ReadOptions
from monai_unet_app import __version__
from monai_unet_app.bundle import Bundle
from monai_unet_app.confidence.statements import read_confidence
from monai_unet_app.config import OutputConfig, PredictConfig
from monai_unet_app.data.case_files import CaseFiles, case_message
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending
from monai_unet_app.data.rules import check_channel_names
from monai_unet_app.data.schemas import json_of
from monai_unet_app.dicom_results import check_coded, converted_modality
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.pipeline import Case, segment_case, settings_of
from monai_unet_app.results import write_results

if TYPE_CHECKING:
    from monai_unet_app.inference.predict import Progress


class CaseProgress(Protocol):
    """An observer of the work on many cases, such as a progress bar."""

    def __call__(self, case_id: str, /) -> None:
        """A case is done."""

    def windows(self, done: int, total: int) -> None:
        """`done` of the `total` windows of the current case are done."""


@dataclass(frozen=True)
class Done:
    """What became of a case.

    Attributes:
        document: Its `result.json`; None where there is none.
        problem: In a sentence; None where there is none.
    """

    document: dict[str, Any] | None = None
    problem: str | None = None


def predict_cases(
    cases: Sequence[CaseFiles],
    bundle: Bundle,
    run: PredictConfig,
    config: OutputConfig,
    folder: Path,
    progress: CaseProgress | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Segments every case and writes its files; gives the `result.json` of each, and a sentence for each case that failed."""
    check_flags(cases, run, config)
    if config.wants_dicom and not config.uncoded:
        check_coded(bundle.name, bundle.segments)
    if config.dicomize and config.wants_dicom:
        converted_modality(bundle)  # raises before the work starts
    check_channel_names(((case.id, case.channel_names) for case in cases), bundle.rules)
    statements = read_confidence(bundle, settings_of(run, bundle))  # raises before an image is read
    if config.cautious:
        statements.cautious_cuts(bundle.segments)
    done, cohort = list[Future[Done]](), _Cohort(bundle, run, config, folder, progress.windows if progress else None)
    with ThreadPoolExecutor(1) as writer:
        for files in cases:
            write = cohort.segmented(files)
            if done:
                done[-1].result()  # so that no more than two results are in memory
            done.append(writer.submit(write))
            if not cohort.next_beside:
                done[-1].result()
            del write
            if progress:
                progress(files.id)
    all_done = [one.result() for one in done]
    return [one.document for one in all_done if one.document], [one.problem for one in all_done if one.problem]


class _Cohort:
    """What all cases have in common; arguments as of `predict_cases`.

    Attributes:
        next_beside: Whether the next case may be segmented while the last is written: two of them need no plan of the memory.
    """

    def __init__(
        self, bundle: Bundle, run: PredictConfig, config: OutputConfig, folder: Path, windows: "Progress | None"
    ) -> None:
        self.bundle, self.run, self.config, self.folder, self.windows = bundle, run, config, folder, windows
        self.next_beside = True

    def segmented(self, files: CaseFiles) -> Callable[[], Done]:
        """Segments a case, unless its result is there; gives what writes it."""
        request = request_sha256(files, self.bundle, self.run, self.config)
        if self.config.resume and request and (document := _found(self.folder, files.id, request)):
            return lambda: self._done(document)
        from monai_unet_app.memory_planner import SMALL_BYTES  # brings torch, as `segment_case` does

        try:
            case = segment_case(files.files, self.bundle, self.run, self.windows, keep=self.config.keep)
        except InputRefusedError as error:
            problem = case_message(files, error)
            return lambda: Done(problem=problem)
        probabilities = 4 * case.image.array.size * len(self.bundle.labels)
        self.next_beside = probabilities <= SMALL_BYTES and self.config.explain is None
        return lambda: self._written(files, case, request)

    def _written(self, files: CaseFiles, case: Case, request: str | None) -> Done:
        try:
            return self._done(write_results(case, files.id, self.config, self.folder, self.windows, request))
        except InputRefusedError as error:
            return Done(problem=case_message(files, error))
        except OSError as error:
            return Done(
                problem=f"{files.id}: its results could not be written ({error.strerror}); free space or choose another output"
            )

    def _done(self, document: dict[str, Any]) -> Done:
        """A written result; that the quality gate rejects it is a problem, unless its files are asked for all the same."""
        stated, case = document["assessment"] or {}, document["case"]
        if self.config.deliver_rejected or stated.get("verdict") != "reject":
            return Done(document)
        return Done(
            document,
            f"{case}: the quality gate rejects it ({'; '.join(stated['reasons'])}); only {case}_result.json was written, which "
            "says so; look at the image, or give --deliver-rejected to write the result anyway",
        )


def request_sha256(files: CaseFiles, bundle: Bundle, run: PredictConfig, config: OutputConfig) -> str | None:
    """Digest of all that a result follows from: image, bundle, export, settings, what is written, and our version.

    None for an image that cannot be read.
    """
    from monai_unet_app.inference.engines.certificate import export_named

    settings = settings_of(run, bundle)
    export = export_named(bundle, settings.engine, settings.precision)
    asked = asdict(replace(config, resume=False)), asdict(replace(run.reading, before_pixels=None))
    try:
        images = [file_sha256(one) for one in (*files.files, config.dicom_source) if one is not None]
    except OSError:
        return None
    named = [images, bundle.sha256, bundle.overrides, export, settings.document(), asked, __version__]
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()


def _found(folder: Path, case_id: str, request: str) -> dict[str, Any] | None:
    """The `result.json` of an earlier run with the same request, if all files that it names are there."""
    record = folder / f"{case_id}_result.json"
    try:
        document: dict[str, Any] = json_of(record)
        files = [folder / name for name in document["files"].values()]
        is_same = document["request_sha256"] == request and all(file.exists() for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or not one of ours
        return None
    return document if is_same else None


def check_flags(cases: Sequence[CaseFiles], run: PredictConfig, config: OutputConfig) -> None:
    """Raises, before any work, if a flag does not fit these cases, or a flag is missing.

    Raises:
        UsageError: A DICOM format for an image that is no DICOM, without a series to refer to; or a flag for another kind of
            input.
        InputRefusedError: The named series does not exist.
    """
    if config.dicom_source is not None and not config.dicom_source.exists():
        raise InputRefusedError(
            f"--dicom-source {config.dicom_source} does not exist; the DICOM series that the image was made from is needed; "
            "check the path"
        )
    pictures = [case.image.name for case in cases if has_ending(case.image, PICTURE_ENDINGS)]
    if pictures and config.wants_dicom and config.dicom_source is None:
        raise UsageError(
            f"{pictures[0]} is a picture, which has no millimetres and no place in a patient, so DICOM results cannot be made "
            "of it; a DICOM image is needed for these; give --format png, which writes the mask and an overlay as PNG, and "
            "result.json"
        )
    plain = [case.id for case in cases if has_ending(case.image, VOLUME_ENDINGS + PICTURE_ENDINGS)]
    if plain and config.wants_dicom and config.dicom_source is None and not config.dicomize:
        raise UsageError(
            f"{plain[0]} is not DICOM; a DICOM result needs a series to refer to; give --dicom-source DIR, or --dicomize to "
            "write one"
        )
    if not plain and (config.dicomize or config.dicom_source is not None):
        raise UsageError("the input is DICOM, results refer to it; leave --dicomize and --dicom-source out")
    if len(plain) == len(cases) and replace(run.reading, directions=None) != ReadOptions():
        raise UsageError(
            f"{plain[0]} is not DICOM and has no series; leave --series, --channels, --time-point, "
            "--resample-gaps, --resample-tilt and --accept-incomplete out"
        )
    if run.settings.box is not None and (len(cases) > 1 or config.explain is not None):
        raise UsageError(
            "--box is a part of one image, and --explain looks at a whole one; give one image as --input, without --explain"
        )
    if config.seg_encoding != "binary" and not {"seg", "sr"} & set(config.formats):
        raise UsageError(f"--seg-encoding {config.seg_encoding}: no SEG is requested; add seg to --format")
