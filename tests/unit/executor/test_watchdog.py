import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cellar_executor.kernels import watchdog
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.watchdog import holds_more, proportional_kb, resident_kb, sum_of_fields, total_kb

HOG = "x = b'x' * (50 << 20); print(flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOG!r}])"
FORKS = "import os\nx = b'x' * (50 << 20)\nchildren = [os.fork() for _ in range(2)]\nprint(flush=True)\ninput()"


@contextmanager
def running(code: str, ready: int = 1) -> Iterator[int]:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for _ in range(ready):
            process.stdout.readline()
        yield process.pid
        process.communicate(b"\n" * ready)


@pytest.mark.parametrize("count", [resident_kb, proportional_kb])
def test_memory_of_children_counts(count: object) -> None:
    assert callable(count)
    with running(PARENT) as pid:
        assert 50 << 10 < total_kb(pid, count) < 120 << 10


def test_what_forks_share_counts_once() -> None:
    with running(FORKS, ready=4) as pid:
        assert total_kb(pid, resident_kb) > 150 << 10
        assert not holds_more(pid, 100 << 10)
        assert holds_more(pid, 40 << 10)


def test_shared_memory_counts_and_files_do_not() -> None:
    status = "Name:\tx\nRssAnon:\t 10 kB\nRssFile:\t 500 kB\nRssShmem:\t 3 kB\n"
    assert sum_of_fields(status, ("RssAnon", "RssShmem")) == 13


async def test_it_takes_a_tenth_of_the_time_and_lets_others_go_between_two_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, looks, pauses = 0.0, 0, []

    def look(pid: int, limit_kb: int) -> bool:
        nonlocal clock, looks
        clock, looks = clock + 0.01, looks + 1
        return False

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if pause_s:
            raise asyncio.CancelledError

    monkeypatch.setattr(watchdog, "holds_more", look)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(time, "thread_time", lambda: clock)
    kernel = cast(JailedKernel, SimpleNamespace(alive=True, pid=1))
    with pytest.raises(asyncio.CancelledError):
        await watchdog.watch(lambda: [(kernel, 64)] * 50)
    assert pauses == [0] * 50 + [pytest.approx(50 * 0.01 / watchdog.SHARE)]


async def test_a_dead_session_is_not_looked_at_for_its_number_may_be_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    monkeypatch.setattr(watchdog, "holds_more", lambda pid, limit_kb: looked_at.append(pid))
    dead, alive = SimpleNamespace(alive=False, pid=1), SimpleNamespace(alive=True, pid=2)
    kernels = [(cast(JailedKernel, kernel), 64) for kernel in (dead, alive)]
    watching = asyncio.create_task(watchdog.watch(lambda: kernels))
    await asyncio.sleep(0.01)
    watching.cancel()
    assert looked_at == [2]


def test_a_process_that_is_gone_holds_nothing() -> None:
    gone = max(int(path.name) for path in Path("/proc").glob("[0-9]*")) + 100_000
    assert total_kb(gone, resident_kb) == 0
