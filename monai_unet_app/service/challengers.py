"""Challengers of a node: beside the champion as a shadow, for a share of the patients, and back.

Each move is a line of the audit trail, and is replayed if the database is lost. The node's loop calls all methods but `state`
and `sides`, which any thread may call; other threads go through `Node.in_loop`.
"""

import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dicom_io.files import replace_when_whole
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.service import slots
from monai_unet_app.service.evidence_against import ALARM, Limits, Way, score, ways
from monai_unet_app.service.hints import Hints
from monai_unet_app.service.models import ask_registry, challenger_key, resolved
from monai_unet_app.service.rows import Job, Slot

if TYPE_CHECKING:
    from monai_unet_app.service.node import Node

_PATIENT = ("IssuerOfPatientID", "PatientID")
_IN_FLIGHT_S = 3.0
"""How long a rollback waits for results that are being sent just now."""

_logger = logging.getLogger(__name__)


class Challengers:
    """What a node knows of the challengers of its rules."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    # which bundle segments a study

    def assign_models(self, who: str = "") -> list[str]:
        """Gives each rule the bundles that the registry has named last; a line for each rule that gets others.

        Args:
            who: Who has asked; empty at the node's start.

        Returns:
            Names of the rules that got others.
        """
        node, known, before = self._node, resolved(self._node.site), slots.slots(self._node.queue)
        changed = []
        for rule in node.site.rules:
            if rule.bundle not in known:
                continue
            champion, other = known[rule.bundle]["sha256"], known.get(challenger_key(rule), {})
            if rule.sha256 not in ("", champion):
                _logger.warning("rule %s admits one sha256 only, and the registry names another bundle", rule.name)
                continue
            challenger = other.get("sha256", "")
            if other.get("why_not"):
                _logger.warning("rule %s: its challenger is not tried: %s", rule.name, other["why_not"])
            if challenger == champion:  # it was promoted
                challenger = ""
            slot = before.get(rule.name)
            if slot and (slot.champion, slot.challenger) == (champion, challenger):
                continue
            with node.queue.transaction():
                slots.assign(node.queue, rule.name, champion, challenger)
                node.audit.write("assigned", rule=rule.name, champion=champion, challenger=challenger, who=who)
            changed.append(rule.name)
        return changed

    def ask_registry(self, who: str) -> dict[str, Any]:
        """Asks the registry and assigns what it names, to studies to come; it may be called in any thread.

        Returns:
            "changed": as of `assign_models`. "kept": why the models of before stay; empty where they need not.
        """
        kept = ask_registry(self._node.site)
        return {"changed": self._node.in_loop(lambda: self.assign_models(who)), "kept": kept}

    def plan(self, study: str) -> str:
        """The plan of a study's next job, see `Job`."""
        patient, plan = self._patient(study), {}
        for rule, slot in self._slots().items():
            side = "challenger" if slot.is_open and patient and self._side(rule, patient) < slot.share else "champion"
            plan[rule] = {
                "champion": slot.champion, "challenger": slot.challenger if slot.is_open else "", "slot": side,
            }  # fmt: skip
        return json.dumps(plan) if plan else ""

    def _slots(self) -> dict[str, Slot]:
        """Those of the rules that the site has."""
        known = slots.slots(self._node.queue)
        rules = {rule.name for rule in self._node.site.rules if rule.is_registered}
        return {name: slot for name, slot in known.items() if name in rules}

    def _patient(self, study: str) -> str:
        """Who the patient of a study is; empty for an image without a DICOM header."""
        issuer, number = Hints(self._node.received_folder, _PATIENT).of(study)
        return f"{issuer}\0{number}" if number else ""

    def _side(self, rule: str, patient: str) -> float:
        """A number from 0 to 1 that a patient keeps: one whose number is below the share gets the challenger's results."""
        digest = hmac.new(self._secret, f"{rule}\0{patient}".encode(), hashlib.sha256).digest()
        return int.from_bytes(digest[:7]) / 256**7

    @cached_property
    def _secret(self) -> bytes:
        """Keeps others from telling by a patient's number which side the patient is on."""
        file = self._node.folder / "sides.key"
        if not file.exists():
            with replace_when_whole(file, sync=True) as part:
                part.touch(mode=0o600)
                part.write_text(secrets.token_hex(32) + "\n")
        return bytes.fromhex(file.read_text().strip())

    # moves

    def set_share(self, rule: str, share: float, who: str, reason: str) -> Slot:
        """Lets the challenger's results go out for a share of the patients; 0 leaves it a shadow.

        Args:
            rule: Name of the rule.
            share: From 0 to the most that the site permits, `canary`.
            who: Name of the approver.
            reason: Why, where the release gate has not passed, or the challenger was rolled back before.

        Raises:
            InputRefusedError: There is no challenger, the site does not permit the share, or a reason is needed.
        """
        node, config, slot = self._node, self._node.site.named_rule(rule), self._slot(rule)
        gate = resolved(node.site).get(challenger_key(config), {}).get("gate", {})
        if share > config.canary:
            raise InputRefusedError(
                f"rule {rule} permits a share of {config.canary:g} at most, {share:g} is asked for; the key canary of the site "
                "file says how much"
            )
        if share and not gate.get("passed") and not reason:
            raise InputRefusedError(
                f"the challenger of rule {rule} has not passed the release gate ({gate.get('why', 'not compared')}); one that "
                "passes is needed, or a written reason"
            )
        if slot.withdrawn and not reason:
            raise InputRefusedError(
                f"the challenger of rule {rule} was rolled back ({slot.withdrawn}); a written reason is needed to try it again"
            )
        with node.queue.transaction():
            slots.set_share(node.queue, rule, share)
            node.audit.write("share", rule=rule, bundle=slot.challenger, share=share, who=who, reason=reason, gate=gate)
        return self._slot(rule)

    def roll_back(self, rule: str, why: str, who: str = "") -> slots.RolledBack:
        """Ends a challenger: afterwards no result of it starts towards any destination.

        Results that no destination has are superseded, and the champion segments their studies. Results that were sent stay,
        and are listed.

        Args:
            rule: Name of the rule.
            why: In words.
            who: Name of the person; empty for the node's own test.

        Raises:
            InputRefusedError: The rule has no challenger, or it was rolled back already.
        """
        node, slot = self._node, self._slot(rule)
        if slot.withdrawn:
            raise InputRefusedError(
                f"the challenger of rule {rule} was rolled back already ({slot.withdrawn}); there is nothing to do"
            )
        cut_off = self._end_sending(slot)
        with node.queue.transaction():
            done = replace(slots.roll_back(node.queue, rule, why), cut_off=cut_off)
            for result, destination in cut_off:
                # Some of its objects may be there: the champion's result is to replace them
                node.queue.add_delivered(result, destination)
            node.audit.write("rolled back", rule=rule, bundle=slot.challenger, reason=why, who=who, **asdict(done))
            for study in done.studies:
                if study not in node.arrivals and not self._is_waiting(study):
                    node.jobs.queue_study(study)
        _logger.warning("rule %s: its challenger was rolled back: %s", rule, why)
        return done

    def _is_waiting(self, study: str) -> bool:
        """Whether its last job will make a result; one that makes lost results again would not take another bundle's."""
        job = self._node.queue.jobs_of(study)[-1]
        return job.state in ("queued", "working") and not self._node.queue.times_remade(job.id)

    def _end_sending(self, slot: Slot) -> list[tuple[int, str]]:
        """Waits a little for results of the challenger that are being sent, then ends their senders; gives those cut off."""
        node, mine, cut_off = self._node, slots.numbers_of(self._node.queue, slot), []
        until = time.monotonic() + _IN_FLIGHT_S
        while time.monotonic() < until and any(delivery.result in mine for delivery in node.senders.tasks()):
            node.handle_answers()
            time.sleep(0.02)
        for child in list(node.senders.children):
            if child.task is not None and child.task.result in mine:
                cut_off.append((child.task.result, child.task.destination))
                child.kill("the result was rolled back")
                child.end_task()
        return cut_off

    def take_over(self, job: Job, reasons: Mapping[str, str]) -> bool:
        """Lets the champion segment a study that the challenger cannot; False if no challenger was at it.

        Args:
            job: The challenger has failed at it, or refused a series.
            reasons: Rule -> what was said.
        """
        failed = {rule: plan for rule, plan in job.plans.items() if plan["slot"] == "challenger" and rule in reasons}
        for rule, plan in failed.items():
            more = {"failed": plan["challenger"], "reason": reasons[rule]}
            job = replace(job, plan=slots.champion_only(job, rule, plan["champion"], **more))
        if failed:
            node = self._node
            with node.queue.transaction():
                node.queue.replan_job(job.id, job.plan)
                node.audit.write("taken over", study=job.study, job=job.id, plan=job.plan)
        return bool(failed)

    def record_faults(self, job: Job, made: Collection[str], gave_up: str = "") -> None:
        """Records which bundle could not do a study, once it is known what became of the job.

        Args:
            job: It is done, or given up.
            made: Rules of which the champion has made a result: a challenger that failed at it before is worse.
            gave_up: Why the job was given up by champions, which is taken for their fault.
        """
        found = {}
        for rule, plan in job.plans.items():
            if rule in made and plan.get("failed"):
                pair = {"champion": plan["champion"], "challenger": plan["failed"]}
                found[rule] = {**pair, **fault("challenger", plan["reason"])}
            elif gave_up and plan["challenger"]:
                found[rule] = {**plan, **fault("champion", gave_up)}
        if found:
            self.record(job, found)

    # what is found

    def record(self, job: Job, compared: Mapping[str, Mapping[str, Any]]) -> None:
        """Records what champion and challenger made of a study, see `slots.add_comparisons`; rolls back one that is worse."""
        node, now = self._node, self._slots()
        with node.queue.transaction():
            slots.add_comparisons(node.queue, job.id, job.study, compared)
            node.audit.write("compared", study=job.study, job=job.id, compared=compared)
        for rule in compared.keys() & now.keys():
            found = self._ways(rule, slots.comparisons(node.queue, now[rule]))
            if now[rule].is_open and score(found) >= ALARM:
                worst = max(found, key=lambda way: way.score)
                self.roll_back(rule, f"{worst.name}: worse in {worst.worse} of {worst.studies} studies")

    def state(self) -> list[dict[str, Any]]:
        """For each rule with a challenger: what it is, what was found of it, and what of it was sent."""
        found = []
        for slot in self._slots().values():
            if slot.challenger:
                compared = slots.comparisons(self._node.queue, slot)
                said = self._ways(slot.rule, compared)
                found.append(
                    {
                        **asdict(slot),
                        "most_share": self._node.site.named_rule(slot.rule).canary,
                        "studies": len(compared),
                        "score": round(score(said), 4),
                        "alarm": ALARM,
                        "ways": [asdict(way) for way in said],
                        "sent": slots.sent_by(self._node.queue, slot),
                        "last": compared[-20:],
                    }
                )
        return found

    def _ways(self, name: str, compared: Sequence[Mapping[str, Any]]) -> tuple[Way, ...]:
        rule = self._node.site.named_rule(name)
        return ways(compared, Limits(rule.least_agreement, rule.most_slower))

    def _slot(self, rule: str) -> Slot:
        """The slot of a rule. Raises InputRefusedError if it has no challenger."""
        slot = self._slots().get(rule)
        if slot is None or not slot.challenger:
            raise InputRefusedError(
                f"rule {rule!r} has no challenger; one is needed; give the rule the key challenger, and a version of its model "
                "the alias challenger"
            )
        return slot


def fault(slot: str, reason: str) -> dict[str, Any]:
    """The comparison of a study that the bundle of a slot has not segmented."""
    said = ["", reason] if slot == "challenger" else [reason, ""]
    return {"fault": said, "verdict": ["", ""], "dice": None, "agreement": None, "seconds": None}
