"""Honest cells of all kinds give the same results with the walls as without. They are in `honest_work/*.cells`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from cellar_client.schemas import Limits
from cellar_executor.kernel import CellOutcome, RuntimeConfig, SupervisorConfig
from cellar_executor.kernels.supervisor import ProcessSupervisor, open_supervisor
from tests.sandbox.conftest import PYTHON

pytestmark = pytest.mark.asyncio(loop_scope="session")

FOLDER = Path(__file__).with_name("honest_work")
GROUPS = {path.stem: path.read_text().split("# %%\n")[1:] for path in sorted(FOLDER.glob("*.cells"))}
"""Name -> the cells of one session, in order."""
LIMITS = Limits(cell_timeout_s=60, memory_mb=512, processes=32, disk_mb=64, output_bytes=64 << 10)
SEED = 0
"""Both tiers give sessions of this seed the same order of sets."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All of an outcome that must not depend on the walls."""

    status: str
    stdout: str
    stderr: str
    result: str | None
    error: tuple[str, str, str] | None

    @classmethod
    def of(cls, outcome: CellOutcome) -> "Seen":
        said = outcome.error
        error = None if said is None else (said.type, said.message, said.traceback)
        return cls(outcome.status, outcome.stdout, outcome.stderr, outcome.result, error)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def without_walls() -> dict[str, list[Seen]]:
    config = SupervisorConfig({"python": RuntimeConfig(PYTHON)}, nsjail=None, insecure_no_isolation=True)
    supervisor = await open_supervisor(config)
    seen = {name: await run_all(supervisor, cells) for name, cells in GROUPS.items()}
    await supervisor.close()
    return seen


async def test_there_are_500_of_them_and_they_do_different_things(without_walls: dict[str, list[Seen]]) -> None:
    cells = [cell for group in GROUPS.values() for cell in group]
    assert len(set(cells)) == len(cells) >= 500
    outcomes = [seen for group in without_walls.values() for seen in group]
    assert len({seen for seen in outcomes if seen.status == "ok"}) > 350
    assert len({seen.error and seen.error[0] for seen in outcomes}) > 20
    assert {seen.status for seen in outcomes} == {"ok", "error"}


@pytest.mark.parametrize("name", GROUPS)
async def test_the_walls_change_no_result(
    supervisor: ProcessSupervisor, without_walls: dict[str, list[Seen]], name: str
) -> None:
    seen = await run_all(supervisor, GROUPS[name])
    assert list(different(GROUPS[name], without_walls[name], seen)) == []


def different(cells: list[str], expected: list[Seen], seen: list[Seen]) -> Iterator[tuple[str, Seen, Seen]]:
    return (triple for triple in zip(cells, expected, seen, strict=True) if triple[1] != triple[2])


async def run_all(supervisor: ProcessSupervisor, cells: list[str]) -> list[Seen]:
    kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=SEED)
    seen = [Seen.of(await kernel.run_cell(cell, timeout_s=60)) for cell in cells]
    await kernel.close()
    return seen
