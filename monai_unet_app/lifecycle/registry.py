"""The registry of models: versions with what is known of them, and which of them is champion.

Versions and aliases are in MLflow's model registry, a SQLite file beside their artifacts or a server. MLflow keeps no history
of aliases and checks no bytes: every move is a line of an audit trail in the registry's folder, and a bundle that is taken out
has the sha256 that it was registered with.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from dicom_io.files import replace_when_whole
from monai_unet_app.bundle_folder import BundleFiles, bundle_files
from monai_unet_app.comparison.differences import compare
from monai_unet_app.comparison.release_gate import GATED_SCORES, ReleaseOutcome, gate
from monai_unet_app.confidence.results_bundle import results_bundle
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.errors import AppError, InputRefusedError, UsageError
from monai_unet_app.report.stored_evaluation import read_evaluation
from monai_unet_app.service.audit import AuditTrail, entries
from monai_unet_app.service.database import Database
from monai_unet_app.service.trace import bundle_facts

if TYPE_CHECKING:
    from mlflow import MlflowClient

Alias = Literal["champion", "challenger", "archived"]
ALIASES: tuple[Alias, ...] = ("champion", "challenger", "archived")
"""champion: the one in use. challenger: tried beside it. archived: the champion before, to which a rollback returns."""

SIGNATURE = "bundle.sig"
_EVALUATION = ("metrics.json", "cases.csv")
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


@dataclass(frozen=True)
class Version:
    """A registered bundle.

    Attributes:
        model: Name of the model.
        number: Counts from 1.
        sha256: Of the bundle.
        aliases: Those that name it.
        facts: What was known of it when it was registered: name, version, data, commit, calibration, figures, evaluation.
        run: Of MLflow, which holds its files.
    """

    model: str
    number: int
    sha256: str
    aliases: tuple[str, ...]
    facts: Mapping[str, Any]
    run: str

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "version": self.number,
            "sha256": self.sha256,
            "aliases": self.aliases,
            "facts": self.facts,
        }


class Registry:
    """Versions of models, and the trail of what was done with them. Use `open_registry`."""

    def __init__(self, client: "MlflowClient", trail: AuditTrail) -> None:
        self._client, self._trail = client, trail

    def versions(self, model: str = "") -> list[Version]:
        """All versions of a model, or of all models, the first version first."""
        with _answering():
            models = [self._client.get_registered_model(model)] if model else self._client.search_registered_models()
            aliases = {one.name: one.aliases for one in models}
            found = [one for name in aliases for one in self._client.search_model_versions(f"name='{name}'")]
        numbers = sorted(found, key=lambda one: (one.name, int(one.version)))
        return [
            Version(
                one.name, int(one.version), one.tags["sha256"],
                tuple(alias for alias in ALIASES if str(aliases[one.name].get(alias)) == str(one.version)),
                json.loads(one.tags["facts"]), str(one.run_id),
            )
            for one in numbers
        ]  # fmt: skip

    def version(self, model: str, which: str) -> Version:
        """The version of a number or an alias. Raises InputRefusedError if there is none."""
        found = [one for one in self.versions(model) if which == str(one.number) or which in one.aliases]
        if not found:
            raise InputRefusedError(
                f"{model} has no version {which!r}; a number or one of {', '.join(ALIASES)} that is set is needed; monai-unet "
                "registry list shows them"
            )
        return found[0]

    def add(self, bundle: str | Path, model: str, evaluation: Path | None = None, key: Path | None = None) -> Version:
        """Registers a bundle as the next version of a model.

        Args:
            bundle: A name, a folder or a zip.
            model: Name of the model; made if it is new.
            evaluation: Folder that `monai-unet evaluate` wrote for this bundle; promotion compares evaluations.
            key: Private key that signs the bundle's files, an elliptic curve in PEM.

        Raises:
            InputRefusedError: The evaluation is of another bundle; or the bundle is registered already.
        """
        files: BundleFiles = results_bundle(bundle) or bundle_files(bundle)
        facts = bundle_facts(files) | {"evaluation": _evaluation_facts(evaluation, files) if evaluation else None}
        if any(name == model for name in self.models()):
            for one in self.versions(model):
                if one.sha256 == files.sha256:
                    raise InputRefusedError(
                        f"{files.name} is version {one.number} of {model} already; there is nothing to add"
                    )
        with _answering(), tempfile.TemporaryDirectory() as folder:
            experiment = self._client.get_experiment_by_name(model)
            number = (
                experiment.experiment_id if experiment else self._client.create_experiment(model, self._artifacts())
            )
            run = self._client.create_run(number)
            self._client.log_artifacts(run.info.run_id, str(files.root), "bundle")
            for name in _EVALUATION if evaluation else ():
                self._client.log_artifact(run.info.run_id, str(cast("Path", evaluation) / name), "evaluation")
            if key:
                _sign(files.root, key, Path(folder) / SIGNATURE)
                self._client.log_artifact(run.info.run_id, str(Path(folder) / SIGNATURE))
            if model not in self.models():
                self._client.create_registered_model(model)
            tags = {"sha256": files.sha256, "facts": json.dumps(facts)}
            source = f"{run.info.artifact_uri}/bundle"
            made = self._client.create_model_version(model, source, run.info.run_id, tags=tags)
        self._trail.write(
            "registered", model=model, version=int(made.version), bundle=files.sha256, evaluation=facts["evaluation"]
        )
        return self.version(model, str(made.version))

    def models(self) -> list[str]:
        """Names of all models."""
        with _answering():
            return sorted(one.name for one in self._client.search_registered_models())

    def promote(
        self, model: str, which: str, alias: Alias, who: str, margins: Mapping[str, float], reason: str = ""
    ) -> ReleaseOutcome | None:
        """Gives a version an alias; the champion before becomes archived.

        Args:
            model: Name of the model.
            which: Number or alias of the version.
            alias: What it becomes.
            who: Name of the approver.
            margins: Tolerated loss of each of `GATED_SCORES`; the gate compares its evaluation with the champion's.
            reason: Why it is promoted without the gate, in words; empty for the gate.

        Returns:
            The gate's outcome; None where there was no champion, or a reason was given.

        Raises:
            InputRefusedError: The gate did not pass, or evaluations or margins are missing.
        """
        version, outcome = self.version(model, which), None
        champion = next((one for one in self.versions(model) if "champion" in one.aliases), None)
        if champion == version and alias == "champion":
            raise InputRefusedError(
                f"version {version.number} of {model} is the champion already; there is nothing to do"
            )
        if not reason:
            outcome = self.judged(champion, version, margins)
        facts = {"model": model, "version": version.number, "bundle": version.sha256, "alias": alias, "who": who}
        before = champion.number if champion else None
        gated = outcome.as_dict() if outcome else None
        self._trail.write("promoted", **facts, before=before, margins=dict(margins), gate=gated, reason=reason)
        with _answering():
            if alias == "champion" and champion:
                self._client.set_registered_model_alias(model, "archived", str(champion.number))
            for other in set(version.aliases) - {alias}:
                self._client.delete_registered_model_alias(model, other)
            self._client.set_registered_model_alias(model, alias, str(version.number))
        return outcome

    def judged(self, champion: Version | None, version: Version, margins: Mapping[str, float]) -> ReleaseOutcome:
        """The gate's outcome, which has passed. Raises InputRefusedError as `promote`."""
        model = version.model
        if champion is None:
            raise InputRefusedError(
                f"{model} has no champion that version {version.number} could be compared with; give --reason with why it may "
                "be used"
            )
        if missing := set(GATED_SCORES) - set(margins):
            raise InputRefusedError(
                f"no margin for {', '.join(sorted(missing))}; without one, too few subjects would pass as 'not shown to be "
                "worse'; give --margin dice=0.01,boundary_iou=0.01,ece_whole=0.001,ece_band=0.005, or --reason"
            )
        with tempfile.TemporaryDirectory() as folder:
            places = [self._evaluation(one, Path(folder) / str(one.number)) for one in (champion, version)]
            comparison = compare(*places, names=("champion", f"version {version.number}"))
        outcome = gate(
            comparison,
            margins,
            unmeasured=len({*comparison.pairs.first.not_measured, *comparison.pairs.second.not_measured}),
        )
        if outcome.state != "passed":
            raise InputRefusedError(
                f"version {version.number} of {model} did not pass the release gate against version {champion.number}: "
                f"{outcome.reason}; a version that passes is needed, or --reason with why it may be used all the same"
            )
        return outcome

    def _evaluation(self, version: Version, place: Path) -> Path:
        if not version.facts.get("evaluation"):
            raise InputRefusedError(
                f"version {version.number} of {version.model} was registered without an evaluation; both are needed for the "
                "release gate; register with --evaluation, or give --reason"
            )
        place.mkdir()
        with _answering():
            self._client.download_artifacts(version.run, "evaluation", str(place))
        return place / "evaluation"

    def roll_back(self, model: str, who: str, reason: str) -> Version:
        """Makes the champion before the champion again, and the present one the archived; gives the champion.

        Raises:
            InputRefusedError: There was no champion before.
        """
        before, now = self.version(model, "archived"), self.version(model, "champion")
        facts = {"model": model, "version": before.number, "bundle": before.sha256, "before": now.number, "who": who}
        self._trail.write("rolled back", **facts, reason=reason)
        with _answering():
            self._client.set_registered_model_alias(model, "champion", str(before.number))
            self._client.set_registered_model_alias(model, "archived", str(now.number))
        return self.version(model, "champion")

    def export(self, model: str, which: str, output: Path, public_key: Path | None = None) -> Path:
        """Writes the bundle of a version into a folder, as a folder of its own name, whole and with its sha256, or not at all.

        Args:
            model: Name of the model.
            which: Number or alias.
            output: The folder.
            public_key: The signature of the bundle by this key is checked, too.

        Raises:
            InputRefusedError: Its bytes are not those that were registered, its signature is absent or wrong, or there is a
                folder of its name.
        """
        version = self.version(model, which)
        target = output / str(version.facts["name"])
        if target.exists():
            raise InputRefusedError(f"{target} exists; a new folder is needed; give another --output")
        output.mkdir(parents=True, exist_ok=True)
        with replace_when_whole(target) as part:
            with _answering():
                self._client.download_artifacts(version.run, "bundle", str(part.parent))
            (part.parent / "bundle").rename(part)
            found = results_bundle(part) or bundle_files(part)
            if found.sha256 != version.sha256:
                raise InputRefusedError(
                    f"version {version.number} of {model} has sha256 {found.sha256[:16]} in the store, {version.sha256[:16]} "
                    "was registered; its files were changed; nothing was written; register the bundle anew from a copy"
                )
            if public_key:
                self._check_signature(version, part, public_key)
        return target

    def _check_signature(self, version: Version, bundle: Path, key: Path) -> None:
        from model_signing import verifying

        with tempfile.TemporaryDirectory() as folder:
            held = [one.path for one in self._client.list_artifacts(version.run)]
            if SIGNATURE not in held:
                raise InputRefusedError(
                    f"version {version.number} of {version.model} is not signed, and a signature is asked for; register it "
                    "with --key"
                )
            signature = Path(self._client.download_artifacts(version.run, SIGNATURE, folder))
            try:
                config: Any = verifying.Config()  # type: ignore[no-untyped-call]
                config.use_elliptic_key_verifier(public_key=key).verify(bundle, signature)
            except Exception as error:  # the library names no base class
                raise InputRefusedError(
                    f"the signature of version {version.number} of {version.model} does not fit {key.name} ({error}); the key "
                    "of whoever signed it is needed"
                ) from error

    def history(self, model: str) -> list[dict[str, Any]]:
        """The lines of the trail about a model, the first line first."""
        kept = ("time", "event", "version", "alias", "before", "who", "reason")
        lines = [line for line in entries(self._trail.path) if line.get("model") == model]
        return [{key: line[key] for key in kept if line.get(key)} for line in lines]

    def looks(self, model: str) -> dict[str, int]:
        """sha256 of the data of an evaluation -> how many versions were measured on it: each is a look at the test set."""
        counts: dict[str, int] = {}
        for one in self.versions(model):
            if evaluation := one.facts.get("evaluation"):
                counts[evaluation["data_sha256"]] = counts.get(evaluation["data_sha256"], 0) + 1
        return counts

    def _artifacts(self) -> str | None:
        """Where files of a new model go; None for a server, which knows a place."""
        return (self._trail.path.parent / "artifacts").resolve().as_uri() if self._is_local else None

    @property
    def _is_local(self) -> bool:
        return str(self._client.tracking_uri).startswith("sqlite")


@contextmanager
def open_registry(folder: Path, uri: str = "") -> Iterator[Registry]:
    """The registry in a folder, made if it is new.

    Args:
        folder: Holds the trail, and without `uri` the store.
        uri: Address of an MLflow server, or of its database; empty for `mlflow.db` in the folder.

    Raises:
        UsageError: MLflow is not installed, or another process has the registry open.
        InputRefusedError: The trail was tampered with.
    """
    try:
        os.environ.update(_QUIET)
        import sqlalchemy  # noqa: F401  (the store; mlflow-skinny comes without it)
        from mlflow import MlflowClient
    except ImportError as error:
        raise UsageError(
            f"the registry needs {error.name}; the extra `mlops` contains it; pip install 'monai-unet-app[mlops]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "registry.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{folder} is in use by another process; wait until it has ended") from error
        database = Database(folder / "registry.sqlite")
        try:
            trail = AuditTrail(folder / "audit.jsonl", None, database)
            address = uri or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
            with _answering():
                client = MlflowClient(address, address)
            yield Registry(client, trail)
        finally:
            database.close()


@contextmanager
def _answering() -> Iterator[None]:
    """An error of MLflow, or of the way to its server, as ours."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise InputRefusedError(
                f"the registry does not have it: {error.message}; monai-unet registry list shows what it has"
            ) from error
        raise AppError(
            f"the registry does not answer as it should: {str(error.message)[:300]}; check its address, and try again"
        ) from error


def _evaluation_facts(folder: Path, files: BundleFiles) -> dict[str, Any]:
    document = read_evaluation(folder).document
    if document["bundle"]["sha256"] != files.sha256:
        raise InputRefusedError(
            f"{folder} is the evaluation of a bundle with sha256 {document['bundle']['sha256'][:16]}, {files.name} has "
            f"{files.sha256[:16]}; evaluate this bundle"
        )
    data = document["data"]
    return {
        "data": data["name"], "data_sha256": data["sha256"], "partition": data["partition"], "cases": data["cases"],
        "subjects": data["subjects"], "sha256": file_sha256(folder / "metrics.json"),
    }  # fmt: skip


def _sign(bundle: Path, key: Path, signature: Path) -> None:
    from model_signing import signing

    try:
        config: Any = signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=key).sign(bundle, signature)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{key} cannot sign ({error}); the private key of an elliptic curve in PEM is needed"
        ) from error
