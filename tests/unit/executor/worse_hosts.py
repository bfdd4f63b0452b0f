"""Commands that start another command on a host that allows less: run by root, felt by that command alone."""

import ctypes
import os
import struct
import sys
from pathlib import Path

from cellar_executor.kernels.seccomp import ALLOW, AUDIT_ARCH, EPERM, ERRNO, JUMP_EQUAL, LOAD, RETURN
from cellar_executor.kernels.staging import MS_PRIVATE, MS_REC, bind, mount

NOBODY = 65534
REPOSITORY = Path(__file__).parents[3]
UNSHARE = {"x86_64": 272, "aarch64": 97}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def ordinary_user(workdir: Path) -> list[str]:
    """As a user without any right, who can read this repository and its Python wherever they lie."""
    return [sys.executable, __file__, "ordinary-user", str(workdir)]


def without_namespaces() -> list[str]:
    """Under a filter as a container has it: unshare(2) is not permitted, nor clone(2) by nsjail."""
    return [sys.executable, __file__, "without-namespaces"]


def become_ordinary(workdir: Path) -> None:
    os.unshare(os.CLONE_NEWNS)
    mount(None, Path("/"), None, MS_REC | MS_PRIVATE)
    for tree in (REPOSITORY, Path(sys.base_prefix)):
        uncover(tree)
    os.chown(workdir, NOBODY, NOBODY)
    os.chdir("/")
    os.environ |= {"HOME": "/", "TMPDIR": "/tmp"}
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def uncover(tree: Path) -> None:
    """Where a folder above is closed to others, an open one is put over it that has the tree and nothing else."""
    closed = next((above for above in reversed(tree.parents) if not above.stat().st_mode & 0o001), None)
    if closed is None:
        return
    source = os.open(tree, os.O_PATH)
    mount("tmpfs", closed, "tmpfs", 0, "mode=0755")
    tree.parent.mkdir(parents=True, exist_ok=True)
    bind(source, True, tree)
    os.close(source)


def refuse_namespaces() -> None:
    machine = os.uname().machine
    program = b"".join(
        struct.pack("<HBBI", code, yes, no, operand)
        for code, yes, no, operand in (
            (LOAD, 0, 0, 4),
            (JUMP_EQUAL, 0, 2, AUDIT_ARCH[machine]),
            (LOAD, 0, 0, 0),
            (JUMP_EQUAL, 1, 0, UNSHARE[machine]),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, ERRNO | EPERM),
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)
    keep = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(keep))
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_program, 0, 0) == 0


def main(kind: str, *command: str) -> None:
    if kind == "ordinary-user":
        become_ordinary(Path(command[0]))
        os.execv(command[1], command[1:])
    refuse_namespaces()
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
