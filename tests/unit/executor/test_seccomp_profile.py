"""deploy/seccomp-executor.json: Docker's own profile for a container without capabilities, and what jails take.

"Docker's own" are the rules without a comment: seccomp/default.json of moby/profiles (02e898b), with its conditions
evaluated for no capability, Linux 4.8 or later, x86-64 and 64-bit ARM. A new default takes a new `DOCKERS_OWN`.
"""

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from cellar_executor.kernels.confine import CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUSER, SESSION_NAMESPACES
from cellar_executor.kernels.seccomp import ENOSYS, EPERM

PROFILE: dict[str, Any] = json.loads((Path(__file__).parents[3] / "deploy/seccomp-executor.json").read_text())
DOCKERS = [rule for rule in PROFILE["syscalls"] if "comment" not in rule]
OURS = [rule for rule in PROFILE["syscalls"] if "comment" in rule]
DOCKERS_OWN = "bfb113eab311d9a081b4b0c15efc8043bcf40a3b8fe19b587c0425a1fbab9661"
ALL_KINDS = SESSION_NAMESPACES | CLONE_NEWPID
CLONE_NEWTIME, CLONE_FILES = 0x80, 0x400
MNT_FORCE, MNT_DETACH = 1, 2
AF_UNIX, AF_INET, AF_INET6, AF_ALG, AF_VSOCK = 1, 2, 10, 38, 40
CLOSED = (
    "acct add_key bpf chroot clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick "
    "get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load "
    "kexec_load keyctl lookup_dcookie mbind migrate_pages mount_setattr move_mount move_pages open_by_handle_at "
    "open_tree perf_event_open pidfd_getfd process_madvise quotactl quotactl_fd reboot request_key set_mempolicy "
    "setdomainname settimeofday swapoff swapon syslog umount userfaultfd vhangup"
)


def answer(call: str, *arguments: int) -> int:
    """The error that the profile gives; 0: allowed. Every rule in it that fits says the same, so the first one does."""
    for rule in PROFILE["syscalls"]:
        if call in rule["names"] and all(fits(condition, arguments) for condition in rule.get("args", ())):
            return 0 if rule["action"] == "SCMP_ACT_ALLOW" else int(rule["errnoRet"])
    return int(PROFILE["defaultErrnoRet"])


def fits(condition: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    argument, value = arguments[condition["index"]], condition["value"]
    match condition["op"]:
        case "SCMP_CMP_EQ":
            return bool(argument == value)
        case "SCMP_CMP_LT":
            return bool(argument < value)
        case "SCMP_CMP_MASKED_EQ":
            return bool(argument & value == condition["valueTwo"])
        case operator:
            raise ValueError(operator)


def test_what_is_not_allowed_is_refused() -> None:
    assert (PROFILE["defaultAction"], PROFILE["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", EPERM)
    assert PROFILE["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    assert {rule["action"] for rule in OURS} == {"SCMP_ACT_ALLOW"}


def test_what_is_not_ours_is_dockers() -> None:
    canonical = json.dumps(DOCKERS, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(canonical).hexdigest() == DOCKERS_OWN


def test_ours_are_these_and_no_other() -> None:
    assert [rule["names"] for rule in OURS] == [
        ["clone"],
        ["unshare"],
        ["setns"],
        ["mount"],
        ["pivot_root"],
        ["umount2"],
        ["sethostname"],
    ]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("clone", (ALL_KINDS | signal.SIGCHLD,)),
        ("clone", (signal.SIGCHLD,)),
        ("unshare", (SESSION_NAMESPACES,)),
        ("unshare", (CLONE_NEWPID,)),
        ("unshare", (0,)),
        ("setns", (4, CLONE_NEWPID)),
        ("mount", ()),
        ("pivot_root", ()),
        ("umount2", (0, MNT_DETACH)),
        ("sethostname", ()),
    ],
)
def test_jails_can_be_made(call: str, arguments: tuple[int, ...]) -> None:
    assert answer(call, *arguments) == 0


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("clone", (CLONE_NEWUSER | signal.SIGCHLD,)),
        ("clone", (ALL_KINDS & ~CLONE_NEWNET | signal.SIGCHLD,)),
        ("unshare", (CLONE_NEWTIME,)),
        ("unshare", (SESSION_NAMESPACES | CLONE_NEWTIME,)),
        ("unshare", (CLONE_FILES,)),
        ("setns", (4, 0)),
        ("setns", (4, CLONE_NEWUSER)),
        ("setns", (4, CLONE_NEWPID | CLONE_NEWNET)),
        ("umount2", (0, 0)),
        ("umount2", (0, MNT_FORCE)),
    ],
)
def test_and_nothing_else_with_the_same_calls(call: str, arguments: tuple[int, ...]) -> None:
    assert answer(call, *arguments) == EPERM


def test_no_rule_speaks_of_what_reaches_further_into_the_kernel() -> None:
    named = {name for rule in PROFILE["syscalls"] for name in rule["names"]}
    assert named.isdisjoint(CLOSED.split())


def test_clone3_is_absent_so_that_libc_takes_the_clone_that_a_filter_can_read() -> None:
    assert answer("clone3") == ENOSYS


def test_sockets_are_those_of_networks() -> None:
    assert [answer("socket", family) for family in (AF_UNIX, AF_INET, AF_INET6)] == [0, 0, 0]
    assert [answer("socket", family) for family in (AF_ALG, AF_VSOCK)] == [EPERM, EPERM]


def test_it_means_the_same_to_docker_and_to_containerd() -> None:
    """Docker alone evaluates `archMap`, `includes` and `excludes`; to containerd such a rule would hold always."""
    assert set(PROFILE) == {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}
    assert {key for rule in PROFILE["syscalls"] for key in rule} == {"names", "action", "args", "errnoRet", "comment"}
