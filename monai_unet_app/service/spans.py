"""Spans of a node's stages for OpenTelemetry, by OTLP over HTTP. They name jobs and destinations, and no study."""

import time

from monai_unet_app import __version__
from monai_unet_app.errors import needing


class Spans:
    """Sends spans in the background; a collector that is away costs nothing but the spans."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: such as http://127.0.0.1:4318/v1/traces. Raises UsageError if OpenTelemetry is not installed."""
        with needing("mlops", "--otlp"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        about = Resource.create({"service.name": "monai-unet-node", "service.version": __version__})
        self._provider = TracerProvider(resource=about)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("monai_unet_app")

    def add(self, stage: str, seconds: float, about: dict[str, str | int]) -> None:
        """A stage that has just ended."""
        end = time.time_ns()
        self._tracer.start_span(stage, start_time=end - int(seconds * 1e9), attributes=about).end(end)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()
