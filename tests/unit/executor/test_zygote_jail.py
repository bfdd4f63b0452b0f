"""What differs from a session's jail. What both have in common: test_jail."""

import base64
import json
import platform
from dataclasses import replace
from pathlib import Path

from cellar_executor.kernels.jail import render
from cellar_executor.kernels.runtime import Runtime
from cellar_executor.kernels.seccomp import bpf_program
from cellar_executor.kernels.zygote_jail import ZYGOTE_CODE, ZygoteJail, describe_zygote, options

JAIL = ZygoteJail(
    runtime=Runtime(Path("/env/bin/python"), (Path("/env"), Path("/base/lib"))),
    preimports=("numpy",),
    host_uid=100_003,
    clone_uids=7,
    sources={path: Path(f"/staged/{path.name}") for path in (Path("/env"), *ZYGOTE_CODE)},
)


def test_its_own_code_is_there_and_cannot_be_written() -> None:
    mounts = {mount.dst: mount for mount in describe_zygote(JAIL).mount}
    for name in (
        "zygote_main.py",
        "kernel_main.py",
        "kernel_leftovers.py",
        "kernel_files.py",
        "confine.py",
        "warmup.py",
    ):
        mount = mounts[f"/cellar/{name}"]
        assert (mount.src, mount.is_bind, mount.rw) == (f"/staged/{name}", True, False)
    assert mounts["/env"].src == "/staged/env"


def test_nothing_else_of_the_host_is_there_but_proc() -> None:
    sources = {mount.src for mount in describe_zygote(JAIL).mount if mount.is_bind}
    allowed = ("/usr/lib", "/lib", "/dev/", "/etc/ld.so.cache", "/usr/bin/", "/bin/", "/staged/", "/base/lib")
    assert {source for source in sources if not source.startswith(allowed)} == {"/proc"}


def test_a_proc_of_its_own_covers_the_hosts_where_it_can_be_had() -> None:
    bound, fresh = (mount for mount in describe_zygote(JAIL).mount if mount.dst == "/proc")
    assert (bound.is_bind, bound.rw, bound.mandatory) == (True, True, True)
    assert (fresh.fstype, fresh.rw, fresh.mandatory) == ("proc", True, False)


def test_it_has_uids_for_itself_and_its_clones_and_never_the_hosts_root() -> None:
    (mapping,) = describe_zygote(JAIL).uidmap
    assert (mapping.inside_id, mapping.outside_id, mapping.count) == ("0", "100003", 8)
    (shared,) = describe_zygote(replace(JAIL, clone_uids=0)).gidmap
    assert shared.count == 1


def test_the_hash_seed_is_fixed_and_no_session_sees_it() -> None:
    assert "PYTHONHASHSEED=0" in describe_zygote(JAIL).envar
    assert "PYTHONHASHSEED" not in json.loads(options(JAIL))["environment"]


def test_it_is_told_what_every_session_has_and_nothing_of_any() -> None:
    told = json.loads(options(JAIL))
    assert set(told) == {"preimports", "uids", "workdir", "environment", "seccomp"}
    assert (told["preimports"], told["uids"]) == (["numpy"], 7)
    assert base64.b64decode(told["seccomp"]) == bpf_program(platform.machine())


def test_the_configuration_switches_no_namespace_off() -> None:
    assert "clone_new" not in render(describe_zygote(JAIL)).decode()
