import errno
import os
from pathlib import Path

import pytest

from cellar_executor.kernels import hierarchy
from cellar_executor.kernels.hierarchy import (
    CONTROLLERS,
    LEAF,
    TREE_PREFIX,
    delegate,
    enable_controllers,
    lock,
    move_processes,
    sweep,
    v1_folders,
    v2_folder,
)


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
        "cpuacct": tmp_path / "cpu,cpuacct/own",
    }


def test_version_1_counts_cpu_time_where_it_can(tmp_path: Path) -> None:
    mounts = "".join(f"cgroup {tmp_path} cgroup rw,{name} 0 0\n" for name in ("memory", "pids", "cpu", "cpuacct"))
    own = "1:memory:/\n2:pids:/\n3:cpu:/\n"
    assert set(v1_folders(mounts, own) or ()) == {"memory", "pids", "cpu"}
    assert set(v1_folders(mounts, f"{own}4:cpuacct:/\n") or ()) == {"memory", "pids", "cpu", "cpuacct"}


def test_version_1_without_the_memory_controller_is_no_use(tmp_path: Path) -> None:
    assert v1_folders(f"cgroup {tmp_path} cgroup rw,pids,cpu 0 0\n", "1:pids,cpu:/\n") is None


@pytest.mark.parametrize(("available", "usable"), [("cpu io memory pids", True), ("hugetlb", False)])
def test_version_2_is_used_only_with_its_controllers(tmp_path: Path, available: str, usable: bool) -> None:
    (tmp_path / "cgroup.controllers").write_text(available)
    found = v2_folder(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", "0::/\n")
    assert (found is not None) == usable


def test_version_2_finds_its_group_again_from_the_leaf_that_it_was_moved_to(tmp_path: Path) -> None:
    (tmp_path / "own" / LEAF).mkdir(parents=True)
    (tmp_path / "own/cgroup.controllers").write_text("cpu memory pids")
    mounts = f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
    before, after = v2_folder(mounts, "0::/own\n"), v2_folder(mounts, f"0::/own/{LEAF}\n")
    assert before == after == dict.fromkeys(CONTROLLERS, tmp_path / "own")


def test_version_2_moves_our_processes_to_a_leaf_before_it_enables_controllers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.procs").write_text("41\n42\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    refusals = iter([OSError(errno.EBUSY, "has processes")])

    def enable(folder: Path) -> None:
        for refusal in refusals:
            raise refusal
        enable_controllers(folder)

    monkeypatch.setattr(hierarchy, "enable_controllers", enable)
    delegate(tmp_path)
    assert (tmp_path / LEAF / "cgroup.procs").read_text() == "42"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_in_the_root_of_all_groups_nothing_is_moved(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("1\n2\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    delegate(tmp_path)
    assert not (tmp_path / LEAF).exists()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_processes_that_end_or_start_while_ours_are_moved_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, moved = iter(["41\n42\n", "43\n"]), []

    def write(_: Path, pid: str) -> None:
        if pid == "41":
            raise ProcessLookupError
        moved.append(pid)

    monkeypatch.setattr(Path, "read_text", lambda _: next(running, ""))
    monkeypatch.setattr(Path, "write_text", write)
    move_processes(tmp_path, tmp_path / LEAF)
    assert moved == ["42", "43"]


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
