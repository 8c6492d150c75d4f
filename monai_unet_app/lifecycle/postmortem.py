"""What differs between two versions of a model, what each makes of a study, and where the second is worse."""

import difflib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from scipy import stats

from dicom_io.errors import DicomIoError
from dicom_io.reading.series import files_below, survey_files
from monai_unet_app.bundle_folder import BundleFiles, bundle_files
from monai_unet_app.comparison.rank_tests import holm
from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.service.audit import entries
from monai_unet_app.service.models import model_and_version
from monai_unet_app.service.site import Rule, Site
from monai_unet_app.service.trace import audit_lines, bundle_facts
from monai_unet_app.service.work import misfits, read_picked

if TYPE_CHECKING:
    from monai_unet_app.pipeline import Case

LEAST_STUDIES = 6
"""Of a subgroup; of fewer no test can tell anything."""

_MOST_NAMED = 12


@dataclass(frozen=True)
class Subgroup:
    """Studies that share a tag.

    Attributes:
        name: Keyword and value; "all studies" for all.
        studies: How many both versions have segmented.
        difference: Mean predicted Dice of the second version less that of the first.
        worse: In how many studies the second is worse.
        p: By the sign test, corrected by Holm for the number of subgroups.
    """

    name: str
    studies: int
    difference: float
    worse: int
    p: float


@dataclass(frozen=True)
class Replay:
    """A series of the study, segmented by both versions.

    Attributes:
        series: SeriesInstanceUID.
        made: What each made of it; or why it made nothing.
    """

    series: str
    made: tuple["Case | str", ...]


@dataclass(frozen=True)
class Postmortem:
    """What was found.

    Attributes:
        study: StudyInstanceUID.
        rule: Name of the rule.
        bundles: Of both versions.
        differences: What differs -> in the first, in the second.
        config: Unified diff of the configs; its lines.
        replays: Empty where the study's images are forgotten.
        subgroups: Of the studies that both have segmented, the worst first.
        lines: Of the audit trail about the study.
    """

    study: str
    rule: str
    bundles: tuple[BundleFiles, BundleFiles]
    differences: Mapping[str, tuple[str, str]]
    config: Sequence[str]
    replays: Sequence[Replay]
    subgroups: Sequence[Subgroup]
    lines: Sequence[Mapping[str, Any]]

    @property
    def worst(self) -> Subgroup | None:
        """The subgroup in which the second version is shown to be worse; None if it is in none."""
        return next((one for one in self.subgroups if one.difference < 0 and one.p < 0.05), None)

    @property
    def sentence(self) -> str:
        """What was found of the two versions, in words."""
        if not self.subgroups:
            return (
                f"fewer than {LEAST_STUDIES} studies were segmented by both versions, so nothing is known of subgroups"
            )
        if (one := self.worst) is None:
            return f"the second version is not shown to be worse in any of {len(self.subgroups)} groups of studies"
        return (
            f"the second version is worse where {one.name}: predicted Dice {one.difference:+.3f} in {one.studies} studies, "
            f"lower in {one.worse} of them"
        )

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "study": self.study,
            "rule": self.rule,
            "bundles": [bundle.sha256 for bundle in self.bundles],
            "differences": {name: list(pair) for name, pair in self.differences.items()},
            "config": list(self.config),
            "replayed": [
                {"series": one.series, "faults": [made if isinstance(made, str) else "" for made in one.made]}
                for one in self.replays
            ],
            "subgroups": [vars(one) for one in self.subgroups],
            "worst": vars(self.worst) if self.worst else None,
            "sentence": self.sentence,
        }


@contextmanager
def postmortem(
    site: Site, study: str, between: tuple[str, str], name: str = "", told: Callable[[str], None] = lambda _: None
) -> Iterator[Postmortem]:
    """Compares two versions on a study and on all that both have segmented.

    Args:
        site: Its node has, or had, the study.
        study: StudyInstanceUID.
        between: Numbers or aliases of versions of the rule's model, or bundles.
        name: Of the rule; empty for the only one.
        told: Gets what is being done.

    Yields:
        One post-mortem, while the bundles are there.

    Raises:
        InputRefusedError: The trail does not know the study; the site has no such rule, or several and none is named.
    """
    rule, trail = site.named_rule(name), site.node.folder / "audit.jsonl"
    lines = audit_lines(trail, study)
    if not lines:
        raise InputRefusedError(
            f"the audit trail {trail} says nothing of study {study}; the StudyInstanceUID of a study that the node has got is "
            "needed; the node's page lists them"
        )
    with _bundles(site, rule, between) as bundles:
        told("comparing what both versions are made of")
        yield Postmortem(
            study, rule.name, bundles, _differences(*bundles), _config_diff(*bundles),
            list(_replays(site, rule, study, bundles, told)),
            subgroups(trail, rule.name, (bundles[0].sha256, bundles[1].sha256)), lines,
        )  # fmt: skip


@contextmanager
def _bundles(site: Site, rule: Rule, between: tuple[str, str]) -> Iterator[tuple[BundleFiles, BundleFiles]]:
    """Both versions, those of the registry in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        first, second = (_bundle(site, rule, which, Path(folder) / str(n)) for n, which in enumerate(between))
        yield first, second


def _bundle(site: Site, rule: Rule, which: str, folder: Path) -> BundleFiles:
    if not rule.is_registered or Path(which).is_dir():
        return bundle_files(which)
    assert site.registry is not None  # or the site file were refused
    from monai_unet_app.lifecycle.registry import open_registry

    with open_registry(site.registry.folder, site.registry.uri, new=False) as registry:
        return bundle_files(registry.export(model_and_version(rule.bundle)[0], which, folder, site.registry.public_key))


def _differences(first: BundleFiles, second: BundleFiles) -> dict[str, tuple[str, str]]:
    """What differs: data and its cases, recipe and settings, environment, calibration, exports, weights."""
    runs = [_json(bundle.root / "models/run.json") for bundle in (first, second)]
    facts = [_facts(bundle, run) for bundle, run in zip((first, second), runs, strict=True)]
    pairs = {name: (facts[0].get(name, "none"), facts[1].get(name, "none")) for name in facts[0] | facts[1]}
    cases = [{case for case, of in (run.get("cases") or {}).items() if of.get("partition") == "train"} for run in runs]
    pairs["training cases"] = _told(*cases), _told(*cases[::-1])
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _told(cases: set[str], others: set[str]) -> str:
    """How many cases there are, and those that others are without."""
    own = sorted(cases - others)
    named = f", only here: {len(own)} ({', '.join(own[:_MOST_NAMED])}{', ...' if own[_MOST_NAMED:] else ''})"
    return f"{len(cases)} cases{named if own else ''}"


def _facts(bundle: BundleFiles, run: Mapping[str, Any]) -> dict[str, str]:
    fitted = _json(bundle.root / "models/fitted.json")
    known, session = bundle_facts(bundle), (run.get("sessions") or [{}])[-1]
    exports = sorted(str(one.relative_to(bundle.root)) for one in (bundle.root / "models").rglob("*.onnx"))
    found: dict[str, Any] = {
        "bundle": f"{bundle.name} {bundle.version}",
        "sha256": bundle.sha256,
        "training data": known["training_data_sha256"],
        "recipe": known["recipe_sha256"],
        "git commit": session.get("git_commit"),
        "trained on": f"{session.get('device')}, {session.get('precision')}",
        "exports": ", ".join(exports),
    }
    found |= {f"setting {key}": value for key, value in (run.get("settings") or {}).items()}
    found |= {f"version of {key}": value for key, value in (session.get("versions") or {}).items()}
    found |= {
        f"calibration: {key}": value for key, value in (fitted.get("calibration") or {}).items() if key != "fitted_to"
    }
    found |= {f"calibration: {key}": (known["calibration"] or {}).get(key) for key in ("cases", "nll_after")}
    found |= {f"figure {key}": value for key, value in known["measured"].items()}
    return {key: _text(value) for key, value in found.items()}


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    return "none" if value in (None, "") else str(value)


def _json(path: Path) -> dict[str, Any]:
    return dict(json_of(path)) if path.is_file() else {}


def _config_diff(first: BundleFiles, second: BundleFiles) -> list[str]:
    names = sorted({path.name for bundle in (first, second) for path in (bundle.root / "configs").glob("*.yaml")})
    lines: list[str] = []
    for name in names:
        before, after = (
            path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            for bundle in (first, second)
            for path in [bundle.root / "configs" / name]
        )
        lines += difflib.unified_diff(before, after, f"first/{name}", f"second/{name}", lineterm="", n=1)
    return lines


def _replays(
    site: Site, rule: Rule, study: str, bundles: tuple[BundleFiles, BundleFiles], told: Callable[[str], None]
) -> Iterator[Replay]:
    """Both versions on each series that the rule picks, where the images are still kept."""
    from monai_unet_app.bundle import load_bundle
    from monai_unet_app.config import PredictConfig
    from monai_unet_app.pipeline import segment_case

    load = cache(load_bundle)
    folder = site.node.folder / "received" / study
    series = survey_files(files_below(folder)).series if folder.is_dir() else ()
    picked = {ref.series_instance_uid for ref in series if ref.kind == "image" and not misfits(rule, ref)}
    run = PredictConfig(replace(rule.settings, engine="torch", precision="float32"))
    for uid in sorted(picked):
        made = list[Any]()
        for bundle in bundles:
            told(f"series {uid} by {bundle.name} {bundle.version}")
            try:
                made.append(segment_case(read_picked(rule, uid, series), load(bundle.root), run))
            except (AppError, DicomIoError) as error:
                made.append(str(error))
        yield Replay(uid, tuple(made))


def subgroups(trail: Path, rule: str, versions: tuple[str, str]) -> list[Subgroup]:
    """Where the second of two versions is worse, of the studies that the node has compared.

    Args:
        trail: The node's.
        rule: Name of the rule.
        versions: sha256 of both; one was champion and the other challenger.

    Returns:
        All studies and each value of a tag with `LEAST_STUDIES` studies, the largest loss first.
    """
    words: dict[int, Mapping[str, str]] = {}
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for line in entries(trail):
        if line["event"] == "result" and line.get("rule") == rule and "observed" in line:
            words[line["job"]] = line["observed"].get("words", {})
        facts = line["compared"].get(rule) if line["event"] == "compared" else None
        if not facts or not facts["dice"] or {facts["champion"], facts["challenger"]} != set(versions):
            continue
        difference = facts["dice"][1] - facts["dice"][0]
        difference = difference if facts["challenger"] == versions[1] else -difference
        for name in ("all studies", *(f"{key} is {value}" for key, value in words.get(line["job"], {}).items())):
            found[name][line["job"]] = difference
    # Of tags that the same studies have, the first
    distinct = {frozenset(studies): name for name, studies in reversed(found.items())}
    kept = {name: list(found[name].values()) for studies, name in distinct.items() if len(studies) >= LEAST_STUDIES}
    worse = {name: sum(value < 0 for value in values) for name, values in kept.items()}
    p_values = {
        name: float(stats.binomtest(worse[name], sum(value != 0 for value in values), alternative="greater").pvalue)
        for name, values in kept.items()
        if any(values)
    }
    corrected = holm(p_values) if p_values else {}
    made = [
        Subgroup(name, len(values), fmean(values), worse[name], corrected.get(name, 1.0))
        for name, values in kept.items()
    ]
    return sorted(made, key=lambda one: (one.p, one.difference))
