"""The worker: one study at a time, from received files to results in a folder.

    python -m monai_unet_app.service.work SITE.toml

Torch and MONAI live here and not in the node, which stays small and outlives them.
"""

import hashlib
import logging
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dicom_io.errors import DicomIoError
from dicom_io.net.destination import Profile
from dicom_io.reading.completeness import MissingImages, missing_images
from dicom_io.reading.series import SeriesRef, files_below, survey_files
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.data import selection
from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import AppError, InputRefusedError, NoRoomError, UntrainedError, without_folders
from monai_unet_app.processes import begin_program, load_monai
from monai_unet_app.service.child_processes import PARTIAL, Message, end_with_parent, serve
from monai_unet_app.service.comparing import CPU, compared
from monai_unet_app.service.models import copy_of, with_models
from monai_unet_app.service.observed import observed
from monai_unet_app.service.result_folder import digest_of, variant_of, variants
from monai_unet_app.service.rows import NewResult, is_drawn, state_of
from monai_unet_app.service.rule_checks import check_bundles, check_program_rule, check_rule
from monai_unet_app.service.site import Rule, Site
from monai_unet_app.service.site_file import read_site
from monai_unet_app.service.uploads import images_of

if TYPE_CHECKING:
    from dicom_io.volume import Volume
    from monai_unet_app.bundle import Bundle
    from monai_unet_app.external import ExternalBundle
    from monai_unet_app.gathering import Keep
    from monai_unet_app.pipeline import Case

UNTRAINED = 3
"""Exit code of `--check` where a bundle has no weights."""

_SHARE_OF_LIMIT = 0.95  # of a worker's memory that a plan may take: the node ends a worker that takes more than all
_MOST_LISTED = 8  # series in the reason why no series of a study was picked


@dataclass(frozen=True)
class Task:
    """One study.

    Attributes:
        study: Folder of its instances.
        output: Folder for its results; does not exist yet.
        earlier: Folders of results of earlier versions, by "rule/series".
        waited: The wait for missing images is over: the series is segmented as it is, or refused.
    """

    study: Path
    output: Path
    earlier: dict[str, Path]
    waited: bool

    @classmethod
    def parse(cls, message: Message) -> "Task":
        """The task in a message of the node."""
        earlier = {key: Path(folder) for key, folder in message["earlier"].items()}
        return cls(Path(message["study"]), Path(message["output"]), earlier, message.get("waited", True))

    def readable(self, error: Exception) -> str:
        """What an error says, without the node's folders."""
        return without_folders(str(error), self.study, self.output.parent)


class Worker:
    """Loaded bundles, and the segmentation of studies by them: those of the rules, or those that a task was planned for."""

    def __init__(self, site: Site, device: str | None = None) -> None:
        """Loads every bundle of the site and runs its network once.

        Args:
            site: The site.
            device: What a worker before this one found for the site's `device`.

        Raises:
            AppError: A bundle cannot be loaded, or is not the bundle that the site names.
        """
        # The node, which stays small, imports this module too
        from monai_unet_app.config import PredictConfig
        from monai_unet_app.external import external_bundle
        from monai_unet_app.service.program_rules import ProgramRule

        # `LoadImage` makes all of MONAI's readers, of which this one warns when its codec is not installed. The node reads
        # DICOM by none of them. The module gives this one warning only.
        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
        self.site = site
        limit = _SHARE_OF_LIMIT * site.node.worker_gb * 1e9
        self.runs = {rule.name: PredictConfig(rule.settings, memory_limit=limit) for rule in site.rules}
        self.programs = {
            rule.name: ProgramRule(rule, site, bundle, limit)
            for rule in site.rules
            if (bundle := external_bundle(rule.bundle))
        }
        for rule in site.rules:
            if program := self.programs.get(rule.name):
                check_program_rule(rule, site, program.bundle)
                program.check_program()
        own_rules = [rule for rule in site.rules if rule.name not in self.programs]
        if own_rules and not site.registry:  # a bundle that the registry gives later may need more
            load_monai(to_segment=all(bundle_files(rule.bundle).only_segments for rule in own_rules))
        self.networks = {
            rule.name: _warm(rule, site.node.device, device) for rule in site.rules if rule.name not in self.programs
        }
        self._planned: Mapping[str, str] = {}
        self._others: dict[str, Bundle] = {}
        own = {name: program.bundle for name, program in self.programs.items()}
        self.bundles: Mapping[str, Bundle | ExternalBundle] = {**self.networks, **own}

    @property
    def device(self) -> str:
        """Of the networks."""
        return next((str(bundle.device) for bundle in self.networks.values()), self.site.node.device)

    def loaded(self) -> dict[str, dict[str, str]]:
        """Rule -> name, version and sha256 of its bundle."""
        keys = ("name", "version", "sha256")
        return {rule: {key: getattr(bundle, key) for key in keys} for rule, bundle in self.bundles.items()}

    def answer(self, message: Message) -> Message:
        """The answer to a task; never raises. A task with "slots" is a shadow's, see `comparing.compared`.

        Returns:
            {"results": [...], "seconds": ...}, each result with the fields of `NewResult`; {"broken": why} after a fault;
            {"wait": why} where memory or disk have no room now; or {"incomplete": what is missing} where the images that a
            series lacks should be waited for.
        """
        begin = time.perf_counter()
        self._planned = message.get("models", {})
        try:
            if "slots" in message:
                return compared(self, message)
            return {**self.work(Task.parse(message)), "seconds": round(time.perf_counter() - begin, 3)}
        except NoRoomError as error:
            return {"wait": f"there is no room for it: {error}"}
        except OSError as error:
            return {"wait": f"its results could not be written ({error.strerror or type(error).__name__})"}
        except Exception as error:  # a fault of ours: only its place is told, as its text may hold values of the data
            where = traceback.extract_tb(error.__traceback__)[-1]
            return {"broken": f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"}

    def work(self, task: Task) -> Message:
        """Segments the series that rules pick and writes all results or none; no result yet where images may still come."""
        images = images_of(task.study)
        series = survey_files(files_below(task.study)).series if not images else ()
        picked = self._picked(series)
        if not task.waited and (missing := _missing_images_of(series, picked)):
            return {"incomplete": missing}
        task.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=task.output.parent, prefix=PARTIAL) as partial:
            results = [self._series_result(rule, uid, series, task, Path(partial)) for rule, uid in picked]
            results += [self._image_result(image, task, Path(partial)) for image in images]
            if task.output.exists():
                shutil.rmtree(task.output)  # of an attempt whose answer the node did not record
            # A single rename for all results of the study: a kill leaves all of them or none.
            Path(partial).rename(task.output)
            Path(partial).mkdir()  # for its own removal
        results = results or [_not_processed("", "", _why_none_picked(series, self.site.rules))]
        return {"results": [asdict(result) for result in results]}

    def _picked(self, series: Sequence[SeriesRef]) -> list[tuple[Rule, str]]:
        """Each rule with the SeriesInstanceUID of each series that it picks."""
        picked = {
            (rule.name, ref.series_instance_uid): rule
            for rule in self.site.rules
            for ref in series
            if ref.kind == "image" and not misfits(rule, ref)
        }
        return [(rule, uid) for (_, uid), rule in picked.items()]

    def _series_result(self, rule: Rule, uid: str, series: Sequence[SeriesRef], task: Task, folder: Path) -> NewResult:
        """The result of a series, written to `folder`, or the reason why it was not processed."""
        name = f"{rule.name}_{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
        earlier = task.earlier.get(f"{rule.name}/{uid}")
        try:
            wanted, volume = variants(rule, self.site), read_picked(rule, uid, series)
            if program := self.programs.get(rule.name):
                verdict = program.write(volume, name, folder / name, wanted, earlier)
            else:
                verdict = self._write_variants(volume, name, folder / name, rule, wanted, earlier)
        except NoRoomError:
            raise
        except (AppError, DicomIoError) as error:
            if (folder / name).exists():  # no file of it may be sent with the notice
                shutil.rmtree(folder / name)
            result = _not_processed(rule.name, uid, task.readable(error))
            return self._add_notice(result, rule, _parts(series, uid), task, folder / name)
        return self._new_result(rule, uid, task, folder / name, verdict, volume)

    def _write_variants(
        self, volume: "Volume", name: str, folder: Path, rule: Rule, wanted: Mapping[str, Profile], earlier: Path | None
    ) -> tuple[str, str]:
        """Segments a series by the network of a rule, and writes it in each way; gives its verdict as `verdict_of`."""
        fractional = any(profile.seg_encoding == "fractional" for profile in wanted.values())
        keep: Keep = "probabilities" if rule.probabilities or fractional else "evidence"
        case = self.segment(volume, rule, keep)
        for variant, profile in wanted.items():
            _write_case(
                case,
                name,
                folder / variant,
                formats=rule.formats,
                probabilities=rule.probabilities,
                uncertainty=True,  # for the review page
                seg_encoding=profile.seg_encoding or "binary",
                empty_frames=profile.empty_frames,
                earlier_sr=earlier / variant / f"{name}_sr.dcm" if earlier else None,
            )
        return verdict_of(case)

    def _add_notice(
        self, result: NewResult, rule: Rule, parts: Sequence[SeriesRef], task: Task, folder: Path
    ) -> NewResult:
        """A result that was not processed, with a notice about it in `folder` where the rule wants that."""
        folders = {folder / variant_of(self.site.destinations[name]) for name in self.site.noticed(rule)}
        try:
            for variant in folders:
                variant.mkdir(parents=True)
                self._write_notice(result.reason, rule, parts, variant / f"{folder.name}_notice.dcm")
        except DicomIoError as error:
            shutil.rmtree(folder)
            reason = f"{result.reason}; and no notice could be written: {task.readable(error)}"
            return replace(result, reason=reason)
        if not folders:
            return result
        return replace(result, folder=f"{task.output.name}/{folder.name}", digest=digest_of(folder))

    def _write_notice(self, reason: str, rule: Rule, parts: Sequence[SeriesRef], path: Path) -> None:
        from dicom_io.capture import write_notice
        from dicom_io.objects.identity import ResultInfo

        images = [part for part in parts if part.kind == "image"]
        about = f"rule {rule.name}, {sum(part.frame_count for part in images)} image(s) had come"
        bundle = self.bundles[rule.name]
        made_by = ResultInfo(bundle.segments, bundle.name, bundle.version, bundle.sha256)
        write_notice([file for part in images for file in part.files], reason, path, made_by, about=about)

    def _image_result(self, image: Path, task: Task, folder: Path) -> NewResult:
        """The result of a NIfTI image, for the rule whose name its folder has; it is fetched, not sent."""
        name = image.parent.name
        rule = self.site.rule(name)
        if rule is None:
            return _not_processed(name, "", "the site no longer has this rule")
        if rule.name in self.programs:
            return _not_processed(name, "", "its bundle starts a program, which takes no image that comes over HTTP")
        try:
            case = self.segment(image, rule)
            _write_case(case, name, folder / name, formats=("nifti",))
        except NoRoomError:
            raise
        except AppError as error:
            return _not_processed(name, "", task.readable(error))
        return self._new_result(rule, "", task, folder / name, verdict_of(case), case.image)

    def _new_result(
        self, rule: Rule, series: str, task: Task, folder: Path, judged: tuple[str, str], image: "Volume"
    ) -> NewResult:
        """The result that was written to `folder`, with verdict and reasons; `series` is empty for a NIfTI image."""
        (verdict, reason), name = judged, f"{task.output.name}/{folder.name}"
        digest = digest_of(folder)
        drawn = is_drawn(verdict, digest, rule.review_share)
        state = state_of(verdict, hold_review=rule.hold_review, ungated=rule.deliver_ungated, drawn=drawn)
        document = json_of(min(folder.rglob("*_result.json")))
        files = image.provenance.files if series else ()
        bundle = self.bundle_of(rule)
        seen: dict[str, Any] = {
            "bundle": bundle.sha256,
            "model": {"name": bundle.name, "version": bundle.version},
            "processor_s": document["seconds"].get(CPU, 0.0),
            **observed(image, next(iter(files), None), document),
        }
        if drawn:
            reason, seen["drawn"] = "drawn at random for review", rule.review_share
        return NewResult(rule.name, series, name, state, verdict, reason, digest, observed=seen, bundle=bundle.sha256)

    def bundle_of(self, rule: Rule) -> "Bundle | ExternalBundle":
        """The bundle that the present task was planned for, else that of the rule; one beside it is kept for each rule."""
        wanted, own = self._planned.get(rule.name), self.bundles[rule.name]
        if wanted in (None, own.sha256):
            return own
        if rule.name not in self._others or self._others[rule.name].sha256 != wanted:
            self._others.pop(rule.name, None)  # before the next is loaded: there is memory for two
            folder = copy_of(self.site, str(wanted))
            planned = replace(rule, bundle=str(folder), sha256=str(wanted))
            self._others[rule.name] = _warm(planned, self.site.node.device, self.device)
        return self._others[rule.name]

    def segment(self, source: "Path | Volume", rule: Rule, keep: "Keep" = "evidence") -> "Case":
        """The case of an image by the bundle of a rule, with its processor time among the `seconds`."""
        # torch comes with this import; the node imports this module too and must stay without it.
        from monai_unet_app.pipeline import segment_case

        bundle = self.bundle_of(rule)
        assert rule.name in self.networks
        begin = time.process_time()
        case = segment_case(source, cast("Bundle", bundle), self.runs[rule.name], keep=keep)
        return replace(case, seconds={**case.seconds, CPU: round(time.process_time() - begin, 3)})


def _write_case(case: "Case", name: str, folder: Path, **options: Any) -> None:
    """Writes a case by options of `OutputConfig`. A rejected result is written too: a reviewer will see it."""
    from monai_unet_app.config import OutputConfig
    from monai_unet_app.results import write_results

    write_results(case, name, OutputConfig(deliver_rejected=True, **options), folder)


def read_picked(rule: Rule, uid: str, series: Sequence[SeriesRef]) -> "Volume":
    """The voxels of a series, or of one for each channel. Others are read too only if they show that it lacks nothing."""
    from dicom_io.channels import read_channels
    from dicom_io.read import read_series

    uids = series_of_channels(rule, uid, series)
    for one in uids:
        missing = missing_of(series, one)
        if missing and not rule.allow_incomplete:
            raise InputRefusedError(
                f"{missing.count} image(s) did not come: {missing.words}; all are needed, or a structure could be cut off; "
                "send the missing images"
            )
    if rule.channels:
        return read_channels(series, uids, accept_incomplete=rule.allow_incomplete)
    parts, missing = _parts(series, uid), missing_of(series, uid)
    # ImagesInAcquisition counts an acquisition, which may be in several series (decision 0026): a series that looks
    # incomplete alone and is whole with the others must be read with them.
    needs_others = missing is None and missing_of(parts, uid) is not None
    return read_series(
        series if needs_others else parts, series_instance_uid=uid or None, accept_incomplete=rule.allow_incomplete
    )


def _missing_images_of(series: Sequence[SeriesRef], picked: Sequence[tuple[Rule, str]]) -> str:
    """In words, what the picked series lack by their own headers, and absent channels; empty if nothing is lacking."""
    found = dict.fromkeys(uid for _, uid in picked)
    absent = []
    for rule, uid in picked:
        for name in rule.channels:
            uids = selection.series_for_channel(series, uid, rule.channels[name])
            found |= dict.fromkeys(uids)
            absent += [] if uids else [f"no series for the channel {name} came yet"]
    missing = [missing_of(series, uid) for uid in found]
    return "; ".join([*absent, *(f"{lack.count} did not come yet, {lack.words}" for lack in missing if lack)])


def series_of_channels(rule: Rule, uid: str, series: Sequence[SeriesRef]) -> tuple[str, ...]:
    """SeriesInstanceUIDs of a picked series and of those of the further channels, in the order of the rule.

    Raises:
        InputRefusedError: A channel has no series in the study, or more than one.
    """
    return (uid, *(_channel(name, rule, uid, series) for name in rule.channels))


def _channel(name: str, rule: Rule, uid: str, series: Sequence[SeriesRef]) -> str:
    """The one series of a channel. Raises InputRefusedError if there is none, or more than one."""
    uids = selection.series_for_channel(series, uid, rule.channels[name])
    if len(uids) != 1:
        raise InputRefusedError(
            f"{len(uids)} series of the study are for the channel {name}, in the frame of reference of the series that rule "
            f"{rule.name} picked; one is needed; send the missing series, or let the patterns of the channel say which is meant"
        )
    return uids[0]


def _parts(series: Sequence[SeriesRef], uid: str) -> list[SeriesRef]:
    """The parts of a DICOM series that were surveyed apart, as their images and their other objects are."""
    return [ref for ref in series if ref.series_instance_uid == uid]


def missing_of(series: Sequence[SeriesRef], uid: str) -> MissingImages | None:
    """What a series of a study lacks by its own headers; None if it lacks nothing, or its headers do not say."""
    parts = [part for part in _parts(series, uid) if part.kind == "image" and _has_slices(part)]
    missing = [lack for part in parts if (lack := missing_images(part, series))]
    return max(missing, key=lambda lack: lack.count, default=None)


def _has_slices(series: SeriesRef) -> bool:
    """Whether its images are slices, which have positions in space; photographs have none."""
    return series.frame_count > 1 or "ImagePositionPatient" in series.instances[0].header


def misfits(rule: Rule, series: SeriesRef) -> list[str]:
    """Why a rule does not pick a series, see `data.selection.misfits`."""
    return selection.misfits(series, rule.match, rule.least_instances)


def verdict_of(case: "Case") -> tuple[str, str]:
    """Verdict of the quality gate and its reasons; both empty for a case that no gate has judged."""
    return (case.assessment.verdict or "", "; ".join(case.assessment.reasons)) if case.assessment else ("", "")


def _not_processed(rule: str, series: str, reason: str) -> NewResult:
    return NewResult(rule, series, "", "not processed", "", reason, "")


def _why_none_picked(series: Sequence[SeriesRef], rules: Sequence[Rule]) -> str:
    """In words, which series came; for images also what each rule wants instead."""
    listed = ", ".join(_describe(ref, rules) for ref in series[:_MOST_LISTED])
    more = f" and {len(series) - _MOST_LISTED} more" if len(series) > _MOST_LISTED else ""
    return f"no series fits a rule; found: {listed or 'nothing'}{more}"


def _describe(series: SeriesRef, rules: Sequence[Rule]) -> str:
    kind = f"{series.modality or 'no modality'} {series.set_aside or series.kind} of {series.frame_count}"
    if series.kind != "image":
        return kind
    return f"{kind} ({'; '.join(f'{rule.name} wants ' + ' and '.join(misfits(rule, series)) for rule in rules)})"


def _warm(rule: Rule, device: str, found: str | None) -> "Bundle":
    """The loaded bundle of a rule, whose network has run once, on the site's device or on what was found for it before."""
    load_monai()
    import torch

    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.inference.engines.chooser import check_device

    bundle = replace(
        load_bundle(rule.bundle, found or device, frozenset([rule.trusted])), may_leave_device=device == "auto"
    )
    check_rule(rule, bundle)
    check_device(rule.settings, bundle.device.type)
    # Zeros of one window: the first run of a network is slow, and no study has to wait for it.
    bundle.engine(rule.settings)(torch.zeros(1, bundle.rules.channels, *bundle.windows.window, device=bundle.device))
    return bundle


def _prepare(site: Site, device: str | None) -> tuple[Callable[[Message], Message], Message]:
    worker = Worker(site, device)
    return worker.answer, {"bundles": worker.loaded(), "args": ["--device", worker.device]}


def main() -> None:
    """Serves a node until it is gone. With `--check` only checks the bundles: exit code 0, or 1 with the reason.

    The code is `UNTRAINED` where a bundle has no weights.
    """
    begin_program()
    site, others = read_site(Path(sys.argv[1])), sys.argv[2:]
    if "--check" not in others:
        if "--shadow" in others:
            others.remove("--shadow")
            end_with_parent()
        serve(lambda: _prepare(with_models(site), others[1] if others[:1] == ["--device"] else None))
    try:
        check_bundles(with_models(site))
    except UntrainedError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(UNTRAINED)
    except AppError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
