"""The figures of the executor, beside ipykernel and nsjail per session, as Markdown tables.

    make bench-executor       or: .venv/envs/bench/bin/python -m benchmarks.executor [--rounds 10] [--only NAME ...]

Every side is driven by a light client (http.client here, ZeroMQ there), because the client shares the processor with
what is measured. Each round measures one side after the other, so that whatever else the machine does meets all. A
measurement that fails is shown as failed, and the others go on. `replicas`, `durability` and `flood` have servers
and a table of their own: the anchor there is one server, a Redis that flushes every write, and a tenant that is alone.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.executor import cells, crowd, durability, flood, memory, output, replicas, sessions, stuck
from benchmarks.executor.cellar import CellarSide
from benchmarks.executor.ipykernel import IpykernelSide
from benchmarks.executor.report import Results, table
from benchmarks.executor.sides import Sizes
from benchmarks.executor.system import machine
from tests.executor_process import ExecutorProcess

MEASUREMENTS = {
    "start": sessions.first_cell,
    "sessions": sessions.per_second,
    "batch": sessions.batched_per_second,
    "warm": cells.warm,
    "cpu": cells.server_cpu,
    "memory": memory.idle_session,
    "execute": sessions.executions_per_second,
    "stuck": stuck.neighbours,
    "output": output.one_megabyte,
    "crowd": crowd.many_sessions,
}
APART = {"replicas": replicas, "durability": durability, "flood": flood}


def main() -> None:
    arguments = parse()
    sizes = Sizes.quick() if arguments.quick else Sizes()
    together = [name for name in arguments.only if name in MEASUREMENTS]
    if together:
        side_by_side(together, arguments, sizes)
    for name in arguments.only:
        if name in APART:
            results = Results()
            APART[name].measure(results, arguments.rounds, sizes)
            print(table(results, APART[name].OURS), flush=True)


def side_by_side(names: list[str], arguments: argparse.Namespace, sizes: Sizes) -> None:
    flags = [f"--max-sessions={sizes.crowd + 100}"]
    flags += [f"--isolation={arguments.isolation}"] if arguments.isolation else []
    results = Results()
    with tempfile.TemporaryDirectory() as data_dir, ExecutorProcess(Path(data_dir), *flags) as server:
        ours = CellarSide("cellar", server.url, server.process.pid, isolation=None)
        sides = [ours, CellarSide("nsjail per session", server.url, server.process.pid, isolation="strict")]
        sides = sides if ours.tier() == "warm" else [ours]
        print(machine(ours.described()), flush=True)
        for number in range(arguments.rounds):
            for name in names:
                print(f"\rround {number + 1}/{arguments.rounds}: {name:<10}", end="", file=sys.stderr, flush=True)
                MEASUREMENTS[name](results, [*sides, IpykernelSide()], sizes)
    print(file=sys.stderr)
    print(table(results, ours.name), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--only", nargs="+", choices=[*MEASUREMENTS, *APART], default=[*MEASUREMENTS, *APART], metavar="NAME"
    )
    parser.add_argument("--isolation", choices=["warm", "strict"], help="tier of the server; its default when left out")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work of each round, to see that all runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
