import fcntl
import os
from pathlib import Path

import pytest

from cellar_client.schemas import Limits
from cellar_executor.kernels.cgroups import (
    TREE_PREFIX,
    V1,
    V2,
    Version,
    delegate,
    lock,
    make_tree,
    parse_oom_kills,
    remove_folder,
    sweep,
    v1_folders,
    v2_folder,
)

LIMITS = Limits(cell_timeout_s=1, memory_mb=64, processes=7, disk_mb=8, output_bytes=1024)


def test_version_1_folders_are_this_process_own(tmp_path: Path) -> None:
    for controller in ("memory", "pids", "cpu,cpuacct"):
        (tmp_path / controller / "own").mkdir(parents=True)
    mounts = "".join(
        f"cgroup {tmp_path / name} cgroup rw,relatime,{name} 0 0\n" for name in ("memory", "pids", "cpu,cpuacct")
    )
    own = "3:cpu,cpuacct:/own\n2:pids:/own\n1:memory:/elsewhere/not/visible/here\n0::/\n"
    assert v1_folders(mounts, own) == {
        "memory": tmp_path / "memory",
        "pids": tmp_path / "pids/own",
        "cpu": tmp_path / "cpu,cpuacct/own",
    }


def test_version_1_without_the_memory_controller_is_no_use(tmp_path: Path) -> None:
    assert v1_folders(f"cgroup {tmp_path} cgroup rw,pids,cpu 0 0\n", "1:pids,cpu:/\n") is None


@pytest.mark.parametrize(("available", "usable"), [("cpu io memory pids", True), ("hugetlb", False)])
def test_version_2_is_used_only_with_its_controllers(tmp_path: Path, available: str, usable: bool) -> None:
    (tmp_path / "cgroup.controllers").write_text(available)
    found = v2_folder(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", "0::/\n")
    assert (found is not None) == usable


def test_version_2_moves_our_processes_to_a_leaf_before_it_enables_controllers(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.procs").write_text("41\n42\n")
    delegate(tmp_path)
    assert (tmp_path / "cellar-server/cgroup.procs").read_text() == "42"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (V1, {"memory.limit_in_bytes": "67108864", "cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}),
        (V2, {"memory.max": "67108864", "cpu.max": "100000 100000"}),
    ],
    ids=["v1", "v2"],
)
def test_a_session_is_held_to_its_memory_one_core_and_its_processes(version: Version, expected: dict[str, str]) -> None:
    files = {name: value for files in version.settings(LIMITS).values() for name, value in files.items()}
    assert files == {**expected, "pids.max": "9"}


@pytest.mark.parametrize(("events", "kills"), [(b"low 0\noom 4\noom_kill 3\n", 3), (b"under_oom 0\n", 0)])
def test_kills_for_lack_of_memory_are_counted(events: bytes, kills: int) -> None:
    assert parse_oom_kills(events) == kills


def test_a_sweep_removes_what_dead_servers_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    dead, living, foreign = tmp_path / f"{TREE_PREFIX}1-a", tmp_path / f"{TREE_PREFIX}2-b", tmp_path / "other"
    for folder in (dead / "0", living / "0", foreign):
        folder.mkdir(parents=True)
    held = lock(living)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"other", living.name}
    os.close(held)
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


async def test_a_tree_is_locked_until_it_is_removed(tmp_path: Path) -> None:
    tree = make_tree(V1, dict.fromkeys(("memory", "pids", "cpu"), tmp_path))
    (parent,) = set(tree.parents.values())
    with pytest.raises(BlockingIOError):
        lock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
    await tree.remove()
    assert os.listdir(tmp_path) == []


async def test_removing_what_is_gone_already_is_no_error(tmp_path: Path) -> None:
    await remove_folder(tmp_path / "gone")
