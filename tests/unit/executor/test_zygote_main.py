"""Real zygotes and their clones: what a clone finds, what it cannot reach, and what it does not inherit."""

import ast
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cellar_executor.kernels import zygote_main
from cellar_executor.kernels.framing import frame
from cellar_executor.kernels.protocol import request
from tests.unit.executor.zygote_process import OPTIONS, RUNTIME, UID_BASE, Clone, Zygote, zygote

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a range of uids to give")
PRIMED = """
import ssl, tempfile, uuid
ssl.RAND_bytes(1), tempfile.mktemp(), uuid.uuid1()
"""
LATE_THREAD = """
import signal, threading, time
signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=time.sleep, args=(99,), daemon=True).start())
"""
LATE_FILE = """
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: os.open("/dev/null", 0))
"""
MOUNTS_BELOW_WORKDIR = """
os.makedirs("/home/cell/deep/kept")
assert mount(b"tmpfs", b"/home/cell/deep/kept", b"tmpfs", 0, None) == 0
for name, text in (("deep/kept/f", "here"), ("file", "too"), ("gone", "")):
    with open(f"/home/cell/{name}", "w") as file: file.write(text)
assert mount(b"/home/cell/file", b"/home/cell/file", None, 4096, None) == 0
"""
MATHEMATICS = (
    "sp.Dummy()",
    "sp.integrate(sp.log(x) * x**2, x)",
    "sp.integrate(sp.exp(-3 * x**2), (x, 0, sp.oo))",
    "sp.solve([x**2 + y - 3, x - y], [x, y])",
    "sp.simplify(sp.cos(x) ** 4 - sp.sin(x) ** 4)",
    "sp.factor(x**6 - y**6), sp.apart((x + 1) / (x**3 - x))",
    "sp.Matrix([[2, 1, 0], [1, 3, 1], [0, 1, 4]]).charpoly().as_expr()",
    "sp.solveset(sp.cos(x) - sp.S.Half, x)",
    "sp.latex(sp.Integral(x / 3, (x, 0, 1))), sp.factorint(2**40 - 1)",
    "np.linalg.eigvalsh(np.array([[2.0, 1.0], [1.0, 3.0]])), np.fft.fft([1, 2, 3])",
)
PRELUDE = "import numpy as np, sympy as sp\nx, y = sp.symbols('x y')\n"


@pytest.fixture(scope="module")
def plain() -> Iterator[Zygote]:
    with zygote(preimports=["no_such_library"]) as started:
        yield started.ready()


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "primed.py").write_text(PRIMED)
    with zygote(modules=folder, preimports=["numpy", "sympy", "primed", "multiprocessing.pool"]) as started:
        yield started.ready()


def namespaces(pid: int) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in os.listdir(f"/proc/{pid}/ns")}


def in_memory(pid: int, secret: bytes) -> bool:
    with open(f"/proc/{pid}/maps") as lines, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, _, end in (line.split()[0].partition("-") for line in lines if " rw-p " in line):
            memory.seek(int(start, 16))
            if secret in memory.read(int(end, 16) - int(start, 16)):
                return True
    return False


# --- what a clone is ----------------------------------------------------------------------------


def test_a_clone_is_a_kernel_in_its_work_directory(plain: Zygote) -> None:
    session = plain.session()
    assert session.evaluate("import os; x = 41; os.getcwd(), os.getpid(), os.getuid()") == "('/home/cell', 1, 1000)"
    assert session.evaluate("x + 1") == "42"
    session.evaluate("import sys; print('out'); print('err', file=sys.stderr)")
    assert [os.read(fd, 100) for fd in session.outputs] == [b"out\n", b"err\n"]


def test_it_has_no_privilege_left_and_a_filter(plain: Zygote) -> None:
    status = plain.session().status()
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert status[kind] == ["0" * 16], kind
    assert (status["NoNewPrivs"], status["Seccomp"], status["Seccomp_filters"]) == (["1"], ["2"], ["1"])


def test_no_namespace_is_shared_with_a_sibling_or_the_zygote(plain: Zygote) -> None:
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    seen = [namespaces(pid) for pid in (plain.session().pid, plain.session().pid, plain.pid)]
    for kind in kinds:
        assert len({found[kind] for found in seen}) == 3, kind


def test_only_its_own_descriptors_are_open(plain: Zygote) -> None:
    plain.session()
    session = plain.session()
    assert sorted(os.listdir(f"/proc/{session.pid}/fd")) == ["0", "1", "2", "3"]
    assert os.readlink(f"/proc/{session.pid}/fd/0") == "/dev/null"


def test_its_folders_are_its_own_and_bounded(plain: Zygote) -> None:
    first, second = plain.session(), plain.session()
    for folder, size_mb in (("/home/cell", 8), ("/tmp", 4), ("/dev/shm", 2)):
        first.evaluate(f"open('{folder}/mine', 'w').write('x')")
        assert second.evaluate(f"import os; os.path.exists('{folder}/mine')") == "False"
        assert second.evaluate(f"v = os.statvfs('{folder}'); v.f_blocks * v.f_frsize >> 20, v.f_files") == str(
            (size_mb, size_mb * 64)
        )
        assert not os.path.exists(f"{folder}/mine")
    assert second.evaluate("oct(os.stat('/home/cell').st_mode & 0o777)") == "'0o700'"


def test_proc_is_empty(plain: Zygote) -> None:
    session = plain.session()
    assert session.evaluate("import os; os.listdir('/proc')") == "[]"
    assert session.cell("open('/proc/x', 'w')")["error"]["type"] == "OSError"


def test_limits_are_in_force(plain: Zygote) -> None:
    session = plain.session(processes=9, open_files=33, disk_mb=3)
    limits = "import os, resource as r; [r.getrlimit(k) for k in (r.RLIMIT_NPROC, r.RLIMIT_NOFILE, r.RLIMIT_FSIZE)]"
    assert session.evaluate(limits) == str([(9, 9), (33, 33), (3 << 20, 3 << 20)])
    zeros = "[r.getrlimit(k) for k in (r.RLIMIT_CORE, r.RLIMIT_MEMLOCK, r.RLIMIT_MSGQUEUE)]"
    assert session.evaluate(zeros) == str([(0, 0)] * 3)
    assert session.evaluate("r.getrlimit(r.RLIMIT_STACK), os.getpriority(os.PRIO_PROCESS, 0)") == str(
        ((8 << 20,) * 2, 5)
    )


def test_a_memory_bomb_is_a_memory_error_and_the_session_lives(warmed: Zygote) -> None:
    session = warmed.session(data_bytes=32 << 20)
    session.evaluate("kept = 5")
    assert session.cell("blocks = []\nwhile True: blocks.append(b'x' * (1 << 20))")["error"]["type"] == "MemoryError"
    assert 24 <= int(session.evaluate("len(blocks)")) <= 40
    assert session.evaluate("del blocks; kept") == "5"


def test_its_environment_is_the_configured_one(plain: Zygote) -> None:
    expected = {"HOME": "/home/cell", "PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"}
    session = plain.session()
    assert ast.literal_eval(session.evaluate("import os; dict(os.environ)")) == expected
    assert session.evaluate("import sys, os; os.uname().nodename, sys.argv") == "('cellar', [''])"


def test_modules_of_the_jail_do_not_shadow_a_cells_own(plain: Zygote) -> None:
    session = plain.session()
    for name in ("confine", "warmup", "zygote_main", "kernel_main"):
        assert session.cell(f"import {name}")["error"]["type"] == "ModuleNotFoundError"


def test_a_cell_can_be_interrupted(plain: Zygote) -> None:
    session = plain.session()
    code = "print(1, flush=True)\nwhile True: pass"
    session.control.sendall(frame(request("run", "0" * 16, code=code, stdin="")))
    assert os.read(session.outputs[0], 10) == b"1\n"
    signal.pidfd_send_signal(session.pidfd, signal.SIGINT)
    assert session.receive()["error"]["type"] == "KeyboardInterrupt"


def test_a_pool_of_processes_works(warmed: Zygote) -> None:
    code = "from multiprocessing import Pool\nwith Pool(2) as pool: found = pool.map(abs, [-1, -2])\nfound"
    assert warmed.session().evaluate(code) == "[1, 2]"


def test_garbage_is_collected(plain: Zygote) -> None:
    assert plain.session().evaluate("import gc; gc.isenabled()") == "True"


def test_mounts_below_a_folder_of_the_session_stay_visible() -> None:
    with zygote(prepare=MOUNTS_BELOW_WORKDIR) as started:
        session = started.ready().session()
        assert session.evaluate("open('deep/kept/f').read(), open('file').read()") == "('here', 'too')"
        assert session.evaluate("import os; sorted(os.listdir())") == "['deep', 'file']"


# --- what it does not inherit -------------------------------------------------------------------


def test_nothing_of_a_session_is_left_in_the_zygote_or_reaches_a_sibling(plain: Zygote) -> None:
    secret = b"SECRET-" + os.urandom(8).hex().encode()
    first = plain.session(secret=secret.decode())
    first.evaluate(f"mine = {secret.decode()!r}")
    second = plain.session()
    assert in_memory(first.pid, secret)
    assert not in_memory(plain.pid, secret)
    assert not in_memory(second.pid, secret)


@pytest.mark.parametrize(
    "draw",
    [
        "import random; random.random()",
        "import numpy; numpy.random.rand()",
        "import numpy; numpy.random.default_rng().random()",
        "from sympy.core.random import rng; rng.random()",
        "import tempfile; tempfile.mktemp()",
        "import uuid; uuid.getnode()",
        "import uuid; uuid.uuid1().node",
        "import ssl; ssl.RAND_bytes(8)",
        "import secrets; secrets.token_hex()",
    ],
)
def test_siblings_draw_different_numbers(warmed: Zygote, draw: str) -> None:
    assert len({warmed.session().evaluate(draw) for _ in range(3)}) == 3


def test_warmth_does_not_show_in_results(warmed: Zygote) -> None:
    script = f"{PRELUDE}for line in {MATHEMATICS!r}: print(repr(eval(line)))"
    environment = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    fresh = subprocess.run([RUNTIME, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    session = warmed.session()
    session.evaluate(f"{PRELUDE}1")
    assert [session.evaluate(line) for line in MATHEMATICS] == "".join(fresh.stdout).splitlines()


# --- the zygote ---------------------------------------------------------------------------------


@as_root
@pytest.mark.skipif(
    not all(folder.stat().st_mode & 0o001 for folder in RUNTIME.parents),
    reason="the runtime lies in a folder that is closed to other users; tests/sandbox has it staged",
)
def test_with_a_range_every_clone_has_a_uid_of_its_own_until_none_is_left() -> None:
    with zygote(uids=2) as started:
        started.ready()
        for number in (1, 2):
            session = started.session()
            assert session.status()["Uid"] == session.status()["Gid"] == [str(UID_BASE + number)] * 4
            assert session.status()["Groups"] == []
            assert session.evaluate("import os; os.getresuid(), os.getgroups()") == "((1000, 1000, 1000), [])"
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert started.ask([theirs.fileno()]) == (b"Eall its uids are used up", [])


def test_a_clone_without_configuration_ends_with_its_socket(plain: Zygote) -> None:
    clone = plain.clone()
    clone.control.shutdown(socket.SHUT_WR)
    assert clone.receive() == {"failed": "ConnectionError in receive_configuration: no configuration came"}
    assert clone.ended()


@pytest.mark.parametrize(
    "broken", [{"disk_mb": -1}, {"niceness": None}, {"processes": 1 << 70}, {"data_bytes": "1"}, {"inodes_per_mb": "x"}]
)
def test_a_wall_that_does_not_stand_ends_the_clone(plain: Zygote, broken: dict[str, Any]) -> None:
    clone = plain.clone()
    clone.configure(**broken)
    assert set(clone.receive()) == {"failed"}
    assert clone.receive() == {}
    assert clone.ended()


def test_a_dead_clone_is_reaped_at_once(plain: Zygote) -> None:
    clone = plain.session()
    pid = clone.pid
    signal.pidfd_send_signal(clone.pidfd, signal.SIGKILL)
    assert clone.ended()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}")
    assert plain.session().evaluate("1") == "1"


def test_clones_end_with_their_zygote_and_it_with_its_socket() -> None:
    with zygote() as started:
        clones: list[Clone] = [started.ready().session(), started.clone()]
        started.control.shutdown(socket.SHUT_WR)
        assert [clone.ended() for clone in clones] == [True, True]


@pytest.mark.parametrize("source", [LATE_THREAD, LATE_FILE], ids=["thread", "file"])
def test_it_refuses_to_fork_what_a_clone_must_not_inherit(tmp_path: Path, source: str) -> None:
    (tmp_path / "late.py").write_text(source)
    with zygote(modules=tmp_path, preimports=["late"]) as started:
        started.ready().session()
        os.kill(started.pid, signal.SIGUSR1)
        time.sleep(0.2)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            answer, fds = started.ask([theirs.fileno()])
        assert (answer[:1], fds) == (b"E", [])


@pytest.mark.parametrize(
    "source",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        "import os\nopened = os.open('/dev/null', 0)",
    ],
    ids=["thread", "file"],
)
def test_it_does_not_start_with_what_a_clone_must_not_inherit(tmp_path: Path, source: str) -> None:
    (tmp_path / "early.py").write_text(source)
    with zygote(modules=tmp_path, preimports=["early"]) as started:
        assert started.control.recv(16) == b""
        assert "Refused" in started.complaint()


@pytest.mark.parametrize(("message", "count"), [(b"F", 0), (b"F", 2), (b"G", 1)])
def test_it_takes_no_other_request(message: bytes, count: int) -> None:
    with zygote() as started:
        started.ready()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert started.ask([theirs.fileno()] * count, message) == (b"", [])


def test_it_insists_on_being_process_1() -> None:
    argv = [str(RUNTIME), "-P", zygote_main.__file__, json.dumps(OPTIONS)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert "process 1" in done.stderr
    assert done.returncode != 0
