"""What hostile cells do, as data: the code, and what has to become of it."""

import platform
from dataclasses import dataclass

PRELUDE = """
import ctypes, errno, os, signal, socket, subprocess, sys, threading, time

def attempt(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except OSError as exc:
        return errno.errorcode.get(exc.errno, type(exc).__name__)
    return 'DONE'

def syscall(number, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *args) >= 0:
        return 'DONE'
    return errno.errorcode[ctypes.get_errno()]

def forge(payload, size=None):
    os.write(3, (len(payload) if size is None else size).to_bytes(4, 'big') + payload)
"""
ENVIRONMENT = "{'HOME', 'PATH', 'LANG', 'LC_CTYPE', 'MKL_NUM_THREADS', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'}"


@dataclass(frozen=True, slots=True)
class Attack:
    name: str
    code: str
    result: str | None = None
    """What the cell must evaluate to; None for nothing or for what does not matter."""
    statuses: tuple[str, ...] = ("ok",)
    error: str | None = None
    """Type of the exception that must come out."""
    survives: bool | None = True
    """Whether the session itself goes on with its state; None where either is right."""
    truncated: bool = False
    timeout_s: float = 5.0


def refused(name: str, code: str, *codes: str) -> Attack:
    """An attempt that must fail with one of these errors and do no other harm."""
    return Attack(name, f"{code} in {codes or ('EPERM',)!r}", result="True")


def raises(name: str, code: str, error: str) -> Attack:
    return Attack(name, code, statuses=("error",), error=error)


def times_out(name: str, code: str, *, survives: bool = True, truncated: bool = False) -> Attack:
    return Attack(name, code, statuses=("timeout",), survives=survives, truncated=truncated, timeout_s=0.4)


def dies(name: str, code: str, status: str = "killed") -> Attack:
    return Attack(name, code, statuses=(status,), survives=False)


FILES = [
    refused("read-shadow", "attempt(open, '/etc/shadow')", "ENOENT"),
    refused("read-secret-of-the-host", "attempt(open, {secret!r})", "ENOENT"),
    refused("read-the-repository", "attempt(open, {repository!r} + '/pyproject.toml')", "ENOENT"),
    refused("list-root-home", "attempt(os.listdir, '/root/.ssh')", "ENOENT", "EACCES"),
    refused("list-proc", "attempt(os.listdir, '/proc/1')", "ENOENT"),
    refused("list-sys", "attempt(os.listdir, '/sys/fs')", "ENOENT"),
    Attack("environment", f"set(os.environ) - {ENVIRONMENT}", result="set()"),
    Attack("inherited-fds", "[fd for fd in range(4, 256) if attempt(os.fstat, fd) == 'DONE']", result="[]"),
]
WRITES = [
    refused("write-standard-library", "attempt(open, os.__file__, 'a')", "EROFS", "EACCES"),
    refused("write-kernel", "attempt(open, '/cellar/kernel_main.py', 'a')", "EROFS", "EACCES"),
    refused("write-root", "attempt(open, '/x', 'w')", "EROFS"),
    refused("write-system", "attempt(open, '/usr/lib/x', 'w')", "EROFS", "EACCES"),
    refused("write-passwd", "attempt(open, '/etc/passwd', 'w')", "EROFS"),
    refused("replace-shell", "attempt(os.rename, '/home/cell', '/bin/sh')", "EROFS", "EXDEV", "EBUSY", "ENOTDIR"),
    refused("make-device", "attempt(os.mknod, 'disk', 0o60600, os.makedev(8, 0))"),
    refused("open-memory-device", "attempt(open, '/dev/mem', 'rb')", "ENOENT"),
    refused("become-root", "attempt(os.setuid, 0)"),
    refused("give-file-to-root", "attempt(os.chown, open('f', 'w').name, 0, 0)", "EPERM", "EINVAL"),
]
NETWORK = [
    refused("tcp", "attempt(socket.create_connection, ('127.0.0.1', 22), 1)"),
    refused("tcp6", "attempt(socket.socket, socket.AF_INET6)"),
    refused("udp", "attempt(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)"),
    refused("raw", "attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)"),
    refused("unix-and-abstract", "attempt(socket.socket, socket.AF_UNIX)"),
    refused("netlink", "attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)"),
    refused("packet", "attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)"),
    refused("vsock", "attempt(socket.socket, socket.AF_VSOCK)"),
    refused("kernel-crypto", "attempt(socket.socket, 38, socket.SOCK_SEQPACKET)"),
    refused("pair-of-another-family", "attempt(socket.socketpair, socket.AF_INET)"),
    raises("dns", "socket.getaddrinfo('localhost', 80)", "gaierror"),
]
SLEEPERS = "for _ in range(1000):\n if not os.fork(): time.sleep(99)"
THREADS = "for _ in range(1000): threading.Thread(target=time.sleep, args=(99,), daemon=True).start()"
PROCESSES = [
    Attack("fork-bomb", "while True: os.fork()", statuses=("error", "timeout"), survives=None, timeout_s=1),
    raises("fork-bomb-of-sleepers", SLEEPERS, "BlockingIOError"),
    raises("thread-bomb", THREADS, "RuntimeError"),
    refused("kill-everyone", "attempt(os.kill, -1, signal.SIGKILL)", "ESRCH"),
    Attack("kill-every-pid", "[p for p in range(2, 40000) if attempt(os.kill, p, 0) != 'ESRCH']", result="[]"),
    Attack("kill-parent", "os.kill(os.getppid(), signal.SIGKILL)", statuses=("ok", "killed"), survives=None),
    Attack("kill-self", "os.kill(os.getpid(), signal.SIGTERM)", statuses=("ok", "killed"), survives=None),
    Attack("stop-self", "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(0.01); 1", result="1"),
    Attack("daemon", "if not os.fork():\n os.setsid()\n if not os.fork():\n  while True: time.sleep(1)"),
    raises(
        "raise-process-limit", "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))", "ValueError"
    ),
]
SHARED_GIGABYTE = "import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor i in range(0, 1 << 30, 4096): m[i] = 1"
HUNGRY_CHILDREN = "for _ in range(8):\n if not os.fork():\n  x = b'x' * (90 << 20); time.sleep(99)\ntime.sleep(1)"
MEMORY = [
    raises("allocation-of-10-gb", "x = bytearray(10**10)", "MemoryError"),
    raises("list-that-grows", "l = []\nwhile True: l.append(bytes(1 << 20))", "MemoryError"),
    raises("raise-memory-limit", "import resource; resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))", "ValueError"),
    dies("shared-memory", SHARED_GIGABYTE, "oom"),
    Attack("children-that-grow", HUNGRY_CHILDREN, statuses=("ok", "oom"), survives=None),
    refused("file-without-name", "attempt(os.memfd_create, 'x')"),
]
CPU = [
    times_out("endless-loop", "while True: pass"),
    times_out("endless-sleep", "time.sleep(1e6)"),
    times_out("endless-regex", "import re; re.match('(a+)+b', 'a' * 50)"),
    times_out("endless-c-code", "sum(range(10**12))", survives=False),
    times_out("endless-repr", "class R:\n def __repr__(self):\n  while True: pass\nR()"),
    times_out("endless-message", "class E(Exception):\n def __str__(self):\n  while True: pass\nraise E"),
    Attack("busy-children", "for _ in range(10):\n if not os.fork():\n  while True: pass"),
    times_out("interrupt-ignored", "signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", survives=False),
    times_out(
        "interrupt-blocked",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\nwhile True: pass",
        survives=False,
    ),
    times_out("interrupt-swallowed", "while True:\n try: time.sleep(9)\n except BaseException: pass", survives=False),
]
FILL = "for i in range(99): open(f'{}/f{{i}}', 'wb').write(bytes(1 << 20))"
DISK = [
    raises("one-long-file", "with open('f', 'wb') as f:\n while True: f.write(bytes(1 << 20))", "OSError"),
    raises("many-files", FILL.format("."), "OSError"),
    raises("fill-tmp", FILL.format("/tmp"), "OSError"),
    raises("fill-shared-memory", FILL.format("/dev/shm"), "OSError"),
    raises("many-empty-files", "for i in range(10**5): open(f'f{i}', 'wb').close()", "OSError"),
    raises("deep-folders", "for _ in range(10**5): os.mkdir('d'); os.chdir('d')", "OSError"),
    refused("sparse-petabyte", "attempt(os.truncate, open('f', 'w').name, 1 << 50)", "EFBIG"),
    raises("all-fds", "l = []\nwhile True: l.append(os.dup(1))", "OSError"),
]
SHELL_FLOOD = "['sh', '-c', 'while :; do echo aaaaaaaaaaaaaaaa; done']"
OUTPUT = [
    times_out("stdout-flood", "while True: print('x' * 1000)", truncated=True),
    times_out("stderr-flood", "while True: print('x' * 1000, file=sys.stderr)", truncated=True),
    times_out("flood-from-a-child", f"subprocess.run({SHELL_FLOOD})", truncated=True),
    Attack("flood-left-behind", f"p = subprocess.Popen({SHELL_FLOOD}); time.sleep(0.05)"),
    Attack(
        "flood-by-a-thread",
        "def loud():\n while True: print('LATE')\nthreading.Thread(target=loud, daemon=True).start()",
    ),
    Attack("bytes-of-all-kinds", "os.write(1, bytes(range(256)) * 4)", result="1024"),
    Attack("long-result", "'x' * 10**7"),
    raises("long-message", "raise ValueError('x' * 10**7)", "ValueError"),
    Attack("surrogates", "print('\\ud800'); '\\ud800'", result="'\\ud800'"),
    Attack("stdout-closed", "sys.stdout.close()"),
]
GUESSED_REPLY = """forge(b'{"nonce": "0", "status": "ok", "result": null, "error": null}'); time.sleep(9)"""
STOLEN_REPLY = """
import json
frame = sys._getframe()
while 'request' not in frame.f_locals: frame = frame.f_back
nonce = frame.f_locals['request']['nonce']
forge(json.dumps(dict(nonce=nonce, status='ok', result='1', error=None)).encode())
"""
CHANNEL = [
    dies("garbage-on-the-channel", "os.write(3, b'garbage!' * 100); time.sleep(9)"),
    dies("close-the-channel", "os.close(3)"),
    dies("frame-of-2-gb", "forge(b'', size=2**31 - 1); time.sleep(9)"),
    dies("endless-frames", "while True: forge(b'x' * 10**6)"),
    dies("reply-with-a-guessed-nonce", GUESSED_REPLY),
    Attack("reply-with-the-stolen-nonce", STOLEN_REPLY, result="1", survives=False),
    times_out("read-the-channel", "os.read(3, 1)"),
    dies(
        "channel-to-a-child",
        "subprocess.Popen(['sh', '-c', 'echo garbage! >&3; sleep 9'], pass_fds=[3]); time.sleep(9)",
    ),
]
INTERPRETER = [
    dies("exit-of-the-process", "os._exit(0)"),
    raises("exit-of-the-cell", "sys.exit(0)", "SystemExit"),
    dies("null-pointer", "ctypes.string_at(0)"),
    Attack(
        "endless-recursion",
        "sys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()",
        statuses=("killed", "error"),
        survives=None,
        timeout_s=20,
    ),
    dies("broken-json", "import json; json.dumps = None"),
    dies("broken-builtins", "import builtins\nbuiltins.len = builtins.isinstance = None"),
    Attack("empty-sys-modules", "sys.modules.clear()", survives=None, statuses=("ok", "error", "killed")),
    Attack("at-exit", "import atexit\natexit.register(lambda: time.sleep(999))"),
    Attack("unfinished-destructor", "class D:\n def __del__(self): time.sleep(999)\nd = D()"),
    Attack("equal-to-everything", "class Same:\n def __eq__(self, other): return True\nSame() == 1", result="True"),
]
FILTERED = {
    "read-clock-of-the-host": 164,
    "kernel-log": 103,
    "pivot-root": 155,
    "chroot": 161,
    "mount": 165,
    "unmount": 166,
    "swap": 167,
    "reboot": 169,
    "host-name": 170,
    "port-permissions": 172,
    "load-module": 175,
    "ptrace": 101,
    "personality": 135,
    "page-residency": 27,
    "shared-memory-segment": 29,
    "kexec": 246,
    "add-key": 248,
    "keyctl": 250,
    "inotify": 294,
    "unshare": 272,
    "performance-counters": 298,
    "name-to-handle": 303,
    "open-by-handle": 304,
    "set-namespace": 308,
    "read-other-memory": 310,
    "compare-processes": 312,
    "own-filter": 317,
    "bpf": 321,
    "user-fault": 323,
    "io-uring": 425,
    "open-tree": 428,
    "move-mount": 429,
    "open-file-system": 430,
    "pidfd": 434,
    "landlock": 444,
}
"""Name -> number of the system call on x86_64."""
CLONE_NEWUSER = 0x10000000
I386_GETPID = r"b'\xb8\x14\x00\x00\x00\xcd\x80\xc3'"
"""mov eax, 20; int 0x80; ret"""
I386_CALL = f"""
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write({I386_GETPID})
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
SYSTEM_CALLS = [
    *(refused(name, f"syscall({number}, 0, 0, 0, 0, 0)") for name, number in FILTERED.items()),
    refused("clone-into-a-user-namespace", f"syscall(56, {CLONE_NEWUSER | 17}, 0, 0, 0, 0)"),
    refused("clone3", "syscall(435, 0, 0)", "ENOSYS"),
    refused("x32", "syscall(0x40000000 + 39)", "EPERM", "ENOSYS"),
    refused("dump-flag", "syscall(157, 4, 1, 0, 0, 0)"),
    refused("type-into-the-terminal", "attempt(__import__('fcntl').ioctl, 0, 0x5412, b'x')"),
    dies("system-call-of-another-architecture", I386_CALL),
]

ATTACKS = [*FILES, *WRITES, *NETWORK, *PROCESSES, *MEMORY, *CPU, *DISK, *OUTPUT, *CHANNEL, *INTERPRETER]
if platform.machine() == "x86_64":
    ATTACKS += SYSTEM_CALLS
