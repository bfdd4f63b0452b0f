"""A real zygote in namespaces of its own, without nsjail, and its clones, spoken to over raw sockets."""

import base64
import contextlib
import json
import os
import platform
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellar_executor.kernels import zygote_main
from cellar_executor.kernels.framing import frame
from cellar_executor.kernels.protocol import request
from cellar_executor.kernels.seccomp import bpf_program

RUNTIME = Path(__file__).parents[3] / ".venv/envs/runtime/bin/python"
WORKDIR = "/home/cell"
UID_BASE = 200_000
DEADLINE_S = 60.0
SPACE = socket.CMSG_SPACE(4)
OPTIONS = {
    "preimports": [],
    "uids": 0,
    "workdir": WORKDIR,
    "environment": {"HOME": WORKDIR, "PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"},
    "seccomp": base64.b64encode(bpf_program(platform.machine())).decode(),
}
CONFIGURATION = {
    "data_bytes": 112 << 20,
    "processes": 16,
    "disk_mb": 8,
    "scratch_mb": 4,
    "shared_memory_mb": 2,
    "inodes_per_mb": 64,
    "open_files": 64,
    "niceness": 5,
}

LAUNCH = """
import ctypes, os, sys
os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWPID | os.CLONE_NEWNET)
os.write(1, b"m")
os.read(0, 1)
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) and 1)
mount = ctypes.CDLL(None, use_errno=True).mount
assert mount(None, b"/", None, 0x44000, None) == 0
assert mount(b"proc", b"/proc", b"proc", 0, None) == 0
assert mount(b"tmpfs", b"/home", b"tmpfs", 0, b"mode=0755") == 0
os.mkdir("/home/cell")
repository = os.environb.pop(b"REPOSITORY")  # which a session's /tmp must not hide, should it lie there
assert mount(repository, repository, None, 0x5000, None) == 0
exec(os.environ.pop("PREPARE"))
os.dup2(int(sys.argv[1]), 3)
os.closerange(4, 1024)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Says `m` when it wants its maps."""


@contextlib.contextmanager
def zygote(*, prepare: str = "", modules: Path = Path("/nowhere"), **options: Any) -> Iterator["Zygote"]:
    """`prepare` runs in its namespaces before it starts; `modules` is a folder that it can import from."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    chosen: dict[str, Any] = OPTIONS | options
    command = [str(RUNTIME), "-P", "-s", "-B", zygote_main.__file__, json.dumps(chosen)]
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", LAUNCH, str(theirs.fileno()), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
        stderr=subprocess.PIPE,
        env={
            "REPOSITORY": str(RUNTIME.parents[4]),
            "PREPARE": prepare,
            "PYTHONPATH": str(modules),
            "PYTHONHASHSEED": "0",
        },
    )
    with process, ours:
        theirs.close()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(1) == b"m"
        write_maps(process.pid, chosen["uids"])
        process.stdin.write(b"\n")
        process.stdin.flush()
        ours.settimeout(DEADLINE_S)
        started = Zygote(ours, process)
        try:
            yield started
        finally:
            started.end()


def write_maps(pid: int, uids: int) -> None:
    process = Path(f"/proc/{pid}")
    if not uids:
        (process / "setgroups").write_text("deny")
    for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        (process / name).write_text(f"0 {own} 1\n" + (f"1 {UID_BASE + 1} {uids}\n" if uids else ""))


@dataclass
class Zygote:
    control: socket.socket
    process: "subprocess.Popen[bytes]"
    clones: list["Clone"] = field(default_factory=list)

    @property
    def pid(self) -> int:
        parent = self.process.pid
        return int(Path(f"/proc/{parent}/task/{parent}/children").read_text())

    def end(self) -> None:
        """Its socket closes, and it goes with all its clones."""
        self.control.close()
        self.process.wait(DEADLINE_S)
        for clone in self.clones:
            clone.close()

    def complaint(self) -> str:
        """Why it did not start."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def ready(self) -> "Zygote":
        assert self.control.recv(16) == b"R"
        return self

    def ask(self, fds: list[int], message: bytes = b"F") -> tuple[bytes, list[int]]:
        socket.send_fds(self.control, [message], fds)
        answer, received, _, _ = socket.recv_fds(self.control, 1024, 1)
        return answer, received

    def clone(self) -> "Clone":
        ours, theirs = socket.socketpair()
        with theirs:
            answer, fds = self.ask([theirs.fileno()])
        assert answer == b"F", answer
        ours.settimeout(DEADLINE_S)
        clone = Clone(ours, fds[0])
        self.clones.append(clone)
        return clone

    def session(self, **configuration: Any) -> "Clone":
        clone = self.clone()
        clone.configure(**configuration)
        assert clone.receive() == {"ready": True}
        return clone


@dataclass
class Clone:
    control: socket.socket
    pidfd: int
    outputs: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return int(Path(f"/proc/self/fdinfo/{self.pidfd}").read_text().partition("\nPid:")[2].split()[0])

    def status(self) -> dict[str, list[str]]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}

    def close(self) -> None:
        self.control.close()
        while self.outputs:
            os.close(self.outputs.pop())
        os.close(self.pidfd)

    def configure(self, **configuration: Any) -> None:
        (stdout, out), (stderr, err) = os.pipe(), os.pipe()
        self.outputs += [stdout, stderr]
        payload = json.dumps(CONFIGURATION | configuration).encode()
        socket.send_fds(self.control, [frame(payload)], [out, err])
        os.close(out)
        os.close(err)

    def receive(self) -> dict[str, Any]:
        header = self.control.recv(4, socket.MSG_WAITALL)
        if not header:
            return {}
        (length,) = struct.unpack("!I", header)
        said: dict[str, Any] = json.loads(self.control.recv(length, socket.MSG_WAITALL))
        return said

    def cell(self, code: str) -> dict[str, Any]:
        self.control.sendall(frame(request("run", "0" * 16, code=code, stdin="")))
        return self.receive()

    def evaluate(self, code: str) -> str:
        """The repr of the cell's last expression."""
        answer = self.cell(code)
        assert answer.get("status") == "ok", answer
        result: str = answer["result"]
        return result

    def ended(self) -> bool:
        return bool(select.select([self.pidfd], [], [], DEADLINE_S)[0])
