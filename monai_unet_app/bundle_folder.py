"""The files of a bundle on disk, found by a name, a folder or a zip, and read without evaluating an expression.

Neither torch nor MONAI is imported here: they take seconds, and a list of bundles or a wrong name needs an answer at once.
Only an `inference.yaml` with keys to merge, `+name` or `name::part`, asks MONAI.
"""

import atexit
import hashlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_io.coding import Segment, load_segments
from dicom_io.files import write_whole
from monai_unet_app.consent import check_consent
from monai_unet_app.data.archives import unpack
from monai_unet_app.data.naming import obeyed
from monai_unet_app.data.schemas import check_version, json_of, validate
from monai_unet_app.data.splits import read_splits, trains_by_folds
from monai_unet_app.errors import BundleError, InputRefusedError, UntrainedError, UsageError, refusing_as
from monai_unet_app.shipped import shipped
from monai_unet_app.weights import sha256_of
from monai_unet_app.written_config import merged, yaml_of

if TYPE_CHECKING:
    from monai_unet_app.data.case_files import CaseFiles

WEIGHTS = "models/model.pt"
FITTED = "models/fitted.json"
"""What commands found out about the weights that changes labels or probabilities; `inference.yaml` reads it."""

CONFIDENCE = "configs/confidence.json"
"""The bundle's statements about its own results; absent until the bundle is calibrated."""

WHY_NO_WEIGHTS = "why_no_weights"
"""In metadata.json of a template that is given away without weights: the reason, as a clause."""

CARD_FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)
"""The figures of a model card, between two comments of HTML."""

CALIBRATION_RECORD = "calibration.json"  # in models/: on which cases the calibration was fitted
BUILT_TO_SEGMENT = (
    "calibration", "calibration_tta", "centreline", "decide", "back", "feature_layer", "fitted", "ignore_label", "imports",
    "inferer", "input_rules", "label_values", "labels", "mirror_axes", "network_def", "of_fold", "outputs", "preprocessing",
    "probable", "result", "thresholds", "tidy",
)  # fmt: skip
"""Ids of `inference.yaml` that `Bundle` asks for."""

_REFERENCE = re.compile(r"[@%](\w+)")
_NEEDS_MORE = re.compile(
    r"""
    handlers | engines | visualize | jupyter | monai\.(?:apps|bundle|fl|optimizers)  # parts of MONAI
    | Handler | Evaluator | Trainer | Workflow | Events | [Ww]riter | SaveImage | Ultrasound | SignalRemoveFrequency
    | LearningRateFinder | [Cc]ollapse | ThreadContainer | animated_gif | create_transform_im | plot_engine_status
    | ignite | matplotlib | sklearn | scipy | mlflow | tensorboard | [Ii][Tt][Kk] | importlib | __import__
    | \$(?:import|from)\ (?!(?:glob|json|math|numpy|os|pathlib|re|sys|torch)\b)  # a package that may use any of these
    | "_target_":\ "(?!(?:monai|torch|monai_unet_app)\.)[^".]+\.
    """,
    re.VERBOSE,
)
"""What needs a package that `processes.load_monai` can leave out."""

_MOST_FILES = 10_000  # in the zip of a bundle; ours hold a dozen
_MOST_RATIO = 20  # of unpacked to packed size: weights do not shrink, texts shrink to a fifth
_SMALL_BYTES = 2**28  # every zip may unpack to this size, however small it is
_UNPACKED = "monai-unet-bundle-"  # begins the name of the temporary folder of a zip
DONOR = "models/donor.json"
"""The weights that the training began with, if not at random, and the cases that had made them."""

RESULTS = "results"
"""`kind` in metadata.json of a bundle without a network, which says what label files of another program are worth."""

EXTERNAL = "external"
"""`kind` of a bundle of results that also says how the program is started."""

NEEDED_FILES = ("configs/metadata.json", "configs/inference.yaml", "configs/segments.json", "LICENSE")


@dataclass(frozen=True)
class BundleFiles:
    """The contents of the files of a bundle.

    Attributes:
        root: Folder of the bundle.
    """

    root: Path

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """`configs/metadata.json`. Raises BundleError if it is damaged, or has no version or no task."""
        try:
            metadata: dict[str, Any] = json_of(self.root / "configs/metadata.json")
            _ = metadata["version"], metadata["task"]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{self.name}: metadata.json cannot be used ({error}); see docs/bundles.md") from error
        self._check_harmless("metadata.json", metadata)
        return metadata

    def _check_harmless(self, file: str, value: object) -> None:
        """Raises BundleError if MONAI's parser would run, resolve or load a text that only names something."""
        if (text := obeyed(value)) is not None:
            raise BundleError(
                f"{self.name}: {file} holds the text {text[:60]!r} where a name or a sentence belongs, and MONAI would run it "
                "or load another file; plain text is needed; if you trust where the bundle comes from, change it"
            )

    @property
    def eval_metrics(self) -> Mapping[str, Any]:
        """The measured figures in the bundle's metadata; may be empty. `figure_of` gives the number of an entry."""
        figures = self.metadata.get("eval_metrics")
        return figures if isinstance(figures, Mapping) else {}

    @property
    def measured(self) -> Mapping[str, Any]:
        """The figures of its test cases; where it has none, those of its cross-validation; may be empty."""
        figures = self.eval_metrics
        folds = figures.get("out_of_fold")
        return folds if isinstance(folds, Mapping) and "subjects" not in figures else figures

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The meaning of each label value, from `configs/segments.json`. Raises BundleError if the file is damaged."""
        with refusing_as(self.name, BundleError):
            return load_segments(self.root / "configs/segments.json")

    @property
    def structure_names(self) -> tuple[str, ...]:
        """The names of the structures in tables and reports: their SegmentLabels, in the order of their numbers."""
        return tuple(segment.label for segment in self.segments)

    def named(self, cases: "Sequence[CaseFiles]") -> "list[CaseFiles]":
        """The cases, whose label values mean what names in their files and in `dataset.json` say, in terms of this bundle.

        Raises:
            InputRefusedError: Names of the data contradict those of the bundle, see `LabelTable.held_against`.
        """
        from monai_unet_app.data.label_names import tables_of, values_by_name
        from monai_unet_app.data.labels import FileValues

        stated, found = self.inference_document, []
        usual = FileValues.parse(stated.get("label_values"), stated.get("ignore_label"))
        for case in cases:
            own = values_by_name(tables_of(case, case.folder), usual, self.segments, self.name)
            found.append(case if own == usual else replace(case, label_values=own.values))
        return found

    @cached_property
    def confidence_document(self) -> dict[str, Any] | None:
        """`configs/confidence.json`; None where it is absent. Raises ValueError or InputRefusedError if it is damaged."""
        path = self.root / CONFIDENCE
        if not path.is_file():
            return None
        document: dict[str, Any] = json_of(path)
        validate(document, "confidence")
        return document

    @cached_property
    def fitted(self) -> dict[str, Any] | None:
        """`models/fitted.json`; None where it is absent. Raises BundleError if it is damaged."""
        path = self.root / FITTED
        if not path.is_file():
            return None
        try:
            document: dict[str, Any] = json_of(path)
            validate(document, "fitted")
        except (ValueError, InputRefusedError) as error:
            raise BundleError(
                f"{self.name}: {FITTED} cannot be used ({error}); the file as a command wrote it is needed; copy the whole "
                "bundle again, or remove the file and run monai-unet calibrate"
            ) from error
        return document

    @property
    def is_ensemble(self) -> bool:
        """Whether the bundle's own network is the mean of the networks of its folds."""
        return bool(self.fitted and self.fitted["folds"]["number"] > 1)

    def check_fitted(self) -> None:
        """Raises BundleError if `fitted.json` is not what `inference.yaml` and the weights need.

        It is absent where it is read, has a form or a step that `inference.yaml` does not offer, or was fitted to other
        weights.
        """
        config = self.inference_document
        if self.fitted is None:
            if "fitted" in config:
                raise BundleError(
                    f"{self.name}: {FITTED} is absent and inference.yaml reads it; copy the whole bundle, or run monai-unet "
                    "calibrate, which writes it"
                )
            return
        form, steps = self.fitted["calibration"]["form"], self.fitted["tidy"]["steps"]
        needed = {"forms": [form] if form else [], "steps": [step["step"] for step in steps]}
        for name, values in needed.items():
            offered = config.get(name)
            unknown = [value for value in values if isinstance(offered, dict) and value not in offered]
            if unknown:
                raise BundleError(
                    f"{self.name}: {FITTED} has {unknown[0]!r}, which `{name}` of inference.yaml does not offer "
                    f"({', '.join(offered or ())}); one of these is needed; put it back, or remove {FITTED} and run monai-unet "
                    "calibrate"
                )
        for part, then in self.stale_findings.items():
            self.check_undamaged()
            raise BundleError(
                f"{self.name}: `{part}` of {FITTED} was fitted to weights with sha256 {then[:16]}, {WEIGHTS} has "
                f"{str(self.weights_sha256)[:16]}; findings of these weights are needed; run monai-unet calibrate"
            )

    @property
    def stale_findings(self) -> dict[str, str]:
        """Part of `fitted.json` -> digest of the weights that it was fitted to, where `models/model.pt` holds others."""
        parts = {part: found for part, found in (self.fitted or {}).items() if isinstance(found, dict)}
        digests = {part: (found.get("fitted_to") or {}).get(WEIGHTS) for part, found in parts.items()}
        own = self.weights_sha256  # None while only the networks of its folds are trained
        return {part: then for part, then in digests.items() if own and then and then != own}

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels that are a file or a series each; () for a bundle whose images are one file."""
        rules = self.inference_document.get("input_rules")
        channels = rules.get("channels") if isinstance(rules, dict) else None
        return tuple(map(str, channels)) if isinstance(channels, list) else ()

    @cached_property
    def inference_document(self) -> dict[str, Any]:
        """`configs/inference.yaml`, its keys merged, with no expression evaluated. Raises BundleError if it is damaged."""
        document = yaml_of(self.root / "configs/inference.yaml")
        rules = document.get("input_rules")
        names = document.get("labels"), rules.get("channels") if isinstance(rules, dict) else None
        self._check_harmless("inference.yaml", [one for one in names if isinstance(one, list)])
        if not any(name.startswith("+") or "::" in name for name in map(str, document)):
            return document
        return merged(f"{self.name}: inference.yaml", document)

    def config_with(self, *overlays: str, agreed: frozenset[str] | None = None) -> dict[str, Any]:
        """`inference.yaml` with overlays such as "train" on top, their keys merged, for MONAI's parser.

        Raises ConsentError as `check_consent`, which says what `agreed` is; BundleError if a file is damaged.
        """
        document = self.inference_document
        if overlays:
            own = [yaml_of(self.root / f"configs/{name}.yaml") for name in overlays]
            document = merged(f"{self.name}: {', '.join(overlays)}.yaml", document, *own)
        check_consent(self.root, document, agreed)
        return document

    @property
    def only_segments(self) -> bool:
        """Whether the ids that a prediction builds name nothing of MONAI's training, pictures and trackers, and no package.

        `load_monai` may then leave out what MONAI imports for these. `evaluator` and `handlers` of a bundle do not count: only
        `python -m monai.bundle run` builds them.
        """
        document, waiting, seen = self.inference_document, [*BUILT_TO_SEGMENT], dict[str, str]()
        while waiting:
            name = waiting.pop()
            if name in document and name not in seen:
                seen[name] = json.dumps(document[name], default=str)
                waiting += _REFERENCE.findall(seen[name])
        return not any(map(_NEEDS_MORE.search, seen.values()))

    @property
    def own_splits(self) -> Path:
        """The plan of the cases that the bundle brings; the file may be absent."""
        return self.root / "configs/splits.json"

    @property
    def weights_dir(self) -> Path:
        """Holds the weights and the record of their training."""
        return self.root / "models"

    @property
    def weights(self) -> Path:
        """The file of the trained weights; absent until a training has completed."""
        return self.weights_dir / "model.pt"

    @property
    def untrained(self) -> str | None:
        """What follows "<name> has" where there are no weights: why, what is needed and what to do; None where there are."""
        if self.weights.is_file():
            return None
        absent = f"no weights ({self.weights.relative_to(self.root).as_posix()} is absent)"
        if any((self.root / name).is_dir() for name in ("run", "folds")):
            return (
                f"{absent}: its training has not completed, or was of some folds only; trained weights are needed; give the "
                "same monai-unet train command again, or with --folds all"
            )
        reason = self.metadata.get(WHY_NO_WEIGHTS, "it is new and has not been trained")
        return f"{absent}: {reason}; a trained copy is needed; make one with {self._training}"

    @property
    def _training(self) -> str:
        """The command that trains a copy."""
        root, named = self.root.resolve(), bundle_folders().get(self.name)
        bundle = self.name if named and named.resolve() == root else str(root)
        if any(part.startswith(_UNPACKED) for part in root.parts):
            bundle = "ZIP"  # it is gone when this process ends
        plan = read_splits(self.own_splits).values() if self.own_splits.is_file() else ()
        by_folds = " --folds all" if plan and trains_by_folds(plan, self.own_splits.name) else ""
        return f"monai-unet train --bundle {shlex.quote(bundle)} --data DATA{by_folds} --output OUT"

    def check_trained(self) -> None:
        """Raises UntrainedError if there are no trained weights."""
        if untrained := self.untrained:
            raise UntrainedError(f"{self.name} has {untrained}")
        self.check_undamaged()

    def check_undamaged(self) -> None:
        """Raises BundleError if the weights are not those that their training wrote, as far as `run.json` beside them says."""
        told = self.run_record.get("weights_sha256")
        if told and (self.weights_sha256 if self.weights == self.root / WEIGHTS else sha256_of(self.weights)) != told:
            raise BundleError(
                f"{self.name}: {self.weights.relative_to(self.root).as_posix()} is damaged or was replaced: its sha256 is not "
                f"{told[:16]}..., as run.json states; the weights as trained are needed; copy the whole bundle again"
            )

    @cached_property
    def run_record(self) -> dict[str, Any]:
        """`models/run.json`: how the weights were trained, and on which cases; empty if the file is absent."""
        path = self.weights_dir / "run.json"
        try:
            record: dict[str, Any] = json_of(path) if path.is_file() else {}
            check_version(record, "run")
        except (ValueError, AttributeError) as error:
            raise BundleError(f"{self.name}: run.json is damaged ({error}); copy the whole bundle again") from error
        return record

    @cached_property
    def weights_sha256(self) -> str | None:
        """Hex digest of `models/model.pt`; None if the file is absent."""
        return sha256_of(path) if (path := self.root / WEIGHTS).is_file() else None

    @cached_property
    def sha256(self) -> str:
        """Hex digest of weights, `inference.yaml`, `segments.json`, any `fitted.json` and any `confidence.json`.

        These are all files that can change results.

        A bundle that has only the networks of its folds counts their weights.

        Raises:
            UntrainedError: There are no weights at all.
        """
        digest = hashlib.sha256()
        own = [WEIGHTS] if (self.root / WEIGHTS).is_file() else []
        trained = own or sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(f"folds/*/{WEIGHTS}"))
        if not trained:
            self.check_trained()
        found_out = [name for name in (FITTED, CONFIDENCE) if (self.root / name).is_file()]
        for name in (*trained, "configs/inference.yaml", "configs/segments.json", *found_out):
            content = (self.root / name).read_bytes()
            # Name and length before each content, so that bytes moved from a file into the next change the digest
            digest.update(f"{name}\n{len(content)}\n".encode() + content)
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """The folder's name, `<anatomy>_<modality>_<network>`."""
        return self.root.resolve().name

    @property
    def version(self) -> str:
        """From the metadata."""
        return str(self.metadata["version"])

    @property
    def label_values(self) -> range:
        """The values that a label image of this bundle may hold; 0 is background."""
        return range(len(self.segments) + 1)


def bundles_in(folder: Path) -> dict[str, Path]:
    """Name -> folder of each bundle in a folder that is no bundle itself; empty where it holds none.

    Raises:
        UsageError: Something else lies beside them.
    """
    if not folder.is_dir() or (folder / "configs").exists():
        return {}
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    bundles = {entry.name: entry for entry in entries if all((entry / name).is_file() for name in NEEDED_FILES)}
    other = [entry.name for entry in entries if entry.name not in bundles]
    if bundles and other:
        raise UsageError(
            f"{folder} holds the bundle(s) {', '.join(bundles)} and, beside them, {', '.join(other[:3])}"
            f"{', ...' if other[3:] else ''}; only bundles are allowed there to rank them; move the rest away, or name one "
            "of them"
        )
    return bundles


def figure_of(block: object) -> float | None:
    """The number in an entry of `eval_metrics`: the mean of a score, or the calibrated value of an error.

    None if the entry has neither. MONAI's metadata prescribe no form for `eval_metrics`, so other bundles have other forms.
    """
    value = block.get("mean", block.get("calibrated")) if isinstance(block, Mapping) else None
    return value if isinstance(value, int | float) else None


def bundle_folders() -> dict[str, Path]:
    """The folder of every bundle that a name can stand for, by name."""
    roots = [Path(p) for p in os.environ.get("MONAI_UNET_BUNDLES", "").split(os.pathsep) if p] + [shipped("bundles")]
    folders: dict[str, Path] = {}
    for root in roots:
        for metadata in sorted(root.glob("*/configs/metadata.json")):
            # The first folder wins: a site's bundle replaces a shipped bundle of the same name
            folders.setdefault(metadata.parents[1].name, metadata.parents[1])
    return folders


def bundle_files(name: str | Path) -> BundleFiles:
    """The files of the bundle that a name, a folder or a zip stands for. Neither torch nor MONAI is needed.

    Raises:
        UsageError: No bundle has this name.
        BundleError: The folder or zip is no bundle, or one of its files is missing.
    """
    root = bundle_root(str(name))
    if kind_of(root) in (RESULTS, EXTERNAL):
        also = "" if kind_of(root) == RESULTS else ", or with monai-unet predict --bundle ... --trust"
        raise BundleError(
            f"{root.name} says what results of another program are worth, and has no network; a bundle with a network is "
            f"needed; this one goes with monai-unet dicomize --labels ... --bundle{also}"
        )
    missing = [file for file in NEEDED_FILES if not (root / file).is_file()]
    if missing:
        raise BundleError(f"{root.name} is not a bundle: {', '.join(missing)} missing; see docs/bundles.md")
    files = BundleFiles(root)
    _ = files.metadata
    return files


def kind_of(root: Path) -> str | None:
    """`kind` in the metadata of a folder; None for a bundle with a network, and for what is no bundle."""
    try:
        metadata = json_of(root / "configs/metadata.json")
    except (OSError, ValueError):
        return None
    kind = metadata.get("kind") if isinstance(metadata, dict) else None
    return kind if isinstance(kind, str) else None


def bundle_root(name: str) -> Path:
    """The folder that a name, a folder or a zip stands for. Raises UsageError or BundleError as `bundle_files`."""
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        return _unpack(path)
    folders = bundle_folders()
    if name not in folders:
        raise UsageError(
            f"there is no bundle {name!r}; a folder, a zip or one of {', '.join(folders) or 'none'} is needed"
        )
    return folders[name]


def _unpack(path: Path) -> Path:
    """The bundle's folder, unpacked into a temporary folder that is removed when the process ends."""
    home = tempfile.TemporaryDirectory(prefix=_UNPACKED)
    atexit.register(home.cleanup)
    folder = Path(home.name) / path.stem  # a zip without a folder in it gives the bundle its own name
    try:
        unpack(path, folder, most_members=_MOST_FILES, most_ratio=_MOST_RATIO, small_bytes=_SMALL_BYTES)
    except (InputRefusedError, OSError) as error:
        raise BundleError(f"{path.name} cannot be unpacked: {error}; copy it again, or unpack it yourself") from error
    # A zip may hold the bundle directly or in a folder
    roots = [metadata.parents[1] for metadata in sorted(folder.glob("**/configs/metadata.json"))]
    if len(roots) != 1:
        raise BundleError(f"{path.name} holds {len(roots)} bundle(s); one is needed")
    return roots[0]


@contextmanager
def unchanged_on_failure(root: Path) -> Iterator[None]:
    """Restores the files that a calibration writes into a bundle's folder if the `with` block fails in any way."""
    files = [root / name for name in (FITTED, CONFIDENCE, f"models/{CALIBRATION_RECORD}")]
    before = {file: file.read_bytes() if file.is_file() else None for file in files}
    try:
        yield
    # Ctrl-C included: numbers of an unfinished calibration must not stay
    except BaseException:
        for file, content in before.items():
            if content is None:
                file.unlink(missing_ok=True)
            elif file.read_bytes() != content:
                write_whole(file, content)
        raise
