"""One policy, two renderings: the BPF program is run in an interpreter, and both are loaded and asked for real."""

import json
import platform
import re
import struct
import subprocess
from pathlib import Path

import pytest

from cellar_executor.kernels import confine, syscalls
from cellar_executor.kernels.seccomp import (
    ABSENT,
    ALLOW,
    AUDIT_ARCH,
    EPERM,
    ERRNO,
    KILL,
    NAMESPACE_FLAGS,
    NUMBERS,
    Condition,
    bpf_program,
    kafel_policy,
    policy,
)
from tests.unit.executor.zygote_process import RUNTIME

ENOSYS = 38
DENIED, MISSING = ERRNO | EPERM, ERRNO | ENOSYS
NSJAIL = RUNTIME.parents[3] / "bin/nsjail"
ARCHITECTURES = ("x86_64", "aarch64")
X32_BIT = 0x40000000
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
HEADER_NAMES = {
    "newfstat": "fstat",
    "newstat": "stat",
    "newlstat": "lstat",
    "newuname": "uname",
    "sendfile64": "sendfile",
}
"""Where the kernel's own name is not that of its header."""


def answer(program: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel would make of a call: the few instructions that the program has, interpreted."""
    code: int
    operand: int
    data = struct.pack("<iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("<HBBI", program))
    position, accumulator = 0, 0
    while True:
        code, yes, no, operand = instructions[position]
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x15:
                position += yes if accumulator == operand else no
            case 0x35:
                position += yes if accumulator >= operand else no
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"instruction {code:#x}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_gets_the_answer_of_the_policy(architecture: str) -> None:
    program, numbers, rules = bpf_program(architecture), NUMBERS[architecture], policy(architecture)
    expected = {numbers[name]: ALLOW for name in rules.allowed} | {numbers[name]: MISSING for name in ABSENT}
    conditional = {numbers[condition.name] for condition in rules.conditional}
    for number in (*range(1024), X32_BIT, X32_BIT | 1, X32_BIT | 59, -1):
        if number not in conditional:
            assert answer(program, AUDIT_ARCH[architecture], number) == expected.get(number, DENIED), number


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_conditions_look_at_the_right_bits_of_the_right_argument(architecture: str) -> None:
    program = bpf_program(architecture)
    for condition in policy(architecture).conditional:
        for value in interesting_values(condition):
            arguments = [0x1234] * 6
            arguments[condition.argument] = value
            got = answer(program, AUDIT_ARCH[architecture], NUMBERS[architecture][condition.name], tuple(arguments))
            assert got == (ALLOW if condition.holds(value) else DENIED), (condition.name, hex(value))


def interesting_values(condition: Condition) -> set[int]:
    words = {0, 0xFFFFFFFF, NAMESPACE_FLAGS, 0x11, 0x1180, 0x61B6, *condition.values}
    words |= {word ^ (1 << bit) for word in condition.values for bit in range(32)}
    return {word | upper << 32 for word in words for upper in (0, 1, 0x80000000, 0xFFFFFFFF)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("foreign", [0x40000003, 0x40000028, 0], ids=["i386", "arm", "unknown"])
def test_another_architectures_convention_kills(architecture: str, foreign: int) -> None:
    assert answer(bpf_program(architecture), foreign, NUMBERS[architecture]["read"]) == KILL


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_numbers_are_those_of_the_kernels_headers(architecture: str) -> None:
    if not HEADERS[architecture].exists():
        pytest.skip("the kernel's headers are not installed")
    defined = re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)\s*$", HEADERS[architecture].read_text(), re.M)
    header = {name: int(number) for name, number in defined}
    if architecture == "aarch64":
        header["newfstatat"] = header["fstatat"]
    for name, number in NUMBERS[architecture].items():
        assert header[name if name in header else HEADER_NAMES[name]] == number, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_there_is_a_number_for_every_name_and_no_other(architecture: str) -> None:
    rules = policy(architecture)
    names = [*rules.allowed, *ABSENT, *(condition.name for condition in rules.conditional)]
    assert sorted(names) == sorted(NUMBERS[architecture])


PROBE = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *map(ctypes.c_long, arguments))
    return ctypes.get_errno() if result == -1 else 0
calls = json.loads(sys.argv[1])
"""
NOT_TRIED = "exit exit_group fork vfork clone pause rt_sigreturn rt_sigsuspend restart_syscall setsid ioctl close_range"
"""They end, stop or change the one who asks."""
PAST_FILTERS = {335, 336}
"""x86's uretprobe and uprobe: Linux asks no filter about them; whoever calls them outside a probe gets SIGILL."""


def probes() -> list[list[int]]:
    """Every number with senseless arguments, and the conditional ones with chosen ones."""
    numbers = syscalls.X86_64 if platform.machine() == "x86_64" else syscalls.AARCH64
    left_out = PAST_FILTERS | {numbers[name] for name in NOT_TRIED.split() if name in numbers}
    senseless = [[number, *[-1] * 6] for number in range(470) if number not in left_out]
    pairs = [[numbers["socketpair"], domain, 1, 0, 0] for domain in (1, 2, 16, 40)]
    terminals = [[numbers["ioctl"], 0, command, 0] for command in (0x5401, 0x5412, 0x541B, 0x5421, 0x5414)]
    options = [[numbers["prctl"], option, 0, 0, 0, 0] for option in (1, 4, 8, 15, 16, 22, 38)]
    nodes = [[numbers["mknodat"], -100, 0, kind << 12] for kind in (1, 2, 6, 8, 12)]
    namespaces = [[numbers["clone"], 1 << bit | 0x10000, 0] for bit in (7, 17, 25, 26, 27, 28, 29, 30)]
    return senseless + pairs + terminals + options + nodes + namespaces


def outcomes(command: list[str], script: str) -> list[int]:
    argv = [*command, str(RUNTIME), "-I", "-c", PROBE + script, json.dumps(probes())]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answers: list[int] = json.loads(done.stdout)
    return answers


LOAD = f"""
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("confine", {confine.__file__!r})
confine = module_from_spec(spec)
spec.loader.exec_module(confine)
program = confine.filter_program(bytes.fromhex({bpf_program(platform.machine()).hex()!r}))
confine.forbid_new_privileges()
confine.filter_system_calls(program)
"""
ASK = "print(json.dumps([call(*wanted) for wanted in calls]))"


@pytest.mark.skipif(not NSJAIL.exists(), reason="nsjail is not installed")
def test_the_kernel_answers_the_same_under_both() -> None:
    filtered = outcomes([], LOAD + ASK)
    jail = [str(NSJAIL), "-Mo", "-Q", "--chroot", "/", "--rlimit_as", "inf", "--seccomp_string", kafel_policy(), "--"]
    # Not in a namespace of its own, or what is allowed would fail for other reasons.
    for name in ("user", "net", "ns", "pid", "ipc", "uts", "cgroup"):
        jail[1:1] = [f"--disable_clone_new{name}"]
    assert {tuple(call): got for call, got in zip(probes(), filtered, strict=True)} == {
        tuple(call): got for call, got in zip(probes(), outcomes(jail, ASK), strict=True)
    }
    assert filtered.count(EPERM) > 200
    assert len(filtered) - filtered.count(EPERM) > 150
