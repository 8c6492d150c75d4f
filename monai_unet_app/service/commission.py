"""Site acceptance: phantoms to every destination and back, known studies through the live node, all of it in one signed report.

First everything that can be known in seconds is looked at, and nothing is sent where that fails. What comes back afterwards is
compared in patient space with what went out: how far a labelled voxel lies from its place, and how much the volume differs.
Every study has new UIDs, so neither the node nor an archive can answer with something that it had before. Nothing of a patient
takes part; the studies stay where they were sent until somebody deletes them.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from dicom_io.kinds import KIND
from dicom_io.net.destination import Destination, Dimse
from dicom_io.net.exchange import echo, fetch, find, send
from dicom_io.net.query import Query
from dicom_io.net.scp import Listen
from dicom_io.read import read_series
from dicom_io.reading.instances import load_dataset
from dicom_io.reading.series import survey_files
from dicom_io.seg import read_seg
from dicom_io.volume import Volume
from monai_unet_app.bundle_folder import bundle_files
from monai_unet_app.data.itk_bridge import check_by_itk
from monai_unet_app.errors import UsageError
from monai_unet_app.service.acceptance_checks import (
    MOST_PLACE_MM,
    MOST_VOLUME_ML,
    StepResult,
    TrailReader,
    address_of_node,
    compare_labels,
    result_within,
    source_address,
)
from monai_unet_app.service.phantoms import (
    AXES,
    ORIENTATIONS,
    PATIENT,
    Example,
    Study,
    example_study,
    phantom_study,
    shipped_example,
)
from monai_unet_app.service.site_file import Rule, Site
from monai_unet_app.service.work import misfits

_PACKAGES = ("torch", "monai", "pydicom", "pynetdicom", "highdicom", "itk", "numpy")
_PAUSE_S, _TELL_S = 0.5, 10.0
_MOST_ROUNDS = 3  # of studies, until every worker has answered

State = Literal["passed", "failed", "not tried"]


@dataclass(frozen=True)
class Commissioning:
    """How a site is tried.

    Attributes:
        live: Send studies to the node too; it must be running.
        calling_ae_title: AE title that the node is called by.
        node_host: Address of the node; empty: that of the site file.
        examples: Rule -> NIfTI file, DICOM file or folder with one series, for rules that the shipped example does not fit.
        headers: Rule -> DICOM keyword -> value, where none can be made from the rule's pattern.
        limit_s: The whole takes no longer; what is not done by then is not tried.
        result_s: How long the node may take for the studies of one rule, from the last instance to the destinations,
            beside its own `stable_s`.
    """

    live: bool = True
    calling_ae_title: str = PATIENT
    node_host: str = ""
    examples: Mapping[str, Path] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    limit_s: float = 600.0
    result_s: float = 120.0


@dataclass(frozen=True)
class Check:
    """One thing that was to be tried.

    Attributes:
        what: In a few words.
        where: Destination, node or rule.
        state: "passed", "failed", or "not tried" because something that it needs failed, or the time was over.
        seconds: How long it took.
        said: What came out, what went wrong, or why it was not tried.
        place_mm, volume_ml: Largest error of a labelled voxel's place and difference of volume, where they were measured.
    """

    what: str
    where: str
    state: State
    seconds: float
    said: str
    place_mm: float | None = None
    volume_ml: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it came out as it must."""
        return self.state == "passed"


@dataclass
class Acceptance:
    """What was tried at a site, in order.

    Attributes:
        site: Name of its file.
        began: ISO 8601, UTC.
        versions: Of what took part.
        bundles: Rule -> name, version and sha256 of its bundle.
        unchecked: What no check looked at, in words.
        checks: All of them.
    """

    site: str
    began: str
    versions: dict[str, str]
    bundles: dict[str, str]
    unchecked: list[str]
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all was passed, and anything was tried at all."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def of(self, state: State) -> list[Check]:
        """The checks of one state."""
        return [check for check in self.checks if check.state == state]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema_version": "1.1",
            "passed": self.passed,
            "limits": {"place_mm": MOST_PLACE_MM, "volume_ml": MOST_VOLUME_ML},
            **{name: value for name, value in asdict(self).items() if name != "checks"},
            "checks": [{**asdict(check), "passed": check.passed} for check in self.checks],
        }


Each = Callable[[Check, int, int], None]
"""Called with a check as soon as it is done, its number from 1, and how many there are."""


def commission(
    site: Site,
    how: Commissioning | None = None,
    *,
    each: Each = lambda check, number, total: None,
    waiting: Callable[[str], None] = lambda text: None,
) -> Acceptance:
    """Tries every destination of a site, and its node if it runs.

    Args:
        site: What is tried.
        how: Flags of this run.
        each: See `Each`.
        waiting: Called every ten seconds with what is waited for.

    Raises:
        UsageError: An example or a header is named for a rule that the site does not have.
    """
    how = how or Commissioning()
    _check_names(site, how)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    done = Acceptance(site.path.name, began, _versions(), _bundles(site.rules), unchecked(site, live=how.live))
    with tempfile.TemporaryDirectory(prefix="commission-", ignore_cleanup_errors=True) as scratch:
        run = _Run(site, how, Path(scratch), waiting)
        steps = run.steps()
        for number, step in enumerate(steps, start=1):
            check = run.try_step(step)
            done.checks.append(check)
            each(check, number, len(steps))
    return done


def unchecked(site: Site, *, live: bool) -> list[str]:
    """What an acceptance does not look at, in words; stands in the report."""
    found = [
        "the content of objects other than SEG; SR, RTSTRUCT and GSPS are only looked for, others not even that",
        "the node's HTTP door, review pages, verdicts, notices and retention",
        "what happens when a part is killed, a disk is full or a destination is away",
        "whether results are clinically right: images are examples, and the expected result is that of this program",
    ]
    if not live:
        return ["the node and its rules: they were left out (--no-node)", *found]
    sent_to = {name for rule in site.rules for name in rule.destinations}
    alone = sorted(set(site.destinations) - sent_to)
    return [*(f"results at {name}: no rule sends there" for name in alone), *found]


def _check_names(site: Site, how: Commissioning) -> None:
    for flag, named in (("--example", how.examples), ("--header", how.headers)):
        unknown = [name for name in named if site.rule(name) is None]
        if unknown:
            raise UsageError(
                f"{flag} names the rule {unknown[0]}; one of {', '.join(one.name for one in site.rules)} is needed; correct it"
            )


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in _PACKAGES}
    return {
        "monai-unet-app": version("monai-unet-app"),
        "python": platform.python_version(),
        "system": platform.platform(),
        **found,
    }


def _bundles(rules: Sequence[Rule]) -> dict[str, str]:
    found = {}
    for rule in rules:
        files = bundle_files(rule.bundle)
        found[rule.name] = f"{files.name} {files.version}, sha256 {files.sha256}"
    return found


@dataclass(frozen=True, eq=False)
class _Step:
    """Something to try.

    Attributes:
        what, where: As in a `Check`.
        work: Tries it.
        needs: Steps without which it makes no sense.
        most_s: Seconds that it may take.
    """

    what: str
    where: str
    work: Callable[[], StepResult]
    needs: tuple[_Step, ...] = ()
    most_s: float = 60.0


class _Sent:
    """The studies of one rule that went to the node at the same time.

    Attributes:
        studies: In the order of their checks.
        expected: Axes -> labels that this program makes of the example.
        until: When waiting for their results ends, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.studies: list[Study] = []
        self.expected: dict[tuple[int, int, int], Volume] = {}
        self.until = 0.0


class _Run:
    """One run: the steps, what they know of each other, and the time that is left."""

    def __init__(self, site: Site, how: Commissioning, scratch: Path, waiting: Callable[[str], None]) -> None:
        self.site, self.how, self.scratch, self.waiting = site, how, scratch, waiting
        self.until = time.monotonic() + how.limit_s
        self.node = _node(site, how)
        self.trail = TrailReader(site.node.folder / "audit.jsonl")
        self.sent = {rule.name: _Sent() for rule in site.rules}
        self._states: dict[_Step, State] = {}
        self._folders = 0

    def steps(self) -> list[_Step]:
        """All steps, in order; the first ones send nothing but C-ECHO and searches, and all others need them."""
        live = self.site.rules if self.how.live else ()
        first = [_Step("answers", _where(one), partial(_answers, one)) for one in self.site.destinations.values()]
        if live:
            first.append(_Step("lets this program in", "node", self._is_let_in))
            first.append(_Step("answers", "node", partial(_answers, self.node), (first[-1],)))
            first += [_Step("an example fits", f"rule {rule.name}", partial(self._fits, rule)) for rule in live]
        second = [
            _Step("the gate accepts the example", f"rule {rule.name}", partial(self._expect, rule), tuple(first), 300.0)
            for rule in live
        ]
        return [*first, *second, *self._at_destinations((*first, *second)), *self._through_node((*first, *second))]

    def try_step(self, step: _Step) -> Check:
        """Tries a step, unless a step that it needs did not pass or the time is over."""
        left, seconds = self.until - time.monotonic(), 0.0
        state: State = "not tried"
        if any(self._states[one] != "passed" for one in step.needs):
            said = StepResult("a check before it did not pass")
        elif left <= 0:
            said = StepResult(f"the time was over ({self.how.limit_s / 60:g} min); allow more with --limit-min")
        else:
            begin = time.perf_counter()
            said = result_within(min(step.most_s, left), step.work)
            state, seconds = "failed" if said.fault else "passed", round(time.perf_counter() - begin, 3)
        self._states[step] = state
        return Check(step.what, step.where, state, seconds, said.text, said.place_mm, said.volume_ml)

    def folder(self) -> Path:
        """One that does not exist yet."""
        self._folders += 1
        return self.scratch / str(self._folders)

    # before anything is sent

    def _is_let_in(self) -> StepResult:
        """Whether the site file lets this program call the node."""
        faults, senders, ours = [], self.site.node.senders, self.how.calling_ae_title
        if senders and ours not in senders:
            faults.append(
                f"it lets in {', '.join(senders)} (senders), and this program calls as {ours}; add {ours} to senders and start "
                "the node again, or call as one of them with --calling-ae-title"
            )
        assert isinstance(self.node.peer, Dimse)
        address = source_address(self.node.peer.host)
        networks = self.site.node.networks
        if address and not Listen(networks=networks).lets_in(address):
            faults.append(
                f"it lets in {', '.join(networks)} (networks), and this program calls from {address}; run it on a machine in "
                "one of them, give the node's address there with --node-host, or add the address and start the node again"
            )
        return StepResult("; ".join(faults) or f"as {ours} from {address or 'this machine'}", fault=bool(faults))

    def _fits(self, rule: Rule) -> StepResult:
        """Whether the node would pick the example for a rule and deliver what can be compared."""
        if not self._compared_at(rule):
            return StepResult(
                f"it delivers a SEG nowhere (formats {', '.join(rule.formats)}; destinations "
                f"{', '.join(rule.destinations) or 'none'}), so there is nothing to compare; add seg to its formats and a "
                "destination whose profile takes SEG",
                fault=True,
            )
        study = self._made(rule, AXES[0])
        (series,) = [one for one in survey_files(list(study.files)).series if one.kind == "image"]
        wrong = misfits(rule, series)
        if wrong:
            return StepResult(
                f"the rule would not pick the example: it wants {' and '.join(wrong)}; name another with --example "
                f"{rule.name}=PATH",
                fault=True,
            )
        return StepResult(f"{series.frame_count} images that the rule picks")

    def _expect(self, rule: Rule) -> StepResult:
        """What this program makes of the rule's example; the node must make the same of it and deliver it."""
        from monai_unet_app.bundle import load_bundle
        from monai_unet_app.config import PredictConfig, resolve_device
        from monai_unet_app.pipeline import segment_case

        bundle = load_bundle(rule.bundle, resolve_device("auto"))
        for axes in self._axes(rule):
            case = segment_case(read_series(self._made(rule, axes).files), bundle, PredictConfig(tta=rule.tta))
            verdict = case.assessment.verdict if case.assessment else None
            if verdict == "reject" or (verdict == "review" and rule.hold_review):
                why = "; ".join(case.assessment.reasons) if case.assessment else ""
                return StepResult(
                    f"the quality gate says {verdict} ({why}), so the node would hold the result back; name a usual image "
                    f"with --example {rule.name}=PATH",
                    fault=True,
                )
            self.sent[rule.name].expected[axes] = case.segmentation.label_volume
        return StepResult(f"{len(self._axes(rule))} result(s) to compare with")

    def _axes(self, rule: Rule) -> Sequence[tuple[int, int, int]]:
        """In which orders of its axes an example is sent: the shipped one in all of AXES, one that somebody named as it is."""
        return AXES if rule.name not in self.how.examples else AXES[:1]

    def _made(self, rule: Rule, axes: tuple[int, int, int]) -> Study:
        named, headers = self.how.examples.get(rule.name), self.how.headers.get(rule.name, {})
        example = Example(named, False, headers) if named else shipped_example(headers)
        return example_study(example, rule, self.folder(), axes)

    def _compared_at(self, rule: Rule) -> list[Destination]:
        """Destinations at which a SEG of the rule must arrive."""
        found = [self.site.destinations[name] for name in rule.destinations]
        return [one for one in found if "seg" in rule.formats and "SEG" in one.profile.objects]

    # the destinations by themselves

    def _at_destinations(self, needs: tuple[_Step, ...]) -> Iterator[_Step]:
        for destination in self.site.destinations.values():
            where = _where(destination)
            for orientation in ORIENTATIONS:
                there: list[Study] = []
                stored = _Step(
                    f"stores a phantom, {orientation}", where,
                    partial(self._store, destination, orientation, there), needs,
                )  # fmt: skip
                yield stored
                yield _Step(f"finds it, {orientation}", where, partial(_find, destination, there), (stored,))
                yield _Step(
                    f"gives it back, {orientation}", where, partial(self._retrieve, destination, there), (stored,)
                )
                needs = (stored,)  # one that takes nothing is not asked five times

    def _store(self, destination: Destination, orientation: str, there: list[Study]) -> StepResult:
        study = phantom_study(orientation, self.folder())
        there.append(study)
        profile = replace(destination.profile, seg_encoding=None, objects=("SEG",))
        outcomes = send(replace(destination, profile=profile), study.files)
        lost = [one for one in outcomes if not one.is_delivered]
        if lost:
            return StepResult(f"{len(lost)} of {len(outcomes)} objects did not arrive: {lost[0].meaning}", fault=True)
        return StepResult(f"{len(outcomes)} objects")

    def _retrieve(self, destination: Destination, there: Sequence[Study]) -> StepResult:
        """The phantom as it comes back, compared with what went out."""
        (study,) = there
        assert study.labels is not None
        got = fetch(destination, Query(study_instance_uid=study.uid), self.folder())
        if got.problems:
            return StepResult(got.problems[0], fault=True)
        segs = [path for path in got.files if _modality(path) == "SEG"]
        images = [path for path in got.files if path not in segs]
        if not segs or not images:
            return StepResult(f"{len(images)} images and {len(segs)} SEG came back; both are needed", fault=True)
        volume = read_series(images)
        check_by_itk(volume)  # a second opinion on the places that the labels are compared in
        return compare_labels(
            study.labels, read_seg(segs[0], volume), f"{got.received} objects, read by ITK at the same place"
        )

    # through the node

    def _through_node(self, needs: tuple[_Step, ...]) -> Iterator[_Step]:
        taken: list[_Step] = []
        for rule in self.site.rules if self.how.live else ():
            where, count = f"rule {rule.name}", max(len(self._axes(rule)), self.site.node.workers)
            most_s = self.how.result_s + self.site.node.stable_s
            takes = _Step(f"takes {count} studies at one time", where, partial(self._send, rule, count), needs)
            taken.append(takes)
            yield takes
            for number in range(count):
                for destination in self._compared_at(rule):
                    yield _Step(
                        f"its result of study {number + 1} is at {destination.name}", where,
                        partial(self._arrived, rule, number, destination), (takes,), most_s + 30.0,
                    )  # fmt: skip
        if taken:
            yield _Step(
                f"each of {self.site.node.workers} worker(s) has answered", "node",
                self._all_workers, tuple(taken), (self.how.result_s + self.site.node.stable_s) * _MOST_ROUNDS,
            )  # fmt: skip

    def _send(self, rule: Rule, count: int) -> StepResult:
        """Studies of a rule, each over an association of its own, all at the same time."""
        sent, axes = self.sent[rule.name], self._axes(rule)
        sent.studies += [self._made(rule, axes[number % len(axes)]) for number in range(count)]
        said = self._send_studies(sent.studies)
        sent.until = time.monotonic() + self.how.result_s + self.site.node.stable_s
        return said

    def _send_studies(self, studies: Sequence[Study]) -> StepResult:
        with ThreadPoolExecutor(len(studies)) as pool:
            outcomes = [one for found in pool.map(lambda one: send(self.node, one.files), studies) for one in found]
        lost = [one for one in outcomes if not one.is_delivered]
        if lost:
            return StepResult(f"{len(lost)} of {len(outcomes)} images were not taken: {lost[0].meaning}", fault=True)
        return StepResult(f"{len(outcomes)} images of {len(studies)} studies")

    def _arrived(self, rule: Rule, number: int, destination: Destination) -> StepResult:
        """What the node made of a study, as one destination gives it back, compared with what this program makes of it."""
        sent = self.sent[rule.name]
        study, began, told = sent.studies[number], time.monotonic(), time.monotonic()
        axes = self._axes(rule)
        expected, volume = sent.expected[axes[number % len(axes)]], read_series(study.files)
        wanted = {KIND[name].modality for name in destination.profile.objects if KIND[name].format in rule.formats}
        wanted.discard("")  # of objects that share a Modality with images
        while True:
            there = {str(one.get("Modality", "")) for one in find(destination, Query("series", study.uid))}
            found = self._segs_of_all(destination, study, volume) if wanted <= there else []
            if found:
                all_of_it = [compare_labels(expected, one, f"{', '.join(sorted(wanted))} are there") for one in found]
                return min(all_of_it, key=lambda said: (said.fault, said.place_mm is None, said.place_mm or 0.0))
            if refusal := self.trail.refusal(study.uid, rule.name, len(study.files)):
                return StepResult(f"the node did not deliver it: {refusal}; its status page says why", fault=True)
            if time.monotonic() >= min(sent.until, self.until):
                return StepResult(self._why_nothing(study, wanted - there, destination), fault=True)
            if time.monotonic() - told >= _TELL_S:
                told = time.monotonic()
                left = max(0.0, min(sent.until, self.until) - told)
                self.waiting(
                    f"rule {rule.name}: nothing at {destination.name} for {told - began:.0f} s, {left:.0f} s more at most"
                )
            time.sleep(_PAUSE_S)

    def _why_nothing(self, study: Study, missing: set[str], destination: Destination) -> str:
        waited = self.how.result_s + self.site.node.stable_s
        what = f"{', '.join(sorted(missing)) or 'a SEG of all images'} did not come to {destination.name} within {waited:g} s"
        if not self.trail.can_be_read:
            where = "see the node's status page"
        elif self.trail.has_result(study.uid):
            where = "the node has made the result and has not delivered it; look at the destination and the status page"
        else:
            where = "no worker has answered the node about this study; look at the workers (status page, processes)"
        return f"{what}; {where}"

    def _segs_of_all(self, destination: Destination, study: Study, volume: Volume) -> list[Volume]:
        """The labels of each SEG of the whole study; a node that waited too little has made one of a part of it before."""
        found, images = [], set(volume.provenance.sop_instance_uids)
        for series in find(destination, Query("series", study_instance_uid=study.uid, modality="SEG")):
            got = fetch(destination, Query("series", study.uid, str(series.SeriesInstanceUID)), self.folder())
            for file in got.files:
                (source,) = load_dataset(file, with_pixels=False).ReferencedSeriesSequence
                if len(source.ReferencedInstanceSequence) == len(images):
                    found.append(read_seg(file, volume))
        return found

    def _all_workers(self) -> StepResult:
        """Whether as many workers have answered as the site file asks for; sends more studies at one time until they have."""
        wanted, rule = self.site.node.workers, self.site.rules[0]
        if not self.trail.can_be_read:
            return StepResult(
                f"the node's audit trail ({self.trail.path.name} in its folder) cannot be read from here, and only it says "
                "which worker did what; run this on the node's machine as the node's user",
                fault=True,
            )
        studies = {study.uid for sent in self.sent.values() for study in sent.studies}
        for more_rounds in reversed(range(_MOST_ROUNDS)):
            end = time.monotonic() + self.how.result_s + self.site.node.stable_s
            while not self.trail.has_results(studies) and time.monotonic() < min(end, self.until):
                time.sleep(_PAUSE_S)
            is_over = not more_rounds or time.monotonic() >= min(end, self.until)
            if is_over or len(self.trail.workers(studies)) >= wanted:
                break
            more = [self._made(rule, self._axes(rule)[0]) for _ in range(2 * wanted)]
            self._send_studies(more)
            studies |= {study.uid for study in more}
        found = len(self.trail.workers(studies))
        text = f"{found} of {wanted} by the node's audit trail, {len(studies)} studies"
        return StepResult(
            text if found >= wanted else f"{text}; a worker hangs or does not start: see status page and processes",
            found < wanted,
        )


def _node(site: Site, how: Commissioning) -> Destination:
    """The node as others reach it."""
    host = how.node_host or address_of_node(site.node.host, site.node.networks)
    peer = Dimse(host, site.node.port, site.node.ae_title, how.calling_ae_title, tls=site.node.tls)
    return Destination("node", peer, answer_s=site.node.idle_s)


def _where(destination: Destination) -> str:
    return f"{destination.name} ({destination.label})"


def _answers(destination: Destination) -> StepResult:
    return StepResult(f"{echo(destination).seconds:.2f} s")


def _find(destination: Destination, there: Sequence[Study]) -> StepResult:
    found = find(destination, Query(study_instance_uid=there[0].uid))
    return StepResult("1 study" if len(found) == 1 else f"{len(found)} studies, one is needed", fault=len(found) != 1)


def _modality(path: Path) -> str:
    return str(load_dataset(path, with_pixels=False, keywords=["Modality"]).get("Modality", ""))
