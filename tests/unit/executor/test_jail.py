from dataclasses import replace
from pathlib import Path

import pytest

from cellar_client.schemas import Limits
from cellar_executor.kernels.jail import (
    KERNEL_CODE,
    Jail,
    data_bytes,
    describe,
    kernel_environment,
    render,
    session_configuration,
)
from cellar_executor.kernels.runtime import Runtime
from cellar_executor.kernels.seccomp import kafel_policy

LIMITS = Limits(cell_timeout_s=1, memory_mb=256, processes=7, disk_mb=32, output_bytes=1024)
JAIL = Jail(
    runtime=Runtime(Path("/env/bin/python"), (Path("/env"), Path("/base/lib"))),
    limits=LIMITS,
    host_uid=100_003,
    sources={Path("/env"): Path("/staged/0")},
    environment={"HOME": "/home/cell"},
    kernel_arguments=("{}",),
)


def test_nothing_of_the_host_is_mounted_but_the_runtime_the_system_libraries_and_devices() -> None:
    sources = {mount.src for mount in describe(JAIL).mount if mount.is_bind}
    allowed = ("/usr/lib", "/lib", "/dev/", "/etc/ld.so.cache", "/usr/bin/", "/bin/", "/staged/0", "/base/lib")
    assert [source for source in sources if not source.startswith(allowed) and Path(source) not in KERNEL_CODE] == []
    assert not any("/proc" in (mount.dst or "") or "/sys" in (mount.dst or "") for mount in describe(JAIL).mount)


def test_a_staged_tree_appears_at_its_own_path() -> None:
    assert ("/staged/0", "/env") in [(mount.src, mount.dst) for mount in describe(JAIL).mount]


def test_only_file_systems_in_memory_are_writable_and_they_are_bounded() -> None:
    for mount in describe(JAIL).mount:
        if mount.rw and not (mount.src or "").startswith("/dev/"):
            assert mount.fstype == "tmpfs"
            assert "size=" in mount.options
            assert "nr_inodes=" in mount.options


def test_binds_honour_no_set_uid_bit() -> None:
    assert all(mount.nosuid for mount in describe(JAIL).mount if mount.is_bind)


def test_the_cell_is_never_root_of_the_host() -> None:
    (mapping,) = describe(JAIL).uidmap
    assert (mapping.inside_id, mapping.outside_id, mapping.count) == ("1000", "100003", 1)


def test_limits_reach_the_jail() -> None:
    jail = describe(replace(JAIL, limits=LIMITS))
    assert (jail.rlimit_nproc, jail.rlimit_fsize, jail.rlimit_core, jail.time_limit) == (7, 32, 0, 0)
    assert data_bytes(LIMITS) < LIMITS.memory_mb << 20


def test_both_tiers_give_a_session_the_same_space() -> None:
    options = {mount.dst: mount.options for mount in describe(JAIL).mount}
    sizes = session_configuration(LIMITS)
    for folder, size_mb in (
        ("/home/cell", sizes["disk_mb"]),
        ("/tmp", sizes["scratch_mb"]),
        ("/dev/shm", sizes["shared_memory_mb"]),
    ):
        assert options[folder].startswith(f"size={size_mb}m,nr_inodes={size_mb * sizes['inodes_per_mb']},")


def test_a_seed_fixes_the_hash_seed_too() -> None:
    assert kernel_environment("/w", JAIL.runtime, 5)["PYTHONHASHSEED"] == "5"
    assert "PYTHONHASHSEED" not in kernel_environment("/w", JAIL.runtime, None)


def test_the_configuration_switches_no_namespace_off() -> None:
    text = render(describe(JAIL)).decode()
    assert "clone_new" not in text
    assert "mount_proc" not in text
    assert 'seccomp_string: "ALLOW' in text


@pytest.mark.parametrize(
    "name",
    ["socket", "mount", "unshare", "setns", "ptrace", "bpf", "keyctl", "setuid", "memfd_create", "io_uring_setup"],
)
def test_the_filter_does_not_allow(name: str) -> None:
    assert f" {name}," not in kafel_policy()
    assert kafel_policy().endswith("DEFAULT ERRNO(1)")
