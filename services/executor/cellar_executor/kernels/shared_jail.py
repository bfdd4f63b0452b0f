"""What a kernel and its live copies have in common: the jail, which ends as one, and at the latest with the last."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Literal, Protocol

from cellar_executor.kernels.usage import Usage

DeathCause = Literal["timeout", "oom", "killed"]


class Inmate(Protocol):
    def on_jail_end(self) -> None: ...


class SharedJail:
    """Watches the process whose end is the jail's (`pidfd`), tells its inmates, and gives back what the jail held."""

    def __init__(self, pidfd: int, usage: Callable[[], Usage], release: Callable[[], Awaitable[None]]) -> None:
        self.cause: DeathCause | None = None
        """Why all of it was killed, if it was."""
        self.first_pidfd: int | None = None
        """Of the pid namespace's first process, once it is known: ours to close."""
        self._pidfd = pidfd
        self._usage = usage
        self._release = release
        self._final: Usage | None = None
        self._inmates: list[Inmate] = []
        self._in_use: set[Inmate] = set()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_exit)

    @property
    def in_use(self) -> bool:
        return bool(self._in_use)

    def join(self, inmate: Inmate) -> None:
        self._inmates.append(inmate)
        self._in_use.add(inmate)

    def leave(self, inmate: Inmate) -> None:
        """Nobody needs it any more; it is still told of the end."""
        self._in_use.discard(inmate)

    def forget(self, inmate: Inmate) -> None:
        """It is dead and holds nothing."""
        with suppress(ValueError):
            self._inmates.remove(inmate)

    def usage(self) -> Usage:
        """By all inmates together; after the end, what it was then."""
        return self._final or self._usage()

    def kill(self, cause: DeathCause | None = None) -> None:
        """SIGKILL the first process, and with it the pid namespace."""
        self.cause = self.cause or cause
        if self._final is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd if self.first_pidfd is None else self.first_pidfd, signal.SIGKILL)

    async def ended(self) -> None:
        """Until it is dead and has given everything back."""
        await asyncio.shield(self._ended)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._final = self._usage()
        for inmate in list(self._inmates):
            inmate.on_jail_end()
        self._ending = self._loop.create_task(self._give_back())

    async def _give_back(self) -> None:
        os.close(self._pidfd)
        if self.first_pidfd is not None:
            os.close(self.first_pidfd)
        await self._release()
        self._ended.set_result(None)
