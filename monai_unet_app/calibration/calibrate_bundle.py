"""Fits the calibration of a bundle's probabilities, on subjects that neither trained nor selected it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dicom_io.volume import Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.calibration import CalibrationFit, Fitted
from monai_unet_app.config import InferenceSetting, PredictConfig, ResultSettings
from monai_unet_app.data.case_files import Row
from monai_unet_app.data.inspect import check_cases
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.monai_bridge import to_metatensor
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.evaluate.case_selection import Networks
from monai_unet_app.memory_planner import MemoryPlanner

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor

    from monai_unet_app.inference.spool import Rows

Step = Callable[[str], None]


def calibrate_bundle(
    bundle: Bundle,
    rows: Sequence[Row],
    step: Step = lambda case_id: None,
    setting: InferenceSetting = "plain",
    *,
    folds: Mapping[str, int] | None = None,
    unchecked: bool = False,
) -> Fitted:
    """Fits the bundle's calibration on these cases and writes it into its `models/fitted.json`.

    Args:
        bundle: Its `calibration` is fitted; its `calibration_tta` for the setting "tta", or that of an engine in fewer bits.
        rows: {"id", "subject", "image", "label"} of each case.
        step: Called with each case's id when the case is done.
        setting: Whether logits are taken plain, averaged over mirror images, or of an engine in fewer bits.
        folds: As `folds` of `LabelledCases`.
        unchecked: Keep a fit on few subjects without the check on subjects left out.

    Raises:
        InputRefusedError: A case cannot be used, or all are of one subject.
    """
    check_cases(rows, bundle)
    calibrate, calibration = bundle.part("calibrate"), bundle.part("calibration")
    fit = CalibrationFit(
        calibrate,
        calibration,
        bundle.outputs.name,
        bundle.root,
        rows,
        setting,
        unchecked=unchecked,
        out_of_fold=set(folds or ()),
    )
    networks, run = Networks(bundle, folds or {}), PredictConfig(ResultSettings.of_key(setting))
    for row in rows:
        fit.add(*rows_and_label(row, networks.of(row), run))
        step(row["id"])
    return fit.finish()


def check_calibrated_on(bundle: Bundle, rows: Sequence[Row]) -> None:
    """Raises InputRefusedError for cases that the bundle is not calibrated on: their record would not know them as seen."""
    seen = {row["id"]: bundle.seen_as(read_volume(row["image"])) for row in rows}
    others = [name for name, case in seen.items() if case is None or case.partition != "calibration"]
    if others:
        raise InputRefusedError(
            f"{bundle.name} is not calibrated on {len(others)} of {len(rows)} case(s): {', '.join(others[:5])}; an engine is "
            "calibrated on the same cases; run monai-unet calibrate on these without --precision first, or leave them out"
        )


def rows_and_label(row: Row, bundle: Bundle, run: PredictConfig) -> "tuple[Iterator[Rows], torch.Tensor]":
    """Logits, row by row, and label (1, *spatial) of a case on the working grid."""
    from monai_unet_app.inference.slabs import resampling_in_slabs

    volume = read_volume(row["image"])
    planner = MemoryPlanner(bundle, run, bundle.result, "evidence")
    labels = read_labels(row["label"], volume, bundle.file_values.of_row(row))
    with resampling_in_slabs():
        item = bundle.preprocessing({"image": to_metatensor(volume), "label": to_metatensor(labels)}, start=1)
    return planned_rows(planner, item["image"], volume), item["label"]


def planned_rows(planner: MemoryPlanner, image: "MetaTensor", volume: Volume) -> "Iterator[Rows]":
    """Logits of a preprocessed image (C, *spatial), row by row; what of their sums does not fit into memory waits on disk."""
    from monai_unet_app.inference.predict import predict_rows

    windows = planner.windows(image, volume)
    with planner.memory():
        yield from predict_rows(image, planner.engine, windows)
