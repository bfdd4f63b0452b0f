"""What hostile cells do, as data: the code, and what has to become of it."""

import platform
from dataclasses import dataclass

PRELUDE = """
import ctypes, errno, fcntl, json, os, signal, socket, subprocess, sys, threading, time

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

def forge_reply(**fields):
    forge(json.dumps({'error': None, 'leftovers': False, **fields}).encode())
"""
ENVIRONMENT = "{'HOME', 'PATH', 'LANG', 'LC_CTYPE', 'MKL_NUM_THREADS', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'}"


@dataclass(frozen=True, slots=True)
class Attack:
    name: str
    code: str
    results: tuple[str, ...] = ()
    """What the cell may evaluate to; empty for what does not matter."""
    statuses: tuple[str, ...] = ("ok",)
    error: str | None = None
    """Type of the exception that must come out."""
    survives: bool | None = True
    """Whether the session itself goes on with its state; None where either is right."""
    truncated: bool = False
    timeout_s: float = 5.0


def refused(name: str, code: str, *codes: str) -> Attack:
    """An attempt that must fail with one of these errors and do no other harm."""
    return Attack(name, code, results=tuple(map(repr, codes or ("EPERM",))))


def raises(name: str, code: str, error: str) -> Attack:
    return Attack(name, code, statuses=("error",), error=error)


def times_out(name: str, code: str, *, survives: bool | None = True, truncated: bool = False) -> Attack:
    return Attack(name, code, statuses=("timeout",), survives=survives, truncated=truncated, timeout_s=0.4)


def dies(name: str, code: str, status: str = "killed") -> Attack:
    return Attack(name, code, statuses=(status,), survives=False)


LINK_TO_HOST = "os.symlink({secret!r}, 'out'); attempt(open, 'out')"
NOTIFY = "attempt(fcntl.fcntl, os.open('/usr/lib', 0), fcntl.F_NOTIFY, fcntl.DN_ACCESS | fcntl.DN_MULTISHOT)"
FILES = [
    refused("read-shadow", "attempt(open, '/etc/shadow')", "ENOENT"),
    refused("read-secret-of-the-host", "attempt(open, {secret!r})", "ENOENT"),
    refused("read-the-repository", "attempt(open, {repository!r} + '/pyproject.toml')", "ENOENT"),
    refused("list-root-home", "attempt(os.listdir, '/root/.ssh')", "ENOENT", "EACCES"),
    refused("list-proc", "attempt(os.listdir, '/proc/1')", "ENOENT"),
    refused("list-sys", "attempt(os.listdir, '/sys/fs')", "ENOENT"),
    Attack("environment", f"set(os.environ) - {ENVIRONMENT}", results=("set()",)),
    Attack("inherited-fds", "[fd for fd in range(4, 256) if attempt(os.fstat, fd) == 'DONE']", results=("[]",)),
    refused("docker-socket", "attempt(open, '/var/run/docker.sock')", "ENOENT"),
    refused("open-descriptors-by-path", "attempt(os.listdir, '/dev/fd')", "ENOENT"),
    refused("notice-who-opens-files", NOTIFY, "EPERM"),
    refused("lease-on-a-shared-file", "attempt(fcntl.fcntl, os.open(os.__file__, 0), fcntl.F_SETLEASE, 0)", "EPERM"),
    refused("block-devices", "attempt(os.listdir, '/dev/disk')", "ENOENT"),
    refused("climb-out-of-the-root", "attempt(open, '../' * 40 + {secret!r}.lstrip('/'))", "ENOENT"),
    Attack("link-to-the-host", LINK_TO_HOST, results=("'ENOENT'",)),
    refused("temporary-folder-of-the-host", "attempt(os.listdir, {secret_folder!r})", "ENOENT"),
    Attack("users-of-the-host", "open('/etc/passwd').read().count(chr(10))", results=("1",)),
]
OF_THE_HOST = "(os.__file__, '/usr/lib', '/cellar/kernel_main.py', '/bin/sh')"
READ_ONLY = ("EROFS", "EACCES", "EXDEV", "EBUSY")
WRITES = [
    # Whoever owns the host's files could write to them where they are not mounted read-only.
    Attack("mounts", f"[p for p in {OF_THE_HOST} if not os.statvfs(p).f_flag & os.ST_RDONLY]", results=("[]",)),
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
    refused("write-library-of-the-runtime", "attempt(open, __import__('json').__file__, 'r+')", "EROFS", "EACCES"),
    refused("remove-the-kernel", "attempt(os.remove, '/cellar/kernel_main.py')", "EROFS", "EACCES"),
    refused(
        "replace-the-kernel",
        "open('mine.py', 'w').close() or attempt(os.rename, 'mine.py', '/cellar/kernel_main.py')",
        *READ_ONLY,
    ),
    refused("link-into-the-kernels-folder", "attempt(os.symlink, '/tmp', '/cellar/x')", "EROFS", "EACCES"),
    refused("write-into-proc", "attempt(open, '/proc/x', 'w')", "EROFS", "EACCES", "ENOENT"),
    refused("set-user-id-program", "attempt(os.chmod, open('s', 'w').name, 0o4755)", "DONE"),
    refused("file-capability", "attempt(os.setxattr, open('s', 'w').name, 'security.capability', b'x' * 20)"),
    refused("touch-shared-file", "attempt(os.utime, os.__file__)", "EROFS", "EACCES", "EPERM"),
]
ASYNC_CLIENT = "import asyncio\nasync def call(): await asyncio.open_connection('127.0.0.1', 22)\nasyncio.run(call())"
SEND_TO_NAME = "attempt(socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto, b'x', chr(0) + 'abstract')"
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
    refused("bluetooth", "attempt(socket.socket, 31, socket.SOCK_RAW, 1)"),
    refused("tipc", "attempt(socket.socket, 30, socket.SOCK_SEQPACKET)"),
    raises(
        "metadata-service",
        "import urllib.request; urllib.request.urlopen('http://169.254.169.254/', timeout=1)",
        "URLError",
    ),
    raises("connection-of-asyncio", ASYNC_CLIENT, "PermissionError"),
    refused("bind-a-pair", "attempt(socket.socketpair()[0].bind, chr(0) + 'abstract')"),
    refused("listen-on-a-pair", "attempt(socket.socketpair()[0].listen)"),
    refused("connect-a-pair", "attempt(socket.socketpair(type=socket.SOCK_DGRAM)[0].connect, chr(0) + 'abstract')"),
    refused("send-to-an-abstract-name", SEND_TO_NAME, "EPERM", "ECONNREFUSED", "EISCONN"),
    raises("wait-for-a-connection", "socket.socketpair()[0].accept()", "PermissionError"),
]
SLEEPERS = "for _ in range(1000):\n if not os.fork(): time.sleep(99)"
THREADS = "for _ in range(1000): threading.Thread(target=time.sleep, args=(99,), daemon=True).start()"
PROCESSES = [
    Attack("fork-bomb", "while True: os.fork()", statuses=("error", "timeout"), survives=None, timeout_s=1),
    raises("fork-bomb-of-sleepers", SLEEPERS, "BlockingIOError"),
    raises("thread-bomb", THREADS, "RuntimeError"),
    refused("kill-everyone", "attempt(os.kill, -1, signal.SIGKILL)", "ESRCH"),
    Attack("kill-every-pid", "[p for p in range(2, 40000) if attempt(os.kill, p, 0) != 'ESRCH']", results=("[]",)),
    Attack("kill-parent", "os.kill(os.getppid(), signal.SIGKILL)", statuses=("ok", "killed"), survives=None),
    Attack("kill-self", "os.kill(os.getpid(), signal.SIGTERM)", statuses=("ok", "killed"), survives=None),
    Attack("stop-self", "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(0.01); 1", results=("1",)),
    Attack("daemon", "if not os.fork():\n os.setsid()\n if not os.fork():\n  while True: time.sleep(1)"),
    raises(
        "raise-process-limit", "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))", "ValueError"
    ),
    Attack("number-of-the-parent", "os.getppid() in (0, 1)", results=("True",)),
    refused("signal-a-foreign-group", "attempt(os.killpg, 2, signal.SIGKILL)", "ESRCH"),
    Attack(
        "signal-the-own-group",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(0, signal.SIGTERM); 1",
        results=("1",),
    ),
    refused("raise-priority", "attempt(os.nice, -10)", "EPERM", "EACCES"),
    refused("priority-of-others", "attempt(os.setpriority, os.PRIO_USER, 0, 19)", "EPERM", "EACCES", "ESRCH"),
    refused("real-time-scheduling", "attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(9))"),
    Attack("zombies", "for _ in range(300):\n try:\n  if not os.fork(): os._exit(0)\n except BlockingIOError: break"),
    Attack("orphans", "for _ in range(5):\n if not os.fork():\n  os.fork(); time.sleep(0.01); os._exit(0)"),
    Attack(
        "shell-fork-bomb",
        "subprocess.run(['sh', '-c', 'f() { f | f & }; f'], stderr=-3); 1",
        statuses=("ok", "error", "timeout"),
        survives=None,
    ),
    refused("descriptor-of-a-process", "attempt(os.pidfd_open, 1)"),
]
SHARED_GIGABYTE = "import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor i in range(0, 1 << 30, 4096): m[i] = 1"
HUNGRY_CHILDREN = "for _ in range(8):\n if not os.fork():\n  x = b'x' * (90 << 20); time.sleep(99)\ntime.sleep(1)"
FULL_PIPES = """
for _ in range(100):
    r, w = os.pipe()
    attempt(fcntl.fcntl, w, 1031, 1 << 20)
    os.set_blocking(w, False)
    os.write(w, bytes(1 << 20))
"""
MEMORY = [
    raises("allocation-of-10-gb", "x = bytearray(10**10)", "MemoryError"),
    raises("list-that-grows", "l = []\nwhile True: l.append(bytes(1 << 20))", "MemoryError"),
    raises("raise-memory-limit", "import resource; resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))", "ValueError"),
    dies("shared-memory", SHARED_GIGABYTE, "oom"),
    Attack("children-that-grow", HUNGRY_CHILDREN, statuses=("ok", "oom"), survives=None),
    refused("file-without-name", "attempt(os.memfd_create, 'x')"),
    raises("text-of-100-gb", "'x' * 10**11", "MemoryError"),
    raises("number-without-end", "1 << 10**12", "MemoryError"),
    raises("dictionary-that-grows", "d = {}\nwhile True: d[len(d)] = bytes(1 << 16)", "MemoryError"),
    raises("array-of-numpy", "import numpy; numpy.ones(10**9)", "MemoryError"),
    raises(
        "many-mappings",
        "import mmap\nl = []\nwhile True: l.append(mmap.mmap(-1, 1 << 24, mmap.MAP_PRIVATE))",
        "OSError",
    ),
    Attack("locked-memory", "ctypes.CDLL(None).mlock(ctypes.create_string_buffer(1 << 20), 1 << 20)", results=("-1",)),
    Attack("full-pipes", FULL_PIPES, statuses=("ok", "error", "oom"), survives=None),
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
    times_out("endless-import", "open('slow.py', 'w').write('while True: pass'); import slow"),
    times_out("endless-comparison", "class C:\n def __eq__(s, o):\n  while True: pass\nC() == 1"),
    times_out("endless-power", "9 ** 9 ** 9", survives=None),
    times_out(
        "endless-compilation",
        "compile('(' * 90 + '1' + ')' * 90, 'x', 'eval'); [0] * 1 and (lambda: [None for _ in iter(int, 1)])()",
    ),
    times_out(
        "interrupt-handler-of-its-own",
        "signal.signal(signal.SIGINT, lambda *a: None)\nwhile True: pass",
        survives=False,
    ),
    times_out("finally-without-end", "try:\n while True: time.sleep(9)\nfinally:\n while True: pass", survives=False),
    times_out("stopped-by-itself", "import ctypes\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: time.sleep(1)"),
    times_out("wait-for-a-lock", "l = threading.Lock(); l.acquire(); l.acquire()"),
    times_out("wait-for-a-child", "p = subprocess.Popen(['sh', '-c', 'while :; do :; done']); p.wait()"),
    times_out("thread-that-never-joins", "t = threading.Thread(target=time.sleep, args=(99,)); t.start(); t.join()"),
]
FILL = "for i in range(99): open(f'{}/f{{i}}', 'wb').write(bytes(1 << 20))"
RAISE_NOFILE = """
import resource
try: resource.setrlimit(resource.RLIMIT_NOFILE, (9999, 9999)); r = 'DONE'
except ValueError: r = 'ValueError'
r"""
IN_FLIGHT = """
pairs = []
for _ in range(50):
    a, b = socket.socketpair()
    pairs.append((a, b))
    for _ in range(100): socket.send_fds(a, [b'x'], [0] * 250)
"""
DISK = [
    raises("one-long-file", "with open('f', 'wb') as f:\n while True: f.write(bytes(1 << 20))", "OSError"),
    raises("many-files", FILL.format("."), "OSError"),
    raises("fill-tmp", FILL.format("/tmp"), "OSError"),
    raises("fill-shared-memory", FILL.format("/dev/shm"), "OSError"),
    raises("many-empty-files", "for i in range(10**5): open(f'f{i}', 'wb').close()", "OSError"),
    raises("deep-folders", "for _ in range(10**5): os.mkdir('d'); os.chdir('d')", "OSError"),
    refused("sparse-petabyte", "attempt(os.truncate, open('f', 'w').name, 1 << 50)", "EFBIG"),
    raises("all-fds", "l = []\nwhile True: l.append(os.dup(1))", "OSError"),
    raises("one-name-too-long", "open('x' * 300, 'w')", "OSError"),
    Attack("links-in-a-circle", "os.symlink('b', 'a'); os.symlink('a', 'b'); attempt(open, 'a')", results=("'ELOOP'",)),
    raises("many-links", "open('f', 'w').close()\nfor i in range(10**5): os.link('f', f'l{i}')", "OSError"),
    refused(
        "allocate-a-gigabyte",
        "attempt(os.posix_fallocate, os.open('f', os.O_CREAT | os.O_RDWR), 0, 1 << 30)",
        "EFBIG",
        "ENOSPC",
    ),
    raises(
        "deleted-but-open",
        "l = []\nwhile True:\n f = open('f', 'wb', 0); os.remove('f'); f.write(bytes(1 << 20)); l.append(f)",
        "OSError",
    ),
    raises("all-pipes", "l = []\nwhile True: l.append(os.pipe())", "OSError"),
    refused("raise-the-limit-of-open-files", RAISE_NOFILE, "ValueError"),
    Attack("descriptors-in-flight", IN_FLIGHT, statuses=("ok", "error"), survives=True),
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
    Attack("bytes-of-all-kinds", "os.write(1, bytes(range(256)) * 4)", results=("1024",)),
    Attack("long-result", "'x' * 10**7"),
    raises("long-message", "raise ValueError('x' * 10**7)", "ValueError"),
    Attack("surrogates", "print('\\ud800'); '\\ud800'", results=("'\\ud800'",)),
    Attack("stdout-closed", "sys.stdout.close()"),
    Attack("stdout-descriptor-closed", "os.close(1); os.close(2)"),
    Attack("stdout-is-nothing", "sys.stdout = sys.stderr = None"),
    Attack("stdout-that-fails", "class S:\n def __getattr__(s, n): raise OSError\nsys.stdout = sys.stderr = S()"),
    Attack("stdout-into-the-channel", "os.dup2(3, 1); os.write(1, b'x' * 64)", statuses=("killed",), survives=False),
    Attack(
        "no-waiting-for-stdout",
        "os.set_blocking(1, False)\nfor _ in range(200): attempt(os.write, 1, b'x' * 65536)",
        survives=None,
        statuses=("ok", "error"),
    ),
    raises("read-own-output", "os.read(1, 1)", "OSError"),
    Attack("escape-sequences", "print('\\033[2J\\033]0;title\\007')"),
    Attack("long-type-name", "raise type('E' * 10**6, (Exception,), {})", statuses=("error",)),
    Attack("result-that-lies", "class L(str):\n def __len__(s): return 1\nL('x' * 10**6)"),
]
GUESSED_REPLY = "forge_reply(nonce='0', status='ok', result=None); time.sleep(9)"
STOLEN_NONCE = """
frame = sys._getframe()
while 'request' not in frame.f_locals: frame = frame.f_back
nonce = frame.f_locals['request']['nonce']
"""
STOLEN_REPLY = STOLEN_NONCE + "forge_reply(nonce=nonce, status='ok', result='1')\n"
CHANNEL = [
    dies("garbage-on-the-channel", "os.write(3, b'garbage!' * 100); time.sleep(9)"),
    dies("close-the-channel", "os.close(3)"),
    dies("frame-of-2-gb", "forge(b'', size=2**31 - 1); time.sleep(9)"),
    dies("endless-frames", "while True: forge(b'x' * 10**6)"),
    dies("reply-with-a-guessed-nonce", GUESSED_REPLY),
    Attack("reply-with-the-stolen-nonce", STOLEN_REPLY, results=("1",), survives=False),
    times_out("read-the-channel", "os.read(3, 1)"),
    dies(
        "channel-to-a-child",
        "subprocess.Popen(['sh', '-c', 'echo garbage! >&3; sleep 9'], pass_fds=[3]); time.sleep(9)",
    ),
    dies("ready-again", """forge(b'{"ready": true}'); time.sleep(9)"""),
    dies("frame-without-content", "forge(b''); time.sleep(9)"),
    dies("frame-of-deep-lists", "forge(b'[' * 100_000); time.sleep(9)"),
    dies("frame-of-a-long-number", "forge(b'1' * 100_000); time.sleep(9)"),
    dies("frame-that-is-no-text", "forge(bytes(range(128, 256))); time.sleep(9)"),
    dies("half-a-frame", "os.write(3, b'\\0\\0'); os._exit(0)"),
    dies("shut-the-channel", "socket.socket(fileno=os.dup(3)).shutdown(socket.SHUT_RDWR); time.sleep(9)"),
    Attack("answer-twice", STOLEN_REPLY * 2 + "time.sleep(9)", statuses=("ok", "killed"), survives=False),
    dies(
        "status-of-another-word",
        STOLEN_NONCE + "forge_reply(nonce=nonce, status='timeout', result=None); time.sleep(9)",
    ),
    dies(
        "result-of-another-type",
        STOLEN_NONCE + "forge_reply(nonce=nonce, status='ok', result=[1]); time.sleep(9)",
    ),
    dies(
        "descriptors-for-the-supervisor",
        "c = socket.socket(fileno=os.dup(3))\nfor _ in range(50): socket.send_fds(c, [b'x'], [0] * 100)\ntime.sleep(9)",
    ),
]
REWRITTEN_KERNEL = """
frame = sys._getframe()
while frame.f_back: frame = frame.f_back
for value in list(frame.f_globals.values()):
    if isinstance(value, type):
        for name in list(vars(value)):
            if not name.startswith('__'): setattr(value, name, lambda *a: os._exit(0))
"""
INTERPRETER = [
    dies("exit-of-the-process", "os._exit(0)"),
    raises("exit-of-the-cell", "sys.exit(0)", "SystemExit"),
    dies("null-pointer", "ctypes.string_at(0)"),
    Attack(
        "endless-recursion",
        "sys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()",
        statuses=("killed", "error", "oom", "timeout"),
        survives=None,
        timeout_s=20,
    ),
    dies("broken-json", "import json; json.dumps = None"),
    dies("broken-builtins", "import builtins\nbuiltins.len = builtins.isinstance = None"),
    Attack("empty-sys-modules", "sys.modules.clear()", survives=None, statuses=("ok", "error", "killed")),
    Attack("at-exit", "import atexit\natexit.register(lambda: time.sleep(999))"),
    Attack("unfinished-destructor", "class D:\n def __del__(self): time.sleep(999)\nd = D()"),
    Attack("equal-to-everything", "class Same:\n def __eq__(self, other): return True\nSame() == 1", results=("True",)),
    Attack("rewritten-kernel", REWRITTEN_KERNEL, survives=None, statuses=("ok", "error", "killed")),
    dies("close-everything", "os.closerange(0, 256)"),
    dies("damaged-small-numbers", "ctypes.memset(id(1), 0, 64); 1 + 1"),
    dies("exit-in-a-destructor", "class D:\n def __del__(self): os._exit(0)\nD()\n1"),
    dies("abort", "os.abort()"),
    Attack(
        "segmentation-fault-ignored",
        "signal.signal(signal.SIGSEGV, signal.SIG_IGN); ctypes.string_at(0)",
        statuses=("killed", "timeout"),
        survives=False,
        timeout_s=1,
    ),
    dies(
        "garbage-collector",
        "import gc\nfor o in gc.get_objects():\n if type(o).__name__ == 'Channel': o._socket.close()",
    ),
    times_out("tracing-for-ever", "sys.settrace(lambda *a: time.sleep(99)); sys.setprofile(lambda *a: None)"),
    Attack("tracing-of-threads", "threading.settrace_all_threads(lambda *a: None)"),
    Attack(
        "import-hook",
        "class F:\n def find_spec(*a): raise SystemExit\nsys.meta_path.insert(0, F())",
        statuses=("ok", "killed"),
        survives=None,
    ),
    Attack(
        "import-replaced",
        "import builtins\nbuiltins.__import__ = lambda *a, **k: os._exit(1)",
        statuses=("ok", "killed"),
        survives=None,
    ),
    Attack("exception-hooks", "sys.excepthook = sys.unraisablehook = sys.displayhook = lambda *a: os._exit(1)"),
    Attack(
        "handlers-of-all-signals",
        "def h(*a): raise SystemExit\nfor s in {*signal.Signals} - {9, 19}: signal.signal(s, h)",
    ),
    Attack(
        "alarm-after-the-cell",
        "signal.signal(signal.SIGALRM, lambda *a: os._exit(1)); signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)",
        statuses=("ok", "killed"),
        survives=None,
    ),
    Attack(
        "switch-interval-of-a-day",
        "sys.setswitchinterval(86400); threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()",
        statuses=("ok", "timeout"),
        survives=None,
        timeout_s=1,
    ),
    Attack(
        "no-descriptor-more",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))",
        statuses=("ok", "error"),
        survives=None,
    ),
    Attack(
        "no-memory-more",
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (1, 1))",
        statuses=("ok", "error", "killed"),
        survives=None,
    ),
    Attack("no-file-more", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"),
    Attack(
        "kernels-frames-cleared",
        "f = sys._getframe()\nwhile f.f_back: f = f.f_back\nf.f_globals.clear()",
        statuses=("ok", "error", "killed"),
        survives=None,
    ),
    Attack("folder-removed", "import shutil; os.chdir('/'); attempt(shutil.rmtree, '/home/cell')"),
    Attack("exceptions-that-chain-for-ever", "e = ValueError(); e.__cause__ = e; raise e", statuses=("error",)),
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
    "semaphores": 64,
    "shared-memory-attach": 30,
    "message-queue": 68,
    "posix-message-queue": 240,
    "local-descriptor-table": 154,
    "quotas": 179,
    "accounting": 163,
    "set-time": 227,
    "set-domain-name": 171,
    "write-other-memory": 311,
    "advice-for-another": 440,
    "descriptor-of-another": 438,
    "signal-by-descriptor": 424,
    "memory-file": 319,
    "secret-memory": 447,
    "fanotify": 300,
    "directory-watch-extended": 253,
    "move-pages": 279,
    "memory-policy": 238,
    "new-mount-of-a-tree": 442,
    "file-system-context": 431,
    "io-priority": 251,
    "asynchronous-io": 206,
    "real-time-queue-signal": 129,
    "set-groups": 116,
    "set-capabilities": 126,
    "hang-up-the-terminal": 153,
    "extended-attribute": 188,
    "shared-memory-control": 31,
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
    Attack(
        "x32",
        "assert syscall(0x40000000 + 39) in ('EPERM', 'ENOSYS')",
        statuses=("ok", "killed"),  # a container's own filter kills for it
        survives=None,
    ),
    refused("dump-flag", "syscall(157, 4, 1, 0, 0, 0)"),
    refused("type-into-the-terminal", "attempt(fcntl.ioctl, 0, 0x5412, b'x')"),
    dies("system-call-of-another-architecture", I386_CALL),
]

ATTACKS = [*FILES, *WRITES, *NETWORK, *PROCESSES, *MEMORY, *CPU, *DISK, *OUTPUT, *CHANNEL, *INTERPRETER]
if platform.machine() == "x86_64":
    ATTACKS += SYSTEM_CALLS
