"""Every attack, in each tier: what becomes of its session, of a sibling, of the host and of the service."""

from pathlib import Path

import pytest

from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor
from tests.sandbox.attacks import ATTACKS, PRELUDE, Attack
from tests.sandbox.conftest import LIMITS, SECRET
from tests.sandbox.host import Traces, becomes, mounts, open_fds

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT_LIMIT = LIMITS.output_bytes + 100
REPOSITORY = Path(__file__).parents[2]
SERVER_FDS = 200
"""More than the server ever holds for the few sessions of this suite."""


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_attack_is_contained(
    attack: Attack,
    supervisor: ProcessSupervisor,
    kernel: JailedKernel,
    traces: Traces,
    started: list[JailedKernel],
    sibling: JailedKernel,
    secret: Path,
) -> None:
    assert (await kernel.run_cell(PRELUDE + "mine = 'kept'", timeout_s=5)).status == "ok"
    mounted = mounts()
    outcome = await kernel.run_cell(on_this_host(attack.code, secret), timeout_s=attack.timeout_s)

    assert outcome.status in attack.statuses, outcome
    assert not attack.results or outcome.result in attack.results, outcome
    assert attack.error is None or (outcome.error is not None and outcome.error.type == attack.error), outcome
    assert outcome.truncated or not attack.truncated
    assert max(len(outcome.stdout), len(outcome.stderr), len(outcome.result or "")) <= TEXT_LIMIT
    assert outcome.duration_s < attack.timeout_s + 1.5
    await assert_session_is(kernel, alive=attack.survives)
    await assert_sibling_is_untouched(sibling)
    await kernel.close()
    await becomes(traces.left, [])
    assert mounts() == mounted
    assert open_fds() < SERVER_FDS
    assert untouched(secret)
    started.append(await assert_next_session_starts(supervisor))


def untouched(secret: Path) -> bool:
    return secret.read_text() == SECRET


def on_this_host(code: str, secret: Path) -> str:
    places = {"secret": secret, "secret_folder": secret.parent, "repository": REPOSITORY}
    for name, place in places.items():
        code = code.replace(f"{{{name}!r}}", repr(str(place)))
    return code


async def assert_session_is(kernel: JailedKernel, *, alive: bool | None) -> None:
    if alive is False:
        await becomes(lambda: kernel.alive, False)
    elif alive:
        after = await kernel.run_cell("mine", timeout_s=5)
        assert (after.status, after.result) == ("ok", "'kept'"), after
        assert after.stdout == "", "another cell's output"


async def assert_sibling_is_untouched(sibling: JailedKernel) -> None:
    theirs = await sibling.run_cell("print('mine'); mine, open('mine').read()", timeout_s=5)
    assert (theirs.status, theirs.stdout, theirs.result) == ("ok", "mine\n", "('intact', 'intact')")


async def assert_next_session_starts(supervisor: ProcessSupervisor) -> JailedKernel:
    following = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    fresh = await following.run_cell("1 + 1", timeout_s=5)
    assert fresh.result == "2"
    return following
