"""Writes rules.yml: recording and alert rules for Prometheus; and for each alert a test in which it fires and one in which it
does not (rules_test.yml, rules_long_test.yml).

    python ops/make_alerts.py [--output FOLDER] [--game-day]

The objective of the burn rates (Beyer et al., The Site Reliability Workbook, chapter 5): 99 of 100 results are delivered within
ten minutes after their study is complete. Windows with few results say nothing: one late result is no outage of a small clinic.
Severity page: somebody is called. Ticket: somebody looks in working hours. docs/runbooks.md has a section for each alert.
--game-day writes rules.yml alone, with minutes as seconds, so that a game takes minutes: it is for no node that has patients.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

RUNBOOKS = "https://example.org/monai-unet/runbooks#"  # where a site keeps docs/runbooks.md
LATE_S, LATE_BUDGET, LEAST_RESULTS = "600.0", 0.01, 12
NODE = 'job="monai_unet",instance="node"'
_COUNT, _IN_TIME = (
    'monai_unet_stage_seconds_count{stage="total"}',
    f'monai_unet_stage_seconds_bucket{{stage="total",le="{LATE_S}"}}',
)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


@dataclass(frozen=True)
class Alert:
    """An alert, with a test of each kind.

    Attributes:
        name: Without the prefix MonaiUnet.
        severity: page or ticket.
        hold: How long the expression must be true.
        expr: PromQL.
        summary: One sentence.
        firing: Series -> values every minute, or every ten where the test is long, by which it fires at `at`.
        silent: The same, by which it does not.
        at: Time of both tests.
        labels: Those of the alert that fires, besides severity.
    """

    name: str
    severity: str
    hold: str
    expr: str
    summary: str
    firing: dict[str, str]
    silent: dict[str, str]
    at: str = "20m"
    labels: dict[str, str] = field(default_factory=lambda: {"job": "monai_unet", "instance": "node"})


def hours(at: str) -> int:
    """Of a time such as 8h; 0 of minutes."""
    return int(at.removesuffix("h")) if at.endswith("h") else 0


def is_long(at: str) -> bool:
    """Whether a test is evaluated every ten minutes, so that it takes no minute."""
    return hours(at) > 4


def burn(name: str, severity: str, factor: float, windows: tuple[str, str], at: str, bad: int) -> Alert:
    """An alert by the rate at which the budget of late results burns, over a long and a short window."""
    long, short = windows
    limit = f"{factor * LATE_BUDGET:g}"
    # Of ten results `bad` are late
    steps = hours(at) * (6 if is_long(at) else 60)
    total = {f'monai_unet_stage_seconds_count{{{NODE},stage="total"}}': f"0+1x{steps}"}
    in_time = f'monai_unet_stage_seconds_bucket{{{NODE},stage="total",le="{LATE_S}"}}'
    return Alert(
        name, severity, "2m",
        f"monai_unet:late:ratio{long} > {limit} and monai_unet:late:ratio{short} > {limit} "
        f"and sum by (job, instance) (increase({_COUNT}[{long}])) >= {LEAST_RESULTS}",
        f"Results come late {factor:g} times as often as one in a hundred",
        {**total, in_time: f"0+{1 - bad / 10:g}x{steps}"},
        {**total, in_time: f"0+1x{steps}"},
        at,
    )  # fmt: skip


def gauge(name: str, more: str = "") -> str:
    """A series of the node."""
    return f"{name}{{{NODE}{',' + more if more else ''}}}"


RULE = 'rule="liver"'
OF_RULE = {"job": "monai_unet", "instance": "node", "rule": "liver"}
OUTCOMES = "monai_unet_outcomes_total"
REJECTED, ACCEPTED = (
    gauge(OUTCOMES, f'bundle="liver",version="1",slot="champion",outcome="{outcome}"')
    for outcome in ("reject", "accept")
)
ALERTS = [
    Alert("Down", "page", "5m", 'up{job="monai_unet"} == 0', "The node does not answer",
          {gauge("up"): "0x20"}, {gauge("up"): "1x14 0x3 1x3"}),
    Alert("NotReady", "page", "10m", "monai_unet_ready == 0", "The node takes studies and cannot process or deliver them",
          {gauge("monai_unet_ready"): "0x20"}, {gauge("monai_unet_ready"): "1x10 0x5 1x5"}),
    Alert("DiskFull", "page", "5m", "monai_unet_disk_free_bytes < monai_unet_disk_least_free_bytes",
          "The node's disk is full: nothing is received",
          {gauge("monai_unet_disk_free_bytes"): "5e8x20", gauge("monai_unet_disk_least_free_bytes"): "1e9x20"},
          {gauge("monai_unet_disk_free_bytes"): "2e9x20", gauge("monai_unet_disk_least_free_bytes"): "1e9x20"}),
    Alert("DiskSoonFull", "ticket", "30m",
          "monai_unet_disk_free_bytes < 5 * monai_unet_disk_least_free_bytes", "The node's disk is soon full",
          {gauge("monai_unet_disk_free_bytes"): "4e9x60", gauge("monai_unet_disk_least_free_bytes"): "1e9x60"},
          {gauge("monai_unet_disk_free_bytes"): "6e9x60", gauge("monai_unet_disk_least_free_bytes"): "1e9x60"}, "50m"),
    Alert("StudyWaits", "page", "10m", 'monai_unet_oldest_pending_seconds{kind="job"} > 3600',
          "A study has waited for more than an hour",
          {gauge("monai_unet_oldest_pending_seconds", 'kind="job"'): "4000+60x20"},
          {gauge("monai_unet_oldest_pending_seconds", 'kind="job"'): "100+60x20"},
          labels={"job": "monai_unet", "instance": "node", "kind": "job"}),
    Alert("DestinationAway", "page", "15m", "monai_unet_destination_reachable == 0",
          "{{ $labels.destination }} cannot be reached; its results wait",
          {gauge("monai_unet_destination_reachable", 'destination="pacs"'): "0x20"},
          {gauge("monai_unet_destination_reachable", 'destination="pacs"'): "1x5 0x10 1x5"},
          labels={"job": "monai_unet", "instance": "node", "destination": "pacs"}),
    Alert("DeadLetters", "ticket", "1m",
          'sum by (job, instance) ({__name__=~"monai_unet_jobs|monai_unet_deliveries",state="dead"}) > 0',
          "The node has given something up",
          {gauge("monai_unet_jobs", 'state="dead"'): "1x20", gauge("monai_unet_deliveries", 'state="dead"'): "0x20"},
          {gauge("monai_unet_jobs", 'state="dead"'): "0x20", gauge("monai_unet_deliveries", 'state="dead"'): "0x20"}),
    Alert("ReviewWaits", "ticket", "10m", 'monai_unet_oldest_pending_seconds{kind="review"} > 86400',
          "A result has waited for a reviewer for more than a day",
          {gauge("monai_unet_oldest_pending_seconds", 'kind="review"'): "90000+60x20"},
          {gauge("monai_unet_oldest_pending_seconds", 'kind="review"'): "100+60x20"},
          labels={"job": "monai_unet", "instance": "node", "kind": "review"}),
    burn("LateFast", "page", 14.4, ("1h", "5m"), "2h", 3),
    burn("LateSteady", "page", 6.0, ("6h", "30m"), "8h", 1),
    burn("LateSlowly", "ticket", 3.0, ("1d", "2h"), "30h", 1),
    burn("LateLong", "ticket", 1.0, ("3d", "6h"), "80h", 1),
    Alert("SlowWork", "ticket", "10m",
          "histogram_quantile(0.95, sum by (job, instance, le) "
          '(rate(monai_unet_stage_seconds_bucket{stage="work"}[1h]))) > 300',
          "One study in twenty takes more than five minutes to segment",
          {gauge("monai_unet_stage_seconds_bucket", 'stage="work",le="300.0"'): "0+1x120",
           gauge("monai_unet_stage_seconds_bucket", 'stage="work",le="600.0"'): "0+2x120",
           gauge("monai_unet_stage_seconds_bucket", 'stage="work",le="+Inf"'): "0+2x120"},
          {gauge("monai_unet_stage_seconds_bucket", 'stage="work",le="300.0"'): "0+2x120",
           gauge("monai_unet_stage_seconds_bucket", 'stage="work",le="600.0"'): "0+2x120",
           gauge("monai_unet_stage_seconds_bucket", 'stage="work",le="+Inf"'): "0+2x120"}, "100m"),
    Alert("WorkerRestarts", "ticket", "1m", "increase(monai_unet_worker_starts_total[1h]) > 5",
          "Workers end again and again",
          {gauge("monai_unet_worker_starts_total"): "1+1x60"}, {gauge("monai_unet_worker_starts_total"): "1x60"}, "60m"),
    Alert("MemoryGrows", "ticket", "30m", 'monai_unet_memory_bytes{process="node"} > 5e8',
          "The receiving process has more than 500 MB of memory",
          {gauge("monai_unet_memory_bytes", 'process="node"'): "6e8x60"},
          {gauge("monai_unet_memory_bytes", 'process="node"'): "1e8x60"}, "50m",
          {"job": "monai_unet", "instance": "node", "process": "node"}),
    Alert("ClockJump", "page", "2m", "abs(monai_unet_time_seconds - timestamp(monai_unet_time_seconds)) > 60",
          "The node's clock differs from Prometheus' by more than a minute",
          {gauge("monai_unet_time_seconds"): "1000+60x20"}, {gauge("monai_unet_time_seconds"): "5+60x20"}),
    Alert("NothingComes", "ticket", "10m", "increase(monai_unet_instances_received_total[3d]) == 0",
          "No image has come for three days",
          {gauge("monai_unet_instances_received_total"): "5x450"},
          {gauge("monai_unet_instances_received_total"): "5+1x450"}, "74h"),
    Alert("Drift", "ticket", "1m", "monai_unet_drift == 1", "What rule {{ $labels.rule }} sees has drifted",
          {gauge("monai_unet_drift", RULE): "1x20"}, {gauge("monai_unet_drift", RULE): "0x20"}, labels=OF_RULE),
    Alert("CalibrationOff", "ticket", "1m", "abs(monai_unet_dice_bias) > 0.1",
          "Reviewers find the results of rule {{ $labels.rule }} other than the quality gate predicts",
          {gauge("monai_unet_dice_bias", RULE): "-0.15x20"}, {gauge("monai_unet_dice_bias", RULE): "0.05x20"}, labels=OF_RULE),
    Alert("DiceLow", "ticket", "1m", "monai_unet_expected_dice < 0.7",
          "The expected Dice of rule {{ $labels.rule }} is below 0.7",
          {gauge("monai_unet_expected_dice", RULE): "0.65x20"}, {gauge("monai_unet_expected_dice", RULE): "0.85x20"},
          labels=OF_RULE),
    Alert("RejectsRise", "ticket", "10m",
          f'sum by (job, instance, bundle) (increase({OUTCOMES}{{outcome="reject"}}[1d])) / '
          f"sum by (job, instance, bundle) (increase({OUTCOMES}[1d])) > 0.2 and "
          f"sum by (job, instance, bundle) (increase({OUTCOMES}[1d])) >= 20",
          "One result in five of {{ $labels.bundle }} is rejected by the quality gate",
          {REJECTED: "0+0.5x150", ACCEPTED: "0+1x150"}, {REJECTED: "0+0.1x150", ACCEPTED: "0+1x150"},
          "25h", {"job": "monai_unet", "instance": "node", "bundle": "liver"}),
    Alert("ChallengerRolledBack", "ticket", "1m", "monai_unet_challenger_rolled_back == 1",
          "The challenger of rule {{ $labels.rule }} was rolled back",
          {gauge("monai_unet_challenger_rolled_back", RULE): "1x20"},
          {gauge("monai_unet_challenger_rolled_back", RULE): "0x20"}, labels=OF_RULE),
    # Its only use is to keep other alerts of the node from being sent
    Alert("Maintenance", "none", "0m", "last_over_time(monai_unet_maintenance_until_seconds[2d]) > time()",
          "Maintenance is declared", {gauge("monai_unet_maintenance_until_seconds"): "3000x20"},
          {gauge("monai_unet_maintenance_until_seconds"): "600x20"}),
]  # fmt: skip


def rules() -> dict[str, Any]:
    """The content of rules.yml."""
    recorded = [
        {
            "record": f"monai_unet:late:ratio{window}",
            "expr": f"1 - sum by (job, instance) (rate({_IN_TIME}[{window}])) / "
            f"sum by (job, instance) (rate({_COUNT}[{window}]))",
        }
        for window in WINDOWS
    ]
    alerts = [
        {
            "alert": f"MonaiUnet{one.name}", "expr": one.expr, "for": one.hold, "labels": {"severity": one.severity},
            "annotations": {"summary": one.summary, "runbook_url": RUNBOOKS + one.name.lower()},
        }
        for one in ALERTS
    ]  # fmt: skip
    return {
        "groups": [{"name": "monai_unet_recorded", "rules": recorded}, {"name": "monai_unet_alerts", "rules": alerts}]
    }


def test_of(alert: Alert, *, fires: bool) -> dict[str, Any]:
    """One of the two tests of an alert."""
    summary = alert.summary
    for label, value in alert.labels.items():
        summary = summary.replace(f"{{{{ $labels.{label} }}}}", value)
    expected = {
        "exp_labels": {"severity": alert.severity, **alert.labels},
        "exp_annotations": {"summary": summary, "runbook_url": RUNBOOKS + alert.name.lower()},
    }
    series = [{"series": name, "values": values} for name, values in (alert.firing if fires else alert.silent).items()]
    asked = {"eval_time": alert.at, "alertname": f"MonaiUnet{alert.name}", "exp_alerts": [expected] if fires else []}
    interval = "10m" if is_long(alert.at) else "1m"
    return {"interval": interval, "input_series": series, "alert_rule_test": [asked]}


def in_seconds(text: str) -> str:
    """The rules with the times of a game: an hour is a minute, a minute is a second, late is later than five seconds."""
    shorter = {"m": lambda _: "[10s]", "h": lambda n: f"[{n}m]", "d": lambda n: f"[{n}h]"}
    text = re.sub(r"\[(\d+)([mhd])\]", lambda found: shorter[found[2]](found[1]), text)
    text = re.sub(r"for: \d+[mh]", "for: 2s", text)
    return text.replace(f'le="{LATE_S}"', 'le="5.0"').replace(f">= {LEAST_RESULTS}", ">= 3")


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--game-day", action="store_true")
    options = parser.parse_args()
    output = options.output
    if options.game_day:
        (output / "rules.yml").write_text(in_seconds(yaml.safe_dump(rules(), sort_keys=False, width=200)))
        return
    files: dict[str, Any] = {"rules.yml": rules()}
    for name, interval, kind in (("rules_test.yml", "1m", False), ("rules_long_test.yml", "10m", True)):
        of_kind = [one for one in ALERTS if is_long(one.at) == kind]
        tests = [test_of(one, fires=fires) for one in of_kind for fires in (True, False)]
        # Else promtool takes the groups in any order, and an alert may find no recorded value of its moment
        order = [group["name"] for group in files["rules.yml"]["groups"]]
        head = {"rule_files": ["rules.yml"], "evaluation_interval": interval, "group_eval_order": order}
        files[name] = {**head, "tests": tests}
    for name, content in files.items():
        text = yaml.safe_dump(content, sort_keys=False, width=200)
        (output / name).write_text(f"# Written by make_alerts.py; do not edit.\n{text}")


if __name__ == "__main__":
    main()
