"""The spawner's fence: a time at which it is killed, and all kernels with it, unless the server puts it off before.

The host's own timer sends the SIGKILL. So it comes when the server is stopped or stuck and puts nothing off, when the
spawner is stopped or stuck and does not hear of it, and right after the machine was asleep. The time lies in memory
that both see, where only the latest counts; a spawner that is started later finds it there.
"""

import ctypes
import os
import signal
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

NANOSECONDS = struct.Struct("q")
TIMER_ABSTIME = 1

_libc = ctypes.CDLL(None, use_errno=True)


def now() -> float:
    """Seconds of the clock that goes on while the machine is asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Fence:
    """The server's side, for any thread: it never waits for a spawner."""

    def __init__(self) -> None:
        self._until: float | None = None
        self._time = os.memfd_create("fence")
        self._changes = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._spawner: int | None = None
        self._one_at_a_time = threading.Lock()
        self._closed = False

    @property
    def fds(self) -> Sequence[int]:
        """For a `Deadline`, in a spawner."""
        return (self._time, self._changes)

    @property
    def fallen(self) -> bool:
        return self._until is not None and now() >= self._until

    def guard(self, pid: int) -> None:
        """This child process is the spawner from now on; the one before it is dead."""
        with self._one_at_a_time:
            self._forget_spawner()
            self._spawner = os.pidfd_open(pid)

    def put_off(self, until: float) -> None:
        """Seconds of `now`; a time that has passed kills at once. No spawner outlives a fence that fell, however soon
        it is put off again. Nothing happens once it is closed.
        """
        with self._one_at_a_time:
            if self._closed:
                return
            fell = self.fallen
            self._until = until
            os.pwrite(self._time, NANOSECONDS.pack(max(1, int(until * 1e9))), 0)
            os.eventfd_write(self._changes, 1)
            if fell or self.fallen:
                self._kill_spawner()

    def close(self) -> None:
        with self._one_at_a_time:
            if not self._closed:
                self._closed = True
                self._forget_spawner()
                os.close(self._time)
                os.close(self._changes)

    def _kill_spawner(self) -> None:
        if self._spawner is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._spawner, signal.SIGKILL)

    def _forget_spawner(self) -> None:
        if self._spawner is not None:
            os.close(self._spawner)
            self._spawner = None


class Deadline:
    """The spawner's side: this process's own. Neither its children nor what it becomes by an exec inherit it."""

    def __init__(self, time_fd: int, changes: int) -> None:
        self.changes = changes
        """Readable when the time may have changed; then call `heed`."""
        self._time = time_fd
        for fd in (time_fd, changes):
            os.set_inheritable(fd, False)
        self._timer = make_killer()
        self.heed()

    def heed(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self.changes)
        written = os.pread(self._time, NANOSECONDS.size, 0)
        if written:
            set_timer(self._timer, *NANOSECONDS.unpack(written))


# --- timer_create(2), which Python does not have ------------------------------------------------


class SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("how", ctypes.c_int),  # 0: SIGEV_SIGNAL
        ("rest", ctypes.c_byte * 48),
    )


class TimerSpec(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("period_s", "period_ns", "first_s", "first_ns"))


def make_killer() -> ctypes.c_void_p:
    """A timer, not set yet, that sends this process SIGKILL, also when it is stopped. Raises `OSError`."""
    timer = ctypes.c_void_p()
    event = SigEvent(signal=signal.SIGKILL)
    check(_libc.timer_create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(timer)))
    return timer


def set_timer(timer: ctypes.c_void_p, at_ns: int) -> None:
    """Raises `OSError`."""
    spec = TimerSpec(0, 0, *divmod(at_ns, 10**9))
    check(_libc.timer_settime(timer, TIMER_ABSTIME, ctypes.byref(spec), None))


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
