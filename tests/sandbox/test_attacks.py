"""Every attack against a fresh session, with a sibling beside it: what becomes of all three."""

import asyncio
from pathlib import Path

import pytest

from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor
from tests.sandbox.attacks import ATTACKS, PRELUDE, Attack
from tests.sandbox.conftest import LIMITS

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT_LIMIT = LIMITS.output_bytes + 100


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_attack_is_contained(
    attack: Attack,
    kernel: JailedKernel,
    sibling: JailedKernel,
    supervisor: ProcessSupervisor,
    secret: Path,
    started: list[JailedKernel],
) -> None:
    await kernel.run_cell(PRELUDE + "mine = 'kept'", timeout_s=5)
    code = attack.code.replace("{secret!r}", repr(str(secret))).replace("{repository!r}", repr(str(Path.cwd())))
    outcome = await kernel.run_cell(code, timeout_s=attack.timeout_s)

    assert outcome.status in attack.statuses, outcome
    assert attack.result is None or outcome.result == attack.result
    assert attack.error is None or (outcome.error is not None and outcome.error.type == attack.error)
    assert outcome.truncated or not attack.truncated
    assert max(len(outcome.stdout), len(outcome.stderr), len(outcome.result or "")) <= TEXT_LIMIT
    assert outcome.duration_s < attack.timeout_s + 1.5
    await assert_session_is(kernel, alive=attack.survives)
    await assert_sibling_is_untouched(sibling)
    started.append(await assert_next_session_starts(supervisor))


async def assert_session_is(kernel: JailedKernel, *, alive: bool | None) -> None:
    if alive is False:
        await asyncio.sleep(0.02)
        assert not kernel.alive
    elif alive:
        after = await kernel.run_cell("mine", timeout_s=5)
        assert (after.status, after.result) == ("ok", "'kept'"), after


async def assert_sibling_is_untouched(sibling: JailedKernel) -> None:
    theirs = await sibling.run_cell("print('mine'); mine", timeout_s=5)
    assert (theirs.status, theirs.stdout, theirs.result) == ("ok", "mine\n", "'intact'")


async def assert_next_session_starts(supervisor: ProcessSupervisor) -> JailedKernel:
    next_one = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    fresh = await next_one.run_cell("1 + 1", timeout_s=5)
    assert fresh.result == "2"
    return next_one
