"""What Prometheus is told, and with how many labels at most."""

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

from cellar_client.schemas import Cell, Run
from cellar_executor.kernel import Stock
from cellar_executor.telemetry import metrics


class Server:
    instance = "one"

    def session_states(self) -> Mapping[str, int]:
        return {"ready": 2, "parked": 1}

    def runs_in_progress(self) -> Mapping[str, int]:
        return {"waiting": 3, "running": 1}

    def stock(self) -> Mapping[str, Stock]:
        return {"python": Stock(ready=16, zygotes=2, made=40)}

    def lease_age_s(self) -> float | None:
        return 1.5


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exposed(server: metrics.Server | None = None) -> dict[tuple[str, ...], float]:
    return samples(metrics.exposition(server or Server()).decode())


def test_what_is_looked_at_when_it_is_asked_for() -> None:
    now = exposed()
    assert now["cellar_sessions", "parked"] == 1
    assert now["cellar_runs_in_progress", "waiting"] == 3
    assert now["cellar_pool_ready", "python"] == 16
    assert now["cellar_zygotes", "python"] == 2
    assert now["cellar_zygote_sessions_made_total", "python"] == 40
    assert now["cellar_lease_age_seconds",] == 1.5
    assert any(name == "cellar_build_info" and "one" in labels for name, *labels in now)


def test_a_run_counts_with_its_cells() -> None:
    cells = [
        Cell(cell_id="a", index=0, status="ok", duration_s=0.002),
        Cell(cell_id="b", index=1, status="timeout", duration_s=2),
        Cell(cell_id="c", index=2, status="skipped"),
    ]
    run = Run(run_id="r", session_id="s", generation=1, status="timeout", cells=cells, duration_s=2.002, queue_s=0)
    metrics.run_ended(run)
    before = exposed()
    metrics.run_ended(run, session_lost=True)
    assert grown(before, exposed()) == {
        ("cellar_runs_total", "timeout"): 1,
        ("cellar_cells_total", "ok"): 1,
        ("cellar_cells_total", "timeout"): 1,
        ("cellar_cells_total", "skipped"): 1,
        ("cellar_cell_run_seconds_count",): 2,
        ("cellar_sessions_lost_total",): 1,
    }


def grown(before: dict[tuple[str, ...], float], after: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """By how much, histograms by their count alone."""
    changed = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    return {key: value for key, value in changed.items() if not key[0].endswith(("_bucket", "_sum"))}


async def test_a_request_counts_under_its_route_and_no_word_of_the_clients_becomes_a_label(
    http: httpx.AsyncClient,
) -> None:
    before = samples((await http.get("/metrics")).text)
    await http.get("/v1/sessions/made-up-by-the-client")
    await http.get("/nowhere/made-up-by-the-client")
    await http.request("MADEUPBYTHECLIENT", "/healthz")
    reply = await http.get("/metrics")
    assert reply.headers["content-type"] == metrics.CONTENT_TYPE
    after = grown(before, samples(reply.text))
    assert after["cellar_http_requests_total", "GET", "/v1/sessions/{session_id}", "404"] == 1
    assert after["cellar_http_requests_total", "GET", "none", "404"] == 1
    assert after["cellar_http_requests_total", "other", "/healthz", "405"] == 1
    assert after["cellar_refusals_total", "session_not_found"] == 1
    assert after["cellar_http_request_seconds_count", "/v1/sessions/{session_id}"] == 1
    assert after["cellar_redis_seconds_count", "take"] == 1
    assert "made" not in reply.text.lower().replace("sessions_made", "")


async def test_a_cell_is_counted_and_neither_it_nor_its_session_or_tenant_is_a_label(http: httpx.AsyncClient) -> None:
    await http.post("/v1/sessions", json={"session_id": "plainly-visible"})
    before = exposed()
    await http.post("/v1/sessions/plainly-visible/run", json={"code": "1", "cell_id": "visible-too"})
    text = (await http.get("/metrics")).text
    assert "visible" not in text
    assert 'tenant="' not in text
    after = grown(before, samples(text))
    assert after["cellar_cells_total", "ok"] == after["cellar_runs_total", "ok"] == 1
    assert after["cellar_run_queue_seconds_count",] == after["cellar_cell_run_seconds_count",] == 1
