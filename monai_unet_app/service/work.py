"""The worker: one study at a time, from received files to results that wait in a folder.

    python -m monai_unet_app.service.work SITE.toml

Torch and MONAI live here and not in the node, which stays small and outlives them.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_io.errors import DicomIoError
from dicom_io.net.destination import Destination, Profile
from dicom_io.reading.completeness import MissingImages, missing_images
from dicom_io.reading.series import SeriesRef, files_below, survey_files
from monai_unet_app.data import selection
from monai_unet_app.errors import AppError, InputRefusedError, without_folders
from monai_unet_app.service.child_processes import PARTIAL, Message, serve
from monai_unet_app.service.rows import ResultState
from monai_unet_app.service.site_file import Rule, Site, read_site
from monai_unet_app.service.uploads import images_of

if TYPE_CHECKING:
    from dicom_io.volume import Volume
    from monai_unet_app.bundle import Bundle
    from monai_unet_app.bundle_folder import BundleFiles
    from monai_unet_app.pipeline import Case


_TOLD_SERIES = 8  # in the reason why nothing of a study was picked


@dataclass(frozen=True)
class Task:
    """One study.

    Attributes:
        study: Folder of its instances.
        output: Folder for its results; does not exist yet.
        waited: Images that are missing were waited for: what is there is worked at, or refused.
        earlier: Folders of results of earlier versions, by "rule/series".
    """

    study: Path
    output: Path
    earlier: dict[str, Path]
    waited: bool = True

    @classmethod
    def parse(cls, message: Message) -> Task:
        earlier = {key: Path(folder) for key, folder in message["earlier"].items()}
        return cls(Path(message["study"]), Path(message["output"]), earlier, bool(message.get("waited", True)))


class Worker:
    """Bundles that are loaded and warm, and what is done with a study."""

    def __init__(self, site: Site) -> None:
        """Loads every bundle of the site and runs its network once.

        Raises:
            AppError: A bundle cannot be loaded, or is not the one that the site names.
        """
        from monai_unet_app.config import PredictConfig

        self.site = site
        self.runs = {rule.name: PredictConfig(tta=rule.tta) for rule in site.rules}
        self.bundles = {rule.name: _warm(rule) for rule in site.rules}

    def loaded(self) -> dict[str, dict[str, str]]:
        """Rule -> name, version and sha256 of its bundle."""
        return {
            rule: {"name": one.name, "version": one.version, "sha256": one.sha256} for rule, one in self.bundles.items()
        }

    def answer(self, message: Message) -> Message:
        """What became of a study; never raises: {"results": [...]}, {"broken": why}, {"wait": why}, or {"incomplete":
        what it lacks}, where it should be waited for that."""
        begin = time.perf_counter()
        try:
            return {**self.work(Task.parse(message)), "seconds": round(time.perf_counter() - begin, 3)}
        except OSError as error:
            return {"wait": f"its results could not be written ({error.strerror or type(error).__name__})"}
        except Exception as error:  # a fault of ours: it is told without what the data say
            where = traceback.extract_tb(error.__traceback__)[-1]
            return {"broken": f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"}

    def work(self, task: Task) -> Message:
        """Segments what the rules pick and writes it, all of it or nothing; nothing yet where images may still come."""
        images = images_of(task.study)
        series = survey_files(files_below(task.study)).series if not images else ()
        if not task.waited and (lacks := self._lacking(series)):
            return {"incomplete": lacks}
        task.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=task.output.parent, prefix=PARTIAL) as partial:
            found = list(self._results(series, task, Path(partial)))
            found += [self._image_result(image, task, Path(partial)) for image in images]
            if task.output.exists():
                shutil.rmtree(task.output)  # an attempt that nobody heard of
            Path(partial).rename(task.output)
            Path(partial).mkdir()  # for its own removal
        return {"results": found or [_not_processed("", "", _nothing_fits(series, self.site.rules))]}

    def _picked(self, series: Sequence[SeriesRef]) -> Iterator[tuple[Rule, str]]:
        """Each rule with the SeriesInstanceUID of each series that it picks."""
        for rule in self.site.rules:
            for uid in dict.fromkeys(
                one.series_instance_uid for one in series if one.kind == "image" and fits(rule, one)
            ):
                yield rule, uid

    def _lacking(self, series: Sequence[SeriesRef]) -> str:
        """In words, what series that a rule picks lack by their own headers; empty if nothing."""
        lacks = [missing_of(series, uid) for uid in dict.fromkeys(uid for _, uid in self._picked(series))]
        return "; ".join(f"{one.count} did not come yet, {one.words}" for one in lacks if one)

    def _results(self, series: Sequence[SeriesRef], task: Task, folder: Path) -> Iterator[Message]:
        """A result, or why there is none, for each series that a rule picks; its files are all that the study has of it."""
        for rule, uid in self._picked(series):
            yield self._result(rule, uid, series, task, folder)

    def _volume(self, rule: Rule, uid: str, series: Sequence[SeriesRef]) -> Volume:
        """The voxels of a series; others are read with it only where they show that it lacks nothing."""
        from dicom_io.read import read_series

        parts = [one for one in series if one.series_instance_uid == uid]
        missing = missing_of(series, uid)
        if missing and not rule.allow_incomplete:
            raise InputRefusedError(
                f"{missing.count} image(s) did not come: {missing.words}; all are needed, or a structure could be cut off; "
                "send the missing ones"
            )
        needs_others = missing is None and missing_of(parts, uid) is not None
        return read_series(
            series if needs_others else parts, series_instance_uid=uid or None, accept_incomplete=rule.allow_incomplete
        )

    def _result(self, rule: Rule, uid: str, series: Sequence[SeriesRef], task: Task, folder: Path) -> Message:
        parts = [one for one in series if one.series_instance_uid == uid]
        name = f"{rule.name}_{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
        earlier = task.earlier.get(f"{rule.name}/{uid}")
        try:
            case = self._segmented(self._volume(rule, uid, series), rule)
            for variant, destination in variants(rule, self.site):
                profile = destination.profile if destination else Profile()
                self._write(
                    case,
                    name,
                    rule,
                    folder / name / variant,
                    formats=rule.formats,
                    probabilities=rule.probabilities,
                    seg_encoding=profile.seg_encoding or "binary",
                    empty_frames=profile.empty_frames,
                    earlier_sr=earlier / variant / f"{name}_sr.dcm" if earlier else None,
                )
        except (AppError, DicomIoError) as error:
            if (folder / name).exists():  # nothing of it may go out with a notice
                shutil.rmtree(folder / name)
            return self._noticed(_not_processed(rule.name, uid, _said(error, task)), rule, parts, task, folder / name)
        return _made(rule, uid, task, folder / name, case)

    def _noticed(self, said: Message, rule: Rule, parts: Sequence[SeriesRef], task: Task, folder: Path) -> Message:
        """What is said of a series that was not processed, with a notice of it where the rule wants that."""
        wanted = {variant_of(self.site.destinations[name]) for name in self.site.noticed(rule)}
        try:
            for variant in wanted:
                (folder / variant).mkdir(parents=True)
                self._write_notice(said["reason"], rule, parts, folder / variant / f"{folder.name}_notice.dcm")
        except DicomIoError as error:
            shutil.rmtree(folder)
            return {**said, "reason": f"{said['reason']}; and no notice of it could be written: {_said(error, task)}"}
        if not wanted:
            return said
        return {**said, "folder": f"{task.output.name}/{folder.name}", "digest": digest_of(folder)}

    def _write_notice(self, reason: str, rule: Rule, parts: Sequence[SeriesRef], path: Path) -> None:
        from dicom_io.capture import write_notice
        from dicom_io.objects.identity import ResultInfo

        bundle, images = self.bundles[rule.name], [one for one in parts if one.kind == "image"]
        about = f"rule {rule.name}, {sum(one.frame_count for one in images)} image(s) had come"
        made_by = ResultInfo(bundle.segments, bundle.name, bundle.version, bundle.sha256)
        write_notice([file for one in images for file in one.files], reason, path, made_by, about=about)

    def _image_result(self, image: Path, task: Task, folder: Path) -> Message:
        """The result of an image that came by itself, for the rule whose name its folder has; it is fetched, not sent."""
        name = image.parent.name
        rule = self.site.rule(name)
        if rule is None:
            return _not_processed(name, "", "the site has no such rule any more")
        try:
            case = self._segmented(image, rule)
            self._write(case, name, rule, folder / name, formats=("nifti",))
        except AppError as error:
            return _not_processed(name, "", _said(error, task))
        return _made(rule, "", task, folder / name, case)

    def _segmented(self, source: Path | Volume, rule: Rule) -> Case:
        from monai_unet_app.pipeline import segment_case

        return segment_case(source, self.bundles[rule.name], self.runs[rule.name])

    def _write(self, case: Case, name: str, rule: Rule, folder: Path, **what: Any) -> None:
        """Writes what is wanted, as `OutputConfig` calls it. A rejected result too: it is kept, and shown to a reviewer."""
        from monai_unet_app.config import OutputConfig
        from monai_unet_app.results import write_results

        wanted = OutputConfig(deliver_rejected=True, **what)
        write_results(case, name, wanted, folder)


def missing_of(series: Sequence[SeriesRef], uid: str) -> MissingImages | None:
    """What a series of a study lacks by its own headers; None if nothing, or they do not say."""
    parts = [one for one in series if one.series_instance_uid == uid and one.kind == "image" and _is_placed(one)]
    return max(filter(None, (missing_images(one, series) for one in parts)), key=lambda one: one.count, default=None)


def _is_placed(series: SeriesRef) -> bool:
    """Whether its images are slices, which have a place beside each other; photographs have none."""
    return series.frame_count > 1 or "ImagePositionPatient" in series.instances[0].header


def fits(rule: Rule, series: SeriesRef) -> bool:
    """Whether a rule picks a series."""
    return not misfits(rule, series)


def misfits(rule: Rule, series: SeriesRef) -> list[str]:
    """What of a series a rule does not pick, see `data.selection.misfits`."""
    return selection.misfits(series, rule.match, rule.least_instances)


def variants(rule: Rule, site: Site) -> list[tuple[str, Destination | None]]:
    """How a result is to be written: once for each way in which a destination wants its SEG, with one that wants it so."""
    found: dict[str, Destination | None] = {}
    for name in rule.destinations:
        found.setdefault(variant_of(site.destinations[name]), site.destinations[name])
    return list(found.items()) or [("binary", None)]


def variant_of(destination: Destination) -> str:
    """Name of the folder with what is written for a destination."""
    profile = destination.profile
    return (profile.seg_encoding or "binary") + ("-all-frames" if profile.empty_frames else "")


def result_files(folder: Path) -> list[Path]:
    """A result's DICOM objects, or else its NIfTI files."""
    return sorted(folder.rglob("*.dcm")) or sorted(folder.rglob("*.nii.gz"))


def digest_of(folder: Path) -> str:
    """sha256 of a result's DICOM objects and their names, or else of its NIfTI files; `result.json` has times in it."""
    found = hashlib.sha256()
    for path in result_files(folder):
        found.update(f"{path.relative_to(folder)}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def state_of(verdict: str, rule: Rule) -> ResultState:
    """The state of a new result: what the quality gate does not accept is kept back, whatever way its image came."""
    if verdict == "reject":
        return "rejected"
    return "held" if verdict == "review" and rule.hold_review else "sending"


def _made(rule: Rule, series: str, task: Task, folder: Path, case: Case) -> Message:
    """What is said of a result; `series` is empty for that of an image that came by itself."""
    verdict = (case.assessment.verdict if case.assessment else None) or ""
    return {
        "rule": rule.name,
        "series": series,
        "folder": f"{task.output.name}/{folder.name}",
        "state": state_of(verdict, rule),
        "verdict": verdict,
        "reason": "; ".join(case.assessment.reasons) if case.assessment else "",
        "digest": digest_of(folder),
    }


def _said(error: Exception, task: Task) -> str:
    return without_folders(str(error), task.study, task.output.parent)


def _not_processed(rule: str, series: str, reason: str) -> Message:
    return {
        "rule": rule, "series": series, "folder": "", "state": "not processed", "verdict": "", "reason": reason, "digest": "",
    }  # fmt: skip


def _nothing_fits(series: Sequence[SeriesRef], rules: Sequence[Rule]) -> str:
    """In words; a series that might have been picked by a rule is told with what that rule wants."""
    found = ", ".join(_told_of(one, rules) for one in series[:_TOLD_SERIES])
    more = f" and {len(series) - _TOLD_SERIES} more" if len(series) > _TOLD_SERIES else ""
    return f"no series fits a rule; found: {found or 'nothing'}{more}"


def _told_of(one: SeriesRef, rules: Sequence[Rule]) -> str:
    what = f"{one.modality or 'no modality'} {one.set_aside or one.kind} of {one.frame_count}"
    if one.kind != "image":
        return what
    return f"{what} ({'; '.join(f'{rule.name} wants ' + ' and '.join(misfits(rule, one)) for rule in rules)})"


def check_bundles(site: Site) -> None:
    """Whether every bundle of the site is there and the one that its rule names; none is loaded.

    Raises:
        AppError: One is not.
    """
    from monai_unet_app.bundle_folder import bundle_files

    for rule in site.rules:
        found = bundle_files(rule.bundle)
        _check_approved(rule, found)
        check_gated(rule, found)


def _check_approved(rule: Rule, found: BundleFiles) -> None:
    if rule.sha256 and rule.sha256 != found.sha256:
        raise AppError(
            f"rule {rule.name} names a bundle of sha256 {rule.sha256[:12]}..., {found.name} has {found.sha256[:12]}...; "
            "the bundle that the site has approved is needed; put it back, or approve this one in the site file"
        )


def check_gated(rule: Rule, found: BundleFiles) -> None:
    """Whether the bundle has a quality gate for the rule's results, or the site says that none is wanted.

    Raises:
        AppError: There is none, and the rule does not say `deliver_ungated = true`; or its statements cannot be used.
    """
    from monai_unet_app.confidence.statements import read_confidence

    if rule.deliver_ungated:
        return
    stated = read_confidence(found, "tta" if rule.tta else "plain")
    if stated.gate is None and rule.tta and not _has_mirror_images(found):
        stated = read_confidence(found, "plain")
    if stated.gate is None:
        how, flag = ("with tta = true", " with --tta") if rule.tta else ("as its rule wants it", "")
        raise AppError(
            f"rule {rule.name}: {found.name} run {how} has no quality gate ({stated.why_not.get('gate', 'none')}); "
            f"without one, failures would be delivered like good results; calibrate the bundle{flag} on enough subjects, or "
            "write deliver_ungated = true into the rule if results shall go out that no quality gate has judged"
        )


def _has_mirror_images(found: BundleFiles) -> bool:
    from monai_unet_app.bundle import load_bundle

    return bool(load_bundle(found.root).mirror_axes)


def _warm(rule: Rule) -> Bundle:
    import torch

    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.config import resolve_device
    from monai_unet_app.inference.engines.torch_engine import TorchEngine

    bundle = load_bundle(rule.bundle, resolve_device("auto"))
    _check_approved(rule, bundle)
    check_gated(rule, bundle)
    engine = TorchEngine(bundle.network, bundle.device, bundle.slice_axis)
    engine(torch.zeros(1, bundle.rules.channels, *bundle.windows.window, device=bundle.device))
    return bundle


def _serve(site: Site) -> None:
    made: list[Worker] = []

    def prepare() -> Callable[[Message], Message]:
        made.append(Worker(site))
        return made[0].answer

    serve(prepare, lambda: {"bundles": made[0].loaded()})


def main() -> None:
    """Serves a node until it is gone; with `--check` says whether the bundles are the right ones: exit 0, or 1 and why."""
    site = read_site(Path(sys.argv[1]))
    if "--check" not in sys.argv:
        _serve(site)
        return
    try:
        check_bundles(site)
    except AppError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
