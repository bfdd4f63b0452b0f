"""Without configuration a span is nothing at all."""

import sys

import pytest

from cellar_executor.errors import CannotServe
from cellar_executor.telemetry import tracing


def test_without_configuration_there_is_no_span_and_no_header() -> None:
    with tracing.span("cell", {"cell_id": "c"}) as span, tracing.request_span("HTTP", []) as request_span:
        assert list(tracing.onward_headers()) == []
    assert span is None
    assert request_span is None


def test_configured_without_the_packages_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(CannotServe, match=r"pip install 'cellar\[executor,otel\]'"):
        tracing.start("instance-1")
