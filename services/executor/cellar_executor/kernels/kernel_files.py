"""Files of a session's work directory, as the kernel handles them from inside the jail.

Regular files only, by plain relative paths, through no symlink: each folder is opened by its parent. `handle` answers
a frame for the supervisor (see `protocol`). Runs with the Python of the cells: standard library only.
"""

from __future__ import annotations

import binascii
import errno
import json
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Frame = dict[str, Any]

DRAFT = ".cellar-draft-"
"""And the number of the process that writes it: a file that is not whole yet, in the work directory itself. What a live
copy left when it was killed is told by that number."""
MAX_DEPTH = 64
"""Of folders: deeper ones are neither made nor listed."""
MAX_LISTING_BYTES = 512 << 10
"""Of all names in one listing: with the sizes they stay below the frame that the supervisor accepts."""
MAX_VISITED = 100_000
"""Entries of all kinds that one listing looks at."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not block the kernel
WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class Refused(Exception):
    """The file cannot be had."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def handle(workdir: str, request: Frame) -> Frame:
    """Raises `MemoryError`, and `OSError` for the same reason."""
    try:
        return {"problem": None, **operate(workdir, request)}
    except Refused as refused:
        return {"problem": {"kind": refused.kind, "message": refused.message}}
    except FileNotFoundError:
        return {"problem": {"kind": "not_found", "message": "there is no such file"}}
    except OSError as exc:
        if exc.errno == errno.ENOMEM:
            raise
        return {"problem": {"kind": "invalid_path", "message": explain(exc)}}


def operate(workdir: str, request: Frame) -> Frame:
    op = request["op"]
    if op == "list":
        return list_files(workdir, request["max_files"])
    if op == "get":
        return get_file(workdir, request["path"], request["offset"], request["length"], request["max_bytes"])
    if op == "put":
        with Draft(workdir) as draft:
            return put_piece(draft, request)
    return delete_file(workdir, request["path"])


def explain(exc: OSError) -> str:
    if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR):
        return "not a regular file, or the path leads through something that is no folder"
    return os.strerror(exc.errno or 0)


def put_piece(draft: Draft, request: Frame) -> Frame:
    """Write a piece of a new file; the last one puts it in the old one's place. What cannot be written leaves the old
    one as it was."""
    folder, name = open_folder(draft.workdir, request["path"], make=True)
    try:
        if name.startswith(DRAFT):
            raise Refused("invalid_path", f"names that start with {DRAFT} are taken")
        if exists(folder, name):
            require_regular(os.stat(name, dir_fd=folder, follow_symlinks=False))
        draft.write(binascii.a2b_base64(request["data"]), request["offset"])
        if request["last"]:
            os.rename(draft.name, name, src_dir_fd=draft.root, dst_dir_fd=folder)
    finally:
        os.close(folder)
    return {}


class Draft:
    """The file that this process writes, piece by piece; it is gone when a piece fails."""

    def __init__(self, workdir: str) -> None:
        self.workdir = workdir
        self.name = f"{DRAFT}{os.getpid()}"

    def __enter__(self) -> Draft:
        self.root = os.open(self.workdir, FOLDER)
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is not None:
                self._unlink(self.name)
        finally:
            os.close(self.root)

    def write(self, data: bytes, offset: int) -> None:
        if offset == 0:
            self._sweep()
        flags = os.O_CREAT | os.O_EXCL if offset == 0 else 0
        fd = os.open(self.name, WRITE | flags, 0o644, dir_fd=self.root)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(fd)

    def _sweep(self) -> None:
        """Delete the drafts that nobody will end: an own one, and those of processes that are gone."""
        for name in os.listdir(self.root):
            number = name.removeprefix(DRAFT)
            if number != name and number.isdecimal() and (name == self.name or not runs(int(number))):
                self._unlink(name)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.root)
        except FileNotFoundError:
            return


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def get_file(workdir: str, path: str, offset: int, length: int, max_bytes: int) -> Frame:
    """`length` bytes from `offset`, and the size of the whole file."""
    folder, name = open_folder(workdir, path, make=False)
    try:
        fd = os.open(name, READ, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        status = os.fstat(fd)
        require_regular(status)
        if status.st_size > max_bytes:
            raise Refused("too_large", f"the file has {status.st_size} bytes; at most {max_bytes} can be had")
        data = binascii.b2a_base64(os.pread(fd, length, offset), newline=False).decode()
    finally:
        os.close(fd)
    return {"size": status.st_size, "data": data}


def delete_file(workdir: str, path: str) -> Frame:
    folder, name = open_folder(workdir, path, make=False)
    try:
        require_regular(os.stat(name, dir_fd=folder, follow_symlinks=False))
        os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)
    return {}


def list_files(workdir: str, max_files: int) -> Frame:
    """Files in the order of their paths, up to any of the bounds."""
    files: list[Frame] = []
    root = os.open(workdir, FOLDER)
    room = MAX_LISTING_BYTES
    try:
        for path, size in Walk().files(root, ""):
            room -= len(json.dumps(path, ensure_ascii=False).encode())
            if room < 0 or len(files) == max_files:
                raise TooMany
            files.append({"path": path, "size": size})
    except TooMany:
        return {"files": files, "truncated": True}
    finally:
        os.close(root)
    return {"files": files, "truncated": False}


class TooMany(Exception):
    """A bound of a listing is reached."""


class Walk:
    """Goes through a tree of folders, each opened by its parent, and follows nothing."""

    def __init__(self) -> None:
        self._visited = 0

    def files(self, folder: int, prefix: str, depth: int = 1) -> Iterator[tuple[str, int]]:
        """Regular files with their sizes. Raises `TooMany`."""
        for name, is_folder in self._entries(folder):
            try:
                if is_folder:
                    yield from self._below(folder, name, prefix, depth)
                    continue
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except (FileNotFoundError, PermissionError):
                continue  # gone meanwhile, or closed to its owner
            if stat.S_ISREG(status.st_mode):
                yield prefix + name, status.st_size

    def _below(self, folder: int, name: str, prefix: str, depth: int) -> Iterator[tuple[str, int]]:
        if depth == MAX_DEPTH:
            raise TooMany
        child = os.open(name, FOLDER, dir_fd=folder)
        try:
            yield from self.files(child, f"{prefix}{name}/", depth + 1)
        finally:
            os.close(child)

    def _entries(self, folder: int) -> list[tuple[str, bool]]:
        """Name and whether it is a folder, in an order that makes that of the paths. Names must be UTF-8: no other can
        be asked for."""
        entries = []
        with os.scandir(folder) as found:
            for entry in found:
                self._visited += 1
                if self._visited > MAX_VISITED:
                    raise TooMany
                if is_utf8(entry.name) and not entry.name.startswith(DRAFT):
                    entries.append((entry.name, entry.is_dir(follow_symlinks=False)))
        entries.sort(key=lambda entry: entry[0] + "/" * entry[1])
        return entries


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def open_folder(workdir: str, path: str, *, make: bool) -> tuple[int, str]:
    """The opened folder of a file, and the file's name in it."""
    *folders, name = path.split("/")
    if any(part in ("", ".", "..") for part in (*folders, name)) or "\0" in path:
        raise Refused("invalid_path", "not a plain relative path")
    if len(folders) >= MAX_DEPTH:
        raise Refused("invalid_path", f"more than {MAX_DEPTH} folders deep")
    folder = os.open(workdir, FOLDER)
    for part in folders:
        parent = folder
        try:
            if make and not exists(parent, part):
                os.mkdir(part, dir_fd=parent)
            folder = os.open(part, FOLDER, dir_fd=parent)
        finally:
            os.close(parent)
    return folder, name


def exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Refused("invalid_path", "not a regular file")
