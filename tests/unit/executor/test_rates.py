"""Cells per second, on a clock of the test's own."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellar_client.schemas import CreateSession, ExecuteRequest, QueueCells, RunRequest
from cellar_executor.errors import Refusal
from cellar_executor.ids import Ids, Ref
from cellar_executor.service import Service
from cellar_executor.tenancy.rates import Rates
from cellar_executor.tenancy.tenants import Quota, Tenants


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


def rates_of(cells_per_s: float | None) -> tuple[Rates, Clock]:
    clock = Clock()
    return Rates(Tenants({}, Quota(sessions=1, running=1, cells_per_s=cells_per_s)), clock), clock


def refused(rates: Rates, cells: int, tenant: str = "t") -> float:
    with pytest.raises(Refusal) as refusal:
        rates.charge(tenant, cells)
    assert refusal.value.code == "quota_exceeded"
    assert refusal.value.retry_after_s is not None
    return refusal.value.retry_after_s


def test_a_second_s_worth_may_come_at_once_and_then_no_more() -> None:
    rates, clock = rates_of(4)
    for _ in range(4):
        rates.charge("t", 1)
    assert refused(rates, 1) == pytest.approx(0.25)
    rates.charge("other", 4)
    clock.now += 0.5
    rates.charge("t", 2)
    refused(rates, 1)


def test_a_slow_tenant_may_still_send_one_cell() -> None:
    rates, clock = rates_of(0.1)
    rates.charge("t", 1)
    assert refused(rates, 1) == pytest.approx(10)
    clock.now += 9.9
    refused(rates, 1)
    clock.now += 0.1
    rates.charge("t", 1)


def test_many_cells_at_once_are_let_in_once_and_paid_off_afterwards() -> None:
    rates, clock = rates_of(10)
    rates.charge("t", 100)
    assert refused(rates, 1) == pytest.approx(9.1)
    clock.now += 9.1
    rates.charge("t", 1)
    assert refused(rates, 100) == pytest.approx(1)


def test_a_refused_request_costs_nothing() -> None:
    rates, clock = rates_of(1)
    rates.charge("t", 1)
    for _ in range(10):
        assert refused(rates, 1) == pytest.approx(1)
    clock.now += 1
    rates.charge("t", 1)


def test_without_a_rate_nothing_is_counted() -> None:
    rates, _ = rates_of(None)
    for _ in range(1000):
        rates.charge("t", 1000)


async def test_cells_are_counted_before_they_are_accepted_and_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.create("t", CreateSession(session_id="s"), Ids.fresh())
    ref, ids = Ref("t", "s"), Ids.fresh()
    monkeypatch.setattr(service.tenants, "quota", lambda tenant: Quota(sessions=1, running=1, cells_per_s=0.001))
    await service.queue(ref, QueueCells(code="1"), ids)
    again = replace(ids, resumed=True)
    assert (await service.queue(ref, QueueCells(code="1"), again)).cells[0].index == 0
    for refused in (
        service.queue(ref, QueueCells(code="2"), Ids.fresh()),
        service.run(ref, RunRequest(code="2"), Ids.fresh()),
        service.enqueue_run(ref, RunRequest(code="2"), Ids.fresh()),
        service.execute("t", ExecuteRequest(code="2"), Ids.fresh()),
    ):
        with pytest.raises(Refusal, match="quota_exceeded"):
            await refused
    assert (await service.get(ref)).cells_total == 1
    assert (await service.run(ref, RunRequest(), Ids.fresh())).status == "ok"  # of what was counted already


@given(
    rate=st.floats(0.01, 1000),
    requests=st.lists(st.tuples(st.integers(1, 50), st.floats(0, 5)), min_size=1, max_size=30),
)
def test_whoever_waits_as_long_as_said_is_let_in_and_nobody_is_faster(
    rate: float, requests: list[tuple[int, float]]
) -> None:
    rates, clock = rates_of(rate)
    start, let_in, last = clock.now, 0, 0
    for cells, pause_s in requests:
        clock.now += pause_s
        try:
            rates.charge("t", cells)
        except Refusal as refusal:
            clock.now += refusal.retry_after_s or 0
            rates.charge("t", cells)
        let_in, last = let_in + cells, cells
    # A debt may be left by the last request alone.
    assert let_in - last <= (clock.now - start) * rate + rate + 1e-3
