"""Site acceptance: phantoms to every destination and back, and known studies through the live node.

The checks that take seconds come first, and nothing is sent if one of them fails. Then the objects that come back are compared
with those that were sent, in patient space: the distance of a labelled voxel from its place, and the difference of the volume.
Every study has new UIDs, so neither the node nor an archive can answer with older objects. No patient data take part; the
studies stay where they were sent until a person deletes them.
"""

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from uuid import uuid4

from dicom_io.kinds import KIND, kind_of_class
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
from monai_unet_app.errors import AppError, UsageError
from monai_unet_app.service import phantoms
from monai_unet_app.service.acceptance_checks import (
    Acceptance,
    Check,
    State,
    StepResult,
    TrailReader,
    address_of_node,
    compare_labels,
    result_within,
    source_address,
)
from monai_unet_app.service.rows import state_of
from monai_unet_app.service.site import Rule, Site
from monai_unet_app.service.work import misfits, series_of_channels, verdict_of

_PACKAGES = ("torch", "monai", "pydicom", "pynetdicom", "highdicom", "itk", "numpy")
_PAUSE_S, _REPORT_S = 0.5, 10.0
_MOST_ROUNDS = 3  # of studies, until every worker has made a result


@dataclass(frozen=True)
class Commissioning:
    """The settings of an acceptance.

    Attributes:
        live: Send studies to the node too; it must be running.
        calling_ae_title: AE title under which the node is called.
        node_host: Address of the node; empty: that of the site file.
        examples: Rule -> NIfTI file, DICOM file or folder with one series, for rules that the shipped example does not match;
            RULE.CHANNEL -> that of a further channel (without it, the rule's).
        headers: Rule, or RULE.CHANNEL -> DICOM keyword -> value, where no value can be made from the rule's pattern.
        limit_s: Time limit of all checks in seconds; checks that have not begun by then are not tried.
        result_s: Seconds that the node may take for the studies of a rule, from the last instance to the destinations, in
            addition to its own `stable_s`.
    """

    live: bool = True
    calling_ae_title: str = phantoms.PATIENT
    node_host: str = ""
    examples: Mapping[str, Path] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    limit_s: float = 600.0
    result_s: float = 120.0


OnCheck = Callable[[Check, int, int], None]
"""Called with each check as soon as it is done, its number from 1, and the number of all checks."""


def commission(
    site: Site,
    settings: Commissioning | None = None,
    *,
    on_check: OnCheck = lambda check, number, total: None,
    on_wait: Callable[[str], None] = lambda text: None,
) -> Acceptance:
    """Checks every destination of a site, and its node.

    Args:
        site: The site to check.
        settings: Settings of this run.
        on_check: See `OnCheck`.
        on_wait: Called every ten seconds of waiting with a message.

    Raises:
        UsageError: An example or a header is given for a rule that the site does not have.
    """
    settings = settings or Commissioning()
    _check_rule_names(site, settings)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    report = Acceptance(site.path.name, began, _versions(), _bundles(site.rules), unchecked(site, live=settings.live))
    # A step that took too long may still write here while the folder is deleted.
    with tempfile.TemporaryDirectory(prefix="commission-", ignore_cleanup_errors=True) as scratch:
        run = _Run(site, settings, Path(scratch), on_wait)
        steps = run.steps()
        for number, step in enumerate(steps, start=1):
            check = run.try_step(step)
            report.checks.append(check)
            on_check(check, number, len(steps))
    return report


def unchecked(site: Site, *, live: bool) -> list[str]:
    """What an acceptance does not cover, in words, for the report."""
    always = [
        "the content of objects other than SEG; for SR, RTSTRUCT and GSPS only their presence is checked, for others nothing",
        "the node's HTTP API, review pages, decisions, notices and retention",
        "what happens when a part is killed, a disk is full or a destination is away",
        "whether results are clinically right: images are examples, and the expected result is that of this program",
    ]
    if not live:
        return ["the node and its rules: they were left out (--no-node)", *always]
    sent_to = {name for rule in site.rules for name in rule.destinations}
    alone = sorted(set(site.destinations) - sent_to)
    return [*(f"results at {name}: no rule sends to it" for name in alone), *always]


def _check_rule_names(site: Site, settings: Commissioning) -> None:
    names = [one.name for rule in site.rules for one in phantoms.rules_of_channels(rule)]
    for flag, rules in (("--example", settings.examples), ("--header", settings.headers)):
        for name in rules:
            if name not in names:
                raise UsageError(f"{flag} names the rule {name}; one of {', '.join(names)} is needed; correct it")


def _versions() -> dict[str, str]:
    machine = {"python": platform.python_version(), "system": platform.platform()}
    packages = {name: version(name) for name in _PACKAGES}
    return {"monai-unet-app": version("monai-unet-app"), **machine, **packages}


def _bundles(rules: Sequence[Rule]) -> dict[str, str]:
    files = {rule.name: bundle_files(rule.bundle) for rule in rules}
    return {rule: f"{bundle.name} {bundle.version}, sha256 {bundle.sha256}" for rule, bundle in files.items()}


@dataclass(frozen=True, eq=False)
class _Step:
    """A step of the acceptance.

    Attributes:
        title, where: `what` and `where` of the `Check`.
        work: Carries out the step.
        needs: Steps that must have passed before.
        most_s: Seconds that the step may take.
    """

    title: str
    where: str
    work: Callable[[], StepResult]
    needs: "tuple[_Step, ...]" = ()
    most_s: float = 60.0


@dataclass
class _Sent:
    """The studies of a rule that were sent to the node at the same time.

    Attributes:
        studies: In the order of their checks.
        expected: Order of the axes -> labels that this program computes for the example.
        until: End of the wait for their results, in seconds of the monotonic clock.
    """

    studies: list[phantoms.Study] = field(default_factory=list)
    expected: dict[phantoms.Axes, Volume] = field(default_factory=dict)
    until: float = 0.0


class _Run:
    """An acceptance at work: its steps, the data that they share, and the remaining time."""

    def __init__(self, site: Site, settings: Commissioning, scratch: Path, on_wait: Callable[[str], None]) -> None:
        self.site, self.settings, self.scratch, self.on_wait = site, settings, scratch, on_wait
        self.until = time.monotonic() + settings.limit_s
        self.longest_s = settings.result_s + site.node.stable_s
        self.node = _node(site, settings)
        self.trail = TrailReader(site.node.folder / "audit.jsonl")
        self.sent = {rule.name: _Sent() for rule in site.rules}
        self._states: dict[_Step, State] = {}

    def steps(self) -> list[_Step]:
        """All steps, in order. The first send nothing but C-ECHO and queries, and all others need them."""
        live = self.site.rules if self.settings.live else ()
        first = [_Step("answers", _where(peer), partial(_answers, peer)) for peer in self.site.destinations.values()]
        if live:
            let_in = _Step("accepts this program", "node", self._is_let_in)
            first += [let_in, _Step("answers", "node", partial(_answers, self.node), (let_in,))]
            first += [_Step("an example fits", f"rule {rule.name}", partial(self._fits, rule)) for rule in live]
        second = [
            _Step("the gate accepts the example", f"rule {rule.name}", partial(self._expect, rule), tuple(first), 300.0)
            for rule in live
        ]
        return [*first, *second, *self._at_destinations((*first, *second)), *self._through_node((*first, *second))]

    def try_step(self, step: _Step) -> Check:
        """Carries out a step, unless a step that it needs did not pass or the time is over."""
        left, seconds = self.until - time.monotonic(), 0.0
        state: State = "not tried"
        if any(self._states[needed] != "passed" for needed in step.needs):
            result = StepResult("a check before it did not pass")
        elif left <= 0:
            result = StepResult(
                f"the time limit was reached ({self.settings.limit_s / 60:g} min); allow more with --limit-min"
            )
        else:
            begin = time.perf_counter()
            result = result_within(min(step.most_s, left), step.work)
            state, seconds = "failed" if result.fault else "passed", round(time.perf_counter() - begin, 3)
        self._states[step] = state
        return Check(step.title, step.where, state, seconds, result.text, result.place_mm, result.volume_ml)

    def folder(self) -> Path:
        """A folder that does not exist yet."""
        return self.scratch / uuid4().hex

    # before anything is sent

    def _is_let_in(self) -> StepResult:
        """Whether the site file lets this program call the node."""
        faults, senders, ae_title = [], self.site.node.senders, self.settings.calling_ae_title
        if senders and ae_title not in senders:
            faults.append(
                f"it accepts {', '.join(senders)} (senders), but this program calls as {ae_title}; add {ae_title} to senders "
                "and start the node again, or call as one of them with --calling-ae-title"
            )
        assert isinstance(self.node.peer, Dimse)
        address = source_address(self.node.peer.host)
        networks = self.site.node.networks
        if address and not Listen(networks=networks).lets_in(address):
            faults.append(
                f"it accepts {', '.join(networks)} (networks), but this program calls from {address}; run it on a machine in "
                "one of them, give the node's address there with --node-host, or add the address and start the node again"
            )
        return StepResult("; ".join(faults) or f"as {ae_title} from {address or 'this machine'}", fault=bool(faults))

    def _fits(self, rule: Rule) -> StepResult:
        """Whether the node would pick the example for a rule, and deliver a SEG that can be compared."""
        if not self._compared_at(rule):
            raise AppError(
                f"it delivers a SEG to no destination (formats {', '.join(rule.formats)}; destinations "
                f"{', '.join(rule.destinations) or 'none'}), so there is nothing to compare; add seg to its formats and a "
                "destination whose profile takes SEG"
            )
        study = self._made(rule, phantoms.AXES[0])
        series = [one for one in survey_files(list(study.files)).series if one.kind == "image"]
        of_file = {file: one for one in series for file in one.files}
        firsts = [of_file[files[0]] for files in study.series]
        for one, ref in zip(phantoms.rules_of_channels(rule), firsts, strict=True):
            if reasons := misfits(one, ref):
                raise AppError(
                    f"the rule would not pick the example: it requires {' and '.join(reasons)}; name another example with "
                    f"--example {one.name}=PATH"
                )
        for ref in series:  # the first, and any other that the rule picks too
            if ref is firsts[0] or not misfits(rule, ref):
                series_of_channels(rule, ref.series_instance_uid, series)
        return StepResult(f"{' and '.join(str(ref.frame_count) for ref in firsts)} images that the rule picks")

    def _expect(self, rule: Rule) -> StepResult:
        """Segments the rule's example with this program; the node must deliver the same labels."""
        from monai_unet_app.bundle import load_bundle
        from monai_unet_app.config import PredictConfig
        from monai_unet_app.pipeline import segment_case

        bundle = load_bundle(rule.bundle, self.site.node.device, frozenset([rule.trusted]))
        for axes in self._axes(rule):
            case = segment_case(self._made(rule, axes).image, bundle, PredictConfig(rule.settings))
            # A result that the gate holds back would never arrive, and the step that looks for it would wait in vain.
            verdict, why = verdict_of(case)
            if state_of(verdict, hold_review=rule.hold_review, ungated=rule.deliver_ungated) != "sending":
                raise AppError(
                    f"the quality gate says {verdict} ({why}), so the node would hold the result back; name a usual image "
                    f"with --example {rule.name}=PATH"
                )
            if verdict == "accept" and rule.review_share:
                raise AppError(
                    f"rule {rule.name} has review_share = {rule.review_share:g}, so the result may be drawn for a reviewer and "
                    "never arrive; set it to 0 while the site is commissioned"
                )
            self.sent[rule.name].expected[axes] = case.segmentation.label_volume
        return StepResult(f"{len(self._axes(rule))} result(s) to compare with")

    def _axes(self, rule: Rule) -> Sequence[phantoms.Axes]:
        """The orders of axes in which an example is sent: all `AXES` for the shipped example, the given order for others."""
        return phantoms.AXES if rule.name not in self.settings.examples else phantoms.AXES[:1]

    def _made(self, rule: Rule, axes: phantoms.Axes) -> phantoms.Study:
        examples, of_rule = [], self.settings.examples.get(rule.name)
        for one in phantoms.rules_of_channels(rule):
            path, headers = self.settings.examples.get(one.name, of_rule), self.settings.headers.get(one.name, {})
            example = phantoms.Example(path, False, headers) if path else phantoms.shipped_example(headers)
            examples.append((example, one))
        return phantoms.example_study(examples, self.folder(), axes)

    def _compared_at(self, rule: Rule) -> list[Destination]:
        """Destinations at which a SEG of the rule must arrive."""
        destinations = [self.site.destinations[name] for name in rule.destinations if "seg" in rule.formats]
        return [destination for destination in destinations if "SEG" in destination.profile.objects]

    # the destinations by themselves

    def _at_destinations(self, needs: tuple[_Step, ...]) -> Iterator[_Step]:
        for destination in self.site.destinations.values():
            where = _where(destination)
            for orientation in phantoms.ORIENTATIONS:
                sent: list[phantoms.Study] = []
                stored = _Step(
                    f"stores a phantom, {orientation}", where,
                    partial(self._store, destination, orientation, sent), needs,
                )  # fmt: skip
                yield stored
                yield _Step(f"finds it, {orientation}", where, partial(_find, destination, sent), (stored,))
                yield _Step(
                    f"gives it back, {orientation}", where, partial(self._retrieve, destination, sent), (stored,)
                )
                needs = (stored,)  # a destination that refuses the first phantom is not sent four more

    def _store(self, destination: Destination, orientation: str, sent: list[phantoms.Study]) -> StepResult:
        study = phantoms.phantom_study(orientation, self.folder())
        sent.append(study)
        # The phantom's SEG is sent as it was written: this step tries the destination, and not the way in which the
        # node writes for it.
        profile = replace(destination.profile, seg_encoding=None, objects=("SEG",))
        outcomes = send(replace(destination, profile=profile), study.files)
        lost = [outcome for outcome in outcomes if not outcome.is_delivered]
        if lost:
            raise AppError(f"{len(lost)} of {len(outcomes)} objects did not arrive: {lost[0].meaning}")
        return StepResult(f"{len(outcomes)} objects")

    def _retrieve(self, destination: Destination, sent: Sequence[phantoms.Study]) -> StepResult:
        """Compares the phantom that a destination gives back with the phantom that was sent."""
        (study,) = sent
        assert study.labels is not None
        fetched = fetch(destination, Query(study_instance_uid=study.uid), self.folder())
        if fetched.problems:
            raise AppError(fetched.problems[0])
        segs = [path for path in fetched.files if _modality(path) == "SEG"]
        images = [path for path in fetched.files if path not in segs]
        if not segs or not images:
            raise AppError(f"{len(images)} images and {len(segs)} SEG came back; both are needed")
        volume = read_series(images)
        check_by_itk(volume)  # a second opinion on the geometry in which the labels are compared
        return compare_labels(
            study.labels, read_seg(segs[0], volume), f"{fetched.received} objects, read by ITK at the same position"
        )

    # through the node

    def _through_node(self, needs: tuple[_Step, ...]) -> Iterator[_Step]:
        taken: list[_Step] = []
        for rule in self.site.rules if self.settings.live else ():
            where, count = f"rule {rule.name}", max(len(self._axes(rule)), self.site.node.workers)
            takes = _Step(f"takes {count} studies at one time", where, partial(self._send, rule, count), needs)
            taken.append(takes)
            yield takes
            for number in range(count):
                for destination in self._compared_at(rule):
                    yield _Step(
                        f"its result of study {number + 1} is at {destination.name}", where,
                        partial(self._arrived, rule, number, destination), (takes,), self.longest_s + 30.0,
                    )  # fmt: skip
        if taken:
            yield _Step(
                f"each of {self.site.node.workers} worker(s) has answered", "node",
                self._all_workers, tuple(taken), self.longest_s * _MOST_ROUNDS,
            )  # fmt: skip

    def _send(self, rule: Rule, count: int) -> StepResult:
        """Sends the studies of a rule at the same time, each over an association of its own."""
        sent, axes = self.sent[rule.name], self._axes(rule)
        sent.studies += [self._made(rule, axes[number % len(axes)]) for number in range(count)]
        result = self._send_studies(sent.studies)
        sent.until = time.monotonic() + self.longest_s
        return result

    def _send_studies(self, studies: Sequence[phantoms.Study]) -> StepResult:
        with ThreadPoolExecutor(len(studies)) as pool:
            outcomes = [*chain.from_iterable(pool.map(lambda study: send(self.node, study.files), studies))]
        lost = [outcome for outcome in outcomes if not outcome.is_delivered]
        if lost:
            raise AppError(f"{len(lost)} of {len(outcomes)} images were not taken: {lost[0].meaning}")
        return StepResult(f"{len(outcomes)} images of {len(studies)} studies")

    def _arrived(self, rule: Rule, number: int, destination: Destination) -> StepResult:
        """Compares the SEG of a study that a destination has from the node with the labels that this program computes."""
        sent = self.sent[rule.name]
        began = reported = time.monotonic()
        until = min(sent.until, self.until)
        study, axes = sent.studies[number], self._axes(rule)
        expected, volume = sent.expected[axes[number % len(axes)]], read_series(study.series[0])
        modalities = {KIND[name].modality for name in destination.profile.objects if KIND[name].format in rule.formats}
        modalities.discard("")  # of objects that share a Modality with images
        while True:
            present = {str(series.get("Modality", "")) for series in find(destination, Query("series", study.uid))}
            segs = self._segs_of_all(destination, study, volume) if modalities <= present else []
            if segs:
                results = [compare_labels(expected, seg, f"{', '.join(sorted(modalities))} are there") for seg in segs]
                # A destination may have SEGs of several attempts at the study; a single good SEG shows that it works.
                return min(results, key=lambda result: (result.fault, result.place_mm is None, result.place_mm or 0.0))
            if refusal := self.trail.refusal(study.uid, rule.name, len(study.files)):
                raise AppError(f"the node did not deliver it: {refusal}; its status page says why")
            if time.monotonic() >= until:
                raise AppError(self._why_nothing(study, modalities - present, destination))
            if time.monotonic() - reported >= _REPORT_S:
                reported = time.monotonic()
                waited, left = reported - began, max(0.0, until - reported)
                self.on_wait(
                    f"rule {rule.name}: nothing at {destination.name} for {waited:.0f} s, {left:.0f} s more at most"
                )
            time.sleep(_PAUSE_S)

    def _why_nothing(self, study: phantoms.Study, missing: set[str], destination: Destination) -> str:
        objects = ", ".join(sorted(missing)) or "a SEG of all images"
        if not self.trail.can_be_read:
            advice = "see the node's status page"
        elif self.trail.has_results({study.uid}):
            advice = "the node has made the result but has not delivered it; check the destination and the status page"
        else:
            advice = "no worker has made a result of this study; check the workers (status page, processes)"
        return f"{objects} did not come to {destination.name} within {self.longest_s:g} s; {advice}"

    def _segs_of_all(self, destination: Destination, study: phantoms.Study, volume: Volume) -> list[Volume]:
        """The labels of each SEG of the whole study; a node that waited too little has made a SEG of a part of it before."""
        segs = []
        for series in find(destination, Query("series", study_instance_uid=study.uid, modality="SEG")):
            fetched = fetch(destination, Query("series", study.uid, str(series.SeriesInstanceUID)), self.folder())
            for file in fetched.files:
                header = load_dataset(file)
                if kind_of_class(str(header.SOPClassUID)) is not KIND["SEG"]:
                    continue  # another kind may have the Modality SEG
                named = [len(source.ReferencedInstanceSequence) for source in header.ReferencedSeriesSequence]
                if sum(named) == len(study.files):
                    segs.append(read_seg(file, volume))
        return segs

    def _all_workers(self) -> StepResult:
        """Whether as many workers have made results as the site file asks for; sends more studies until they have."""
        workers, rule = self.site.node.workers, self.site.rules[0]
        if not self.trail.can_be_read:
            raise AppError(
                f"the node's audit trail ({self.trail.path.name} in its folder) cannot be read from here, and only it says "
                "which worker did what; run this on the node's machine as the node's user"
            )
        studies = {study.uid for sent in self.sent.values() for study in sent.studies}
        for more_rounds in reversed(range(_MOST_ROUNDS)):
            end = min(time.monotonic() + self.longest_s, self.until)
            while not self.trail.has_results(studies) and time.monotonic() < end:
                time.sleep(_PAUSE_S)
            is_over = not more_rounds or time.monotonic() >= end
            if is_over or len(self.trail.workers(studies)) >= workers:
                break
            # More studies than workers, so that no fast worker can take all of them.
            more = [self._made(rule, self._axes(rule)[0]) for _ in range(2 * workers)]
            self._send_studies(more)
            studies |= {study.uid for study in more}
        count = len(self.trail.workers(studies))
        text = f"{count} of {workers} by the node's audit trail, {len(studies)} studies"
        if count >= workers:
            return StepResult(text)
        return StepResult(f"{text}; a worker hangs or does not start: see status page and processes", fault=True)


def _node(site: Site, settings: Commissioning) -> Destination:
    """The node as a destination."""
    host = settings.node_host or address_of_node(site.node.host, site.node.networks)
    peer = Dimse(host, site.node.port, site.node.ae_title, settings.calling_ae_title, tls=site.node.tls)
    return Destination("node", peer, answer_s=site.node.idle_s)


def _where(destination: Destination) -> str:
    return f"{destination.name} ({destination.label})"


def _answers(destination: Destination) -> StepResult:
    return StepResult(f"{echo(destination):.2f} s")


def _find(destination: Destination, sent: Sequence[phantoms.Study]) -> StepResult:
    count = len(find(destination, Query(study_instance_uid=sent[0].uid)))
    return StepResult("1 study" if count == 1 else f"{count} studies, one is needed", fault=count != 1)


def _modality(path: Path) -> str:
    return str(load_dataset(path, keywords=["Modality"]).get("Modality", ""))
