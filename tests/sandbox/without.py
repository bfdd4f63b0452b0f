"""What falls without each protection: the attacks, on copies of the executor's code that lack exactly one.

python -m tests.sandbox.without                     all of them, about twenty minutes; as root, with control groups
python -m tests.sandbox.without --only namespace    those whose name has this in it
python -m tests.sandbox.without --markdown          the table of docs/security.md

Every attack then runs in a pid namespace of the run's own: one of them is `kill -1`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import cellar_client
import cellar_executor
from cellar_client.schemas import Tier
from tests.sandbox.conftest import NSJAIL, PYTHON
from tests.sandbox.protections import PROTECTIONS, SELF_TEST, Edit, Protection

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 400
SHOWN = 8
ALONE = (
    "unshare",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    *(() if os.geteuid() == 0 else ("--map-current-user",)),
)
START = """
import asyncio, sys
from pathlib import Path
from cellar_client.schemas import Limits
from cellar_executor.kernel import RuntimeConfig, SupervisorConfig
from cellar_executor.kernels.supervisor import open_supervisor

async def main():
    runtimes = {"python": RuntimeConfig(Path(sys.argv[1]))}
    config = SupervisorConfig(runtimes, Path(sys.argv[2]), tier=sys.argv[3], zygotes=1)
    limits = Limits(cell_timeout_s=5, memory_mb=128, processes=16, disk_mb=16, output_bytes=65536)
    supervisor = None
    try:
        supervisor = await open_supervisor(config)
        kernel = await supervisor.start(limits=limits, runtime="python", seed=None)
        await kernel.run_cell("1", timeout_s=5)
    except Exception as problem:
        print("PROBLEM", str(problem).splitlines()[0])
    if supervisor: await supervisor.close()

asyncio.run(main())
"""


@dataclass(slots=True)
class Finding:
    protection: Protection
    refusal: str = ""
    """Why a server does not start, or a session; empty where it does."""
    untried: str = ""
    """Why there is no session to attack from, even without the self-test."""
    red: dict[str, str] = field(default_factory=dict)
    """Test -> what it said."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a protection's name")
    parser.add_argument("--markdown", action="store_true", help="print the table")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [protection for protection in PROTECTIONS if options.only in protection.name]
    with tempfile.TemporaryDirectory(prefix="without-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        findings = []
        for finding in pool.map(lambda protection: examine(protection, Path(folder)), chosen):
            findings.append(finding)
            say(f"{len(findings)}/{len(chosen)} {summary(finding)}")
    if options.markdown:
        sys.stdout.write(table(findings))
    unseen = [found.protection for found in findings if not (found.red or found.untried)]
    sys.exit(f"nothing turns red without: {', '.join(f'{p.name} ({p.tier})' for p in unseen)}" if unseen else 0)


def examine(protection: Protection, folder: Path) -> Finding:
    home = Path(tempfile.mkdtemp(dir=folder))
    shutil.copytree(Path(cellar_executor.__file__).parent, home / "cellar_executor")
    python = environment(home)
    for edit in protection.edits:
        apply(edit, home)
    finding = Finding(protection, refusal=start(python, protection.tier))
    apply(SELF_TEST, home)
    finding.untried = start(python, protection.tier) if finding.refusal else ""
    if not finding.untried:
        seen = failures(python, home, tests(protection))
        # Whatever is red because the machine is busy is not so twice.
        finding.red = failures(python, home, list(seen)) if seen else {}
    return finding


def tests(protection: Protection) -> list[str]:
    attacks = [
        f"test_attacks.py::test_attack_is_contained[{protection.tier}-{attack.name}]" for attack in protection.attacks
    ]
    found = [f"tests/sandbox/{name}" for name in (*attacks, *protection.files)]
    return [*found, "-k", f"not {next(tier for tier in get_args(Tier) if tier != protection.tier)}"]


def environment(home: Path) -> Path:
    """A Python that has the copy in place of the original: also with -I, as the spawner runs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], check=True)
    packages = next((home / "env").glob("lib/python*/site-packages"))
    others = (Path(cellar_client.__file__).parents[1], sysconfig.get_path("purelib"))
    (packages / "copy.pth").write_text("\n".join(map(str, (home, *others))))
    return home / "env/bin/python"


def apply(edit: Edit, home: Path) -> None:
    name, old, new = edit
    file = home / "cellar_executor/kernels" / name
    text = file.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{name} has this {text.count(old)} times, not once:\n{old}")
    file.write_text(text.replace(old, new))


def start(python: Path, tier: Tier) -> str:
    """Why a server and its first session do not start; empty if they do."""
    ran = run([python, "-c", START, PYTHON, NSJAIL, tier])
    problem = re.search(r"^PROBLEM (.*)$", ran.stdout, re.MULTILINE)
    return problem[1] if problem else "" if ran.returncode == 0 else f"it ends with {ran.returncode}"


def failures(python: Path, home: Path, arguments: list[str]) -> dict[str, str]:
    """Test -> how it failed."""
    report = home / "report.xml"
    report.unlink(missing_ok=True)
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}", "--tb=short", "--maxfail=60")
    ran = run([python, "-m", "pytest", *options, *arguments])
    if not report.exists():
        raise SystemExit(f"no report of the tests:\n{ran.stdout[-2000:]}")
    return {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": failure.get("message", "")
        for case in ET.parse(report).iter("testcase")
        for failure in (*case.iter("failure"), *case.iter("error"))
    }


def run(command: Iterable[object]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "CELLAR_EXECUTOR_RUNTIME": f"python={PYTHON}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PATH"] = f"{Path(str(NSJAIL)).parent}:{environment['PATH']}"
    words = [*ALONE, *map(str, command)]
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, output)


# --- what it comes to ---------------------------------------------------------------------------

ANSWER = re.compile(r"""result=["']+(E[A-Z]+)""")
LEFT = "still ['process"


def succeeded(finding: Finding) -> list[str]:
    return [short(test) for test, said in finding.red.items() if not ANSWER.search(said) and LEFT not in said]


def elsewhere(finding: Finding) -> list[str]:
    """Attacks that fail all the same, with the error of another wall."""
    return sorted({found[1] for said in finding.red.values() if (found := ANSWER.search(said))})


def short(test: str) -> str:
    """An attack by its name, other tests by theirs."""
    name = test.rpartition("::")[2]
    attack = re.fullmatch(r"test_attack_is_contained\[(?:warm|strict)-(.*)\]", name)
    return attack[1] if attack else name.removeprefix("test_").partition("[")[0]


def summary(finding: Finding) -> str:
    protection = finding.protection
    server = f"refuses: {finding.refusal}" if finding.refusal else "starts"
    return f"{protection.name} ({protection.tier}): {effect(finding)}; the server {server}"


def effect(finding: Finding) -> str:
    if finding.untried:
        return "no session can be made"
    found = list(dict.fromkeys(succeeded(finding)))
    met = [said for said in finding.red.values() if ANSWER.search(said)]
    left = [said for said in finding.red.values() if LEFT in said]
    parts = (
        [", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")] if found else []
    )
    parts += [f"{len(met)} meet another wall ({', '.join(elsewhere(finding))})"] if met else []
    parts += [f"{len(left)} leave processes behind"] if left else []
    return "; ".join(parts) or "nothing"


def table(findings: Iterable[Finding]) -> str:
    lines = [
        "| without | tier | attacks that then succeed, and other tests that see it | does the server start? |",
        "|---|---|---|---|",
    ]
    for finding in findings:
        server = f"no: {finding.refusal[:120]}" if finding.refusal else "yes"
        lines.append(f"| {finding.protection.name} | {finding.protection.tier} | {effect(finding)} | {server} |")
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
