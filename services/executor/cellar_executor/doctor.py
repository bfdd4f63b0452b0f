"""`cellar-executor doctor`: what this host allows, which isolation follows from it, and the command for each gap.

Nothing is guessed where it can be tried: namespaces are made, control groups opened, and at last a jail is started and
attacked, exactly as the server does when it starts.
"""

import asyncio
import errno
import os
import resource
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cellar_client.schemas import Isolation, Tier
from cellar_executor.kernel import IsolationUnavailable, RuntimeConfig, SupervisorConfig
from cellar_executor.kernels import descriptors
from cellar_executor.kernels.cgroups import open_cgroups
from cellar_executor.kernels.host import SECCOMP_PROFILE, SYSCTL, Namespaces, opening_command, probe_namespaces
from cellar_executor.kernels.runtime import inspect_runtime
from cellar_executor.kernels.supervisor import open_supervisor
from cellar_executor.kernels.uids import HOST_UID_BASE

State = Literal["ok", "degraded", "missing"]

UIDS = 65_536
"""Of the host, from `HOST_UID_BASE` on: more than sessions and zygotes use."""
SPARE_NAMESPACES = 100
STATUS = Path("/proc/self/status")
BINARY_TIMEOUT_S = 10.0
UNCONFINED = "unconfined"
"""As AppArmor labels what no profile confines."""
APPARMOR_PROFILE = (
    "sudo apparmor_parser -r deploy/apparmor-executor && docker run --security-opt apparmor=cellar-executor IMAGE"
)
DELEGATE = 'systemd-run --user --scope -p "Delegate=cpu memory pids" cellar-executor serve'
DELEGATE_TO_ROOT = DELEGATE.replace(" --user", "")
WRITABLE_CGROUPS = "docker run --security-opt writable-cgroups=true IMAGE"
SETUP = "make setup"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    state: State
    detail: str
    mend: str | None = None
    """The one command; None where nothing needs one, or nothing helps."""


@dataclass(frozen=True, slots=True)
class Patient:
    """What the server would be started with."""

    runtimes: Mapping[str, RuntimeConfig]
    nsjail: Path | None
    redis: Path | None
    redis_url: str | None
    tier: Tier
    max_sessions: int


@dataclass(slots=True)
class Diagnosis:
    findings: list[Finding] = field(default_factory=list)
    isolation: Isolation | None = None
    """What a server started now would have; None: it would refuse."""

    @property
    def serves(self) -> bool:
        return all(finding.state != "missing" for finding in self.findings)

    @property
    def resources(self) -> str:
        if self.isolation is None:
            return "none: no session would start"
        if self.isolation.cgroup == "none":
            return "rlimits and the watchdog"
        return f"cgroup {self.isolation.cgroup}, and rlimits below it"

    def as_json(self) -> dict[str, Any]:
        return {
            "serves": self.serves,
            "tier": self.isolation.tier if self.isolation else None,
            "resources": self.resources,
            "isolation": self.isolation.model_dump() if self.isolation else None,
            "findings": [asdict(finding) for finding in self.findings],
        }


async def examine(patient: Patient) -> Diagnosis:
    """All checks, in the order in which the server needs what they find."""
    findings = [
        check_kernel(),
        check_nsjail(patient.nsjail),
        check_redis(patient.redis, patient.redis_url),
        *[await check_runtime(name, runtime) for name, runtime in patient.runtimes.items()],
        *check_namespaces(await asyncio.to_thread(probe_namespaces)),
        await check_cgroups(),
        check_uids(),
        check_open_files(patient.max_sessions),
        check_quotas(patient.max_sessions),
    ]
    diagnosis = Diagnosis(findings)
    if diagnosis.serves:
        await try_jails(patient, diagnosis)
    else:
        diagnosis.findings.append(Finding("a real jail", "missing", "not tried before the above is mended"))
    return diagnosis


def show(diagnosis: Diagnosis) -> str:
    return "\n".join(_lines(diagnosis))


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    width = max(len(finding.check) for finding in diagnosis.findings)
    for finding in diagnosis.findings:
        yield f"{finding.state:<8}  {finding.check:<{width}}  {finding.detail}"
        if finding.mend is not None:
            yield f"{'':<8}  {'':<{width}}  mend: {finding.mend}"
    yield ""
    yield f"tier: {diagnosis.isolation.tier if diagnosis.isolation else 'none'}"
    yield f"resources: {diagnosis.resources}"
    yield "The server would start." if diagnosis.serves else "The server would refuse to start."


# --- what is installed --------------------------------------------------------------------------


def check_kernel(actions: Path = SYSCTL / "kernel/seccomp/actions_avail") -> Finding:
    name = "Linux"
    if not actions.exists() or "errno" not in actions.read_text().split():
        return Finding(name, "missing", "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)")
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError as exc:
        return Finding(name, "missing", f"pidfd_open: {exc.strerror} (Linux 5.3 or later)")
    try:
        signal.pidfd_send_signal(pidfd, 0)
        select.select([pidfd], [], [], 0)
    finally:
        os.close(pidfd)
    return Finding(name, "ok", f"{os.uname().release}, with seccomp filters and pidfds")


def check_nsjail(binary: Path | None) -> Finding:
    # Without arguments it starts, says how it is used, and fails: what matters is that it was loaded.
    return _check_binary("nsjail", binary, ["--help"], b"Usage")


def check_redis(binary: Path | None, url: str | None) -> Finding:
    if url is not None:
        return Finding("redis-server", "ok", "not needed: --redis-url is given")
    return _check_binary("redis-server", binary, ["--version"], b"Redis")


def _check_binary(name: str, binary: Path | None, arguments: Sequence[str], expected: bytes) -> Finding:
    if binary is None:
        return Finding(name, "missing", "neither beside this Python nor on PATH", SETUP)
    try:
        ran = subprocess.run([binary, *arguments], capture_output=True, timeout=BINARY_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return Finding(name, "missing", f"{binary} does not run: {exc}", SETUP)
    if expected not in ran.stdout + ran.stderr:
        said = (ran.stderr or ran.stdout).decode(errors="replace").strip().splitlines()
        return Finding(name, "missing", f"{binary} does not run: {said[-1] if said else ran.returncode}", SETUP)
    return Finding(name, "ok", str(binary))


async def check_runtime(name: str, runtime: RuntimeConfig) -> Finding:
    try:
        await inspect_runtime(runtime.python)
    except IsolationUnavailable as exc:
        return Finding(f"runtime {name}", "missing", str(exc), SETUP)
    return Finding(f"runtime {name}", "ok", str(runtime.python))


# --- what the host allows -----------------------------------------------------------------------


def check_namespaces(
    tried: Namespaces, sysctl: Path = SYSCTL, status: Path = STATUS, label: Path = Path("/proc/self/attr/current")
) -> list[Finding]:
    name, proc = "user namespaces", "a fresh /proc"
    if tried.refused is not None:
        cause, mend = _what_refuses(tried, sysctl, status, label)
        return [Finding(name, "missing", f"not permitted to {tried.refused}: {tried.reason}; {cause}", mend)]
    allowed = Finding(name, "ok", "user, mount, pid, net, ipc, uts and cgroup namespaces can be made")
    if tried.fresh_proc:
        return [allowed, Finding(proc, "ok", "zygotes get their own (sessions get none)")]
    masked = "parts of /proc are masked: zygotes see this container's (sessions see none); not worth unmasking them"
    return [allowed, Finding(proc, "degraded", masked)]


def _what_refuses(tried: Namespaces, sysctl: Path, status: Path, label: Path) -> tuple[str, str | None]:
    """Filters of system calls say EPERM; AppArmor says EACCES, or EPERM where it took a namespace's capabilities."""
    command, profile, contained = opening_command(sysctl), apparmor_profile(label), is_filtered(status)
    restricted = tried.reason == os.strerror(errno.EACCES) or (command is not None and "apparmor" in command)
    confined = profile is not None and (contained or profile != UNCONFINED)
    if confined and restricted and not tried.filtered:
        return f"AppArmor ({profile})", APPARMOR_PROFILE
    if tried.filtered or (contained and command is None):
        return "a seccomp profile, as in a container", SECCOMP_PROFILE
    if command is not None:
        return "a switch of this host closes them", command
    return "no switch that is known here closes them (a chroot, an LSM?)", None


def is_filtered(status: Path) -> bool:
    """Whether this very process is under a seccomp filter, as in a container."""
    return any(line.split() == ["Seccomp:", "2"] for line in status.read_text().splitlines())


def apparmor_profile(label: Path) -> str | None:
    """As `docker-default (enforce)`, or `unconfined`; None where AppArmor is not in force."""
    try:
        text = label.read_text().strip()
    except OSError:  # no security module answers
        return None
    return text if text == UNCONFINED or text.endswith("(enforce)") else None


async def check_cgroups() -> Finding:
    tree = open_cgroups()
    if tree is not None:
        await tree.remove()
    return describe_cgroups(tree.version.name if tree else None)


def describe_cgroups(
    version: str | None, user: int | None = None, mounts: Path = Path("/proc/self/mounts"), status: Path = STATUS
) -> Finding:
    name = "control groups"
    if version is not None:
        return Finding(name, "ok", f"{version}: memory, processes and CPU of each session")
    fallback = "rlimits bound each process, and a watchdog a session's memory"
    kinds = {kind: options.split(",") for _, _, kind, options, *_ in map(str.split, mounts.read_text().splitlines())}
    if is_filtered(status):
        mend = WRITABLE_CGROUPS if "cgroup2" in kinds else None
        return Finding(name, "degraded", f"not writable in this container: {fallback}", mend)
    if (os.geteuid() if user is None else user) != 0:
        mend = DELEGATE if "cgroup2" in kinds else "sudo cellar-executor serve"
        return Finding(name, "degraded", f"none is delegated to this user: {fallback}", mend)
    if "rw" in kinds.get("cgroup2", ()):
        return Finding(name, "degraded", f"no controllers where this was started: {fallback}", DELEGATE_TO_ROOT)
    if kinds.keys() & {"cgroup", "cgroup2"}:
        return Finding(name, "degraded", f"not writable here: {fallback}", WRITABLE_CGROUPS)
    return Finding(name, "degraded", f"not mounted: {fallback}", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")


def check_uids(user: int | None = None, uid_map: Path = Path("/proc/self/uid_map")) -> Finding:
    name = "host uids"
    if (os.geteuid() if user is None else user) != 0:
        return Finding(name, "ok", "an ordinary user: sessions share its uid, each in a user namespace of its own")
    last = HOST_UID_BASE + UIDS - 1
    ranges = [tuple(map(int, line.split())) for line in uid_map.read_text().splitlines()]
    if any(inside <= HOST_UID_BASE and last < inside + count for inside, _, count in ranges):
        return Finding(name, "ok", f"each session has one of its own, from {HOST_UID_BASE} up")
    missing = f"root, but of a user namespace without the uids from {HOST_UID_BASE} to {last}"
    return Finding(name, "missing", missing, "setpriv --reuid 1000 --regid 1000 --clear-groups cellar-executor serve")


def check_open_files(max_sessions: int, hard: int | None = None) -> Finding:
    name = "open files"
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if hard is None else hard
    needed = descriptors.needed_for(max_sessions)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return Finding(name, "ok", f"{limit} allowed, {needed} are enough for {max_sessions} sessions")
    return Finding(
        name, "missing", f"{limit} allowed, and {max_sessions} sessions may take {needed}", f"ulimit -n {needed}"
    )


def check_quotas(max_sessions: int, sysctl: Path = SYSCTL) -> Finding:
    """How many namespaces of each kind this user may have; each session takes one, and zygotes and tests a few."""
    name, needed = "namespace quotas", SPARE_NAMESPACES + max_sessions
    allowed = {switch.name: int(switch.read_text()) for switch in sorted(sysctl.glob("user/max_*_namespaces"))}
    scarce = [switch for switch, count in allowed.items() if count < needed]
    if not scarce:
        return Finding(name, "ok", f"{needed} of each kind are allowed")
    mend = "sudo sysctl -w " + " ".join(f"user.{switch}={needed}" for switch in scarce)
    least = min(allowed[switch] for switch in scarce)
    return Finding(name, "degraded", f"{least} allowed: not enough for {max_sessions} sessions", mend)


# --- the proof ----------------------------------------------------------------------------------


async def try_jails(patient: Patient, diagnosis: Diagnosis) -> None:
    """The tier that is wanted, and where a warm one does not hold, whether a strict one does."""
    name = "a real jail"
    try:
        diagnosis.isolation = await _try_jail(patient, patient.tier)
    except (IsolationUnavailable, OSError) as exc:
        mend = await _strict_instead(patient)
        diagnosis.findings.append(Finding(name, "missing", f"{patient.tier}: {exc}", mend))
    else:
        diagnosis.findings.append(Finding(name, "ok", f"{patient.tier}: started, attacked from inside, and held"))


async def _try_jail(patient: Patient, tier: Tier) -> Isolation:
    config = SupervisorConfig(runtimes=patient.runtimes, nsjail=patient.nsjail, tier=tier, zygotes=1, ready_sessions=0)
    supervisor = await open_supervisor(config)
    try:
        return supervisor.isolation
    finally:
        await supervisor.close()


async def _strict_instead(patient: Patient) -> str | None:
    if patient.tier == "strict":
        return None
    try:
        await _try_jail(patient, "strict")
    except (IsolationUnavailable, OSError):
        return None
    return "cellar-executor serve --isolation strict"
