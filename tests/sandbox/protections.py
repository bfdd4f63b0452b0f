"""The protections of a jail, as data: what to change in the executor's code so that exactly one of them is missing."""

from dataclasses import dataclass
from pathlib import Path

from cellar_client.schemas import Tier
from tests.sandbox.attacks import (
    CHANNEL,
    CPU,
    DISK,
    FILES,
    MEMORY,
    NETWORK,
    OUTPUT,
    PROCESSES,
    SYSTEM_CALLS,
    WRITES,
    Attack,
)

Edit = tuple[str, str, str]
"""A file of `cellar_executor/kernels`, a text that is in it once, and what is to be there instead."""
PRIVILEGES = (*FILES, *WRITES, *NETWORK, *PROCESSES, *SYSTEM_CALLS)
RESOURCES = (*MEMORY, *DISK, *PROCESSES)
ON_OTHER_PROCESSES = tuple(attack for attack in PROCESSES if attack.name.startswith(("kill", "number", "signal")))
OUTERMOST_FOLDER = Path(*Path(__file__).parts[:2])


@dataclass(frozen=True, slots=True)
class Protection:
    name: str
    tier: Tier
    edits: tuple[Edit, ...]
    attacks: tuple[Attack, ...] = PRIVILEGES
    """Those that it could matter to."""
    files: tuple[str, ...] = ("test_zygote.py",)
    """Of tests/sandbox, others that could notice."""


# --- how the warm tier loses one: a step by which a clone confines itself ---


def step(call: str, instead: str = "pass") -> Edit:
    return ("zygote_main.py", f"        confine.{call}\n", f"        {instead}\n")


NAMESPACES = tuple(f"CLONE_NEW{name}" for name in ("USER", "NS", "NET", "IPC", "UTS", "CGROUP"))


def shared(name: str) -> Edit:
    kept = " | ".join(namespace for namespace in NAMESPACES if namespace != f"CLONE_NEW{name}")
    return ("confine.py", f"SESSION_NAMESPACES = {' | '.join(NAMESPACES)}", f"SESSION_NAMESPACES = {kept}")


def confine_without(line: str) -> Edit:
    return ("confine.py", line, "")


def no_limit(name: str) -> Edit:
    loop = "        resource.setrlimit(kind, (limit, limit))\n"
    return ("confine.py", loop, f"        if kind != resource.RLIMIT_{name}:\n    {loop}")


SET_HOSTNAME = confine_without('    _checked("sethostname", _sethostname(HOSTNAME, len(HOSTNAME)))\n')
MAPS = (
    confine_without('    _write("/proc/self/setgroups", "deny")\n'),
    confine_without('    _write("/proc/self/uid_map", f"{CELL_ID} {user} 1")\n'),
    confine_without('    _write("/proc/self/gid_map", f"{CELL_ID} {group} 1")\n'),
)
KEEP_UID: Edit = ("zygote_main.py", "        if number:\n            confine.become(number)\n", "")
FOLDERS = step("mount_folders(self._workdir, configuration, self._kept)", "os.chdir(self._workdir)")
OPEN_FOLDER: Edit = ("jail.py", 'writable(WORKDIR, disk_mb, mode="0700")', 'writable(WORKDIR, disk_mb, mode="0777")')
GAINFUL_ZYGOTE: Edit = (
    "zygote_jail.py",
    "        keep_caps=True,\n",
    "        keep_caps=True,\n        disable_no_new_privs=True,\n",
)
KEPT_BOUNDING_SET: tuple[Edit, ...] = (
    ("confine.py", "    while _prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:\n", "    while False:\n"),
    ("confine.py", '        _checked("bounding set", -1)\n', "        pass\n"),
)
NO_TMPFS_SIZE: Edit = (
    "confine.py",
    "f\"size={size_mb}m,nr_inodes={size_mb * configuration['inodes_per_mb']},mode={mode}\"",
    'f"mode={mode}"',
)
VISIBLE_PROC = confine_without(
    '    _do_mount("proc", "/proc", "tmpfs", flags, "size=4k,nr_inodes=1,mode=0555")\n',
)

# --- how the strict tier does: fields of nsjail's configuration ---


def nsjail(fields: str) -> Edit:
    return ("jail.py", "        iface_no_lo=True,\n", f"        iface_no_lo=True,\n        {fields},\n")


NO_FILTER: Edit = ("jail.py", "        seccomp_string=[kafel_policy()],\n", "")
NO_DATA_LIMIT: Edit = ("strict.py", "data_bytes=data_bytes(limits),", "data_bytes=None,")
MOUNTS = "        mount=session_mounts(jail),\n"
PROC = "        mount=[*session_mounts(jail), MountPt(dst='/proc', fstype='proc', rw=True, is_dir=True)],\n"

# --- how both do ---

OWN_UIDS = """        first = self._uids.take(count)
        held.callback(self._uids.give_back, first)
        return first
"""
SYSTEM = "        *(system_library(path) for path in SYSTEM_LIBRARIES if path.exists()),\n"
HOST = ("/etc", "/var", "/sys", str(OUTERMOST_FOLDER))
ROOT_OF_THE_HOST: Edit = (
    "jail.py",
    SYSTEM,
    SYSTEM + f"        *(read_only(Path(path), Path(path)) for path in {HOST}),\n",
)
BOUND = "dst=str(destination), is_bind=True, nosuid=True"
WRITABLE_ROOT: Edit = ("jail.py", BOUND, f"{BOUND}, rw=True")
NO_CONTROL_GROUP: Edit = (
    "supervisor.py",
    "            cgroups=open_cgroups() if self._isolated else None,\n",
    "            cgroups=None,\n",
)
SWAP: Edit = ("cgroups.py", "file, value = self.version.without_swap(limits)", 'file, value = "none", ""')


def no_controller(name: str) -> Edit:
    loop = "            for controller, files in self.version.settings(limits, processes).items():\n"
    return ("cgroups.py", loop, f'{loop}                if controller == "{name}":\n                    continue\n')


PROTECTIONS = [
    Protection(
        "pid namespace",
        "warm",
        (("zygote_main.py", "        confine.unshare(confine.CLONE_NEWPID)\n", ""),),
        attacks=ON_OTHER_PROCESSES,
    ),
    Protection("pid namespace", "strict", (nsjail("clone_newpid=False"),), attacks=ON_OTHER_PROCESSES),
    Protection("mount namespace", "warm", (shared("NS"), FOLDERS, OPEN_FOLDER)),
    Protection("a root of its own", "strict", (ROOT_OF_THE_HOST,)),
    Protection("a root of its own", "warm", (ROOT_OF_THE_HOST,)),
    Protection("read-only root", "strict", (WRITABLE_ROOT,)),
    Protection("read-only root", "warm", (WRITABLE_ROOT,)),
    Protection("hidden /proc", "strict", (("jail.py", MOUNTS, PROC),)),
    Protection("hidden /proc", "warm", (VISIBLE_PROC,)),
    Protection(
        "size of its folders",
        "strict",
        (
            (
                "jail.py",
                'options = f"size={size_mb}m,nr_inodes={size_mb * INODES_PER_MB},mode={mode}"',
                'options = f"mode={mode}"',
            ),
        ),
        attacks=RESOURCES,
        files=("test_limits.py",),
    ),
    Protection("size of its folders", "warm", (NO_TMPFS_SIZE,), attacks=RESOURCES, files=("test_limits.py",)),
    Protection("network namespace", "strict", (nsjail("clone_newnet=False"),)),
    Protection("network namespace", "warm", (shared("NET"),)),
    Protection("network namespace and filter", "strict", (nsjail("clone_newnet=False"), NO_FILTER)),
    Protection("ipc namespace", "strict", (nsjail("clone_newipc=False"),)),
    Protection("ipc namespace", "warm", (shared("IPC"),)),
    Protection("uts namespace", "strict", (nsjail("clone_newuts=False"),)),
    Protection("uts namespace", "warm", (shared("UTS"), SET_HOSTNAME)),
    Protection("cgroup namespace", "strict", (nsjail("clone_newcgroup=False"),)),
    Protection("cgroup namespace", "warm", (shared("CGROUP"),)),
    Protection("user namespace", "warm", (KEEP_UID, shared("USER"), *MAPS)),
    Protection("a host uid for each", "strict", (("resources.py", OWN_UIDS, "        return 100_000\n"),)),
    Protection("a host uid for each", "warm", (KEEP_UID,)),
    Protection("no root behind it", "strict", (("resources.py", OWN_UIDS, "        return 0\n"),)),
    Protection("no capability", "strict", (nsjail("keep_caps=True"),)),
    Protection("no capability", "warm", (step("drop_capabilities()"),)),
    Protection("empty bounding set", "warm", KEPT_BOUNDING_SET),
    Protection("no_new_privs and filter", "strict", (nsjail("disable_no_new_privs=True"), NO_FILTER)),
    Protection("no_new_privs", "warm", (step("forbid_new_privileges()"), GAINFUL_ZYGOTE)),
    Protection("system-call filter", "strict", (NO_FILTER,)),
    Protection("system-call filter", "warm", (step("filter_system_calls(self._program)"),)),
    Protection(
        "all rlimits",
        "strict",
        (nsjail("disable_rl=True"), NO_DATA_LIMIT),
        attacks=RESOURCES,
        files=("test_limits.py",),
    ),
    Protection(
        "all rlimits",
        "warm",
        (step("set_limits(configuration, inherited_bytes)"),),
        attacks=RESOURCES,
        files=("test_limits.py",),
    ),
    Protection("RLIMIT_DATA", "strict", (NO_DATA_LIMIT,), attacks=RESOURCES, files=("test_limits.py",)),
    Protection("RLIMIT_DATA", "warm", (no_limit("DATA"),), attacks=RESOURCES, files=("test_limits.py",)),
    Protection("RLIMIT_NPROC", "warm", (no_limit("NPROC"),), attacks=RESOURCES, files=("test_limits.py",)),
    Protection("RLIMIT_NOFILE", "warm", (no_limit("NOFILE"),), attacks=RESOURCES, files=("test_limits.py",)),
    Protection("RLIMIT_FSIZE", "warm", (no_limit("FSIZE"),), attacks=RESOURCES, files=("test_limits.py",)),
    Protection(
        "closed descriptors", "strict", (("jail.py", "pass_fd=[CONTROL_FD]", "pass_fd=[CONTROL_FD, 4, LOG_FD]"),)
    ),
    Protection(
        "closed descriptors",
        "warm",
        (confine_without('    os.closerange(CONTROL_FD + 1, os.sysconf("SC_OPEN_MAX"))\n'),),
    ),
    Protection(
        "empty environment",
        "strict",
        (nsjail("keep_env=True"), ("strict.py", "environment={},", "environment=dict(__import__('os').environ),")),
    ),
    Protection(
        "control group: memory", "warm", (no_controller("memory"), SWAP), attacks=RESOURCES, files=("test_limits.py",)
    ),
    Protection(
        "control group: processes", "warm", (no_controller("pids"),), attacks=RESOURCES, files=("test_limits.py",)
    ),
    Protection("control group: CPU", "warm", (no_controller("cpu"),), attacks=RESOURCES, files=("test_limits.py",)),
    Protection(
        "control groups (the watchdog is there)",
        "warm",
        (NO_CONTROL_GROUP,),
        attacks=RESOURCES,
        files=("test_limits.py",),
    ),
    Protection(
        "control groups and watchdog",
        "warm",
        (NO_CONTROL_GROUP, ("watchdog.py", 'kernel.kill_jail("oom")', "pass")),
        attacks=RESOURCES,
        files=("test_limits.py",),
    ),
    Protection(
        "nothing of a session reaches the zygote",
        "warm",
        (
            ("jailed_kernel.py", 'R = TypeVar("R", bound=Reply)\n', 'R = TypeVar("R", bound=Reply)\nRUN = [b""]\n'),
            (
                "jailed_kernel.py",
                "        pipes = self._renewed_output()\n",
                "        RUN.append(code.encode()[:900])\n        pipes = self._renewed_output()\n",
            ),
            ("zygote.py", "jailed_kernel import JailedKernel", "jailed_kernel import RUN, JailedKernel"),
            (
                "zygote.py",
                "send_fds(self._control, [FORK], [control])",
                "send_fds(self._control, [FORK, RUN[-1]], [control])",
            ),
            (
                "zygote_main.py",
                "        self._request = bytearray(1)\n",
                "        self._request = bytearray(1)\n        self._more = bytearray(1024)\n",
            ),
            ("zygote_main.py", "recvmsg_into([self._request], ", "recvmsg_into([self._request, self._more], "),
        ),
        attacks=(),
    ),
    Protection(
        "generators seeded anew",
        "warm",
        (("zygote_main.py", "            kernel_main.reseed(None)\n", ""),),
        attacks=(),
    ),
    Protection(
        "cap of the output",
        "warm",
        (("output.py", "OutputRing(self.limit)", "OutputRing(1 << 40)"),),
        attacks=tuple(OUTPUT),
        files=("test_limits.py",),
    ),
    Protection(
        "cap of a frame",
        "warm",
        (("jailed_kernel.py", "MAX_REPLY_BYTES, self.kill", "1 << 40, self.kill"),),
        attacks=tuple(CHANNEL),
        files=(),
    ),
    Protection(
        "nonce of a reply",
        "warm",
        (("jailed_kernel.py", "if reply is None or reply.nonce != nonce:", "if reply is None:"),),
        attacks=tuple(CHANNEL),
        files=(),
    ),
    Protection(
        "fresh pipes for each cell",
        "warm",
        (("jailed_kernel.py", "        if not self._leftovers:\n", "        if True:\n"),),
        attacks=tuple(OUTPUT),
        files=("test_lifecycle.py",),
    ),
    Protection(
        "deadline",
        "warm",
        (
            (
                "jailed_kernel.py",
                "call_later(timeout_s, self._on_deadline)",
                "call_later(timeout_s + 3, self._on_deadline)",
            ),
        ),
        attacks=tuple(CPU),
        files=(),
    ),
    Protection(
        "SIGKILL behind the deadline",
        "warm",
        (
            (
                "jailed_kernel.py",
                'call_later(self._grace_s, self.kill, "timeout")',
                'call_later(3, self.kill, "timeout")',
            ),
        ),
        attacks=tuple(CPU),
        files=(),
    ),
    Protection(
        "death with the server",
        "strict",
        (("spawner.py", "        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)\n", ""),),
        attacks=(),
        files=("test_lifecycle.py",),
    ),
]

SELF_TEST: Edit = ("supervisor.py", "        problem = await self._probe(tier)\n", "        problem = None\n")
"""With it a server does not start that lacks most of them, and nothing could be tried."""
