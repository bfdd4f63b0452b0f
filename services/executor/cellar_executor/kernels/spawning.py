"""The server's end of the spawner: asks for a process and gets a pidfd."""

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cellar_executor.kernel import IsolationUnavailable, KernelUnavailable
from cellar_executor.kernels.fence import Fence
from cellar_executor.kernels.spawner import MAX_DATAGRAM, SpawnRequest
from cellar_executor.kernels.staging import staged_path

SPAWN_TIMEOUT_S = 10.0


class Spawner:
    """Open with `open_spawner`."""

    def __init__(self, process: subprocess.Popen[bytes], server: socket.socket) -> None:
        self._process = process
        self._socket = server
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self.alive = True
        self._loop.add_reader(server, self._on_answer)

    def next_number(self) -> int:
        return next(self._numbers)

    async def spawn(self, request: SpawnRequest, fds: Sequence[int]) -> int:
        """Start a process with `fds` as its 1, 2, ...; its pidfd. Raises `KernelUnavailable`."""
        answer: asyncio.Future[int] = self._loop.create_future()
        self._waiting[request.number] = answer
        try:
            socket.send_fds(self._socket, [request.encode()], list(fds))
            return await asyncio.wait_for(answer, SPAWN_TIMEOUT_S)
        except (OSError, TimeoutError) as exc:
            raise KernelUnavailable(f"the spawner does not take requests: {exc or 'no answer'}") from exc
        finally:
            del self._waiting[request.number]

    async def close(self) -> None:
        """Its processes die with it."""
        if self.alive:
            self._lose()
        await asyncio.to_thread(self._process.wait)
        self._socket.close()

    def _on_answer(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._socket, MAX_DATAGRAM, 1)
        if not message:
            self._lose()
            return
        answer = json.loads(message)
        waiting = self._waiting.get(answer["number"])
        if waiting is None or waiting.done():
            for fd in fds:
                os.close(fd)
        elif answer["problem"] is not None:
            waiting.set_exception(KernelUnavailable(f"a process could not be started: {answer['problem']}"))
        else:
            waiting.set_result(fds[0])

    def _lose(self) -> None:
        self.alive = False
        self._loop.remove_reader(self._socket)
        self._socket.shutdown(socket.SHUT_RDWR)
        for waiting in self._waiting.values():
            waiting.set_exception(KernelUnavailable("the spawner ended"))


async def open_spawner(trees: Sequence[Path], fence: Fence) -> tuple[Spawner, dict[Path, Path]]:
    """A spawner that stages `trees`; also where each of them is found. Raises `IsolationUnavailable`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = _start(theirs.fileno(), fence.fds, [str(tree) for tree in trees])
    fence.guard(process.pid)
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    first = await loop.sock_recv(ours, MAX_DATAGRAM)
    problem = json.loads(first)["problem"] if first else "the spawner does not start"
    if problem is not None:
        ours.close()
        await asyncio.to_thread(process.wait)
        raise IsolationUnavailable(
            f"root, but not allowed to stage the runtime for other uids ({problem}); run the server as an ordinary user"
        )
    return Spawner(process, ours), {tree: staged_path(index) for index, tree in enumerate(trees)}


def _start(server: int, fence: Sequence[int], trees: list[str]) -> subprocess.Popen[bytes]:
    arguments = (str(server), json.dumps(fence), json.dumps(trees))
    return subprocess.Popen(
        [sys.executable, "-I", "-m", "cellar_executor.kernels.spawner", *arguments],
        pass_fds=[server, *fence],
        stdin=subprocess.DEVNULL,
        env={},
    )
