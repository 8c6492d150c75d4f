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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_io.errors import DicomIoError
from dicom_io.net.destination import Destination
from dicom_io.reading.instances import load_dataset
from dicom_io.reading.series import SeriesRef, files_below, survey_files
from monai_unet_app.errors import AppError
from monai_unet_app.service.children import Message, serve
from monai_unet_app.service.site import Rule, Site, read_site
from monai_unet_app.service.uploads import IMAGE

if TYPE_CHECKING:
    from monai_unet_app.bundle import Bundle
    from monai_unet_app.pipeline import Case


@dataclass(frozen=True)
class Task:
    """One study.

    Attributes:
        study: Folder of its instances.
        output: Folder for its results; does not exist yet.
        earlier: Folders of results of earlier versions, by "rule/series".
    """

    study: Path
    output: Path
    earlier: dict[str, Path]

    @classmethod
    def parse(cls, message: Message) -> Task:
        earlier = {key: Path(folder) for key, folder in message["earlier"].items()}
        return cls(Path(message["study"]), Path(message["output"]), earlier)


class Worker:
    """Bundles that are loaded and warm, and what is done with a study."""

    def __init__(self, site: Site) -> None:
        """Loads every bundle of the site and runs its network once.

        Raises:
            AppError: A bundle cannot be loaded, or is not the one that the site names.
        """
        self.site = site
        self.bundles = {rule.name: _warm(rule) for rule in site.rules}

    def answer(self, message: Message) -> Message:
        """What became of a study; never raises: {"results": [...]}, {"broken": why} or {"wait": why}."""
        begin = time.perf_counter()
        try:
            return {**self.work(Task.parse(message)), "seconds": round(time.perf_counter() - begin, 3)}
        except OSError as error:
            return {"wait": f"its results could not be written ({error.strerror or type(error).__name__})"}
        except Exception as error:  # a fault of ours: it is told without what the data say
            where = traceback.extract_tb(error.__traceback__)[-1]
            return {"broken": f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"}

    def work(self, task: Task) -> Message:
        """Segments what the rules pick and writes it, all of it or nothing."""
        images = sorted(task.study.glob(f"*/{IMAGE}"))
        series = survey_files(files_below(task.study)).series if not images else ()
        task.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=task.output.parent, prefix=".partial-") as partial:
            found = list(self._results(series, task, Path(partial)))
            found += [self._image_result(image, task, Path(partial)) for image in images]
            if task.output.exists():
                shutil.rmtree(task.output)  # an attempt that nobody heard of
            Path(partial).rename(task.output)
            Path(partial).mkdir()  # for its own removal
        return {"results": found or [_not_processed("", "", _nothing_fits(series, self.site.rules))]}

    def _results(self, series: Sequence[SeriesRef], task: Task, folder: Path) -> Iterator[Message]:
        """A result, or why there is none, for each series that a rule picks; its files are all that the study has of it."""
        for rule in self.site.rules:
            picked = dict.fromkeys(one.series_instance_uid for one in series if one.kind == "image" and fits(rule, one))
            for uid in picked:
                files = [file for one in series if one.series_instance_uid == uid for file in one.files]
                yield self._result(rule, uid, files, task, folder)

    def _result(self, rule: Rule, uid: str, files: Sequence[Path], task: Task, folder: Path) -> Message:
        from dicom_io.read import read_series
        from monai_unet_app.config import PredictConfig
        from monai_unet_app.pipeline import segment_case

        try:
            case = segment_case(read_series(files), self.bundles[rule.name], PredictConfig(tta=rule.tta))
            name = f"{rule.name}_{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
            for variant, destination in variants(rule, self.site):
                self._write(case, name, rule, variant, destination, task, folder / name / variant)
        except (AppError, DicomIoError) as error:
            return _not_processed(rule.name, uid, str(error))
        return _made(rule, uid, task, folder / name, case, keep=True)

    def _image_result(self, image: Path, task: Task, folder: Path) -> Message:
        """The result of an image that came by itself, for the rule whose name its folder has; it is fetched, not sent."""
        from monai_unet_app.config import PredictConfig
        from monai_unet_app.pipeline import segment_case
        from monai_unet_app.results import OutputConfig, write_results

        rule = next((one for one in self.site.rules if one.name == image.parent.name), None)
        if rule is None:
            return _not_processed(image.parent.name, "", "the site has no such rule any more")
        run, bundle = PredictConfig(tta=rule.tta), self.bundles[rule.name]
        try:
            case = segment_case(image, bundle, run)
            write_results(
                case, rule.name, bundle, run, OutputConfig(("nifti",), deliver_rejected=True), folder / rule.name
            )
        except AppError as error:
            return _not_processed(rule.name, "", str(error))
        return _made(rule, "", task, folder / rule.name, case, keep=False)

    def _write(
        self, case: Case, name: str, rule: Rule, variant: str, destination: Destination | None, task: Task, folder: Path
    ) -> None:
        from monai_unet_app.config import PredictConfig
        from monai_unet_app.results import OutputConfig, write_results

        profile = destination.profile if destination else None
        earlier = task.earlier.get(f"{rule.name}/{case.volume.provenance.series_instance_uid}")
        what = OutputConfig(
            formats=rule.formats,
            probabilities=rule.probabilities,
            deliver_rejected=True,  # it is kept, and shown to a reviewer; whether it goes out is another matter
            seg_encoding=(profile and profile.seg_encoding) or "binary",
            empty_frames=bool(profile and profile.empty_frames),
            earlier_sr=earlier / variant / f"{name}_sr.dcm" if earlier else None,
        )
        write_results(case, name, self.bundles[rule.name], PredictConfig(tta=rule.tta), what, folder)


def fits(rule: Rule, series: SeriesRef) -> bool:
    """Whether a rule picks a series, by the header of its first instance."""
    if series.frame_count < rule.least_instances or not series.files:
        return False
    header = load_dataset(series.files[0], with_pixels=False, keywords=list(rule.match))
    return all(pattern.search(_text(header.get(keyword))) for keyword, pattern in rule.match.items())


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


def digest_of(folder: Path) -> str:
    """sha256 of a result's DICOM objects and their names; `result.json` has times in it."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.dcm")):
        found.update(f"{path.relative_to(folder)}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _text(value: Any) -> str:
    """The value of an attribute as a pattern sees it; several values with backslashes between them."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str) or not hasattr(value, "__iter__") else "\\".join(map(str, value))


def _made(rule: Rule, series: str, task: Task, folder: Path, case: Case, *, keep: bool) -> Message:
    """What is said of a result; `keep`: what the quality gate does not accept is held back."""
    verdict = (case.assessment.verdict if case.assessment else None) or ""
    is_kept = keep and (verdict == "reject" or (verdict == "review" and rule.hold_review))
    return {
        "rule": rule.name,
        "series": series,
        "folder": f"{task.output.name}/{folder.name}",
        "state": {"reject": "rejected"}.get(verdict, "held") if is_kept else "sending" if keep else "delivered",
        "verdict": verdict,
        "reason": "; ".join(case.assessment.reasons) if case.assessment else "",
        "digest": digest_of(folder),
    }


def _not_processed(rule: str, series: str, reason: str) -> Message:
    return {
        "rule": rule, "series": series, "folder": "", "state": "not processed", "verdict": "", "reason": reason, "digest": "",
    }  # fmt: skip


def _nothing_fits(series: Sequence[SeriesRef], rules: Sequence[Rule]) -> str:
    found = ", ".join(
        f"{one.modality or 'no modality'} {one.set_aside or one.kind} of {one.frame_count}" for one in series[:8]
    )
    return f"no series fits a rule ({', '.join(rule.name for rule in rules)}); found: {found or 'nothing'}"


def _warm(rule: Rule) -> Bundle:
    import torch

    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.config import resolve_device
    from monai_unet_app.inference.engines.torch_engine import TorchEngine

    bundle = load_bundle(rule.bundle, resolve_device("auto"))
    if rule.sha256 and rule.sha256 != bundle.sha256:
        raise AppError(
            f"rule {rule.name} names a bundle of sha256 {rule.sha256[:12]}..., {bundle.name} has {bundle.sha256[:12]}...; the "
            "bundle that the site has approved is needed; put it back, or approve this one in the site file"
        )
    engine = TorchEngine(bundle.network, bundle.device, bundle.slice_axis)
    engine(torch.zeros(1, bundle.rules.channels, *bundle.windows.window, device=bundle.device))
    return bundle


def main() -> None:
    """Serves a node until it is gone."""
    site = read_site(Path(sys.argv[1]))
    serve(lambda: Worker(site).answer)


if __name__ == "__main__":
    main()
