"""What a clone could have from its zygote or leave in it, and must not: the walls that only the warm tier needs."""

import ast
import asyncio
import hashlib
import os
import secrets
from pathlib import Path

import pytest

from cellar_client.schemas import Tier
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor
from tests.sandbox.conftest import LIMITS
from tests.sandbox.host import cgroups_of, pid_namespace, processes_in

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCAN = '''
import ctypes, gc, hashlib, os, sys

PAGE, GAP = 4096, 1024
libc = ctypes.CDLL(None, use_errno=True)
reading, writing = os.pipe()
os.set_blocking(reading, False)

def readable(address):
    """The kernel reads it for us, and says EFAULT instead of killing us."""
    if libc.write(writing, ctypes.c_void_p(address), ctypes.c_size_t(1)) != 1:
        return False
    os.read(reading, 1)
    return True

def walk(page, step):
    """On to the next gap that is longer than those between the parts of one library."""
    missing = 0
    while missing < GAP and page + step not in pages:
        page += step
        missing = 0 if readable(page) else missing + 1
        if not missing: pages.add(page)

def anchors():
    yield from (id(o) for o in gc.get_objects())
    yield from (id(getattr(o, '__dict__', None)) for o in gc.get_objects())
    yield from (id(name) for name in sys.intern.__self__.__dict__)
    yield libc.sbrk(0) - PAGE
    yield ctypes.addressof(ctypes.c_char.from_buffer(bytearray(1 << 20)))
    yield ctypes.cast(libc.malloc, ctypes.c_void_p).value
    yield id(None)
    yield ctypes.c_void_p.in_dll(libc, '__libc_stack_end').value
    for size in (16, 512, 5000, 100_000, 300_000):
        yield libc.malloc(size)

def stretches():
    """From where to where there is memory now; what was freed since it was seen is not."""
    runs = []
    for page in sorted(filter(readable, pages)):
        first = runs.pop()[0] if runs and runs[-1][1] == page else page
        runs.append((first, page + PAGE))
    return runs

def found(prefix, digest):
    """Whether the text that begins with `prefix` and has this digest is anywhere in our memory."""
    for first, last in stretches():
        start = first
        while (hit := libc.memmem(start, last - start, prefix, len(prefix))):
            start = hit + 1
            if hashlib.sha256(ctypes.string_at(hit, min(LENGTH, last - hit))).hexdigest() == digest: return True
    return False

libc.sbrk.restype = libc.memmem.restype = libc.malloc.restype = ctypes.c_void_p
libc.memmem.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t
pages = set()
for address in list(anchors()):
    page = address // PAGE * PAGE
    if page not in pages and readable(page):
        pages.add(page)
        walk(page, PAGE)
        walk(page, -PAGE)
stretches()
'''
"""Evaluates to what it can look at of its own memory, from where to where."""
DRAWN = {
    "random": "import random; random.random()",
    "numpy": "import numpy; numpy.random.rand()",
    "sympy": "import sympy.core.random as r; r.rng.random()",
    "uuid1": "import uuid; uuid.uuid1()",
    "uuid4": "import uuid; uuid.uuid4()",
    "secrets": "import secrets; secrets.token_hex()",
    "urandom": "import os; os.urandom(16)",
    "temporary-name": "import tempfile; tempfile.mktemp()",
    "numpy-generator": "import numpy; numpy.random.default_rng().random()",
    "openssl": "import ssl; ssl.RAND_bytes(16)",
    "work-of-multiprocessing": "import multiprocessing as m; bytes(m.current_process().authkey)",
}


class Marker:
    """A text that a session has, and that another can look for without having it."""

    def __init__(self) -> None:
        self.text = secrets.token_hex(32)
        self.prefix = self.text[:12].encode()
        self.digest = hashlib.sha256(self.text.encode()).hexdigest()

    def search(self) -> str:
        return f"LENGTH = {len(self.text)}; found({self.prefix!r}, {self.digest!r})"


async def start(supervisor: ProcessSupervisor, seed: int | None = None) -> JailedKernel:
    return await supervisor.start(limits=LIMITS, runtime="python", seed=seed)


async def test_nothing_of_another_session_is_in_the_memory_of_the_next(supervisor: ProcessSupervisor) -> None:
    code, file, printed, seed = Marker(), Marker(), Marker(), secrets.randbits(32)
    first = await start(supervisor, seed)
    await first.put_file("data", file.text.encode())
    await first.run_cell(f"held = {code.text!r}; open('data').read(); print({printed.text!r})", timeout_s=5)
    none_is_ready = LIMITS.model_copy(update={"disk_mb": LIMITS.disk_mb + 1})
    second = await supervisor.start(limits=none_is_ready, runtime="python", seed=None)
    seen = ast.literal_eval((await second.run_cell(SCAN, timeout_s=60)).result or "")
    assert covered(seen, second.pid) > 0.99
    for marker in (code, file, printed):
        assert (await second.run_cell(marker.search(), timeout_s=30)).result == "False"

    # The search finds what is there: the session that had them, and a text that the searching one has.
    await first.run_cell(SCAN, timeout_s=60)
    assert (await first.run_cell(code.search(), timeout_s=30)).result == "True"
    own = Marker()
    await second.run_cell(f"held = {own.text!r}", timeout_s=5)
    await second.run_cell(SCAN, timeout_s=60)
    assert (await second.run_cell(own.search(), timeout_s=30)).result == "True"
    await first.close()
    await second.close()


async def test_siblings_draw_different_numbers(supervisor: ProcessSupervisor) -> None:
    kernels = [await start(supervisor) for _ in range(3)]
    for name, code in DRAWN.items():
        drawn = [(await kernel.run_cell(code, timeout_s=30)).result for kernel in kernels]
        assert len(set(drawn)) == 3, name
        assert None not in drawn, name
    await asyncio.gather(*(kernel.close() for kernel in kernels))


async def test_of_privileges_nothing_is_left_in_any_process_of_a_session(kernel: JailedKernel) -> None:
    children = "import os, subprocess, threading, time\nsubprocess.Popen(['sh', '-c', 'while :; do :; done'])\n"
    await kernel.run_cell(children + "if not os.fork(): time.sleep(99)", timeout_s=5)
    processes = processes_in(pid_namespace(kernel.pid))
    assert len(processes) == 3
    for pid in processes:
        status = status_of(pid)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert "0" not in status["Uid"].split() + status["Gid"].split()
        assert status["Groups"].split() == [] or os.geteuid() != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has one uid for all")
async def test_every_session_is_another_user_of_the_host(supervisor: ProcessSupervisor) -> None:
    kernels = [await start(supervisor) for _ in range(4)]
    uids = {os.stat(f"/proc/{kernel.pid}").st_uid for kernel in kernels}
    assert len(uids) == 4
    assert min(uids) >= 100_000
    await asyncio.gather(*(kernel.close() for kernel in kernels))


async def test_a_sessions_processes_are_in_control_groups_of_its_own(
    supervisor: ProcessSupervisor, kernel: JailedKernel
) -> None:
    if supervisor.isolation.cgroup == "none":
        pytest.skip("no control group is delegated to this user")
    sibling = await start(supervisor)
    await kernel.run_cell("import os, time\nif not os.fork(): time.sleep(99)", timeout_s=5)
    groups = [set(cgroups_of(Path(f"/proc/{pid}"))) for pid in processes_in(pid_namespace(kernel.pid))]
    theirs = set(cgroups_of(Path(f"/proc/{sibling.pid}")))
    await sibling.close()
    assert len(groups) == 2
    assert groups[0] == groups[1]
    assert len(groups[0]) == len(theirs) >= 1
    assert not groups[0] & theirs
    assert {folder.name for folder in groups[0]} != {folder.name for folder in theirs}


async def test_no_two_sessions_share_a_namespace(supervisor: ProcessSupervisor) -> None:
    kernels = [await start(supervisor) for _ in range(2)]
    own = os.getpid()
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        namespaces = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in (kernels[0].pid, kernels[1].pid, own)}
        assert len(namespaces) == 3, kind
    await asyncio.gather(*(kernel.close() for kernel in kernels))


async def test_a_session_holds_its_own_descriptors_and_no_other(kernel: JailedKernel) -> None:
    folder = f"/proc/{kernel.pid}/fd"
    held = {fd: os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}
    assert sorted(held) == ["0", "1", "2", "3"]
    assert held["0"] == "/dev/null"
    assert held["1"] != held["2"]
    assert all(held[fd].startswith("pipe:") for fd in "12")
    assert held["3"].startswith("socket:")


async def test_a_session_ruins_its_kernel_and_the_next_one_has_a_whole_one(supervisor: ProcessSupervisor) -> None:
    ruined = await start(supervisor)
    await ruined.run_cell(
        "import builtins, json, sys\nframe = sys._getframe()\nwhile frame.f_back: frame = frame.f_back\n"
        "frame.f_globals['reseed'] = frame.f_globals['run'] = None\njson.dumps = builtins.print = None\n"
        "import numpy, sympy\nnumpy.ones = sympy.Symbol = None\nsys.path[:] = []",
        timeout_s=5,
    )
    following = await start(supervisor)
    outcome = await following.run_cell("import numpy, sympy\nprint(numpy.ones(2), sympy.Symbol('x'))", timeout_s=30)
    assert (outcome.status, outcome.stdout) == ("ok", "[1. 1.] x\n")
    await ruined.close()
    await following.close()


async def test_a_session_knows_no_process_but_its_own(kernel: JailedKernel) -> None:
    code = "import os\n(os.getpid(), os.getppid(), os.getsid(0), os.getpgid(0), os.path.exists('/proc/self'))"
    assert (await kernel.run_cell(code, timeout_s=5)).result == "(1, 0, 1, 1, False)"


async def test_a_warm_session_has_its_libraries_loaded(kernel: JailedKernel, tier: Tier) -> None:
    loaded = await kernel.run_cell("import sys; {'numpy.fft', 'sympy'} <= set(sys.modules)", timeout_s=5)
    assert loaded.result == str(tier == "warm")


async def test_files_and_environment_tell_nothing_of_the_zygote(kernel: JailedKernel) -> None:
    code = "import glob, sys\nglob.glob('/home/cell/*'), glob.glob('/dev/shm/*'), glob.glob('/proc/*'), sys.argv"
    assert (await kernel.run_cell(code, timeout_s=5)).result == "([], [], [], [''])"


def covered(seen: list[tuple[int, int]], pid: int | None) -> float:
    """Which part of a process's writable memory lies in `seen`."""
    inside = total = 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        limits, rights, *_ = line.split()
        if rights.startswith("rw"):
            start, end = (int(limit, 16) for limit in limits.split("-"))
            total += end - start
            inside += sum(max(0, min(end, last) - max(start, first)) for first, last in seen)
    return inside / total


def status_of(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
