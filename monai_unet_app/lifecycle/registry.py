"""The registry of models: versions with what is known of them, and which of them is champion.

Versions and aliases are in MLflow's model registry, a SQLite file beside their artifacts or a server. MLflow keeps no history
of aliases and checks no bytes: every move is a line of an audit trail in the registry's folder, and a bundle that is taken out
has the sha256 that it was registered with.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from dicom_io.files import replace_when_whole
from monai_unet_app.bundle_folder import BundleFiles, bundle_files, figure_of
from monai_unet_app.comparison.differences import compare
from monai_unet_app.comparison.release_gate import GATED_SCORES, ReleaseOutcome, gate
from monai_unet_app.confidence.results_bundle import results_bundle
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.errors import AppError, InputRefusedError, UsageError, needing
from monai_unet_app.report.stored_evaluation import read_evaluation
from monai_unet_app.service.audit import AuditTrail, entries
from monai_unet_app.service.database import Database
from monai_unet_app.service.trace import bundle_facts

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Alias = Literal["champion", "challenger", "archived"]
ALIASES: tuple[Alias, ...] = ("champion", "challenger", "archived")
"""champion: the one in use. challenger: tried beside it. archived: the champion before, to which a rollback returns."""

SIGNATURE = "bundle.sig"
_EVALUATION = ("metrics.json", "cases.csv")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
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

    @property
    def name(self) -> str:
        """Name of the bundle, and of its folder."""
        return Path(str(self.facts["name"])).name

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
        # The trail is signed; tags of MLflow may be written by anybody
        lines = [line for line in entries(self._trail.path) if line["event"] == "registered"]
        told = {(line["model"], line["version"]): line for line in lines}
        versions = []
        for one in sorted(found, key=lambda one: (one.name, int(one.version))):
            line, facts = told.get((one.name, int(one.version)), {}), json.loads(one.tags["facts"])
            named = tuple(alias for alias in ALIASES if str(aliases[one.name].get(alias)) == str(one.version))
            facts["evaluation"] = line.get("evaluation", facts["evaluation"])
            sha256 = line.get("bundle", one.tags["sha256"])
            versions.append(Version(one.name, int(one.version), sha256, named, facts, str(one.run_id)))
        return versions

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
            InputRefusedError: The evaluation is of another bundle; or the bundle is registered already, whole and with as much.
            UsageError: The key cannot sign, or the name is none.
        """
        if not _NAME.fullmatch(model):
            raise UsageError(f"the name is {model!r}; letters, digits, _, . and - are needed; give another --name")
        files: BundleFiles = results_bundle(bundle) or bundle_files(bundle)
        facts = bundle_facts(files) | {"evaluation": _evaluation_facts(evaluation, files) if evaluation else None}
        for one in self.versions(model) if model in self.models() else ():
            if one.sha256 == files.sha256 and self._has_all(one, facts["evaluation"], key):
                raise InputRefusedError(
                    f"{files.name} is version {one.number} of {model} already; there is nothing to add"
                )
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "files"
            shutil.copytree(files.root, whole / "bundle")
            (whole / "evaluation").mkdir()
            for name in _EVALUATION if evaluation else ():
                shutil.copy(Path(evaluation or "") / name, whole / "evaluation")
            if key:
                _sign(files.root, key, whole / SIGNATURE)
            with _answering():
                made = self._create(model, whole, {"sha256": files.sha256, "facts": json.dumps(facts)})
        self._trail.write(
            "registered", model=model, version=int(made.version), bundle=files.sha256, evaluation=facts["evaluation"]
        )
        return self.version(model, str(made.version))

    def _create(self, model: str, whole: Path, tags: Mapping[str, str]) -> "ModelVersion":
        """A version in MLflow, with a folder of files."""
        known = self._client.get_experiment_by_name(model)
        number = known.experiment_id if known else self._client.create_experiment(model, self._artifacts())
        run = self._client.create_run(number).info
        if here := self._here(run.run_id):
            shutil.copytree(whole, here)
        else:
            self._client.log_artifacts(run.run_id, str(whole))
        if model not in self.models():
            self._client.create_registered_model(model)
        return self._client.create_model_version(model, f"{run.artifact_uri}/bundle", run.run_id, tags=dict(tags))

    def _has_all(self, version: Version, evaluation: Mapping[str, Any] | None, key: Path | None) -> bool:
        """Whether a version is whole in the store, with this evaluation and a signature if these are given."""
        if evaluation not in (None, version.facts["evaluation"]) or (key and not self.is_signed(version)):
            return False
        with tempfile.TemporaryDirectory() as folder, suppress(InputRefusedError):
            self.export(version.model, str(version.number), Path(folder))
            return True
        return False

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
        if champion == version:
            raise InputRefusedError(
                f"version {version.number} of {model} is the champion; another version is needed as its {alias}; make "
                "that one the champion first"
            )
        if not reason:
            outcome = self.judged(champion, version, margins)
        facts = {"model": model, "version": version.number, "bundle": version.sha256, "alias": alias, "who": who}
        before = champion.number if champion else None
        gated = outcome.as_dict() if outcome else None
        self._trail.write("promoted", **facts, before=before, margins=dict(margins), gate=gated, reason=reason)
        with _answering():
            for other in set(version.aliases) - {alias}:
                self._client.delete_registered_model_alias(model, other)
            if alias == "champion" and champion:
                self._client.set_registered_model_alias(model, "archived", str(champion.number))
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
                "worse'; give --margin dice=0.01,boundary_iou=0.01,ece_whole=0.001,ece_band=0.005 (the key margins of a site "
                "file), or a written reason"
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
        facts = version.facts["evaluation"]
        if facts.get("seen"):
            raise InputRefusedError(
                f"{facts['seen']} of the {facts['cases']} cases on which version {version.number} of {version.model} was "
                "evaluated have made the bundle; cases that it has not seen are needed; evaluate it on its test cases, or give "
                "a written reason"
            )
        place.mkdir()
        found = self._fetch(version, "evaluation", place)
        if any(file_sha256(found / name) != facts.get("files", {}).get(name) for name in _EVALUATION):
            raise InputRefusedError(
                f"the evaluation of version {version.number} of {version.model} in the store is not the one that was "
                "registered; its files were changed; register the bundle once more, with its evaluation"
            )
        return found

    def _here(self, run: str) -> Path | None:
        """Where a local registry keeps the files of a version, wherever its folder lies by now; None for a server's."""
        return self._trail.path.parent / "artifacts" / run / "artifacts" if self._is_local else None

    def _fetch(self, version: Version, name: str, place: Path) -> Path:
        """A file or folder of a version, in `place`."""
        if (here := self._here(version.run)) is None:
            with _answering():
                return Path(self._client.download_artifacts(version.run, name, str(place)))
        if not (here / name).exists():
            raise InputRefusedError(
                f"{name} of version {version.number} of {version.model} is not in the store any more; put the registry's "
                "folder artifacts back, or register the bundle once more"
            )
        return Path((shutil.copytree if (here / name).is_dir() else shutil.copy)(here / name, place / name))

    def is_signed(self, version: Version) -> bool:
        """Whether there is a signature of a version."""
        if (here := self._here(version.run)) is not None:
            return (here / SIGNATURE).exists()
        with _answering():
            return SIGNATURE in [one.path for one in self._client.list_artifacts(version.run)]

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
        target = output / version.name
        if target.exists():
            raise InputRefusedError(f"{target} exists; a new folder is needed; give another --output")
        output.mkdir(parents=True, exist_ok=True)
        try:
            with replace_when_whole(target) as part:
                self._fetch(version, "bundle", part.parent).rename(part)
                if _sha256_of(part) != version.sha256:
                    raise InputRefusedError(
                        f"version {version.number} of {model} in the store has not the sha256 {version.sha256[:16]} that was "
                        "registered; its files were changed; nothing was written; register the bundle once more, from a copy"
                    )
                if public_key:
                    self.check_signature(version, part, public_key)
        finally:
            with suppress(OSError):  # it holds something
                output.rmdir()
        return target

    def check_signature(self, version: Version, bundle: Path, key: Path) -> None:
        """Raises InputRefusedError if a version is not signed by the key's owner, or its bundle was changed since."""
        from model_signing import verifying

        if not self.is_signed(version):
            raise InputRefusedError(
                f"version {version.number} of {version.model} is not signed, and a signature is asked for; register it with "
                "--key"
            )
        with tempfile.TemporaryDirectory() as folder:
            signature = self._fetch(version, SIGNATURE, Path(folder))
            try:
                config: Any = verifying.Config()  # type: ignore[no-untyped-call]
                config.use_elliptic_key_verifier(public_key=key).verify(bundle, signature)
            except Exception as error:  # the library names no base class
                raise InputRefusedError(
                    f"the signature of version {version.number} of {version.model} does not fit {key.name}: somebody else "
                    "signed it, or a file of it was changed since; the public key of whoever signed it is needed, or a new "
                    "version"
                ) from error

    def history(self, model: str) -> list[dict[str, Any]]:
        """The lines of the trail about a model, the first line first."""
        kept = ("time", "event", "version", "alias", "before", "who", "reason", "margins")
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
def open_registry(folder: Path, uri: str = "", *, new: bool = True) -> Iterator[Registry]:
    """The registry in a folder.

    Args:
        folder: Holds the trail, and without `uri` the store.
        uri: Address of an MLflow server, or of its database; empty for `mlflow.db` in the folder.
        new: Make it if it is not there.

    Raises:
        UsageError: MLflow is not installed, or another process has the registry open.
        InputRefusedError: There is no registry, or its trail was tampered with.
    """
    if not (new or uri or (folder / "mlflow.db").is_file()):
        raise InputRefusedError(
            f"{folder} holds no registry; correct its place, or let the disk that it is on come back; monai-unet registry add "
            "makes a new one"
        )
    with needing("mlops", "the registry"):
        os.environ.update(_QUIET)
        import sqlalchemy  # noqa: F401  (the store; mlflow-skinny comes without it)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # that it makes tables is nobody's concern
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
            f"the registry does not answer as it should: {shorten(str(error.message), 160)}; check its address, and try again"
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
        "subjects": data["subjects"], "seen": sum(data.get("seen", {}).values()), "dice": figure_of(document.get("dice")),
        "files": {name: file_sha256(folder / name) for name in _EVALUATION},
    }  # fmt: skip


def _sha256_of(folder: Path) -> str:
    """The sha256 of a bundle; empty if the folder is none."""
    with suppress(AppError, OSError, ValueError):
        return (results_bundle(folder) or bundle_files(folder)).sha256
    return ""


def _sign(bundle: Path, key: Path, signature: Path) -> None:
    from model_signing import signing

    try:
        config: Any = signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=key).sign(bundle, signature)
    except (ValueError, OSError, AttributeError) as error:  # AttributeError: a key of another kind
        raise UsageError(
            f"{key} cannot sign ({error}); the private key of an elliptic curve in PEM is needed"
        ) from error
