"""A trained folder of nnU-Net v2 (`nnUNetTrainer__nnUNetPlans__3d_fullres`) as a bundle that gives nnU-Net's own labels.

plans.json, dataset.json     what nnU-Net planned, and its labels; copied into configs/ as they are
fold_N/checkpoint_final.pth  of which the weights, the trainer's name, the configuration and the mirrored axes are taken
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import aff2axcodes

from monai_unet_app.bundle import Bundle
from monai_unet_app.calibration.fitted import change_fitted
from monai_unet_app.data.case_files import CaseFiles, case_id, find_data
from monai_unet_app.data.cases import data_row, nnunet_folds_of, subjects_of
from monai_unet_app.data.datalist import LabelFacts, facts_of, modality_of, read_dataset_json
from monai_unet_app.data.digest import dataset_sha256, file_sha256, seen_entry
from monai_unet_app.data.read import read_volume
from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.data.splits import Partition, SplitCase, read_nnunet_folds
from monai_unet_app.data.structures import StatedStructure
from monai_unet_app.errors import InputRefusedError, UsageError, first_line
from monai_unet_app.planning.write import OF_OTHERS, metadata, whole_folder, write_files
from monai_unet_app.training.ensemble import side_by_side
from monai_unet_app.training.identity import write_card
from monai_unet_app.weights import unwrapped

CHECKPOINT = "checkpoint_final.pth"
PLANS, DATASET = "plans.json", "dataset.json"
_NETWORKS = {
    f"dynamic_network_architectures.architectures.unet.{name}": name
    for name in ("PlainConvUNet", "ResidualEncoderUNet")
}
_SCHEMES = (
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
_TRAINERS = re.compile(
    r"nnUNetTrainer(_\d+epochs?(_NoMirroring)?|_DASegOrd0(_NoMirroring)?|_onlyMirror01(_1500ep|_DA5|_DASegOrd0)?|_noDummy2DDA|"
    r"_probabilisticOversampling(_010|_033)?|_warmup|Adam(1en3|3en4)?|Adan(1en1|1en3|3en4|CosAnneal)?|CosAnneal|"
    r"VanillaAdam(1en3|3en4)?|Benchmark_5epochs(_noDataLoading)?|CELoss(_5epochs)?|DiceCELoss_noSmooth|DiceLoss|DiceTopK10Loss|"
    r"Topk10Loss(LS01)?|DA5(Segord0|ord0|_10epochs)?|NoDA|NoDeepSupervision|NoMirroring)?"
)
"""Those of nnU-Net 2.8 that build the network which plans.json says."""

_RESAMPLING = "resample_data_or_seg_to_shape"
_PICTURES, _REORIENTED = "NaturalImage2DIO", "NibabelIOWithReorient"
_OF_THE_NETWORK = (
    "spacing", "patch_size", "normalization_schemes", "use_mask_for_norm", "architecture", "resampling_fn_data_kwargs",
)  # fmt: skip
_OF_THE_DATA = ("transpose_forward", "transpose_backward", "foreground_intensity_properties_per_channel")
_READERS = ("SimpleITKIO", "NibabelIO", _REORIENTED, _PICTURES)
# What nnU-Net's records of a training hold beside tensors, under the names of numpy 1 and 2
_NUMBERS: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32))]
_NUMBERS += [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


@dataclass(frozen=True)
class Import:
    """A trained folder of nnU-Net, and what of it becomes a bundle.

    Attributes:
        results: The folder with plans.json, dataset.json and fold_N/.
        output: The new bundle.
        folds: Names of the folds whose networks answer together ("0", "all"); () takes `fold_all`, else all that there are.
        checkpoint: Name of the file in each fold.
        mirroring: The answer to a window is the mean over its mirror images, as nnU-Net predicts by default.
        data: The labelled cases that trained it, an nnU-Net raw folder; None where they are not at hand. The bundle then knows
            no case as seen.
        splits: nnU-Net's `splits_final.json`; None for that beside the data, else for the names in `fold_N/validation`.
    """

    results: Path
    output: Path
    folds: tuple[str, ...] = ()
    checkpoint: str = CHECKPOINT
    mirroring: bool = True
    data: Path | None = None
    splits: Path | None = None


@dataclass(frozen=True)
class Results:
    """What a trained folder says.

    Attributes:
        plans: plans.json.
        dataset: dataset.json.
        facts: Names and regions of its labels, and its channels.
        checkpoints: What each fold keeps, by its name.
        delivered: Names of the folds whose networks answer together.
    """

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    facts: LabelFacts
    checkpoints: Mapping[str, Mapping[str, Any]]
    delivered: tuple[str, ...]

    @property
    def crossed(self) -> list[str]:
        """Folds whose networks also stand by themselves, to answer for the cases that they have not seen."""
        return [fold for fold in self.checkpoints if fold != "all"] if len(self.checkpoints) > 1 else []

    @cached_property
    def first(self) -> Mapping[str, Any]:
        """The checkpoint that says configuration, trainer and mirrored axes."""
        return next(iter(self.checkpoints.values()))

    @property
    def configuration_name(self) -> str:
        """Such as "3d_fullres"."""
        return str(self.first["init_args"]["configuration"])

    @cached_property
    def configuration(self) -> Mapping[str, Any]:
        """The entry of plans.json, with what it inherits."""
        known, name = self.plans["configurations"], self.configuration_name
        values: dict[str, Any] = {}
        while name:
            values = {**known[name], **values}
            name = known[name].get("inherits_from", "")
        return values


def bundle_of(wanted: Import) -> Bundle:
    """Writes the bundle, whole or not at all.

    Raises:
        InputRefusedError: The folder is not one that nnU-Net v2 trained, holds code, or has parts that are not known here.
        UsageError: The output exists, or a fold is absent.
    """
    try:
        results = read_results(wanted)
        values = config_values(results, mirroring=wanted.mirroring)
    except (KeyError, ValueError) as error:  # plans of another version, or no JSON
        raise InputRefusedError(
            f"{wanted.results.name}: plans.json or dataset.json cannot be used ({type(error).__name__}: {error}); those of "
            "nnU-Net 2.5 or later are needed; take the folder as nnU-Net wrote it, or plan and train again"
        ) from error
    cases = [] if wanted.data is None else find_data(wanted.data)
    told, known = facts_of(wanted.data) if wanted.data else None, results.facts
    if told and replace(told, channels=known.channels) != known:
        raise InputRefusedError(
            f"--data names its label values {dict(told.named)}, and the network was trained with {dict(known.named)}; "
            "the data that trained it are needed; name these"
        )
    plan = _plan(wanted, cases, results) if cases else {}
    if cases and not values["planar"]:
        values["axes"] = values["axes"] or _shared_axes(cases)
    with whole_folder(wanted.output) as root:
        structures = [StatedStructure(name) for name in results.facts.regions or results.facts.names.values()]
        stated = metadata(wanted.output.name, {}) | _facts(results)
        write_card(write_files(root, values, structures, stated, OF_OTHERS), root)
        for name in (PLANS, DATASET):
            shutil.copyfile(wanted.results / name, root / "configs" / f"nnunet_{name}")
        _write_weights(results, root)
        if cases:
            _write_records(results, root, cases, plan)
    return Bundle(wanted.output)


def read_results(wanted: Import) -> Results:
    """What a trained folder says, checked. Raises as `bundle_of`."""
    folder = wanted.results
    if absent := [name for name in (PLANS, DATASET) if not (folder / name).is_file()]:
        raise InputRefusedError(
            f"{folder.name} has no {' and no '.join(absent)}; the folder that nnU-Net v2 trained is needed, such as "
            "nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres; name it"
        )
    plans, dataset = (json_of(folder / name) for name in (PLANS, DATASET))
    facts = read_dataset_json(folder)
    assert facts is not None
    there = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{wanted.checkpoint}"))
    folds = wanted.folds or (("all",) if "all" in there else tuple(there))
    if not folds or (unknown := [fold for fold in folds if fold not in there]):
        lacking = ", ".join(unknown) if folds else "any"
        raise UsageError(
            f"{folder.name} has no {wanted.checkpoint} of fold {lacking}; there is {', '.join(there) or 'none'}; train it, or "
            "name another --checkpoint or other --folds"
        )
    beside = [] if wanted.folds else [fold for fold in there if fold not in folds]
    checkpoints = {fold: _checkpoint(folder / f"fold_{fold}" / wanted.checkpoint) for fold in (*folds, *beside)}
    results = Results(plans, dataset, facts, checkpoints, folds)
    _check(results, folder.name)
    for fold in checkpoints:
        _check_own(results, fold, folder.name)
    return results


def _checkpoint(file: Path) -> Mapping[str, Any]:
    """What a checkpoint holds that is used; code in it is never run."""
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            content = torch.load(file, map_location="cpu", weights_only=True)
        return {
            "network_weights": content["network_weights"],
            "trainer_name": content["trainer_name"],
            "init_args": {"configuration": content["init_args"]["configuration"]}
            | {key: content["init_args"].get(key) for key in ("dataset_json", "plans", "fold")},
            "mirrored": content.get("inference_allowed_mirroring_axes"),
            "epochs": int(content.get("current_epoch", 0)),
        }
    except Exception as error:  # pickle, zip and key errors all mean that this is no checkpoint to be trusted
        raise InputRefusedError(
            f"{file.parent.name}/{file.name} cannot be used ({type(error).__name__}: {first_line(error)}); a checkpoint "
            "of nnU-Net v2 that holds tensors and numbers only is needed; take the file that nnU-Net wrote"
        ) from error


def _check_own(results: Results, fold: str, name: str) -> None:
    """Raises InputRefusedError if a checkpoint was trained with something else than the files of the folder say."""
    own = results.checkpoints[fold]["init_args"]
    dataset, plans = own["dataset_json"] or results.dataset, own["plans"] or results.plans
    trained = replace(results, plans=plans, checkpoints={fold: results.checkpoints[fold]})
    pairs = {
        key: (dataset.get(key), results.dataset.get(key)) for key in ("labels", "channel_names", "regions_class_order")
    }
    pairs |= {key: (trained.configuration.get(key), results.configuration.get(key)) for key in _OF_THE_NETWORK}
    pairs |= {key: (plans.get(key), results.plans.get(key)) for key in _OF_THE_DATA}
    pairs["fold"] = (str(fold if own["fold"] is None else own["fold"]), fold)
    for key, values in pairs.items():
        told, here = (json.dumps(value, default=str) for value in values)
        if told != here:
            raise InputRefusedError(
                f"{name}: the checkpoint of fold {fold} was trained with {key} {told[:120]}, and the folder says {here[:120]}; "
                "the files of one training are needed; take the folder as nnU-Net wrote it"
            )


def _check(results: Results, name: str) -> None:
    """Raises InputRefusedError for what is not known here."""
    plan, reader = results.configuration, results.plans["image_reader_writer"]
    trainers = sorted({checkpoint["trainer_name"] for checkpoint in results.checkpoints.values()})
    architecture = plan.get("architecture", {}).get("network_class_name", "of nnU-Net before 2.5")
    reasons = []
    if len(trainers) > 1 or not _TRAINERS.fullmatch(trainers[0]):
        reasons.append(f"its trainer is {', '.join(trainers)}; nnUNetTrainer or a variant of nnU-Net with its network")
    if reader not in _READERS:
        reasons.append(f"its images are read by {reader}; one of {', '.join(_READERS)}")
    if plan.get("previous_stage") or "cascade" in results.configuration_name:
        reasons.append(f"{results.configuration_name} is a cascade; a configuration of one network")
    if architecture not in _NETWORKS:
        reasons.append(f"its network is {architecture}; {' or '.join(_NETWORKS.values())}")
    if plan["preprocessor_name"] != "DefaultPreprocessor":
        reasons.append(f"its preprocessor is {plan['preprocessor_name']}; DefaultPreprocessor")
    if unknown := [scheme for scheme in plan["normalization_schemes"] if scheme not in _SCHEMES]:
        reasons.append(f"its normalisation is {', '.join(unknown)}; one of {', '.join(_SCHEMES)}")
    for what in ("data", "probabilities"):
        if plan[f"resampling_fn_{what}"] != _RESAMPLING:
            reasons.append(f"its resampling of {what} is {plan[f'resampling_fn_{what}']}; {_RESAMPLING}")
    if plan["resampling_fn_probabilities_kwargs"].get("order") != 1:
        reasons.append("it does not resample probabilities linearly; order 1")
    if results.plans.get("label_manager", "LabelManager") != "LabelManager":
        reasons.append(f"its label manager is {results.plans['label_manager']}; LabelManager")
    if reasons:
        raise InputRefusedError(
            f"{name}: {' is needed, and '.join(reasons)} is needed; train it so, or run it by nnU-Net"
        )


def config_values(results: Results, *, mirroring: bool) -> dict[str, Any]:
    """What the templates of the configs need."""
    plan, plans, facts = results.configuration, results.plans, results.facts
    schemes = plan["normalization_schemes"]
    planar = plans["image_reader_writer"] == _PICTURES
    names = facts.channels or tuple(f"channel_{number}" for number in range(len(schemes)))
    files = 1 if planar else len(schemes)
    regions = list(facts.regions.values())
    architecture = plan["architecture"]["arch_kwargs"]
    heads = len(regions) or len(facts.names) + 1
    intensities = plans["foreground_intensity_properties_per_channel"]
    normalisation = [
        {
            "scheme": scheme,
            "masked": bool(masked),
            "intensities": intensities[str(number)] if scheme == "CTNormalization" else None,
        }
        for number, (scheme, masked) in enumerate(zip(schemes, plan["use_mask_for_norm"], strict=True))
    ]
    ending = str(results.dataset.get("file_ending", ".nii.gz"))
    return {
        "template": "nnunet",
        "configuration": results.configuration_name,
        "trainer": results.first["trainer_name"],
        "pattern": f"*_0000{ending}",
        "label_suffix": "",
        "planar": planar,
        "axes": "RAS" if plans["image_reader_writer"] == _REORIENTED else "",
        "binary": planar and heads == 2 and not regions,
        "input_rules": _input_rules(names, files, planar=planar, channels=len(schemes)),
        "labels": list(facts.regions) or ["background", *facts.names.values()],
        "label_values": [list(values) for values in regions] or None,
        "ignore_label": facts.ignored,
        "outputs": "overlapping" if regions else "exclusive",
        "window": list(plan["patch_size"]),
        "files": files,
        "transpose": plans["transpose_forward"],
        "spacing": list(plan["spacing"]),
        "normalisation": normalisation,
        "image_kernel": _kernel(plan["resampling_fn_data_kwargs"]),
        "logits_kernel": _kernel(plan["resampling_fn_probabilities_kwargs"]),
        "architecture": {**architecture, "input_channels": len(schemes), "num_classes": heads},
        "mirrored_axes": list(results.first["mirrored"] or ()) if mirroring else [],
        "network_class": _NETWORKS[plan["architecture"]["network_class_name"]],
        "feature_layer": f"network.encoder.stages.{architecture['n_stages'] - 1}",
        "slice_axis": None if planar or len(plan["patch_size"]) == 3 else 0,
        "voxelwise": True,
    }


def _kernel(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "order": arguments["order"],
        "order_z": arguments["order_z"],
        "separate_z": arguments.get("force_separate_z"),
    }


def _input_rules(names: Sequence[str], files: int, *, planar: bool, channels: int) -> dict[str, Any]:
    known = [modality_of(name) for name in names]
    rules: dict[str, Any] = {"channels": list(names) if files > 1 else channels}
    if planar:
        rules["planar"] = True
    if files > 1 and any(known):
        rules["channel_modality"] = known
    if known[0] and not planar:
        rules["modality"] = [known[0]]
    return rules


def _facts(results: Results) -> dict[str, Any]:
    """What metadata.json and the card say of the network before anybody has stated more."""
    origin = _origin(results)
    folds = ", ".join(origin["folds"])
    return {
        "changelog": {"0.1.0": "imported from nnU-Net"},
        "nnunet": origin,
        "description": f"A network that nnU-Net trained ({origin['configuration']}, {origin['trainer']}, fold {folds}) with "
        "nnU-Net's own preprocessing and windows, so that labels are nnU-Net's. Inference needs monai-unet-app. What it states "
        "of its results is fitted to cases that the network of a fold has not seen, where such cases were given",
        "data_source": f"nnU-Net's data set {results.plans['dataset_name']}",
    }


def _origin(results: Results) -> dict[str, Any]:
    """What metadata.json says of where the network comes from."""
    return {
        "trainer": results.first["trainer_name"],
        "configuration": results.configuration_name,
        "folds": list(results.delivered),
        "plans_sha256": hashlib.sha256(json.dumps(results.plans, sort_keys=True).encode()).hexdigest(),
    }


def _write_weights(results: Results, root: Path) -> None:
    """`models/model.pt`, the mean of several folds, and `folds/N/models/model.pt`; float32, as nnU-Net computes."""
    bundle = Bundle(root)
    states = {}
    for fold, checkpoint in results.checkpoints.items():
        network = bundle.of_fold(0).part("network_def")
        try:
            network.network.load_state_dict(unwrapped(checkpoint["network_weights"]))
        except RuntimeError as error:
            raise InputRefusedError(
                f"fold_{fold}: its weights do not fit the network of plans.json ({first_line(error)}); the plans that "
                "trained it are needed; take the folder as nnU-Net wrote it"
            ) from error
        states[fold] = network.state_dict()
        if fold in results.crossed:
            (folder := root / f"folds/{fold}/models").mkdir(parents=True)
            torch.save(states[fold], folder / "model.pt")
    delivered = [states[fold] for fold in results.delivered]
    several = len(delivered) > 1
    torch.save(dict(side_by_side(delivered, several=False)) if several else delivered[0], root / "models/model.pt")
    if several:
        why = f"the mean of the networks of folds {', '.join(results.delivered)}"
        change_fitted(root, "folds", number=len(delivered), why=why)


def _shared_axes(cases: Sequence[CaseFiles]) -> str:
    """Where the axes of all images point, such as "RAS" or "LPS"; "" where they differ."""
    found = {"".join(aff2axcodes(read_volume(case.files).affine_ras)) for case in cases}
    return found.pop() if len(found) == 1 else ""


def _plan(wanted: Import, cases: Sequence[CaseFiles], results: Results) -> dict[str, SplitCase]:
    """The fold that tested each case. Raises InputRefusedError where nothing says it, or a subject is in two folds."""
    if known := wanted.splits or nnunet_folds_of(cases):
        return read_nnunet_folds(known, subjects_of(cases))
    ids = {case.id for case in cases}
    tested = {
        fold: sorted(
            ids & {case_id(file) for file in (wanted.results / f"fold_{fold}/validation").glob("*") if file.is_file()}
        )
        for fold in results.checkpoints
        if fold != "all"
    }
    rest = ids.difference(*tested.values())
    most = max((int(fold) for fold in tested), default=-1) + 1
    folds = [tested.get(str(number), []) for number in range(most)] + ([sorted(rest)] if rest else [])
    if tested and not all(tested.values()):
        raise InputRefusedError(
            f"{wanted.results.name} does not say which cases each fold has tested; nnU-Net's splits_final.json is needed; name "
            "it by --splits (it lies in the folder of nnUNet_preprocessed)"
        )
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "what fold_N holds in validation"
        listed.write_text(json.dumps([{"train": sorted(ids.difference(fold)), "val": fold} for fold in folds]))
        return read_nnunet_folds(listed, subjects_of(cases))


def _write_records(results: Results, root: Path, cases: Sequence[CaseFiles], plan: Mapping[str, SplitCase]) -> None:
    """`run.json` of each network: the cases that it has seen, and `configs/splits.json`."""
    alone = None if results.crossed or results.delivered == ("all",) else int(results.delivered[0])
    # What a single network of a fold has not seen calibrates it; the networks of several folds answer for each other
    own: dict[str, Partition] = {
        name: "calibration" if entry.fold == alone else "train" for name, entry in plan.items()
    }
    rows = [data_row(case, plan[case.id].subject) for case in cases]
    entries = {row["id"]: seen_entry(row) for row in rows}
    digest = dataset_sha256(rows)
    parts: dict[Path, dict[str, Partition]] = {root / "models": own}
    for fold in results.crossed:
        parts[root / f"folds/{fold}/models"] = {
            case.id: "test" if plan[case.id].fold == int(fold) else "train" for case in cases
        }
    for folder, partition in parts.items():
        document = {
            "schema_version": "1.0",
            "data_sha256": digest,
            "cases": {name: {"partition": partition[name], **entry} for name, entry in entries.items()},
            "settings": _origin(results),
            "recipe_sha256": hashlib.sha256((root / "configs/inference.yaml").read_bytes()).hexdigest(),
            "epochs_done": min(one["epochs"] for one in results.checkpoints.values()),
            "best": {"epoch": 0, "metric": None},
            "history": [],
            "sessions": [],
            "weights_sha256": file_sha256(folder / "model.pt"),
        }
        write_json(document, folder / "run.json", "run")
    listed = [asdict(replace(plan[case.id], partition=own[case.id])) for case in cases]
    name = str(results.dataset.get("name", "data"))
    write_json({"schema_version": "1.0", "datasets": {name: {"cases": listed}}}, root / "configs/splits.json", "splits")
