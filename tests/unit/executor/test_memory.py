from pathlib import Path

import pytest

from cellar_executor.kernels.memory import free_memory_bytes, left_in

MB = 1 << 20


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host with 800 MB available, without control groups yet."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {1 << 20} kB\nMemFree: 1 kB\nMemAvailable: {800 << 10} kB\n")
    (tmp_path / "proc/self/mounts").write_text("proc /proc proc rw 0 0\n")
    (tmp_path / "proc/self/cgroup").write_text("")
    return tmp_path / "proc"


def group_v2(folder: Path, limit: str, used: int, droppable: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nactive_file 7\ninactive_file {droppable}\n")


def group_v1(folder: Path, limit: int, used: int, droppable: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {droppable}\n")


def test_without_control_groups_it_is_what_the_host_has_available(proc: Path) -> None:
    assert free_memory_bytes(proc) == 800 * MB


@pytest.mark.parametrize(("inner", "outer", "left"), [(500, 900, 400), (900, 500, 400), (900, 950, 800)])
def test_the_narrowest_of_the_enclosing_groups_counts(
    proc: Path, tmp_path: Path, inner: int, outer: int, left: int
) -> None:
    group_v2(tmp_path / "fs/outer", str(outer * MB), 100 * MB)
    group_v2(tmp_path / "fs/outer/inner", str(inner * MB), 100 * MB)
    (tmp_path / "fs/outer/inner/leaf").mkdir()
    group_v2(tmp_path, "1", 1)  # above the mount: not a group
    group_v2(tmp_path / "fs/other", "1", 1)
    (proc / "self/mounts").write_text(f"cgroup2 {tmp_path}/fs cgroup2 rw 0 0\n")
    (proc / "self/cgroup").write_text("0::/outer/inner/leaf\n")
    assert free_memory_bytes(proc) == left * MB


def test_in_version_1_too_beside_an_empty_version_2(proc: Path, tmp_path: Path) -> None:
    group_v1(tmp_path / "memory", 9223372036854771712, 700 * MB)
    group_v1(tmp_path / "memory/own", 300 * MB, 250 * MB, 20 * MB)
    (tmp_path / "unified").mkdir()
    (proc / "self/mounts").write_text(
        f"cgroup {tmp_path}/memory cgroup rw,memory 0 0\ncgroup {tmp_path}/pids cgroup rw,pids 0 0\n"
        f"cgroup2 {tmp_path}/unified cgroup2 rw 0 0\n"
    )
    (proc / "self/cgroup").write_text("4:memory:/own\n3:pids:/\n0::/\n")
    assert free_memory_bytes(proc) == 70 * MB


def test_what_can_be_dropped_is_free_and_too_much_is_none(tmp_path: Path) -> None:
    group_v2(tmp_path, "100", 90, 30)
    assert left_in(tmp_path) == 40
    group_v2(tmp_path, "100", 120)
    assert left_in(tmp_path) == 0
    group_v2(tmp_path, "max", 120)
    assert left_in(tmp_path) is None


def test_on_this_host() -> None:
    assert 0 < free_memory_bytes() < 1 << 50
