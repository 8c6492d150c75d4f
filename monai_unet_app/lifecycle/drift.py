"""Has something drifted? A test that looks after every study and says in advance how often it is wrong.

Each quantity of a new study gets its conformal rank among all earlier studies. As long as nothing changes these ranks are
independent and uniform, whatever the quantity is distributed like. Bets against that multiply: their Shiryaev-Roberts sum grows
by 1 a study on average, and so does the mean of the sums over all quantities and bets. An alarm at `ALARM` therefore comes at
most once in so many studies on average while nothing changes, for all quantities of a rule together.

Sources: Vovk, Nouretdinov, Gammerman, Testing exchangeability on-line, ICML 2003; Vovk, Testing randomness online, Statistical
Science 36 (2021), for conformal ranks and Shiryaev-Roberts sums of bets.
"""

import bisect
import math
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Values = Sequence[float | str | None]

ALARM = 1000.0
"""The score at which an alarm is given, and the least mean number of studies between two false ones."""

LEAST_REFERENCE = 30
_POWERS = (0.5, 0.8)
_RARE = (
    (1 / 32, 0.3),
    (1 / 16, 0.4),
    (1 / 8, 0.5),
    (1 / 4, 0.6),
)  # a rank, and the part of the ranks bet to lie below it
_HISTOGRAMS = ((15, 4), (40, 8))  # ranks that are remembered, and bins
_SMOOTHING = 2.0  # studies in each bin before the first
_LEAST_KINDS = 10  # texts that are numbers count as numbers if the reference has more different ones
_MOST_TOLD = 0.01  # probability of naming a tag that has nothing to do with it; the same for a number
_BOOTSTRAP = 200


@dataclass(frozen=True)
class Change:
    """A quantity that is different since something drifted.

    Attributes:
        name: Its name; of a word its DICOM keyword.
        before, since: Of a number its medians; of a word the shares of studies that have `word`.
        word: The value that is more frequent; empty for a number.
        p: Probability of as large a difference by chance, by Fisher's or Mann and Whitney's test, times the number of words or
            of numbers, and of beginnings, that were tried.
    """

    name: str
    before: float
    since: float
    p: float
    word: str = ""

    @property
    def sentence(self) -> str:
        """In words."""
        if self.word:
            return f"{self.name} is {self.word} in {self.since:.0%} of the studies, {self.before:.0%} before"
        return f"{self.name} is {self.since:.3g} (median), {self.before:.3g} before"


@dataclass(frozen=True)
class Drift:
    """What the studies after a reference look like.

    Attributes:
        scores: Shape (studies after the reference,): the mean of all sums after each study; `ALARM` gives the alarm.
        alarm: Index of the study that gave it, among all studies; None without an alarm.
        since: Index of the study with which it began, as far as can be told.
        quantity: The one that changed most clearly.
        changes: What else is different since then, the clearest first: tags before numbers.
    """

    scores: Floats
    alarm: int | None = None
    since: int | None = None
    quantity: str = ""
    changes: tuple[Change, ...] = ()


def find_drift(quantities: Mapping[str, Values], reference: int, lots: str = "") -> Drift:
    """The first drift after a reference.

    Args:
        quantities: Name -> value of each study, the first study first; None where a study has none. A text is a word.
        reference: How many studies, from the first, are the reference.
        lots: By which equal values are put in order: the same text gives the same order.

    Raises:
        ValueError: Fewer than `LEAST_REFERENCE` studies are the reference.
    """
    if reference < LEAST_REFERENCE:
        raise ValueError(f"the reference has {reference} studies; at least {LEAST_REFERENCE} are needed")
    known = {name: _typed(values, reference) for name, values in quantities.items()}
    bets = {
        name: _bets(lots + name, values, reference) for name, values in known.items() if _is_known(values, reference)
    }
    number = max(map(len, quantities.values()), default=reference) - reference
    if not bets or not number:
        return Drift(np.zeros(number))
    stakes = np.concatenate(list(bets.values()))  # (bets on all quantities, studies after the reference)
    sums, scores = np.zeros(len(stakes)), np.zeros(number)
    for study in range(number):
        # A study without a value leaves the sum as it is
        sums = np.where(np.isnan(stakes[:, study]), sums, (1 + sums) * stakes[:, study])
        scores[study] = sums.mean()
        if scores[study] >= ALARM:
            winner, alarm = int(np.argmax(sums)), reference + study
            quantity = [name for name, rows in bets.items() for _ in rows][winner]
            begins = [_began(known[quantity], reference, alarm), *_new_words(known, reference, alarm)]
            tried = [(_changes(known, since, alarm, len(begins)), since) for since in begins]
            changes, since = min(tried, key=lambda one: min((change.p for change in one[0]), default=1.0))
            return Drift(scores[: study + 1], alarm, since, quantity, changes)
    return Drift(scores)


def _typed(values: Values, reference: int) -> Values:
    """Words that are numbers, as echo times are, as numbers where the reference has many different ones."""
    if not any(isinstance(value, str) for value in values):
        return values
    numbers = [_number(value) for value in values]
    # By the reference alone: what later studies have must not change what was said before
    told = [number for value, number in zip(values[:reference], numbers, strict=False) if value]
    if None not in told and len(set(told)) > _LEAST_KINDS:
        return numbers
    return ["" if value is None else str(value) for value in values]


def _number(value: float | str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_known(values: Values, reference: int) -> bool:
    # By the reference alone; a tag that it never has is no bet, and is told when something else has drifted
    present = [value for value in values[:reference] if value is not None]
    return len(present) >= LEAST_REFERENCE and any(value != "" for value in present)


def _bets(lots: str, values: Values, reference: int) -> Floats:
    """Shape (bets, studies after the reference): what each bet multiplies by; not a number for a study without a value."""
    is_word = any(isinstance(value, str) for value in values)
    ranks = _ranks(lots, _scores(values, reference), reference // 2 if is_word else 0)
    # Low ranks, which rare words have; of a number low or high ones
    fixed: list[Callable[[float], float]] = (
        [partial(_low, below=below, share=share) for below, share in _RARE]
        if is_word
        else [partial(_to_a_side, power=power, is_high=is_high) for power in _POWERS for is_high in (False, True)]
    )
    stakes = np.full((len(fixed) + len(_HISTOGRAMS), len(values)), np.nan)
    remembered = [deque[float](maxlen=length) for length, _ in _HISTOGRAMS]
    for study in np.flatnonzero(~np.isnan(ranks)):
        rank = ranks[study]
        for row, bet in enumerate(fixed):
            stakes[row, study] = bet(rank)
        for row, ((_, bins), last) in enumerate(zip(_HISTOGRAMS, remembered, strict=True), len(fixed)):
            of_bin = [min(int(one * bins), bins - 1) for one in (*last, rank)]
            seen = of_bin[:-1].count(of_bin[-1])
            stakes[row, study] = (seen + _SMOOTHING) / (len(last) + _SMOOTHING * bins) * bins
            last.append(float(rank))
    return stakes[:, reference:]


def _low(rank: float, below: float, share: float) -> float:
    return share / below if rank < below else (1 - share) / (1 - below)


def _to_a_side(rank: float, power: float, *, is_high: bool) -> float:
    return float(power * (1 - rank if is_high else rank) ** (power - 1))


def _scores(values: Values, reference: int) -> list[float | None]:
    """Numbers as they are; of a word how often it is in the first half of the reference."""
    if not any(isinstance(value, str) for value in values):
        return [None if value is None else float(value) for value in values]
    counts = Counter(values[: reference // 2])
    return [float(counts[value]) for value in values]


def _ranks(lots: str, values: Sequence[float | None], begin: int) -> Floats:
    """Shape (T,): the part of earlier values that are smaller, strictly between 0 and 1; equal ones are put in order by lot."""
    # The same for each run, and for more studies
    drawn = np.random.default_rng(zlib.crc32(lots.encode())).random(len(values))
    ranks, ordered = np.full(len(values), np.nan), list[float]()
    for study, value in enumerate(values):
        if study < begin or value is None:
            continue
        low, high = bisect.bisect_left(ordered, value), bisect.bisect_right(ordered, value)
        ranks[study] = (low + drawn[study] * (high - low + 1)) / (len(ordered) + 1)
        ordered.insert(high, value)
    return np.asarray(np.clip(ranks, 1e-12, 1 - 1e-12))


def _began(values: Values, reference: int, alarm: int) -> int:
    """Index of the study after the reference that parts two groups whose ranks differ most, by the z of Mann and Whitney."""
    scores = _scores(values, reference)[: alarm + 1]
    studies = np.array([study for study, score in enumerate(scores) if score is not None])
    ranks = stats.rankdata([score for score in scores if score is not None])
    splits = np.flatnonzero(studies >= reference)
    after = len(ranks) - splits
    means = ranks[::-1].cumsum()[::-1][splits] / after
    z = np.abs(means - (len(ranks) + 1) / 2) / np.sqrt(splits / after)
    return int(studies[splits[np.argmax(z)]])


def _new_words(quantities: Mapping[str, Values], reference: int, alarm: int) -> set[int]:
    """Index of the first study of each word that the reference does not have."""
    first = set()
    for values in quantities.values():
        new = {value for value in values[reference : alarm + 1] if isinstance(value, str)} - set(values[:reference])
        first |= {values.index(word) for word in new}
    return first


def _changes(quantities: Mapping[str, Values], since: int, alarm: int, splits: int) -> tuple[Change, ...]:
    """What is different from one study to another from all before; it is one of so many splits that are tried."""
    words, numbers = list[Change](), list[Change]()  # corrected for their own number each: a site asks for the tag
    for name, values in quantities.items():
        before, after = values[:since], values[since : alarm + 1]
        if any(isinstance(value, str) for value in values):
            words += [_more_frequent(name, str(word), before, after) for word in dict.fromkeys(after) if word]
        elif (old := _present(before)).size and (new := _present(after)).size:
            p = float(stats.mannwhitneyu(old, new).pvalue)
            numbers.append(Change(name, float(np.median(old)), float(np.median(new)), p))
    told = [replace(one, p=one.p * len(kind) * splits) for kind in (words, numbers) for one in kind]
    clear = [one for one in told if one.p < _MOST_TOLD]
    return tuple(sorted(clear, key=lambda one: (not one.word, one.p)))


def _more_frequent(name: str, word: str, before: Values, after: Values) -> Change:
    old, new = before.count(word), after.count(word)
    table = [[new, len(after) - new], [old, len(before) - old]]
    p = float(stats.fisher_exact(table, alternative="greater").pvalue)
    return Change(name, old / len(before), new / len(after), p, word)


def _present(values: Values) -> Floats:
    return np.array([value for value in values if value is not None], float)


@dataclass(frozen=True)
class WindowTest:
    """The last studies against the reference, for one quantity.

    Attributes:
        name: Of the quantity.
        psi: Population stability index: 0 for equal distributions.
        psi_interval: Its 95 % interval by resampling both.
        p: Of Kolmogorov and Smirnov's test for a number, of the chi-squared test for a word.
    """

    name: str
    psi: float
    psi_interval: tuple[float, float]
    p: float


def compare_windows(quantities: Mapping[str, Values], reference: int, last: int = 30) -> list[WindowTest]:
    """The reference against the last studies after it, for each quantity that both have."""
    tests = []
    for name, given in quantities.items():
        values = _typed(given, reference)
        old, new = (
            [one for one in part if one is not None] for part in (values[:reference], values[reference:][-last:])
        )
        if len(old) < LEAST_REFERENCE or len(new) < last:
            continue
        if isinstance(old[0], str):
            kinds = sorted({str(one) for one in (*old, *new)})
            first, second = ([kinds.index(str(one)) for one in part] for part in (old, new))
            table = np.array([np.bincount(part, minlength=len(kinds)) for part in (first, second)])
            p, bins = (float(stats.chi2_contingency(table).pvalue) if len(kinds) > 1 else 1.0), len(kinds)
        else:
            edges, bins = np.quantile(np.array(old, float), np.linspace(0, 1, 6)[1:-1]), 5
            first, second = (np.searchsorted(edges, np.array(part, float)).tolist() for part in (old, new))
            p = float(stats.ks_2samp(old, new, method="asymp").pvalue)
        tests.append(WindowTest(name, _psi(first, second, bins), _psi_interval(first, second, bins), p))
    return tests


def _psi(old: ArrayLike, new: ArrayLike, bins: int) -> float:
    counts = [np.bincount(np.asarray(part), minlength=bins) + 0.5 for part in (old, new)]
    shares = [part / part.sum() for part in counts]
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def _psi_interval(old: Sequence[int], new: Sequence[int], bins: int) -> tuple[float, float]:
    chance = np.random.default_rng(0)
    drawn = [_psi(chance.choice(old, len(old)), chance.choice(new, len(new)), bins) for _ in range(_BOOTSTRAP)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)
