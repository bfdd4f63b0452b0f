import subprocess
import sys
from pathlib import Path

from cellar_executor.kernels.watchdog import anonymous_kb, private_kb

HOG = "x = b'x' * (50 << 20); print(flush=True); input()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOG!r}])"


def test_memory_of_children_counts() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        held_kb = private_kb(parent.pid)
        parent.communicate(b"\n")
    assert 50 << 10 < held_kb < 120 << 10


def test_shared_memory_counts_and_files_do_not() -> None:
    assert anonymous_kb("Name:\tx\nRssAnon:\t 10 kB\nRssFile:\t 500 kB\nRssShmem:\t 3 kB\n") == 13


def test_a_process_that_is_gone_holds_nothing() -> None:
    assert private_kb(max(int(path.name) for path in Path("/proc").glob("[0-9]*")) + 100_000) == 0
