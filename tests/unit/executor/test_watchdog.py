import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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


def test_a_process_that_is_gone_holds_nothing() -> None:
    gone = max(int(path.name) for path in Path("/proc").glob("[0-9]*")) + 100_000
    assert total_kb(gone, resident_kb) == 0
