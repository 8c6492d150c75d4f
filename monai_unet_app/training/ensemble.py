"""A bundle whose own network is the mean of the networks of its folds: no further training, five times the time of a result."""

from collections.abc import Sequence
from pathlib import Path

import torch

from monai_unet_app.bundle import Bundle
from monai_unet_app.calibration.inference_yaml import read_text, write_text
from monai_unet_app.data.schemas import write_json
from monai_unet_app.training.checkpoints import INFERENCE, forget_figures, has_weights, save_atomically
from monai_unet_app.training.ensemble_yaml import ensemble_texts, is_ensemble, write_single
from monai_unet_app.training.record import SCHEMA_VERSION, Cases, identity_of_data


def deliver_ensemble(bundle: Bundle, folds: Sequence[int], cases: Cases) -> None:
    """Makes the mean of the networks of these folds the bundle's own network: its configs, weights and record.

    A calibration and figures of other weights are removed. The same ensemble is not delivered twice.

    Args:
        bundle: Its folds are trained.
        folds: Their numbers, in the order of the networks.
        cases: By partition, as a training on all data would take them: what any fold trained on is in "train".

    Raises:
        BundleError: The configs are not written as `monai-unet plan` writes them.
    """
    trained = [bundle.of_fold(fold) for fold in folds]
    weights = {
        f"{number}.{name}": value
        for number, fold in enumerate(trained)
        for name, value in torch.load(fold.weights_dir / "model.pt", map_location="cpu", weights_only=True).items()
    }
    model = bundle.root / "models/model.pt"
    if not (is_ensemble(read_text(bundle.root / INFERENCE)) and has_weights(model, weights)):
        # A crash leaves a bundle without weights, never weights beside the configs of others; the same command mends it
        model.unlink(missing_ok=True)
        forget_figures(bundle.root)
        for path, text in ensemble_texts(bundle.root, len(trained)).items():
            write_text(path, text)
        save_atomically(weights, model)
    write_json(_record(trained, cases), model.with_name("run.json"), "run")


def forget_ensemble(root: Path) -> None:
    """Takes an ensemble out of a bundle's configs, and removes its weights and what was measured of them."""
    if write_single(root):
        for name in ("model.pt", "run.json"):
            (root / "models" / name).unlink(missing_ok=True)
        forget_figures(root)


def _record(folds: Sequence[Bundle], cases: Cases) -> dict[str, object]:
    """The document run.json of the mean of these networks."""
    records = [fold.run_record for fold in folds]
    return {
        "schema_version": SCHEMA_VERSION,
        **identity_of_data(cases),
        "settings": {**records[0]["settings"], "fold": [fold.fold for fold in folds]},
        "recipe_sha256": records[0]["recipe_sha256"],
        "epochs_done": min(record["epochs_done"] for record in records),
        "best": {"epoch": 0, "metric": None},
        "history": [],
        "sessions": [session for record in records for session in record["sessions"]],
    }
