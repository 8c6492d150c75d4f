"""One run of a packaged application: where images come from and results go, and the segmentation itself.

Two hosts say where. MONAI Deploy: HOLOSCAN_INPUT_PATH, HOLOSCAN_OUTPUT_PATH, HOLOSCAN_MODEL_PATH, HOLOSCAN_CONFIG_PATH,
relative ones below HOLOSCAN_WORKDIR. mercure: MERCURE_IN_DIR and MERCURE_OUT_DIR, which go first, with the settings in
task.json among the images. Nothing else of the environment is read here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.config import resolve_device
from monai_unet_app.data.cases import find_images, named_series
from monai_unet_app.data.schemas import write_json
from monai_unet_app.deploy.picking import Picked, pick
from monai_unet_app.deploy.settings import Settings, settings_of
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError
from monai_unet_app.results import check_flags, predict_cases

DEFAULTS = {
    "HOLOSCAN_WORKDIR": "/var/holoscan",
    "HOLOSCAN_INPUT_PATH": "/var/holoscan/input",
    "HOLOSCAN_OUTPUT_PATH": "/var/holoscan/output",
    "HOLOSCAN_MODEL_PATH": "/opt/holoscan/models",
    "HOLOSCAN_CONFIG_PATH": "/var/holoscan/app.yaml",
}
TASK, RESULT = "task.json", "result.json"
"""What mercure puts among the images, and what it looks for among the results to keep in its database."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        source: Folder with the images, or one file.
        output: Folder for the results.
        model: The bundle's folder.
        bundle_sha256: That of the bundle that was packaged.
        settings: How to segment and what to write.
        wants_result: Add a `result.json` about all cases, as mercure keeps it.
        tell: Called with what a person should know although nothing went wrong.
    """

    source: Path
    output: Path
    model: Path
    bundle_sha256: str
    settings: Settings
    wants_result: bool = False
    tell: Callable[[str], None] = field(default=lambda text: None, compare=False)

    def segment(self) -> list[dict[str, Any]]:
        """Segments and writes every case, and gives the content of each `<case>_result.json`.

        Raises:
            InputRefusedError: Some case was refused, each in a line of its own; the others are written.
            BundleError: The model is not the one that was packaged.
            UsageError: A setting that these cases do not allow.
        """
        run, what = self.settings.run, self.settings.what
        try:
            cases = find_images(self.source, named_series(run.reading))
        except InputRefusedError as error:
            raise InputRefusedError(f"{error}; mount the images at {self.source}") from error
        check_flags(cases, run, what)
        self._check_model()
        bundle = load_bundle(self.model, resolve_device(self.settings.device))
        is_named = bool(named_series(run.reading))
        picked = (
            Picked(tuple((one, run) for one in cases), ()) if is_named else pick(cases, bundle.rules, self.settings)
        )
        for line in picked.passed_by:
            self.tell(f"passed by: {line}")
        done, problems = list[dict[str, Any]](), list[str]()
        for case, how in picked.cases:
            made, wrong = predict_cases([case], bundle, how, what, self.output)
            done, problems = done + made, problems + wrong
            if not wrong:
                for line in doubts_of(made):
                    self.tell(line)
        if self.wants_result:
            told = {"passed_by": list(picked.passed_by)} if picked.passed_by else {}
            write_json({**result_of(done, problems), **told}, self.output / RESULT)
        if problems:
            raise InputRefusedError("\n".join(problems))
        return done

    def _check_model(self) -> None:
        found = bundle_files(self.model).sha256
        if found != self.bundle_sha256:
            raise BundleError(
                f"{self.model.name} has sha256 {found[:12]}; the packaged one, {self.bundle_sha256[:12]}, is needed, since a "
                "bundle is code; package the other bundle"
            )


def job_from(environment: Mapping[str, str]) -> Job:
    """The job that the environment describes.

    Raises:
        UsageError: A place is missing, or app.yaml or task.json cannot be used.
        BundleError: There is not exactly one model.
    """
    given = {name: environment.get(name) or usual for name, usual in DEFAULTS.items()}
    places = {name: Path(given["HOLOSCAN_WORKDIR"]) / place for name, place in given.items()}
    config = _read_config(places["HOLOSCAN_CONFIG_PATH"])
    levels = [("app.yaml: segmentation", config.get("segmentation") or {})]
    source, output = places["HOLOSCAN_INPUT_PATH"], places["HOLOSCAN_OUTPUT_PATH"]
    incoming = environment.get("MERCURE_IN_DIR")
    if incoming:
        source, output = Path(incoming), _results_of_mercure(environment)
        levels.append((f"{TASK}: settings", _task_settings(source)))
    return Job(
        source=source,
        output=output,
        model=_one_model(places["HOLOSCAN_MODEL_PATH"]),
        bundle_sha256=config["bundle"]["sha256"],
        settings=settings_of(*levels),
        wants_result=bool(incoming),
    )


def result_of(done: list[dict[str, Any]], problems: list[str]) -> dict[str, Any]:
    """The `result.json` of all cases; mercure is asked to tell somebody what `doubts_of` them says."""
    doubts = doubts_of(done)
    notice = {"__mercure_notification": {"text": "\n".join(doubts)}} if doubts else {}
    return {"cases": done, "problems": problems, **notice}


def doubts_of(done: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line with the reasons for each case that the quality gate did not accept, or that no quality gate has judged."""
    found = [(one["case"], one["assessment"] or _NO_ASSESSMENT) for one in done]
    return [
        f"{case}: {said['verdict'] or 'not judged'} ({'; '.join(said['reasons'])})"
        for case, said in found
        if said["verdict"] != "accept"
    ]


_NO_ASSESSMENT: dict[str, Any] = {"verdict": None, "reasons": ["no quality gate has judged this result"]}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
        _ = config["bundle"]["sha256"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path.name} cannot be used ({type(error).__name__}: {error}); the one of the package, with its bundle's sha256, "
            "is needed; start from that one"
        ) from error
    return config


def _results_of_mercure(environment: Mapping[str, str]) -> Path:
    place = environment.get("MERCURE_OUT_DIR")
    if not place:
        raise UsageError(
            "MERCURE_IN_DIR is set and MERCURE_OUT_DIR is not; a folder for the results is needed; set both"
        )
    return Path(place)


def _task_settings(folder: Path) -> Any:
    """What module and rule say: "settings" under "process" of mercure's task.json, which names one step even of several."""
    try:
        process = json.loads((folder / TASK).read_text()).get("process") or {}
        return process.get("settings") or {}
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{TASK} cannot be used ({type(error).__name__}: {error}); mercure's, with one step under process, is needed among "
            "the images; to run without settings put {} there"
        ) from error


def _one_model(folder: Path) -> Path:
    found = sorted(metadata.parents[1] for metadata in folder.glob("*/configs/metadata.json"))
    if len(found) != 1:
        raise BundleError(f"{folder} holds {len(found)} bundle(s); one is needed; render the package again")
    return found[0]
