"""The figures of a node are what Prometheus' own parser reads: complete from the start, named by its conventions, of nobody."""

from __future__ import annotations

import gzip
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import pytest
from nodes import make_study, pacs, running, started, store, study_of, wait_until, write_site
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families

from monai_unet_app import __version__
from monai_unet_app.service.node import Node
from monai_unet_app.service.node_metrics import exposition
from monai_unet_app.service.rows import DeliveryState, JobState, ResultState
from monai_unet_app.service.spans import Spans
from monai_unet_app.service.work import Worker

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def figures(node: Node) -> Samples:
    """Sample name -> labels -> value, as a Prometheus server would take them in."""
    found: Samples = {}
    for family in text_string_to_metric_families(exposition(node).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def one(samples: Samples, name: str, **labels: str) -> float:
    return samples[name][tuple(sorted(labels.items()))]


def test_every_state_is_there_before_anything_happened(tmp_path: Path) -> None:
    with started(write_site(tmp_path, free_port())) as node:
        found = figures(node)
        for table, states in (("jobs", JobState), ("results", ResultState), ("deliveries", DeliveryState)):
            told = {dict(labels)["state"]: value for labels, value in found[f"monai_unet_{table}"].items()}
            assert told == dict.fromkeys(get_args(states), 0.0)
        assert one(found, "monai_unet_verdicts_total", verdict="reject") == 0
        assert one(found, "monai_unet_stage_seconds_count", stage="work") == 0
        assert one(found, "monai_unet_oldest_pending_seconds", kind="job") == 0
        assert one(found, "monai_unet_build_info", **dict(next(iter(found["monai_unet_build_info"])))) == 1
        assert ("version", __version__) in next(iter(found["monai_unet_build_info"]))
        free = shutil.disk_usage(node.folder).free
        assert one(found, "monai_unet_disk_free_bytes") == pytest.approx(free, abs=1e9)
        assert one(found, "monai_unet_disk_least_free_bytes") == 1e9
        assert one(found, "monai_unet_destination_reachable", destination="pacs") == 1
        assert "monai_unet_destination_last_success_timestamp_seconds" not in found


def test_stages_are_histograms_and_a_destination_says_when_it_was_last_given_something(tmp_path: Path) -> None:
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        begin = time.time()
        for n in range(2):
            store(node, make_study(tmp_path / f"study{n}"))
        wait_until(lambda: node.queue.counts()["results"].get("delivered") == 2)
        wait_until(lambda: one(figures(node), "monai_unet_stage_seconds_count", stage="total") == 2)
        found = figures(node)
        for stage in ("work", "deliver", "total"):
            assert one(found, "monai_unet_stage_seconds_bucket", stage=stage, le="+Inf") == 2
            assert one(found, "monai_unet_stage_seconds_sum", stage=stage) > 0
        last = one(found, "monai_unet_destination_last_success_timestamp_seconds", destination="pacs")
        assert begin <= last <= time.time()
        assert one(found, "monai_unet_deliveries", state="delivered") == 2


def test_a_destination_that_is_away_and_what_waits_for_it_are_seen(tmp_path: Path) -> None:
    with running(write_site(tmp_path, free_port())) as node:
        study = make_study(tmp_path / "study")
        store(node, study)
        store(node, make_study(tmp_path / "other", wish="review"))
        wait_until(lambda: one(figures(node), "monai_unet_destination_reachable", destination="pacs") == 0)
        wait_until(lambda: one(figures(node), "monai_unet_oldest_pending_seconds", kind="review") > 0)
        found = figures(node)
        assert one(found, "monai_unet_destination_pending", destination="pacs") == 1
        assert 0 < one(found, "monai_unet_oldest_pending_seconds", kind="delivery") < 60
        wait_until(lambda: one(figures(node), "monai_unet_destination_paused", destination="pacs") == 1)
        assert study_of(study) not in exposition(node).decode()


def test_a_worker_says_which_bundles_it_has_loaded(tmp_path: Path) -> None:
    worker = Worker.__new__(Worker)  # without torch
    loaded = type("Loaded", (), {"name": "spleen", "version": "1.2.3", "sha256": "ab" * 32})
    worker.bundles = {"first": loaded}
    assert worker.loaded() == {"first": {"name": "spleen", "version": "1.2.3", "sha256": "ab" * 32}}
    with pacs(tmp_path / "pacs") as peer, running(write_site(tmp_path, peer.port)) as node:
        found = figures(node)["monai_unet_bundle_info"]
        assert found == {
            (("name", "none"), ("rule", "any"), ("sha256", "0" * 64), ("version", "0")): 1.0  # as the fake worker says
        }


def test_spans_of_the_stages_reach_a_collector_and_name_no_study(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with (
        pacs(tmp_path / "pacs") as peer,
        ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server,
        running(write_site(tmp_path, peer.port)) as node,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        spans = node.durations.spans = Spans(f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
        study = make_study(tmp_path / "study")
        store(node, study)
        wait_until(lambda: len(node.durations.last["total"]) == 1)
        spans.close()
        server.shutdown()
        seconds = {stage: times[0] for stage, times in node.durations.last.items()}
    found = {
        span.name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    assert found == pytest.approx(seconds, abs=1e-3)
    assert study_of(study).encode() not in b"".join(bodies)
