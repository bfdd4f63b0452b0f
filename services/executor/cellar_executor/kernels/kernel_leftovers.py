"""What cells leave behind in the kernel, threads and processes, and how it stays out of the next cells' way.

A part of `kernel_main`, and like it of the standard library only.
"""

from __future__ import annotations

import _posixsubprocess  # noqa: F401  # loaded before `subprocess` takes its function
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence
    from threading import Thread
    from typing import Any, TextIO

STDOUT, STDERR = 1, 2
STARTERS = (
    ("os", "fork"),
    ("os", "forkpty"),
    ("os", "posix_spawn"),
    ("os", "posix_spawnp"),
    ("_posixsubprocess", "fork_exec"),
    ("subprocess", "_fork_exec"),
)
"""All ways in which the standard library starts a process."""


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def take_output(fds: Sequence[int]) -> None:
    """Go on with fresh pipes, if there are any: what other processes still write to the old ones reaches nobody."""
    for fd, number in zip(fds, (STDOUT, STDERR), strict=False):
        os.dup2(fd, number)
    close_all(fds)


def record_children() -> set[int]:
    """The numbers of all processes that cells start themselves, from now on: only cells may wait for those."""
    own: set[int] = set()
    for module, name in STARTERS:
        if module in sys.modules:
            setattr(sys.modules[module], name, recorded(getattr(sys.modules[module], name), own))
    return own


def recorded(start: Callable[..., Any], own: set[int]) -> Callable[..., Any]:
    def start_recorded(*args: Any, **options: Any) -> Any:
        started = start(*args, **options)
        own.add(started[0] if isinstance(started, tuple) else started)
        return started

    return start_recorded


def reap_strangers(own: Container[int]) -> bool:
    """Take note of ended orphans and copies, which nobody else will and which count against the limit of processes.

    Whether there are other child processes yet. An own child that has ended hides those behind it.
    """
    try:
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in own:
                break
            os.waitpid(ended.si_pid, 0)
    except ChildProcessError:
        return False
    return True


def mute_leftover_threads(streams: Iterable[TextIO]) -> None:
    """What the threads that are there now will write goes nowhere: their cell is over."""
    threading = sys.modules.get("threading")
    left = frozenset(threading.enumerate()) - {threading.main_thread()} if threading else frozenset()
    for stream in streams:
        if left:
            stream.write = muted(stream, left)  # type: ignore[method-assign]
        elif isinstance(vars(stream).get("write"), muted):
            del stream.write


class muted:
    """A stream's `write`, for all but some threads. In place only while there are such: printing costs no more else."""

    def __init__(self, stream: TextIO, threads: Container[Thread]) -> None:
        self._write = type(stream).write
        self._stream = stream
        self._threads = threads

    def __call__(self, text: str) -> int:
        if sys.modules["threading"].current_thread() in self._threads:
            return len(text)
        return self._write(self._stream, text)
