"""A kernel and its supervisor's side, with real processes and no isolation. Jails: tests/sandbox."""

import asyncio
import os
from pathlib import Path

import pytest

from cellar_executor.kernel import KernelUnavailable
from cellar_executor.kernels import channel, jailed_kernel
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.usage import Usage
from tests.unit.executor.local_kernel import result, run, start_kernel


def exists(pid: int | str | None) -> bool:
    """And is more than a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def ended(pid: int | str | None) -> bool:
    """Within a second."""
    for _ in range(100):
        if not exists(pid):
            return True
        await asyncio.sleep(0.01)
    return False


# --- live output --------------------------------------------------------------------------------


async def test_output_is_told_as_the_cell_writes_it(kernel: JailedKernel) -> None:
    told: list[tuple[str, str]] = []
    heard = asyncio.Event()

    def on_output(stream: str, text: str) -> None:
        told.append((stream, text))
        heard.set()

    code = "import sys, time\nprint('\N{EURO SIGN}')\nwhile True: time.sleep(0.01)"
    running = asyncio.create_task(kernel.run_cell(code, timeout_s=20, on_output=on_output))
    await asyncio.wait_for(heard.wait(), 10)
    assert (told, running.done()) == ([("stdout", "\N{EURO SIGN}\n")], False)
    kernel.interrupt()
    assert (await running).stdout == "\N{EURO SIGN}\n"
    assert (await run(kernel, "print('unheard')")).stdout == "unheard\n"
    assert len(told) == 1


async def test_the_last_words_of_a_kernel_are_told(kernel: JailedKernel) -> None:
    told: list[tuple[str, str]] = []
    code = "import os, sys\nprint('out'); print('err', file=sys.stderr)\nos.kill(os.getpid(), 9)"
    outcome = await kernel.run_cell(code, timeout_s=5, on_output=lambda stream, text: told.append((stream, text)))
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("killed", "out\n", "err\n")
    assert sorted(told) == [("stderr", "err\n"), ("stdout", "out\n")]


# --- usage --------------------------------------------------------------------------------------


async def test_cpu_time_is_what_was_used_meanwhile_and_memory_the_peak_so_far(tmp_path: Path) -> None:
    counts = iter([Usage(0, 0.5, 100), Usage(0, 1.0, 200), Usage(0, 1.25, 300)])
    last = Usage(0, 1.25, 300)
    kernel = await start_kernel(tmp_path, usage=lambda: next(counts, last))
    outcome = await run(kernel, "1")
    assert (outcome.cpu_s, outcome.peak_memory_bytes) == (0.25, 300)
    await kernel.close()


async def test_where_nobody_counts_there_is_no_figure(kernel: JailedKernel) -> None:
    outcome = await run(kernel, "1")
    assert (outcome.cpu_s, outcome.peak_memory_bytes) == (None, None)


async def test_a_kernel_that_dies_while_the_memory_limit_kills_is_an_oom_with_its_figures(tmp_path: Path) -> None:
    usage = Usage(0, 0.0, 0)
    kernel = await start_kernel(tmp_path, usage=lambda: usage)
    running = asyncio.create_task(run(kernel, "import os, time; time.sleep(0.2); os._exit(1)"))
    await asyncio.sleep(0.05)
    usage = Usage(1, 0.75, 500)
    outcome = await running
    assert (outcome.status, outcome.cpu_s, outcome.peak_memory_bytes) == ("oom", 0.75, 500)
    await kernel.close()


async def test_a_child_killed_for_memory_leaves_the_cell_its_own_status(tmp_path: Path) -> None:
    counts = iter([Usage(0), Usage(0)])
    kernel = await start_kernel(tmp_path, usage=lambda: next(counts, Usage(1)))
    assert (await run(kernel, "1")).status == "ok"
    assert (await run(kernel, "import os; os._exit(1)")).status == "killed"
    await kernel.close()


# --- late output --------------------------------------------------------------------------------

LATE_CHILD = "import subprocess\np = subprocess.Popen(['sh', '-c', 'sleep 0.2; echo LATE; echo LATE >&2'])"
LATE_THREAD = """
import sys, threading, time
def late():
    time.sleep(0.2)
    print('LATE', end='')
    print('LATE', file=sys.stderr)
threading.Thread(target=late).start()
"""


@pytest.mark.parametrize("code", [LATE_CHILD, LATE_THREAD], ids=["child", "thread"])
async def test_what_is_left_of_a_cell_prints_into_no_later_one(kernel: JailedKernel, code: str) -> None:
    await run(kernel, code)
    outcome = await run(kernel, "import time; time.sleep(0.4); print('mine')")
    assert (outcome.stdout, outcome.stderr) == ("mine\n", "")
    outcome = await run(kernel, "print('mine')")
    assert (outcome.stdout, outcome.stderr) == ("mine\n", "")


async def test_an_unfinished_line_of_a_late_thread_is_in_no_later_cell(kernel: JailedKernel) -> None:
    await run(kernel, LATE_THREAD)
    await asyncio.sleep(0.3)
    assert (await run(kernel, "print('mine')")).stdout == "mine\n"


async def test_a_cells_own_threads_and_children_print_into_it(kernel: JailedKernel) -> None:
    await run(kernel, LATE_THREAD)
    code = "t = threading.Thread(target=lambda: print('own')); t.start(); t.join()\nimport os; os.system('echo child')"
    assert (await run(kernel, code)).stdout.split() == ["own", "child", "0"][:2]


async def test_threads_that_ended_cost_nothing_more(kernel: JailedKernel) -> None:
    await run(kernel, LATE_THREAD)
    assert await result(kernel, "import sys; 'write' in vars(sys.stdout)") == "True"
    await run(kernel, "time.sleep(0.3)")
    assert await result(kernel, "'write' in vars(sys.stdout)") == "False"


async def test_a_cell_works_beside_one_that_goes_on_computing(kernel: JailedKernel) -> None:
    await run(
        kernel, "import threading\ngo = True\ndef spin():\n  while go: pass\nthreading.Thread(target=spin).start()"
    )
    assert await result(kernel, "go = False; 7 * 6") == "42"


# --- ended processes ----------------------------------------------------------------------------

ADOPT = "import ctypes, os, subprocess; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)"
"""Orphans come to this process, as they do to pid 1."""


async def test_orphans_of_a_cell_do_not_stay_as_zombies(kernel: JailedKernel) -> None:
    await run(kernel, ADOPT)
    orphan = await result(kernel, "int(subprocess.check_output(['sh', '-c', 'sleep 0.1 >&- & echo $!']))")
    assert exists(orphan)
    await asyncio.sleep(0.3)
    await run(kernel, "1")
    assert (
        await result(kernel, f"try: os.waitpid({orphan}, 0)\nexcept ChildProcessError: r = 'reaped'\nr") == "'reaped'"
    )


@pytest.mark.parametrize(
    ("start", "status"),
    [
        ("p = subprocess.Popen(['sh', '-c', 'exit 3'])", "p.wait()"),
        ("p = os.fork() or os._exit(3)", "os.waitstatus_to_exitcode(os.waitpid(p, 0)[1])"),
        (
            "p = os.posix_spawn('/bin/sh', ['sh', '-c', 'exit 3'], {})",
            "os.waitstatus_to_exitcode(os.waitpid(p, 0)[1])",
        ),
    ],
    ids=["Popen", "fork", "posix_spawn"],
)
async def test_a_cell_gets_the_status_of_an_earlier_cells_child(kernel: JailedKernel, start: str, status: str) -> None:
    await run(kernel, f"{ADOPT}\n{start}")
    await asyncio.sleep(0.1)
    await run(kernel, "1")
    assert await result(kernel, status) == "3"


# --- seeds --------------------------------------------------------------------------------------


async def test_a_seed_given_later_is_as_good_as_one_from_the_start(tmp_path: Path) -> None:
    code = "import random, numpy, sympy.core.random as s; (random.random(), numpy.random.rand(), s.random())"
    early = await start_kernel(tmp_path, seed=7)
    late = await start_kernel(tmp_path)
    await run(late, "import numpy; numpy.random.rand()")
    await late.seed(7)
    expected = await result(early, code)
    assert await result(late, code) == expected
    await late.seed(None)
    assert await result(late, code) != expected
    await early.close()
    await late.close()


# --- memory -------------------------------------------------------------------------------------

FULL = """
import gc, sys
def full(*args): raise MemoryError
kernel = next(thing for thing in gc.get_objects() if type(thing).__name__ == 'Kernel')
"""


async def test_a_copy_that_does_not_fit_into_memory_is_refused(kernel: JailedKernel) -> None:
    await run(kernel, f"{FULL}kernel._fork_unrecorded = full")
    with pytest.raises(KernelUnavailable, match="memory is full"):
        await kernel.fork()
    assert await result(kernel, "1") == "1"


async def test_a_seed_that_does_not_fit_into_memory_is_refused(kernel: JailedKernel) -> None:
    await run(kernel, "import random\ndef full(seed): raise MemoryError\nrandom.seed = full")
    with pytest.raises(KernelUnavailable, match="memory is full"):
        await kernel.seed(1)
    assert not kernel.alive


# --- live copies --------------------------------------------------------------------------------


async def test_a_copy_has_the_state_and_goes_its_own_way(kernel: JailedKernel) -> None:
    await run(kernel, "x = 1\ndef f(): return x")
    copy = await kernel.fork()
    await run(copy, "x = 2")
    assert [await result(kernel, "f()"), await result(copy, "f()")] == ["1", "2"]
    assert await result(await copy.fork(), "f()") == "2"
    outcomes = await asyncio.gather(run(kernel, "print('origin')"), run(copy, "print('copy')"))
    assert [outcome.stdout for outcome in outcomes] == ["origin\n", "copy\n"]


async def test_a_copys_generators_go_on_as_its_origins(kernel: JailedKernel) -> None:
    await run(kernel, "import random, numpy.random")
    copy = await kernel.fork()
    code = "(random.random(), numpy.random.rand())"
    assert await result(copy, code) == await result(kernel, code)


async def test_a_copy_is_interrupted_alone(kernel: JailedKernel) -> None:
    copy = await kernel.fork()
    outcomes = await asyncio.gather(
        run(copy, "import time; time.sleep(9)", timeout_s=0.2), run(kernel, "import time; time.sleep(0.6)")
    )
    assert [outcome.status for outcome in outcomes] == ["timeout", "ok"]
    assert await result(copy, "2") == "2"


async def test_a_copy_killed_at_its_deadline_takes_its_children_and_nobody_else(kernel: JailedKernel) -> None:
    copy = await kernel.fork()
    child = await result(copy, "import subprocess; subprocess.Popen(['sleep', '60']).pid")
    outcome = await run(copy, "sum(range(10**12))", timeout_s=0.1)
    assert (outcome.status, copy.alive) == ("timeout", False)
    assert await ended(child)
    assert await result(kernel, "1") == "1"


async def test_a_closed_copy_leaves_the_others(kernel: JailedKernel) -> None:
    first, second = await kernel.fork(), await kernel.fork()
    await first.close()
    assert await ended(first.pid)
    assert [await result(kernel, "1"), await result(second, "2")] == ["1", "2"]
    with pytest.raises(KernelUnavailable):
        await first.fork()


async def test_a_closed_origin_leaves_its_copies_and_the_last_one_closes_the_jail(tmp_path: Path) -> None:
    kernel = await start_kernel(tmp_path)
    copy = await kernel.fork()
    await kernel.close()
    assert (kernel.alive, copy.alive) == (False, True)
    assert (await run(kernel, "1")).status == "killed"
    with pytest.raises(KernelUnavailable):
        await kernel.fork()
    assert await result(copy, "3") == "3"
    assert exists(kernel.pid)
    await copy.close()
    assert not exists(kernel.pid)
    await kernel.close()


async def test_closing_an_origin_in_the_middle_of_a_cell_answers_it_and_spares_its_copies(kernel: JailedKernel) -> None:
    copy = await kernel.fork()
    running = asyncio.create_task(run(kernel, "import time; time.sleep(9)"))
    await asyncio.sleep(0.1)
    await kernel.close()
    assert (await running).status == "killed"
    assert await result(copy, "3") == "3"
    await copy.close()


async def test_the_death_of_the_origin_is_that_of_all(kernel: JailedKernel) -> None:
    copy = await kernel.fork()
    running = asyncio.create_task(run(copy, "import time; time.sleep(9)"))
    await asyncio.sleep(0.05)
    await run(kernel, "import os; os._exit(0)")
    assert (await running).status == "killed"
    assert (copy.alive, await ended(copy.pid)) == (False, True)
    await copy.close()


FORK = (
    "import gc; kernel = next(o for o in gc.get_objects() if type(o).__name__ == 'Kernel')\nkernel._fork_unrecorded = "
)


async def test_a_session_that_cannot_fork_goes_on_without(kernel: JailedKernel) -> None:
    await run(kernel, "def fork(): raise OSError(11, 'Resource temporarily unavailable')")
    await run(kernel, f"{FORK}fork")
    with pytest.raises(KernelUnavailable, match="temporarily unavailable"):
        await kernel.fork()
    assert await result(kernel, "1") == "1"


async def test_a_copy_that_never_says_ready_is_given_up(kernel: JailedKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jailed_kernel, "START_TIMEOUT_S", 0.1)
    await run(kernel, f"{FORK}lambda: 1")
    with pytest.raises(KernelUnavailable):
        await kernel.fork()
    assert await result(kernel, "1") == "1"


async def test_nothing_is_left_of_copies(tmp_path: Path) -> None:
    kernel = await start_kernel(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await (await kernel.fork()).close()
    assert len(os.listdir("/proc/self/fd")) == before
    await run(kernel, "1")
    assert await result(kernel, "import os\ntry: os.wait()\nexcept ChildProcessError: r = 'none'\nr") == "'none'"
    await kernel.close()


# --- who speaks ---------------------------------------------------------------------------------


async def test_before_linux_6_5_the_speaker_is_identified_by_speaking_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "SO_PASSPIDFD", 10_000)
    kernel = await start_kernel(tmp_path)
    copy = await kernel.fork()
    assert (await run(copy, "while True: pass", timeout_s=0.1)).status == "timeout"
    assert (await run(kernel, "while True: pass", timeout_s=0.1)).status == "timeout"
    await kernel.close_jail()


async def test_a_kernel_that_is_known_already_needs_no_identification(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    kernel = await start_kernel(tmp_path, known=True)
    held = len(os.listdir("/proc/self/fd"))
    assert (await run(kernel, "while True: pass", timeout_s=0.1)).status == "timeout"
    assert len(os.listdir("/proc/self/fd")) == held
    await kernel.close()
    assert len(os.listdir("/proc/self/fd")) == before


FORGERIES = {
    "a second reply": 'frame(\'{"nonce": "", "status": "ok", "result": null, "error": null, "leftovers": false}\')',
    "not JSON": "frame('nonsense')",
    "an endless frame": "os.write(3, b'\\xff\\xff\\xff\\xff')",
    "closing the channel": "os.close(3)",
    "shutting the channel down": "import socket; socket.socket(fileno=3).shutdown(socket.SHUT_RDWR)",
}
FRAME = "import os, struct\ndef frame(text): os.write(3, struct.pack('!I', len(text)) + text.encode())\n"


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
async def test_a_forged_frame_kills_its_session(kernel: JailedKernel, forgery: str) -> None:
    outcome = await run(kernel, f"{FRAME}{forgery}\nimport time; time.sleep(1)")
    assert outcome.status == "killed"
    assert not kernel.alive


async def test_a_frame_between_cells_kills_its_session(kernel: JailedKernel) -> None:
    code = "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), frame('{}'))).start()"
    assert (await run(kernel, FRAME + code)).status == "ok"
    await asyncio.sleep(0.3)
    assert not kernel.alive


async def test_a_process_that_fails_before_it_is_a_kernel_says_why(tmp_path: Path) -> None:
    program = tmp_path / "fails.py"
    program.write_text("import os; os.write(3, b'\\0\\0\\0\\x16' + b'{\"failed\": \"no tmpfs\"}')")
    with pytest.raises(KernelUnavailable, match="no tmpfs"):
        await start_kernel(tmp_path, program=program)
