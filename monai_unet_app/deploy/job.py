"""One run of a packaged application: the source of the images, the folder for the results, and the segmentation itself.

Two hosts set the folders. MONAI Deploy sets HOLOSCAN_INPUT_PATH, HOLOSCAN_OUTPUT_PATH, HOLOSCAN_MODEL_PATH and
HOLOSCAN_CONFIG_PATH, relative to HOLOSCAN_WORKDIR. mercure sets MERCURE_IN_DIR and MERCURE_OUT_DIR, which take precedence, and
puts the settings in task.json among the images. No other environment variable is read here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from monai_unet_app.bundle import load_bundle
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.cohort import check_flags, predict_cases
from monai_unet_app.consent import code_digest
from monai_unet_app.data.case_files import find_images, named_series
from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.deploy.picking import Picked, pick
from monai_unet_app.deploy.settings import Settings, image_paths, settings_of
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError

TASK, RESULT = "task.json", "result.json"
"""The file that mercure puts among the images, and the file among the results that it keeps in its database."""


@dataclass(frozen=True)
class ApplicationJob:
    """One run.

    Attributes:
        source: Folder with the images, or one file.
        output: Folder for the results.
        model: The bundle's folder.
        bundle_sha256: Digest of the packaged bundle.
        settings: How to segment and what to write.
        wants_result: Add a `result.json` about all cases, for mercure's database.
        tell: Called with messages that a person should read although no case failed.
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
            InputRefusedError: At least one case was refused, with a line for each; all other cases are written.
            BundleError: The model is not the packaged bundle.
            UsageError: These cases do not allow one of the settings.
        """
        run, config = self.settings.run, self.settings.output_config
        try:
            cases = find_images(self.source, named_series(run.reading))
        except InputRefusedError as error:
            raise InputRefusedError(f"{error}; mount the images at {self.source}") from error
        # Settings are checked before the model is loaded, which takes seconds.
        check_flags(cases, run, config)
        # A bundle is code: its digest is compared before anything in it is loaded.
        self._check_model()
        # Whoever built the package agreed to its code
        bundle = load_bundle(self.model, self.settings.device, frozenset([code_digest(self.model)]))
        if named_series(run.reading):
            picked = Picked(tuple((case, run) for case in cases), ())
        else:
            picked = pick(cases, bundle.rules, self.settings)
        for line in picked.passed_by:
            self.tell(f"ignored: {line}")
        done, problems = list[dict[str, Any]](), list[str]()
        # Each case is read in its own way: `case_run` names its series.
        for case, case_run in picked.cases:
            documents, refused = predict_cases([case], bundle, case_run, config, self.output)
            done, problems = done + documents, problems + refused
            for line in doubts_of(documents) if not refused else ():
                self.tell(line)
        # Written before the problems are raised, so that mercure also has the record of a job with refused cases.
        if self.wants_result:
            passed_by = {"passed_by": list(picked.passed_by)} if picked.passed_by else {}
            write_json({**result_of(done, problems), **passed_by}, self.output / RESULT)
        if problems:
            raise InputRefusedError("\n".join(problems))
        return done

    def _check_model(self) -> None:
        sha256 = bundle_files(self.model).sha256
        if sha256 != self.bundle_sha256:
            raise BundleError(
                f"{self.model.name} has sha256 {sha256[:12]}; the packaged one, {self.bundle_sha256[:12]}, is needed, since a "
                "bundle is code; package the other bundle"
            )


def job_from(environment: Mapping[str, str]) -> ApplicationJob:
    """The job that the environment describes.

    Raises:
        UsageError: A folder is not set, or app.yaml or task.json cannot be used.
        BundleError: The folder of models does not hold exactly one model.
    """
    defaults = image_paths()

    def path_of(name: str) -> Path:
        workdir, path = (environment.get(key) or defaults[key] for key in ("HOLOSCAN_WORKDIR", name))
        return Path(workdir, path)

    config = _read_config(path_of("HOLOSCAN_CONFIG_PATH"))
    levels = [("app.yaml: segmentation", config.get("segmentation") or {})]
    source, output = path_of("HOLOSCAN_INPUT_PATH"), path_of("HOLOSCAN_OUTPUT_PATH")
    incoming = environment.get("MERCURE_IN_DIR")
    if incoming:
        source, output = Path(incoming), _results_of_mercure(environment)
        # The later level overrides: the site chose these settings for its rule, the package only for the bundle.
        levels.append((f"{TASK}: settings", _task_settings(source)))
    return ApplicationJob(
        source=source,
        output=output,
        model=_only_model(path_of("HOLOSCAN_MODEL_PATH")),
        bundle_sha256=config["bundle"]["sha256"],
        settings=settings_of(*levels),
        wants_result=bool(incoming),
    )


def result_of(done: list[dict[str, Any]], problems: list[str]) -> dict[str, Any]:
    """The `result.json` of all cases; it asks mercure to notify a person of `doubts_of` the cases."""
    doubts = doubts_of(done)
    notice = {"__mercure_notification": {"text": "\n".join(doubts)}} if doubts else {}
    return {"cases": done, "problems": problems, **notice}


def doubts_of(done: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line with the reasons for each case that the quality gate did not accept, or that no quality gate has judged."""
    assessments = [(document["case"], document["assessment"] or _NO_ASSESSMENT) for document in done]
    return [
        f"{case}: {assessment['verdict'] or 'not judged'} ({'; '.join(assessment['reasons'])})"
        for case, assessment in assessments
        if assessment["verdict"] != "accept"
    ]


_NO_ASSESSMENT: dict[str, Any] = {"verdict": None, "reasons": ["no quality gate has judged this result"]}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = yaml.safe_load(path.read_bytes())
        _ = config["bundle"]["sha256"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path.name} cannot be used ({type(error).__name__}: {error}); an app.yaml with the sha256 of the bundle is "
            "needed; start from the app.yaml of the package"
        ) from error
    return config


def _results_of_mercure(environment: Mapping[str, str]) -> Path:
    folder = environment.get("MERCURE_OUT_DIR")
    if not folder:
        raise UsageError(
            "MERCURE_IN_DIR is set but MERCURE_OUT_DIR is not; a folder for the results is needed; set both"
        )
    return Path(folder)


def _task_settings(folder: Path) -> Any:
    """The settings of module and rule: "settings" under "process" of mercure's task.json, which always describes one step."""
    try:
        process = json_of(folder / TASK).get("process") or {}
        return process.get("settings") or {}
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{TASK} cannot be used ({type(error).__name__}: {error}); the {TASK} of mercure, with one step under process, is "
            "needed among the images; to run without settings, put {} into it"
        ) from error


def _only_model(folder: Path) -> Path:
    models = sorted(metadata.parents[1] for metadata in folder.glob("*/configs/metadata.json"))
    if len(models) != 1:
        raise BundleError(f"{folder} holds {len(models)} bundle(s); one is needed; render the package again")
    return models[0]
