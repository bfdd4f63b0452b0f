"""The kernel: runs inside the jail, holds one session's namespace and runs its cells, one after another.

Started as `python -P -s kernel_main.py OPTIONS` by nsjail with a control channel on fd 3: frames of a 4-byte length and
JSON. Standard library only, because it runs with the Python of the cells and not with the server's. Nothing it says is
trusted outside: cells run in this very process and can forge every word of it.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import linecache
import os
import signal
import stat
import struct
import sys
import traceback
from _ast import Expr, Expression, Module, PyCF_ONLY_AST
from types import ModuleType

# A session starts as fast as these imports: `typing`, `ast`, `socket` and `importlib.util` would double the time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, FrameType
    from typing import Any, TypeVar

    Frame = dict[str, Any]
    Result = TypeVar("Result")

CONTROL_FD = 3
MAX_REQUEST_BYTES = 64 << 20
MAX_TEXT_CHARS = 64 << 10
"""Longest result, message and traceback: together they stay below the frame that the supervisor accepts."""
SEEDED_MODULES = ("numpy.random", "sympy.core.random")


def main() -> None:
    options = json.loads(sys.argv[1])
    sys.argv = [""]
    channel = Channel(CONTROL_FD)
    prepare_process(options["workdir"])
    if options["seed"] is not None:
        seed_generators(options["seed"])
    session = Session(prepare_namespace(), options["workdir"])
    channel.send({"ready": True})
    while (request := channel.receive()) is not None:
        channel.send({"nonce": request["nonce"], **session.answer(request)})
    os._exit(0)


class Channel:
    """Length-prefixed JSON frames over the inherited socket. After a fork only the kernel itself keeps it."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._fd = fd
        self._kernel_pid = os.getpid()
        os.register_at_fork(after_in_child=lambda: os.close(fd))

    def send(self, frame: Frame) -> None:
        if os.getpid() != self._kernel_pid:
            os._exit(0)  # a fork made by the cell came out at the cell's end; it is not the kernel
        payload = json.dumps(frame, ensure_ascii=False).encode()
        view = memoryview(struct.pack("!I", len(payload)) + payload)
        while view:
            view = view[os.write(self._fd, view) :]

    def receive(self) -> Frame | None:
        """The next request; None when the supervisor is gone."""
        header = self._read(4)
        if header is None:
            return None
        (size,) = struct.unpack("!I", header)
        payload = self._read(size) if size <= MAX_REQUEST_BYTES else None
        if payload is None:
            return None
        request: Frame = json.loads(payload)
        return request

    def _read(self, size: int) -> bytes | None:
        chunks = []
        while size:
            chunk = os.read(self._fd, size)
            if not chunk:
                return None
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)


# --- cells --------------------------------------------------------------------------------------


class Session:
    """The namespace and work directory of one session."""

    def __init__(self, namespace: dict[str, Any], workdir: str) -> None:
        self._namespace = namespace
        self._workdir = workdir
        self._cells = 0

    def answer(self, request: Frame) -> Frame:
        if request["op"] == "put":
            return {"problem": put_file(self._workdir, request["path"], base64.b64decode(request["data"]))}
        return self._run_cell(request["code"], request["stdin"])

    def _run_cell(self, code: str, stdin: str) -> Frame:
        self._cells += 1
        filename = f"<cell {self._cells}>"
        linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        signal.signal(signal.SIGINT, on_sigint)
        try:
            return {"status": "ok", "result": interruptible(self._evaluate, code, filename), "error": None}
        except BaseException as exc:
            return {"status": "error", "result": None, "error": describe_safely(exc)}
        finally:
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
        part.stack[:] = [entry for entry in part.stack if entry.filename != __file__]
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


# --- files --------------------------------------------------------------------------------------


def put_file(workdir: str, path: str, data: bytes) -> str | None:
    """Write a file below `workdir`, through no symlink; None, or why it was refused."""
    *folders, name = path.split("/")
    if any(part in ("", ".", "..") for part in (*folders, name)) or "\0" in path:
        return f"{path!r} is not a plain relative path"
    folder = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            folder = enter_folder(folder, part)
        write_file(folder, name, data)
    except OSError as exc:
        return f"{path!r}: {exc.strerror}"
    finally:
        os.close(folder)
    return None


def enter_folder(parent: int, name: str) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    os.close(parent)
    return folder


def write_file(folder: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not block the kernel
    fd = os.open(name, flags, 0o644, dir_fd=folder)
    with open(fd, "wb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a regular file")
        os.ftruncate(fd, 0)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


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
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    return module.__dict__


def seed_generators(seed: int) -> None:
    import random

    random.seed(seed)
    sys.meta_path.insert(0, SeedOnImport(seed))


class SeedOnImport:
    """A finder that seeds a library's generator when it is imported: sessions that never import it pay nothing."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._waiting = set(SEEDED_MODULES)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._waiting:
            return None
        from importlib.util import find_spec

        self._waiting.remove(name)
        spec = find_spec(name)
        if spec is not None:
            spec.loader = SeedingLoader(spec.loader, self._seed)  # type: ignore[assignment]  # duck-typed, see imports
        return spec


class SeedingLoader:
    def __init__(self, loader: Any, seed: int) -> None:
        self._loader = loader
        self._seed = seed

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.seed(self._seed)


if __name__ == "__main__":
    main()
