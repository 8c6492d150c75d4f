"""A bundle whose own network is the mean of the networks of its folds: no further training, five times the time of a result."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from monai_unet_app.bundle import Bundle
from monai_unet_app.bundle_folder import WEIGHTS, BundleFiles
from monai_unet_app.calibration.fitted import change_fitted
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import BundleError
from monai_unet_app.training.checkpoints import forget_figures, has_weights, save_atomically
from monai_unet_app.training.record import SCHEMA_VERSION, Cases, identity_of_data
from monai_unet_app.weights import load_checkpoint

_NEEDED = ("folds: \"$@fitted['folds']['number']\"", "of_fold: {folds: 1}")


def check_takes_ensemble(bundle: BundleFiles) -> None:
    """Raises BundleError if a bundle's `inference.yaml` does not read from fitted.json how many networks it has."""
    config = bundle.inference_document
    if "@fitted" not in str(config.get("folds")) or "folds" not in (config.get("of_fold") or {}):
        raise BundleError(
            f"{bundle.name}: inference.yaml does not read how many networks answer together; {' and '.join(_NEEDED)} are "
            "needed, with `network_def`, `mean` and `evaluator` as in a bundle of monai-unet plan; take them over from one, or "
            "give --deliver all-data"
        )


def deliver_ensemble(bundle: Bundle, folds: Sequence[int], cases: Cases) -> None:
    """Makes the mean of the networks of these folds the bundle's own network: its weights, their number and record.

    A calibration and figures of other weights are removed. The same ensemble is not delivered twice.

    Args:
        bundle: Its folds are trained.
        folds: Their numbers, in the order of the networks.
        cases: By partition, as a training on all data would take them: what any fold trained on is in "train".

    Raises:
        BundleError: As `check_takes_ensemble`.
    """
    check_takes_ensemble(bundle)
    trained = [bundle.of_fold(fold) for fold in folds]
    states = [load_checkpoint(fold.weights) for fold in trained]
    several = bundle.of_fold(folds[0]).part("count") > 1
    weights = dict(side_by_side(states, several=several))
    model = bundle.root / WEIGHTS
    if not (bundle.is_ensemble and has_weights(model, weights)):
        # A crash leaves a bundle without weights, never weights beside the numbers of others; the same command mends it
        model.unlink(missing_ok=True)
        forget_figures(bundle.root)
        why = f"the mean of the networks of folds {', '.join(map(str, folds))}"
        change_fitted(bundle.root, "folds", number=len(folds), why=why)
        save_atomically(weights, model)
    write_json({**_record(trained, cases), "weights_sha256": file_sha256(model)}, model.with_name("run.json"), "run")


def side_by_side(states: Sequence[Mapping[str, torch.Tensor]], *, several: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of all folds under the names that one `ModuleList` gives them; `several`: a fold has a list of its own."""
    begins = 0
    for state in states:
        for name, value in state.items():
            number, _, rest = name.partition(".") if several else ("0", "", name)
            yield f"{begins + int(number)}.{rest}", value
        begins += 1 + max(int(name.partition(".")[0]) for name in state) if several else 1


def forget_ensemble(root: Path) -> None:
    """Takes an ensemble out of a bundle, and removes its weights and what was measured of them."""
    if BundleFiles(root).is_ensemble:
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
