"""A run is what its cells say."""

from hypothesis import given
from hypothesis import strategies as st

from cellar_client.schemas import Cell
from cellar_executor.records import RunHead
from cellar_executor.runs import run_from

HEAD = RunHead(run_id="r", generation=2, queue_s=0.5, recovered=True)
STATUSES = st.sampled_from(["ok", "error", "timeout", "oom", "killed", "lost"])


@st.composite
def cells(draw: st.DrawFn) -> list[Cell]:
    return [
        Cell.model_validate(
            {
                "cell_id": f"c{index}",
                "index": index,
                "status": draw(STATUSES),
                "stdout": draw(st.text(max_size=3)),
                "result": draw(st.none() | st.just("1")),
                "error": draw(st.none() | st.just({"type": "E", "message": str(index), "traceback": ""})),
                "duration_s": draw(st.none() | st.floats(0, 1)),
                "truncated": draw(st.booleans()),
            }
        )
        for index in range(draw(st.integers(0, 5)))
    ]


@given(cells())
def test_a_run_joins_its_cells(given_cells: list[Cell]) -> None:
    run = run_from(HEAD, "s", given_cells)
    assert run.stdout == "".join(cell.stdout for cell in given_cells)
    assert run.truncated == any(cell.truncated for cell in given_cells)
    assert run.result == (given_cells[-1].result if given_cells else None)
    failed = [cell for cell in given_cells if cell.status != "ok"]
    assert run.status == (failed[0].status if failed else "ok")
    assert run.error == (failed[0].error if failed else None)
    assert (run.generation, run.queue_s, run.recovered) == (2, 0.5, True)
