"""The kernel: runs inside the jail, holds one session's namespace and runs its cells, one after another.

Started as `python -P -s kernel_main.py OPTIONS` by nsjail with a control channel on fd 3 (see `protocol`). Standard
library only, because it runs with the Python of the cells and not with the server's. Nothing it says is trusted
outside: cells run in this very process and can forge every word of it.
"""

from __future__ import annotations

import builtins
import io
import json
import linecache
import os
import signal
import struct
import sys
import traceback
from _ast import Expr, Expression, Module, PyCF_ONLY_AST
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, socket
from errno import ENOMEM
from types import ModuleType

# A session starts as fast as these imports: `typing`, `ast`, `socket` and `importlib.util` would double the time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import CodeType, FrameType
    from typing import Any, NoReturn, TypeVar

    from cellar_executor.kernels import kernel_leftovers as leftovers

    Frame = dict[str, Any]
    Result = TypeVar("Result")


def beside(name: str) -> ModuleType:
    """Another part of the kernel: it lies where cells do not look."""
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, folder)
    try:
        return __import__(name)
    finally:
        sys.path.remove(folder)


if not TYPE_CHECKING:
    leftovers = beside("kernel_leftovers")

READY = {"ready": True}
CONTROL_FD = 3
OWN_FILES = (__file__, leftovers.__file__)
HEAD = struct.Struct("!I16s8s")
"""Of a request: the length of all that follows it, nonce, operation. After it: the arguments."""
MAX_REQUEST_BYTES = 12_001_000
"""Of the longest cell: a million characters of code and of stdin each, of at most six bytes (an escape) in JSON."""
MEMORY_FULL = "the session's memory is full"
MAX_FDS = 3
"""With one request."""
MAX_TEXT_CHARS = 64 << 10
"""Longest result, message and traceback: together they stay below the frame that the supervisor accepts."""


def main() -> None:
    options = json.loads(sys.argv[1])
    run(options["workdir"], options["seed"])


def run(workdir: str, seed: int | None) -> NoReturn:
    """Serve on `CONTROL_FD` in this process until the supervisor is gone."""
    sys.argv = [""]
    channel = Channel(CONTROL_FD)
    prepare_process(workdir)
    if seed is not None:
        reseed(seed)
    Kernel(channel, Session(prepare_namespace(), workdir)).serve()


class Kernel:
    """Answers the supervisor's requests, one after another. Its live copies do so too, each on a channel of its own."""

    def __init__(self, channel: Channel, session: Session) -> None:
        self._channel = channel
        self._session = session
        self._fork_unrecorded = os.fork
        self._own_children = leftovers.record_children()

    def serve(self) -> NoReturn:
        self._channel.send(encode(READY))
        while (received := self._channel.receive()) is not None:
            leftovers.reap_strangers(self._own_children)
            self._channel.send(self._reply(*received))
        os._exit(0)

    def _reply(self, request: Frame, fds: Sequence[int]) -> bytes:
        try:
            return encode(self._answer(request, fds))
        except (MemoryError, OSError) as exc:
            if isinstance(exc, OSError) and exc.errno != ENOMEM:
                raise
        # Not above: the exception holds what its frames do.
        return encode(memory_full(request))

    def _answer(self, request: Frame, fds: Sequence[int]) -> Frame:
        reply = {"nonce": request["nonce"], "problem": None}
        match request["op"]:
            case "run":
                leftovers.take_output(fds)
                outcome = self._session.run_cell(request["code"], request["stdin"])
                return {"nonce": request["nonce"], **outcome, "leftovers": self._leaves_processes()}
            case "seed":
                reseed(request["seed"])
                return reply
            case "ping":
                return reply
            case "fork":
                try:
                    return self._fork(fds) or reply
                except OSError as exc:
                    return {**reply, "problem": exc.strerror}
            case "retire":
                self._retire()
        return {"nonce": request["nonce"], **beside("kernel_files").handle(self._session.workdir, request)}

    def _leaves_processes(self) -> bool:
        """Whether other processes may be left that hold the output pipes. Only pid 1 gets all orphans and can tell."""
        return leftovers.reap_strangers(self._own_children) or os.getpid() != 1

    def _fork(self, fds: Sequence[int]) -> Frame | None:
        """A live copy, with the generators as they are. None here; in the copy, what it has to say first."""
        control, *output = fds
        random = sys.modules.get("random")
        try:
            generator = random.getstate() if random else None
            pid = self._fork_unrecorded()
        except (OSError, MemoryError):
            leftovers.close_all(fds)
            raise
        if pid:
            leftovers.close_all(fds)
            return None
        os.setpgid(0, 0)  # so that its children can be killed with it
        self._own_children.clear()
        self._channel.adopt(control)
        leftovers.take_output(output)
        if random:
            random.setstate(generator)  # it had seeded itself anew in the fork
        return READY

    def _retire(self) -> NoReturn:
        """No more cells, while copies live on in this jail: only be their pid 1, and leave nothing unreaped."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # from now on nothing becomes a zombie
        leftovers.reap_strangers(())
        while self._channel.receive() is not None:
            continue
        os._exit(0)


class Channel:
    """Length-prefixed JSON frames over the inherited socket. After a fork only the kernel itself keeps it."""

    def __init__(self, fd: int) -> None:
        self._scratch = bytearray(4096)  # for what cannot be kept
        self.adopt(fd)
        os.register_at_fork(after_in_child=self._leave)

    def adopt(self, fd: int) -> None:
        """Serve on this socket, in this process."""
        os.set_inheritable(fd, False)
        self._socket = socket(fileno=fd)
        self._kernel_pid = os.getpid()

    def _leave(self) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        if os.getpid() != self._kernel_pid:
            os._exit(0)  # a fork made by the cell came out at the cell's end; it is not the kernel
        self._socket.sendall(frame)

    def receive(self) -> tuple[Frame, Sequence[int]] | None:
        """The next request and the fds that came with it; None when the supervisor is gone."""
        start, ancillary, _, _ = self._socket.recvmsg(HEAD.size, CMSG_SPACE(4 * MAX_FDS), MSG_CMSG_CLOEXEC)
        fds = [fd for _, _, numbers in ancillary for fd in memoryview(numbers).cast("i")]
        head = bytearray(start.ljust(HEAD.size))
        try:
            self._fill(memoryview(head)[len(start) :])
            size, nonce, op = HEAD.unpack(head)
            names = {"nonce": nonce.rstrip(b"\0").decode(), "op": op.rstrip(b"\0").decode()}
            return self._with_arguments(names, size + 4 - HEAD.size), fds
        except EOFError:
            return None

    def _with_arguments(self, names: Frame, size: int) -> Frame:
        if size > MAX_REQUEST_BYTES:
            raise EOFError  # not our supervisor
        try:
            arguments = bytearray(size)
        except MemoryError:
            self._skip(size)
            return Unread(names)
        self._fill(memoryview(arguments))
        try:
            return {**json.loads(arguments), **names}
        except MemoryError:
            return Unread(names)

    def _skip(self, size: int) -> None:
        while size:
            part = memoryview(self._scratch)[:size]
            self._fill(part)
            size -= len(part)

    def _fill(self, missing: memoryview) -> None:
        """Raises `EOFError` when the supervisor is gone."""
        while missing:
            received = self._socket.recv_into(missing)
            if not received:
                raise EOFError
            missing = missing[received:]


class Unread(dict[str, "Any"]):
    """A request whose arguments did not fit into memory, which comes to light where one is needed."""

    def __missing__(self, argument: str) -> NoReturn:
        raise MemoryError


def encode(frame: Frame) -> bytes:
    payload = json.dumps(frame, ensure_ascii=False).encode()
    return struct.pack("!I", len(payload)) + payload


def memory_full(request: Frame) -> Frame:
    """The reply to a request that the kernel lacked the memory to read or to answer."""
    reply = {"nonce": request["nonce"]}
    match request["op"]:
        case "run":
            error = {"type": "MemoryError", "message": MEMORY_FULL, "traceback": f"MemoryError: {MEMORY_FULL}\n"}
            return {**reply, "status": "error", "result": None, "error": error, "leftovers": True}
        case "seed" | "ping" | "fork":
            return {**reply, "problem": MEMORY_FULL}
    return {**reply, "problem": {"kind": "too_large", "message": MEMORY_FULL}}


# --- cells --------------------------------------------------------------------------------------


class Session:
    """The namespace and work directory of one session."""

    def __init__(self, namespace: dict[str, Any], workdir: str) -> None:
        self.workdir = workdir
        self._namespace = namespace
        self._streams = (sys.stdout, sys.stderr)
        self._cells = 0

    def run_cell(self, code: str, stdin: str) -> Frame:
        self._cells += 1
        filename = f"<cell {self._cells}>"
        linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        leftovers.mute_leftover_threads(self._streams)
        try:
            return {"status": "ok", "result": interruptible(self._evaluate, code, filename), "error": None}
        except BaseException as exc:
            return {"status": "error", "result": None, "error": describe_safely(exc)}
        finally:
            leftovers.mute_leftover_threads(self._streams)
            take_back_control()

    def _evaluate(self, code: str, filename: str) -> str | None:
        """Run the cell; the repr of its last expression, or None."""
        body, last = compile_cell(code, filename)
        exec(body, self._namespace)
        value = None if last is None else eval(last, self._namespace)
        if value is None:
            return None
        self._namespace["_"] = value
        return sendable(repr(value))


def compile_cell(code: str, filename: str) -> tuple[CodeType, CodeType | None]:
    """The statements of a cell, and its last expression if it ends in one."""
    tree = compile(code, filename, "exec", PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(tree, Module)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, Expr):
        return compile(tree, filename, "exec", dont_inherit=True), None
    tree.body.pop()
    body = compile(tree, filename, "exec", dont_inherit=True)
    return body, compile(Expression(last.value), filename, "eval", dont_inherit=True)


def interruptible(function: Callable[..., Result], *args: Any) -> Result:
    """Call code of the cell: only below this frame does SIGINT become KeyboardInterrupt."""
    return function(*args)


def on_sigint(signum: int, frame: FrameType | None) -> None:
    """Look at the stack and not at a flag, which a late signal would find in the wrong state."""
    while frame is not None:
        if frame.f_code is interruptible.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back


def take_back_control() -> None:
    """Undo what a cell may have left behind that would run its code inside the kernel's."""
    sys.settrace(None)
    sys.setprofile(None)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, on_sigint)
    for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
        try:
            interruptible(flush, stream)
        except BaseException:
            continue  # the cell closed or replaced it: nothing of ours is left to flush


def flush(stream: Any) -> None:
    stream.flush()


# --- what is said about a cell ------------------------------------------------------------------


def describe_safely(exc: BaseException) -> Frame:
    try:
        return interruptible(describe, exc)
    except BaseException as again:
        # The exception's own code misbehaves, or memory is short.
        shown = f"{type(exc).__name__} (it cannot be shown: {type(again).__name__})"
        return {"type": sendable(type(exc).__name__), "message": "", "traceback": sendable(shown)}


def describe(exc: BaseException) -> Frame:
    message = own_words(exc)  # before `traceback` asks, which swallows an interrupt that lands there
    shown = traceback.TracebackException.from_exception(exc)
    hide_kernel_frames(shown)
    return {
        "type": sendable(type(exc).__name__),
        "message": sendable(message),
        "traceback": sendable("".join(shown.format())),
    }


def own_words(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:
        return "<exception str() failed>"


def hide_kernel_frames(shown: traceback.TracebackException) -> None:
    for part in linked(shown):
        part.stack[:] = [entry for entry in part.stack if entry.filename not in OWN_FILES]
        if not part.stack:
            part.stack = None  # type: ignore[assignment]  # a syntax error: then format() writes no empty header


def linked(shown: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    """It and what it was raised from, during or with."""
    waiting = [shown]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += [
            other for other in (part.__cause__, part.__context__, *(part.exceptions or ())) if other is not None
        ]


def sendable(text: str) -> str:
    """Bounded, and encodable: lone surrogates are escaped."""
    if len(text) > MAX_TEXT_CHARS:
        half = MAX_TEXT_CHARS // 2
        text = f"{text[:half]}\n... [{len(text) - 2 * half} characters cut] ...\n{text[-half:]}"
    return str(text).encode("utf-8", "backslashreplace").decode()


# --- the process before its first cell ----------------------------------------------------------


def prepare_process(workdir: str) -> None:
    os.chdir(workdir)
    sys.path.insert(0, workdir)
    signal.signal(signal.SIGINT, on_sigint)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        # Line by line, so that what was printed before a kill is not lost with the buffer.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def prepare_namespace() -> dict[str, Any]:
    """A `__main__` for the cells, so that their classes pickle; the kernel's own module steps aside."""
    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    return module.__dict__


def reseed(seed: int | None) -> None:
    """Seed the global generators, those of libraries that are not loaded yet included; None: from the system."""
    beside("kernel_seed").reseed(seed)


if __name__ == "__main__":
    __name__ = "kernel_main"  # only warnings of `__main__` are shown, and this is not the cells' one
    main()
