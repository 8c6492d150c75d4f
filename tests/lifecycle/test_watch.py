"""What a node has recorded becomes references, alarms and a page; nothing of it names a study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_unet_app.cli import main
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.lifecycle.drift_page import write_drift_page
from monai_unet_app.lifecycle.watch import RuleWatch, reference_of, watch

Line = dict[str, Any]
SITE = """
[node]
folder = "node"
[[rules]]
name = "liver"
bundle = "hippocampus_mri_unet3d"
match = {Modality = "MR"}
"""


def result(number: int, *, scanner: str = "A", size: float = 0.0, **more: Any) -> Line:
    """The line of a result."""
    chance = np.random.default_rng(number)
    numbers = {
        "liver: size": 1500 + 200 * chance.normal() + size,
        "liver: predicted Dice": 0.9 + 0.02 * chance.normal(),
    }
    words = {"ManufacturerModelName": scanner, "ConvolutionKernel": "B30"}
    seen = {"bundle": more.pop("bundle", "one"), "words": words, "numbers": numbers, **more.pop("observed", {})}
    line = {"event": "result", "rule": "liver", "study": f"1.2.{number}", "series": f"1.2.{number}.1", "result": number}
    about = {
        "time": f"2026-01-{1 + number // 24:02}T{number % 24:02}:00:00.000+00:00",
        "verdict": "accept",
        "state": "sending",
    }
    return line | about | {"observed": seen} | more


@pytest.fixture
def trail(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines as the trail of a site, whose file lies beside the node's folder."""

    def written(*lines: Line) -> Path:
        path = tmp_path / "node/audit.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "site.toml").write_text(SITE)
        return path

    return written


def frozen(path: Path, results: int = 40) -> Line:
    (rule,) = watch(path, ["liver"])
    return {
        "event": "reference frozen",
        "who": "Rossi^Anna",
        "time": "2026-01-03T00:00:00",
        **reference_of(rule, results),
    }


def watched(path: Path) -> RuleWatch:
    return watch(path, ["liver"])[0]


def test_without_a_reference_nothing_can_drift(trail: Callable[..., Path]) -> None:
    few = watched(trail(*map(result, range(1, 20))))
    assert few.state == "no reference"
    assert few.sentence == "no reference is frozen; 19 result(s) could be in it, 30 are needed"
    with pytest.raises(
        InputRefusedError, match=r"19 result\(s\) of its bundle were accepted so far, and 30 are asked for"
    ):
        reference_of(few, 30)
    with pytest.raises(InputRefusedError, match="at least 30"):
        reference_of(watched(trail(*map(result, range(1, 80)))), 20)
    assert watched(trail()).sentence.startswith("no reference is frozen; 0 result(s)")
    with pytest.raises(InputRefusedError, match="does not exist; the audit trail of a node is needed"):
        watch(Path("nowhere"), ["liver"])


def test_a_reference_has_the_first_results_that_were_accepted(trail: Callable[..., Path]) -> None:
    lines = [result(n) for n in range(1, 60)]
    lines[2] |= {"verdict": "review", "state": "held"}  # nobody looked at it
    lines[4] |= {"verdict": "review", "state": "held"}  # a reviewer accepted it
    lines[6] |= {"verdict": "accept"}  # a reviewer rejected it
    lines += [{"event": "decided", "result": 5, "decision": "accepted", "who": "Rossi^Anna"}]
    lines += [{"event": "decided", "result": 7, "decision": "rejected", "who": "Rossi^Anna"}]
    again = result(60, bundle="one") | {"study": "1.2.1", "series": "1.2.1.1"}  # processed again: the same image
    other = result(61, bundle="two") | {"time": "2026-01-02"}
    path = trail(*lines, again, other)
    assert watched(path).accepted == 1  # of the newest bundle
    path = trail(*lines, again)
    assert frozen(path, 30)["results"] == [n for n in range(1, 33) if n not in (3, 7)]
    # what another bundle made is not held against it
    path = trail(*lines, again, frozen(path, 30), other, *(result(n) for n in range(70, 75)))
    assert watched(path).sentence.endswith(
        "; 1 later one(s) are of another bundle, for which a new reference is needed"
    )
    assert [one.number for one in watched(path).seen[30:]] == [*range(33, 60), *range(70, 75)]


def test_a_scanner_that_came_is_found_dated_and_named(trail: Callable[..., Path], tmp_path: Path) -> None:
    before = [result(n) for n in range(1, 61)]
    line = frozen(trail(*before))
    steady = watched(trail(*before, line))
    assert steady.state == "steady"
    assert steady.sentence == "steady: 20 result(s) after a reference of 40"
    after = [result(n, scanner="B" if n % 2 else "A", size=900 * (n % 2)) for n in range(61, 110)]
    found = watched(trail(*before, line, *after))
    assert found.state == "drift"
    document = found.document()
    assert document["since"] in (61, 63)
    assert document["alarm"] - document["since"] < 50
    assert document["changes"][0]["name"] == "ManufacturerModelName"
    assert found.sentence.startswith(f"drift since 2026-01-03T{document['since'] - 48}:00, found 2026-01-0")
    assert "ManufacturerModelName is B in 5" in found.sentence
    assert document["expected_dice"]["results"] == 30
    page = tmp_path / "drift.html"
    assert main(["node", "drift", "--config", str(tmp_path / "site.toml"), "--output", str(page)]) == 1
    text = page.read_text()
    assert "liver: what the node sees has changed." in text
    assert "1.2.61" not in text + json.dumps(document)


def test_an_alarm_does_not_go_when_later_images_have_a_tag_that_none_had(trail: Callable[..., Path]) -> None:
    lines = [result(n) for n in range(1, 61)]
    lines = [*lines, frozen(trail(*lines)), *(result(n, scanner="B") for n in range(61, 80))]
    alarm = watched(trail(*lines)).document()
    later = [result(n) for n in range(80, 100)]
    for line in later:
        line["observed"]["words"] |= {"KVP": "120", "FilterType": "none"}
        line["observed"]["numbers"]["new"] = 1.0
    assert watched(trail(*lines, *later)).document()["alarm"] == alarm["alarm"]
    assert alarm["alarm"] is not None
    scores = [find_scores(trail(*lines[:n])) for n in (70, 75)]
    assert scores[1][: len(scores[0])] == scores[0]


def find_scores(path: Path) -> list[float]:
    found = watched(path).drift
    assert found is not None
    return found.scores.tolist()


def test_every_state_has_a_page(trail: Callable[..., Path], tmp_path: Path) -> None:
    lines = [result(n) for n in range(1, 100)]
    without = watched(trail(*lines))
    frozen_now = watched(trail(*lines[:40], frozen(trail(*lines[:40]))))
    steady = watched(trail(*lines, frozen(trail(*lines))))
    for n, (rules, says) in enumerate(
        [([without], "no reference is frozen"), ([frozen_now, steady], "Nothing has changed since")]
    ):
        write_drift_page(rules, tmp_path / f"{n}.html")
        assert says in (tmp_path / f"{n}.html").read_text()


def test_what_reviewers_find_corrects_the_predicted_dice(trail: Callable[..., Path]) -> None:
    drawn = {"drawn": 0.2}
    lines = [
        result(n, observed=drawn if n % 5 == 0 else {}, state="held" if n % 5 == 0 else "sending") for n in range(1, 31)
    ]
    corrected = [
        {"event": "decided", "result": n, "decision": "corrected", "who": "Rossi^Anna", "dice": 0.6}
        for n in range(5, 31, 5)
    ]
    alone, told = (watched(trail(*some)).expected for some in (lines, [*lines, *corrected]))
    assert alone is not None
    assert told is not None
    assert alone.mean == pytest.approx(0.9, abs=0.02)
    assert (alone.reviewed, told.reviewed) == (0, 6)
    assert 0.6 < told.mean < 0.75


def test_the_verb_says_which_rules_and_refuses_others(
    trail: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trail(*map(result, range(1, 60)))
    site = str(tmp_path / "site.toml")
    assert main(["node", "drift", "--config", site]) == 0
    assert "liver: no reference is frozen; 59 result(s) could be in it" in capsys.readouterr().out
    assert main(["node", "drift", "--config", site, "--rule", "liver", "--propose", "50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rules"][0]["proposed"]["results"] == list(range(1, 51))
    assert main(["node", "drift", "--config", site, "--rule", "spleen"]) == 3
    assert "the site has no rule 'spleen'; one of liver is needed" in capsys.readouterr().err
    assert main(["node", "drift", "--config", site, "--propose", "50"]) == 2
    assert "--propose needs --rule" in capsys.readouterr().err


def test_without_a_reference_the_results_are_the_champions_though_a_challenger_made_the_last(
    trail: Callable[..., Path],
) -> None:
    assigned = {"event": "assigned", "rule": "liver", "champion": "one", "challenger": "two"}
    lines = [result(n, bundle="two" if n % 2 else "one") for n in range(1, 82)]
    (found,) = watch(trail(assigned, *lines), ["liver"])
    assert {one.bundle for one in found.seen} == {"one"}
    assert reference_of(found, 40)["bundle"] == "one"
