"""Traces of a real server, as a collector gets them."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.executor_process import ExecutorProcess
from tests.integration.conftest import StartExecutor
from tests.integration.executor.conftest import Session, connect
from tests.integration.executor.test_forwarding import open_pair

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """An OTLP/HTTP receiver on loopback."""

    def __init__(self) -> None:
        self.received: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                whole = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                assert self.path == "/v1/traces"
                collector.received.append(ExportTraceServiceRequest.FromString(whole))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Not to stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[Span]:
        scopes = [scope for got in self.received for resource in got.resource_spans for scope in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    @property
    def resource(self) -> dict[str, str]:
        return _attributes(self.received[0].resource_spans[0].resource)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _attributes(of: Span | Resource) -> dict[str, str]:
    return {pair.key: pair.value.string_value or str(pair.value.int_value) for pair in of.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_a_run_is_one_trace_from_the_clients_span_down_to_redis(
    start_executor: StartExecutor, collector: Collector
) -> None:
    executor = start_executor(env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    with connect(executor) as http:
        session = Session(http)
        run = session.post("run", {"code": "print('secret-' + 'text')", "cell_id": "c"}, traceparent=PARENT).json()
    executor.stop()
    spans = {span.name: span for span in collector.spans if span.trace_id.hex() == PARENT.split("-")[1]}
    request, run_span, cell = spans["POST /v1/sessions/{session_id}/run"], spans["run"], spans["cell"]
    assert request.kind == Span.SPAN_KIND_SERVER
    assert request.parent_span_id.hex() == PARENT.split("-")[2]
    assert run_span.parent_span_id == request.span_id
    assert cell.parent_span_id == spans["redis begin"].parent_span_id == run_span.span_id
    assert _attributes(request).items() >= {"session_id": session.id, "http.response.status_code": "200"}.items()
    assert _attributes(cell) == {"session_id": session.id, "run_id": run["run_id"], "cell_id": "c"}
    assert collector.resource["service.name"] == "cellar-executor"
    assert collector.resource["service.instance.id"]
    assert b"secret" not in b"".join(got.SerializeToString() for got in collector.received)


def test_none_means_that_nothing_is_sent(start_executor: StartExecutor, collector: Collector) -> None:
    executor = start_executor(env={"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    with connect(executor) as http:
        Session(http).run("1")
    executor.stop()
    assert collector.received == []


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "only otlp and none are offered"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "only http/protobuf is offered"),
    ],
)
def test_what_is_not_offered_is_refused_at_the_start(
    tmp_path: Path, environment: dict[str, str], complaint: str
) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        ExecutorProcess(tmp_path / "data", env=environment).start()


def test_a_forwarded_request_is_one_trace_over_both_servers(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    with open_pair(tmp_path) as pair:
        session = pair.session()
        reply = session.post("run", {"code": "1"}, traceparent=PARENT, **{"X-Request-Id": "on-its-way"})
        told = pair.two.get("/metrics").text
    assert (reply.status_code, reply.headers.get_list("x-request-id")) == (200, ["on-its-way"])
    name = "POST /v1/sessions/{session_id}/run"
    here = [span for span in collector.spans if span.trace_id.hex() == PARENT.split("-")[1]]
    [owner] = [span for span in here if span.name == name]
    [forwarder] = [span for span in here if span.span_id == owner.parent_span_id]
    assert forwarder.name == "POST forwarded"
    assert forwarder.parent_span_id.hex() == PARENT.split("-")[2]
    assert 'cellar_forwarded_requests_total{outcome="answered"} 1.0' in told
    assert "cellar_lease_age_seconds" in told
    assert "on-its-way" in "".join(executor.log for executor in pair.executors if "cell finished" in executor.log)
