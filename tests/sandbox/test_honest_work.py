"""What ordinary cells do has to work inside the jail as it does outside."""

import pytest

from cellar_client.schemas import Limits, Tier
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.supervisor import ProcessSupervisor

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMITS = Limits(cell_timeout_s=30, memory_mb=512, processes=32, disk_mb=64, output_bytes=64 << 10)
CELLS = {
    "linear-algebra": ("import numpy as np; np.linalg.svd(np.eye(50))[1].sum()", "np.float64(50.0)"),
    "random-numbers": ("import numpy as np; np.random.default_rng(1).integers(9, size=3).shape", "(3,)"),
    "fourier": ("import numpy as np; np.abs(np.fft.ifft(np.fft.fft(np.ones(64)))).sum().round()", "np.float64(64.0)"),
    "symbolic-integral": ("import sympy as s; x = s.Symbol('x'); s.integrate(s.sin(x) * x, x)", "-x*cos(x) + sin(x)"),
    "symbolic-solve": ("import sympy as s; x = s.Symbol('x'); s.solve(x**2 - 4, x)", "[-2, 2]"),
    "child-python": (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import numpy; print(7)'], capture_output=True).stdout",
        "b'7\\n'",
    ),
    "shell": ("import os; os.system('test -d /home/cell && cd /tmp')", "0"),
    "threads": (
        "import concurrent.futures as c\nwith c.ThreadPoolExecutor(4) as p: r = list(p.map(abs, [-1, -2]))\nr",
        "[1, 2]",
    ),
    "process-pool": (
        "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: r = p.map(abs, [-1, -2])\nr",
        "[1, 2]",
    ),
    "event-loop": (
        "import asyncio\nasync def f():\n p = await asyncio.create_subprocess_exec('/bin/sh', '-c', 'exit 3')\n"
        " return await p.wait()\nasyncio.run(f())",
        "3",
    ),
    "temporary-files": ("import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x'); n = f.tell()\nn", "1"),
    "json-and-csv": (
        "import csv, json\njson.dump([1], open('a.json', 'w')); csv.writer(open('b.csv', 'w')).writerow([1, 2])\n"
        "json.load(open('a.json')), next(csv.reader(open('b.csv')))",
        "([1], ['1', '2'])",
    ),
    "own-module": ("open('helper.py', 'w').write('value = 5')\nimport helper; helper.value", "5"),
    "database": ("import sqlite3; sqlite3.connect('a.db').execute('select 6 * 7').fetchone()", "(42,)"),
    "big-integers": ("len(str(7 ** 4000))", "3381"),
    "home-and-user": (
        "import getpass, pathlib; (getpass.getuser(), str(pathlib.Path.home()))",
        "('cell', '/home/cell')",
    ),
    "time-limit-of-its-own": (
        "import signal, time\ndef late(*a): raise TimeoutError\nsignal.signal(signal.SIGALRM, late); signal.alarm(1)\n"
        "try: time.sleep(9)\nexcept TimeoutError: r = 'caught'\nr",
        "'caught'",
    ),
    "pickle-of-a-class": ("import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))).__name__", "'A'"),
    "fork-that-falls-through": (
        "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\n'parent' if pid else 'child'",
        "'parent'",
    ),
}


@pytest.mark.parametrize(("code", "result"), CELLS.values(), ids=CELLS)
async def test_honest_cell_works(supervisor: ProcessSupervisor, code: str, result: str) -> None:
    kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=None)
    outcome = await kernel.run_cell(code, timeout_s=30)
    await kernel.close()
    assert (outcome.status, outcome.result, outcome.stderr) == ("ok", result, ""), outcome


async def test_recursion_error_is_an_error_of_the_cell(kernel: JailedKernel) -> None:
    outcome = await kernel.run_cell("def f(): return f()\nf()", timeout_s=5)
    assert outcome.error is not None
    assert outcome.error.type == "RecursionError"
    assert (await kernel.run_cell("1", timeout_s=5)).status == "ok"


@pytest.mark.parametrize(
    "code",
    [
        "import numpy; numpy.random.rand()",
        "import sympy; sympy.core.random.rng.random()",
        "import random; random.random()",
        "list({'a', 'b', 'c', 'd'})",
    ],
)
async def test_a_seed_makes_sessions_repeat_each_other(supervisor: ProcessSupervisor, tier: Tier, code: str) -> None:
    results = []
    for seed in (7, 7, 8):
        kernel = await supervisor.start(limits=LIMITS, runtime="python", seed=seed)
        results.append((await kernel.run_cell(code, timeout_s=30)).result)
        await kernel.close()
    assert results[0] == results[1]
    assert results[1] != results[2] or (tier == "warm" and code.startswith("list"))  # all clones hash alike


async def test_stdin_is_read_as_text_and_as_bytes(kernel: JailedKernel) -> None:
    code = "import sys; (sys.stdin.readline(), sys.stdin.read())"
    assert (await kernel.run_cell(code, timeout_s=5, stdin="é\nb\nc")).result == r"('é\n', 'b\nc')"
    code = "sys.stdin.buffer.read()"
    assert (await kernel.run_cell(code, timeout_s=5, stdin="é\n")).result == r"b'\xc3\xa9\n'"
