"""`make test-faults`: writers, a nemesis and a checker, for as long as it takes to kill so many processes.

    .venv/bin/python -m tests.faults [--kills 200] [--writers 12] [--seed 1] [--isolated]

`--isolated` has real kernels in jails, which cannot write to the host: they are checked by what their sessions say.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.storm import storm, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs of servers and of Redis (200)")
    parser.add_argument("--at-most-s", type=float, default=1500, help="stop after so long in any case (1500)")
    parser.add_argument("--writers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--isolated", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cellar-faults-") as folder:
        outcome = storm(
            Path(folder),
            kills=asked.kills,
            at_most_s=asked.at_most_s,
            writers=asked.writers,
            seed=asked.seed,
            isolated=asked.isolated,
            say=say,
        )
        for violation in outcome.violations:
            say(str(violation))
        say(table(outcome))
    return 1 if outcome.violations or outcome.kills < asked.kills else 0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
