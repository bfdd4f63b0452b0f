"""What this host allows of what a jail is made of, why not, and the command that mends it."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_SWITCHES = (
    ("user/max_user_namespaces", "0", "user.max_user_namespaces=65536"),
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
)
SYSCTL = Path("/proc/sys")
SECCOMP_PROFILE = "docker run --security-opt seccomp=deploy/seccomp-executor.json IMAGE"
PROBE_TIMEOUT_S = 20.0
_PROBE = """
import ctypes, json, os
from functools import partial

OTHERS = ("NEWNS", "NEWPID", "NEWNET", "NEWIPC", "NEWUTS", "NEWCGROUP")
libc = ctypes.CDLL(None, use_errno=True)
user, group = os.geteuid(), os.getegid()

def mount(source, target, kind, flags):
    if libc.mount(source, target, kind, ctypes.c_ulong(flags), None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def map_ids():
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)

def fresh_proc():
    if pid := os.fork():
        return os.waitpid(pid, 0)[1] == 0
    try:
        mount(b"proc", b"/proc", b"proc", 0)
    except OSError:
        os._exit(1)
    os._exit(0)

STEPS = {
    "call unshare": lambda: os.unshare(0),
    "make a user namespace": lambda: os.unshare(os.CLONE_NEWUSER),
    "map its ids": map_ids,
    **{f"make another namespace ({name})": partial(os.unshare, getattr(os, f"CLONE_{name}")) for name in OTHERS},
    "take its mounts apart": lambda: mount(None, b"/", None, 0x44000),
    "mount a folder": lambda: mount(b"tmpfs", b"/tmp", b"tmpfs", 0),
}
refused = reason = None
for step, take in STEPS.items():
    try:
        take()
    except OSError as exc:
        refused, reason = step, exc.strerror
        break
filtered = refused == "call unshare"
fresh = refused is None and fresh_proc()
print(json.dumps({"refused": refused, "reason": reason, "filtered": filtered, "fresh_proc": fresh}))
"""


@dataclass(frozen=True, slots=True)
class Namespaces:
    """What became of the attempt to make those of a jail, as this user."""

    refused: str | None
    """The first step that was not permitted; None: all were."""
    reason: str | None
    filtered: bool
    """Not even nothing may be unshared: no kernel says so, only a filter of system calls."""
    fresh_proc: bool
    """Whether a /proc of their own can be mounted in them; where parts of the host's are masked it cannot."""


def probe_namespaces() -> Namespaces:
    """Tried in a process of its own, which is gone with them. Raises `OSError` when that one cannot run."""
    tried = subprocess.run(
        [sys.executable, "-I", "-c", _PROBE], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
    )
    if tried.returncode != 0:
        raise OSError(f"the probe did not run: {tried.stderr.decode(errors='replace').strip()}")
    return Namespaces(**json.loads(tried.stdout))


def remedy(sysctl: Path = SYSCTL) -> str:
    """The one thing to do, judged by the switches with which distributions close user namespaces."""
    command = opening_command(sysctl)
    if command is not None:
        instead = "; in a container, better: deploy/apparmor-executor" * ("apparmor" in command)
        return f"User namespaces are switched off on this host: `{command}`{instead}"
    return (
        f"If it was not permitted to make namespaces, as in a container by default: `{SECCOMP_PROFILE}`; "
        "`cellar-executor doctor` says what refuses them"
    )


def opening_command(sysctl: Path = SYSCTL) -> str | None:
    """What opens user namespaces where a switch closes them."""
    for path, closed, opened in _SWITCHES:
        switch = sysctl / path
        if switch.exists() and switch.read_text().strip() == closed:
            return f"sudo sysctl -w {opened}"
    return None
