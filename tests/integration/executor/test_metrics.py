"""A real server's metrics add up to what was asked of it."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import StartExecutor
from tests.integration.executor.conftest import Session, connect, wait_until


def metrics(http: httpx.Client) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }


def test_they_add_up(http: httpx.Client) -> None:
    before = metrics(http)
    session = Session(http)
    for _ in range(3):
        session.run("1")
    session.queue("2")
    session.run("1 / 0")
    http.post("/v1/execute", json={"code": "3"})
    assert http.get("/v1/sessions/nobody").status_code == 404
    after = metrics(http)

    def grew(*key: str) -> float:
        return after[key] - before.get(key, 0)

    assert grew("cellar_cells_total", "ok") == grew("cellar_runs_total", "ok") + 1 == 5
    assert grew("cellar_cells_total", "error") == grew("cellar_runs_total", "error") == 1
    assert grew("cellar_cell_run_seconds_count") == 6
    assert grew("cellar_run_queue_seconds_count") == 4
    assert grew("cellar_http_requests_total", "POST", "/v1/sessions/{session_id}/run", "200") == 4
    assert grew("cellar_refusals_total", "session_not_found") == 1
    assert grew("cellar_redis_seconds_count", "begin") == 4
    assert grew("cellar_redis_seconds_count", "step") == 5
    assert grew("cellar_sessions", "ready") == 1
    wait_until(lambda: metrics(http)["cellar_zygotes", "python"] == 2)
    assert after["cellar_zygote_sessions_made_total", "python"] >= 2


def test_ready_sessions_and_what_goes_on_are_seen(http: httpx.Client) -> None:
    wait_until(lambda: metrics(http)["cellar_pool_ready", "python"] == 16)
    session = Session(http)
    accepted = session.post("run", {"code": "import time; time.sleep(60)"}, Prefer="respond-async")
    assert accepted.status_code == 202
    wait_until(lambda: metrics(http)["cellar_runs_in_progress", "running"] == 1)
    assert metrics(http)["cellar_sessions", "running"] == 1
    session.post("interrupt")
    wait_until(lambda: metrics(http)["cellar_runs_in_progress", "running"] == 0)


def test_a_key_is_asked_for_what_is_somebodys_but_not_for_metrics(start_executor: StartExecutor) -> None:
    with connect(start_executor(env={"CELLAR_EXECUTOR_API_KEYS": "a-key-of-the-tenant"})) as http:
        assert http.get("/v1/sessions").status_code == 401
        assert metrics(http)["cellar_refusals_total", "unauthorized"] == 1
