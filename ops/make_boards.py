"""Writes the three boards for Grafana by its typed SDK: management.json, on_call.json and debugging.json.

    pip install -r ops/requirements.txt
    python ops/make_boards.py [--output FOLDER]

Every query is checked by `make mlops-test` against the metrics of a running node.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

OUTCOMES, DICE, CONFIDENCE = "monai_unet_outcomes_total", "monai_unet_predicted_dice", "monai_unet_confidence"
KINDS = {"stat": stat.Panel, "lines": timeseries.Panel, "heat": heatmap.Panel}
WIDTH, HEIGHT = 8, 7


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: One of `KINDS`.
        title: Above it.
        unit: Of Grafana.
        queries: PromQL -> what its lines are called.
    """

    kind: str
    title: str
    unit: str
    queries: dict[str, str]


def mean_dice(window: str) -> str:
    """Mean predicted Dice of each bundle over a window."""
    return (
        f"sum by (bundle, version, slot) (increase({DICE}_sum[{window}])) / "
        f"sum by (bundle, version, slot) (increase({DICE}_count[{window}]))"
    )


def share(outcome: str, window: str) -> str:
    """Part of the results of each bundle with an outcome."""
    return (
        f'sum by (bundle, version) (increase({OUTCOMES}{{outcome="{outcome}"}}[{window}])) / '
        f"sum by (bundle, version) (increase({OUTCOMES}[{window}]))"
    )


BUNDLE, PLACE = "{{bundle}} {{version}} {{slot}}", "{{instance}}"
PRICE = "0.05"  # of a core for an hour, in the site's currency; change it here and write the boards again
BOARDS = {
    "management": [
        *(Panel("stat", f"Predicted Dice, {days} days", "none", {mean_dice(f"{days}d"): BUNDLE}) for days in (30, 90, 365)),
        Panel("lines", "Predicted Dice, a week at a time", "none", {mean_dice("7d"): BUNDLE}),
        Panel("lines", "Expected Dice, corrected by reviewers", "none", {"monai_unet_expected_dice": "{{rule}}"}),
        Panel("lines", "Outcomes a day", "short", {f"sum by (outcome) (increase({OUTCOMES}[1d]))": "{{outcome}}"}),
        Panel("stat", "Results in 30 days", "short", {f"sum(increase({OUTCOMES}[30d]))": "results"}),
        Panel("stat", "Processor hours in 30 days", "h",
              {"sum by (bundle, version, slot) (increase(monai_unet_processor_seconds_total[30d])) / 3600": BUNDLE}),
        Panel("stat", f"Spend in 30 days, {PRICE} for a core and an hour", "short",
              {f"sum(increase(monai_unet_processor_seconds_total[30d])) / 3600 * {PRICE}": "all"}),
    ],
    "on_call": [
        Panel("stat", "Ready", "bool_yes_no", {"monai_unet_ready": PLACE}),
        Panel("lines", "Oldest that waits", "s", {"monai_unet_oldest_pending_seconds": "{{kind}}"}),
        Panel("lines", "Complete until delivered, 95 %", "s",
              {'histogram_quantile(0.95, sum by (le) (rate(monai_unet_stage_seconds_bucket{stage="total"}[30m])))': "95 %"}),
        Panel("lines", "Late results, of the budget", "percentunit",
              {"monai_unet:late:ratio1h": "1 h", "monai_unet:late:ratio6h": "6 h", "monai_unet:late:ratio1d": "1 day"}),
        Panel("lines", "Jobs", "short", {"monai_unet_jobs": "{{state}}"}),
        Panel("lines", "Deliveries that wait", "short", {"monai_unet_destination_pending": "{{destination}}"}),
        Panel("stat", "Destinations", "bool_yes_no", {"monai_unet_destination_reachable": "{{destination}}"}),
        Panel("lines", "Free disk", "bytes",
              {"monai_unet_disk_free_bytes": "free", "monai_unet_disk_least_free_bytes": "least"}),
        Panel("lines", "Memory", "bytes", {"monai_unet_memory_bytes": "{{process}}"}),
        Panel("lines", "Starts of workers an hour", "short", {"increase(monai_unet_worker_starts_total[1h])": PLACE}),
        Panel("lines", "Turned away", "short",
              {"increase(monai_unet_instances_refused_total[1h])": "instances",
               "increase(monai_unet_callers_rejected_total[1h])": "callers"}),
        Panel("stat", "Maintenance, seconds left", "s", {"clamp_min(monai_unet_maintenance_until_seconds - time(), 0)": PLACE}),
    ],
    "debugging": [
        Panel("heat", "Confidence", "none", {f"sum by (le) (increase({CONFIDENCE}_bucket[1h]))": "{{le}}"}),
        Panel("heat", "Predicted Dice", "none", {f"sum by (le) (increase({DICE}_bucket[1h]))": "{{le}}"}),
        Panel("lines", "Rejected and held, part of a day", "percentunit",
              {share("reject", "1d"): "rejected {{bundle}}", share("review", "1d"): "review {{bundle}}"}),
        Panel("lines", "Not processed a day", "short",
              {f'sum by (bundle) (increase({OUTCOMES}{{outcome="not processed"}}[1d]))': "{{bundle}}"}),
        Panel("lines", "Dead letters", "short",
              {'monai_unet_jobs{state="dead"}': "jobs", 'monai_unet_deliveries{state="dead"}': "deliveries"}),
        Panel("lines", "Segmenting a study", "s",
              {f'histogram_quantile({part}, sum by (le) (rate(monai_unet_stage_seconds_bucket{{stage="work"}}[1h])))': name
               for part, name in ((0.5, "median"), (0.95, "95 %"))}),
        Panel("lines", "Score of the drift test; 1000 is an alarm", "none", {"monai_unet_drift_score": "{{rule}}"}),
        Panel("lines", "Reviewers beside the quality gate, in Dice", "none", {"monai_unet_dice_bias": "{{rule}}"}),
        Panel("lines", "Score against the challenger; 100 rolls it back", "none", {"monai_unet_challenger_score": "{{rule}}"}),
        Panel("stat", "Share of the challenger", "percentunit", {"monai_unet_challenger_share": "{{rule}}"}),
        Panel("stat", "Loaded", "none", {"monai_unet_bundle_info": "{{rule}}: {{name}} {{version}}"}),
    ],
}  # fmt: skip


def board(name: str, panels: list[Panel]) -> str:
    """A board as Grafana imports it."""
    source = DataSourceRef(type_val="prometheus", uid="${source}")
    made = dashboard.Dashboard(f"monai-unet: {name.replace('_', ' ')}").uid(f"monai-unet-{name}").refresh("1m")
    made = made.tags(["monai-unet"]).time("now-30d" if name == "management" else "now-24h", "now")
    made = made.with_variable(dashboard.DatasourceVariable("source").type("prometheus").label("Prometheus"))
    for panel in panels:
        drawn = KINDS[panel.kind]().title(panel.title).unit(panel.unit).datasource(source).span(WIDTH).height(HEIGHT)
        for number, (expr, legend) in enumerate(panel.queries.items()):
            query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id("ABC"[number])
            query = query.format(PromQueryFormat.HEATMAP) if panel.kind == "heat" else query
            drawn = drawn.with_target(query.instant() if panel.kind == "stat" else query.range())
        made = made.with_panel(drawn)
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build())


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    output = parser.parse_args().output
    for name, panels in BOARDS.items():
        (output / f"{name}.json").write_text(board(name, panels) + "\n")


if __name__ == "__main__":
    main()
