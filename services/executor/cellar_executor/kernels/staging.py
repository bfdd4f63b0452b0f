"""Lets a session's own host uid reach what its jail is made of, although it lies below folders closed to it.

A home of mode 0700 stops every uid but its owner's, and the jail of a session is put together by that session's uid. So
the spawner, as root, takes a mount namespace of its own and binds each tree below one open folder there. The host never
sees these mounts, and they are gone with the last process of the namespace, however that one dies.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

STAGE = Path("/run")
"""Covered by a fresh tmpfs, in the spawner's namespace alone: exists everywhere, and nsjail wants to write below it."""
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 0x40000, 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


def staged_path(index: int) -> Path:
    """Where the `index`th tree given to `stage` can be reached."""
    return STAGE / "cellar" / str(index)


def stage(trees: Sequence[Path]) -> None:
    """Bind `trees` below `STAGE`, for this process and those it starts. Raises `OSError` without CAP_SYS_ADMIN."""
    os.unshare(os.CLONE_NEWNS)
    mount(None, Path("/"), None, MS_REC | MS_PRIVATE)
    opened = [os.open(tree, os.O_PATH) for tree in trees]  # before STAGE is covered: a tree may lie below it
    mount("tmpfs", STAGE, "tmpfs", 0, "mode=1777")
    staged_path(0).parent.mkdir(mode=0o755)
    for index, fd in enumerate(opened):
        bind(fd, trees[index].is_dir(), staged_path(index))
        os.close(fd)


def bind(source_fd: int, is_dir: bool, target: Path) -> None:
    if is_dir:
        target.mkdir()
    else:
        target.touch()
    mount(f"/proc/self/fd/{source_fd}", target, None, MS_BIND)


def mount(source: str | None, target: Path, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = (text.encode() if text is not None else None for text in (source, str(target), kind))
    if _libc.mount(*encoded, ctypes.c_ulong(flags), data.encode() if data is not None else None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount on {target}: {os.strerror(number)}")
