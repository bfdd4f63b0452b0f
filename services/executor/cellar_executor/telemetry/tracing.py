"""OpenTelemetry traces, where the standard variables ask for them; else each span costs the test of one flag.

A span has ids and statuses. What an exception says is left out: it may quote what a client sent.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from cellar_executor import __version__
from cellar_executor.errors import CannotServe

if TYPE_CHECKING:  # an extra (`otel`): the server does without
    from opentelemetry.trace import Span, Tracer

Kind = Literal["internal", "server", "client"]
RawHeaders = Iterable[tuple[bytes, bytes]]

_tracer: "Tracer | None" = None
_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


def start(instance: str) -> Callable[[], None]:
    """Trace from now on, to where the variables say. Returns what sends the last spans and ends it.

    Raises `CannotServe` without the packages of the extra `otel`.
    """
    global _tracer
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise CannotServe(
            f"traces are configured (OTEL_...), but {error.name} is missing: pip install 'cellar[executor,otel]'"
        ) from None
    ours = {"service.name": "cellar-executor", "service.version": __version__, "service.instance.id": instance}
    resource = Resource(ours).merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME comes first
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("cellar_executor", __version__)

    def stop() -> None:
        global _tracer
        _tracer = None
        provider.shutdown()

    return stop


def span(name: str, attributes: Mapping[str, str], kind: Kind = "internal") -> "AbstractContextManager[Span | None]":
    """A span around what follows, below the one that is current in this task."""
    return _NOTHING if _tracer is None else _span(_tracer, name, attributes, kind, None)


def request_span(name: str, headers: RawHeaders) -> "AbstractContextManager[Span | None]":
    """The span of a request, below the one that its `traceparent` names."""
    if _tracer is None:
        return _NOTHING
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract(
        {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    )
    return _span(_tracer, name, {}, "server", context)


def onward_headers() -> RawHeaders:
    """By which another server's spans come below the one that is current here: `traceparent`."""
    if _tracer is None:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@contextlib.contextmanager
def _span(tracer: "Tracer", name: str, attributes: Mapping[str, str], kind: Kind, context: Any) -> "Iterator[Span]":
    from opentelemetry.trace import SpanKind

    with tracer.start_as_current_span(
        name,
        context,
        SpanKind[kind.upper()],
        attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", getattr(error, "code", type(error).__name__))
            raise
