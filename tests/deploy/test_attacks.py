"""tests/sandbox inside the executor's container, with the options and the image that docker-compose.yml deploys."""

import os
import re
from collections.abc import Iterator

import pytest

from tests.deploy.deployment import Deployment
from tests.sandbox.attacks import ATTACKS

TIERS = ("strict", "warm")
SKIPPED = {
    "an ordinary user has one uid for all",
    "no control group is delegated to this user",
    "it has none",  # the strict tier, of zygotes
}
"""Why a test has nothing to try in there; no attack is among them."""
ALONE = "tests/sandbox/test_many_sessions.py"


@pytest.fixture(scope="module")
def attacked(engine: None) -> Iterator[Deployment]:
    deployment = Deployment("cellar-attacks")
    deployment.environment["COMPOSE_FILE"] = os.pathsep.join(("docker-compose.yml", "tests/deploy/attacks.yml"))
    deployment.compose("build", "redis", "executor", timeout_s=1800)
    try:
        yield deployment
    finally:
        deployment.compose("down", "--volumes", "--timeout", "5")


def test_every_attack_fails_in_the_container_as_it_is_deployed(attacked: Deployment) -> None:
    report = run(attacked, "-n", "2", "--dist", "loadfile", "-rps", "tests/sandbox", f"--ignore={ALONE}")
    tried = re.findall(r"^PASSED .*test_attack_is_contained\[(.*)\]$", report, re.MULTILINE)
    assert sorted(tried) == sorted(f"{tier}-{attack.name}" for tier in TIERS for attack in ATTACKS)
    skipped = re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", report, re.MULTILINE)
    assert set(skipped) <= SKIPPED


def test_a_thousand_sessions_live_and_leave_nothing_there(attacked: Deployment) -> None:
    assert "1 passed" in run(attacked, ALONE)


def run(deployment: Deployment, *arguments: str) -> str:
    """pytest in the container; raises `CalledProcessError` with its report unless all passed."""
    return deployment.compose("run", "--rm", "-T", "executor", *arguments, timeout_s=1800)
