"""What a node has seen of each rule, by its audit trail, held against the reference that an approver has frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.reading.acquisition import KEYWORDS
from monai_unet_app.confidence.quality import USELESS
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.lifecycle.drift import LEAST_REFERENCE, Drift, Values, WindowTest, compare_windows, find_drift
from monai_unet_app.lifecycle.expected_dice import ExpectedDice, Graded, expected_dice
from monai_unet_app.service.audit import entries
from monai_unet_app.service.observed import FROZEN, PREDICTED

REFERENCE = 60
"""Studies of a reference, where nothing else is said."""

_DECISIONS = ("decided", "released", "refused")
_SENT = ("accepted", "released")
LAST = 30
"""Studies of the window that is compared with the reference, and of which the mean Dice is told."""


@dataclass(frozen=True)
class Seen:
    """A result of a rule, as the trail has it.

    Attributes:
        number: Of the result.
        study: StudyInstanceUID.
        time: When it was recorded, in ISO 8601.
        bundle: sha256 of the bundle.
        verdict: Of the quality gate; empty without one.
        words, numbers: See `service.observed`.
        decision: Of a person; empty if none was taken.
        chance: Probability with which it was chosen for review: 1 where the gate asked for it, 0 where nobody was asked.
        dice: Mean Dice of the result with its correction; None without one.
    """

    number: int
    study: str
    time: str
    bundle: str
    verdict: str
    words: Mapping[str, str]
    numbers: Mapping[str, float]
    decision: str = ""
    chance: float = 0.0
    dice: float | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether it may be in a reference: accepted by a person, or by the quality gate and nobody has objected."""
        return self.decision in _SENT if self.decision else self.verdict in ("accept", "")


@dataclass
class _RuleTrail:
    """The results of a rule, the last line that froze its reference, and the sha256 of its champion, where it has one."""

    seen: list[Seen] = field(default_factory=list)
    frozen: Mapping[str, Any] | None = None
    champion: str = ""


def read_trail(trail: Path) -> dict[str, _RuleTrail]:
    """Rule -> its results, each series of a study once for a bundle, and its reference.

    Raises:
        InputRefusedError: The file is no trail.
    """
    if not trail.is_file():
        raise InputRefusedError(f"{trail} does not exist; the audit trail of a node is needed; start the node once")
    rules: dict[str, _RuleTrail] = {}
    places: dict[int, tuple[str, int]] = {}
    known: set[tuple[str, ...]] = set()
    for line in entries(trail):
        event = line.get("event")
        if event == "result" and (seen := line.get("observed")):
            key = (line["rule"], line["study"], line["series"], seen["bundle"])
            rule = rules.setdefault(line["rule"], _RuleTrail())
            if key not in known:
                known.add(key)
                places[line["result"]] = line["rule"], len(rule.seen)
                about = (line["result"], line["study"], line["time"], seen["bundle"], line["verdict"])
                chance = 1.0 if line["verdict"] != "accept" else float(seen.get("drawn", 0.0))
                rule.seen.append(Seen(*about, seen["words"], seen["numbers"], chance=chance))
        elif event in _DECISIONS and line["result"] in places:
            name, place = places[line["result"]]
            decided = {"decision": line.get("decision", event), "dice": line.get("dice")}
            rules[name].seen[place] = replace(rules[name].seen[place], **decided)
        elif event == "assigned":
            rules.setdefault(line["rule"], _RuleTrail()).champion = line["champion"]
        elif event == FROZEN:
            rules.setdefault(line["rule"], _RuleTrail()).frozen = line
    return rules


@dataclass(frozen=True)
class RuleWatch:
    """What is known of a rule.

    Attributes:
        rule: Its name.
        seen: Its results by the bundle of the reference, else by its champion or the bundle of the last one; the oldest first,
            those of the reference first.
        accepted: How many of them may be in a reference.
        reference: How many of them are the reference; 0 while none is frozen.
        frozen: The line of the trail that froze it.
        drift: What the studies after the reference look like; None without a reference.
        windows: The last studies against the reference, the least likely first.
        expected: The mean Dice of the last studies; None where the bundle predicts no Dice.
        others: Later results by another bundle, which are held against nothing.
    """

    rule: str
    seen: Sequence[Seen]
    accepted: int
    reference: int = 0
    frozen: Mapping[str, Any] | None = None
    drift: Drift | None = None
    windows: Sequence[WindowTest] = ()
    expected: ExpectedDice | None = None
    others: int = 0

    @property
    def state(self) -> str:
        """no reference, steady or drift."""
        return "no reference" if self.drift is None else "steady" if self.drift.alarm is None else "drift"

    @property
    def sentence(self) -> str:
        """In words, for a table or a log."""
        if self.drift is None:
            return f"no reference is frozen; {self.accepted} result(s) could be in it, {LEAST_REFERENCE} are needed"
        after = len(self.seen) - self.reference
        if self.drift.alarm is None or self.drift.since is None:
            steady = f"steady: {after} result(s) after a reference of {self.reference}"
            more = f"; {self.others} later one(s) are of another bundle, for which a new reference is needed"
            return steady + (more if self.others else "")
        since, alarm = self.seen[self.drift.since], self.seen[self.drift.alarm]
        told = "; ".join(change.sentence for change in self.drift.changes[:_MOST_NAMED])
        return (
            f"drift since {since.time[:16]}, found {alarm.time[:16]} after {self.drift.alarm - self.drift.since + 1} "
            f"result(s): {told or f'{self.drift.quantity} is different, and no tag changed with it'}"
        )

    def document(self) -> dict[str, Any]:
        """For JSON; results are named by their numbers, never by their studies."""
        drift, expected = self.drift, self.expected
        return {
            "rule": self.rule,
            "state": self.state,
            "sentence": self.sentence,
            "results": len(self.seen),
            "accepted": self.accepted,
            "reference": self.frozen
            and {"results": self.reference, "who": self.frozen["who"], "at": self.frozen["time"]},
            "score": round(float(drift.scores[-1]), 3) if drift and len(drift.scores) else None,
            "since": self._number(drift.since if drift else None),
            "alarm": self._number(drift.alarm if drift else None),
            "changes": [vars(change) for change in drift.changes] if drift else [],
            "windows": [vars(test) for test in self.windows],
            "expected_dice": expected and vars(expected),
        }

    def _number(self, place: int | None) -> int | None:
        return None if place is None else self.seen[place].number


_MOST_NAMED = 3
"""Changes in the sentence about a drift."""


def watch(trail: Path, rules: Sequence[str]) -> list[RuleWatch]:
    """What is known of rules.

    Args:
        trail: `audit.jsonl` of a node, which may be running.
        rules: Their names.

    Raises:
        InputRefusedError: There is no such file.
    """
    read = read_trail(trail)
    return [_watched(rule, read.get(rule, _RuleTrail())) for rule in rules]


def _watched(rule: str, known: _RuleTrail) -> RuleWatch:
    frozen, last = known.frozen, known.seen[-1:]
    # The last result may be a challenger's
    bundle = frozen["bundle"] if frozen else known.champion or (last[0].bundle if last else "")
    own = [one for one in known.seen if one.bundle == bundle]
    accepted = [one for one in own if one.is_accepted]
    numbers = set(frozen["results"]) if frozen else set()
    reference = [one for one in own if one.number in numbers]
    if frozen is None or len(reference) < LEAST_REFERENCE:  # a trail that lost its beginning has lost the reference
        return RuleWatch(rule, own, len(accepted), expected=_expected(own[-LAST:]))
    own = reference + [one for one in own if one.number > max(numbers)]
    quantities, size = quantities_of(own), len(reference)
    drift = find_drift(quantities, size, frozen["time"])  # so that no two sites have the same luck
    windows = sorted(compare_windows(quantities, size, LAST), key=lambda test: test.p)
    others = sum(one.bundle != bundle and one.number > max(numbers) for one in known.seen)
    return RuleWatch(rule, own, len(accepted), size, frozen, drift, windows, _expected(own[size:][-LAST:]), others)


def reference_of(rule: RuleWatch, studies: int) -> dict[str, Any]:
    """The facts of the event `FROZEN`: the first accepted results of a rule by its bundle.

    Raises:
        InputRefusedError: Fewer were accepted so far, or than a reference needs.
    """
    accepted = [one for one in rule.seen if one.is_accepted]
    if studies < LEAST_REFERENCE or len(accepted) < studies:
        raise InputRefusedError(
            f"rule {rule.rule}: {len(accepted)} result(s) of its bundle were accepted so far, and {studies} are asked for; at "
            f"least {LEAST_REFERENCE}, and no more than there are, are needed; ask for fewer, or wait"
        )
    return {"rule": rule.rule, "bundle": accepted[0].bundle, "results": [one.number for one in accepted[:studies]]}


_VERDICT, _VERDICTS = "verdict (0 accept, 1 review, 2 reject)", {"accept": 0.0, "review": 1.0, "reject": 2.0}


def quantities_of(seen: Sequence[Seen]) -> dict[str, Values]:
    """Name -> value of each result; a tag that an image does not have is an empty word.

    All tags are there, also those that no image has yet: the score of a result must not change with what comes later.
    """
    numbers = dict.fromkeys(name for one in seen for name in one.numbers)
    tags: dict[str, Values] = {name: [one.words.get(name, "") for one in seen] for name in KEYWORDS}
    verdicts: dict[str, Values] = {_VERDICT: [_VERDICTS.get(one.verdict) for one in seen]}
    return tags | verdicts | {name: [one.numbers.get(name) for one in seen] for name in numbers}


def _expected(seen: Sequence[Seen]) -> ExpectedDice | None:
    graded = []
    for one in seen:
        dice = [value for name, value in one.numbers.items() if name.endswith(PREDICTED)]
        if dice:
            predicted = float(np.mean(dice))
            is_seen = one.decision and one.chance
            found = dice_found(one.decision, one.dice, predicted) if is_seen else None
            graded.append(Graded(predicted, found, one.chance or 1.0))
    return expected_dice(graded)


def dice_found(decision: str, corrected: float | None, predicted: float) -> float:
    """What a person's decision says of the Dice of a result.

    Args:
        decision: As of `rows.DecisionKind`. An accepted result is as good as predicted, a rejected one useless.
        corrected: Dice with the correction; None without one.
        predicted: By the quality gate.
    """
    if decision in _SENT:
        return predicted
    return min(predicted, USELESS) if corrected is None else corrected
