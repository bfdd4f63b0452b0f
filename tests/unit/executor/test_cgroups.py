import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from cellar_client.schemas import Limits
from cellar_executor.kernels import cgroups
from cellar_executor.kernels.cgroups import V1, V2, CgroupTree, Version, make_tree, open_cgroups, parse_field
from cellar_executor.kernels.hierarchy import lock
from cellar_executor.kernels.usage import Usage

LIMITS = Limits(cell_timeout_s=1, memory_mb=64, processes=7, disk_mb=8, output_bytes=1024)


@pytest_asyncio.fixture
async def tree() -> AsyncIterator[CgroupTree]:
    tree = open_cgroups()
    if tree is None:
        pytest.skip("no control group can be made here")
    yield tree
    await tree.remove()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (V1, {"memory.limit_in_bytes": "67108864", "cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}),
        (V2, {"memory.max": "67108864", "cpu.max": "100000 100000"}),
    ],
    ids=["v1", "v2"],
)
def test_a_session_is_held_to_its_memory_one_core_and_its_processes(version: Version, expected: dict[str, str]) -> None:
    files = {name: value for files in version.settings(LIMITS, 9).values() for name, value in files.items()}
    assert files == {**expected, "pids.max": "9"}


@pytest.mark.parametrize(("events", "kills"), [(b"low 0\noom 4\noom_kill 3\n", 3), (b"under_oom 0\n", 0)])
def test_kills_for_lack_of_memory_are_counted(events: bytes, kills: int) -> None:
    assert parse_field(events, b"oom_kill") == kills


def test_cpu_time_is_in_seconds() -> None:
    assert V1.cpu_seconds(b"1500000000\n") == 1.5
    assert V2.cpu_seconds(b"usage_usec 1500000\nuser_usec 7\n") == 1.5


async def test_what_a_process_uses_is_counted_from_when_it_joins(tree: CgroupTree) -> None:
    cgroup = await tree.create(LIMITS, processes=7)
    assert cgroup.usage().cpu_s == 0
    with ExitStack() as opened:
        code = "import os, sys; [os.write(int(fd), b'0') for fd in sys.argv[1:]]; x = bytearray(b'x') * (20 << 20)"
        joins = cgroup.open_joins(opened)
        process = await asyncio.create_subprocess_exec("python3", "-c", code, *map(str, joins), pass_fds=joins)
        assert await process.wait() == 0
    usage = cgroup.usage()
    assert usage.oom_kills == 0
    assert usage.cpu_s is None or 0 < usage.cpu_s < 10
    assert usage.peak_memory_bytes is None or 20 << 20 < usage.peak_memory_bytes < 64 << 20
    await cgroup.remove()


async def test_a_group_that_is_removed_leaves_no_folder_and_no_descriptor(tree: CgroupTree) -> None:
    before = len(os.listdir("/proc/self/fd")), folders(tree)
    cgroup = await tree.create(LIMITS, processes=7)
    assert folders(tree) != before[1]
    await cgroup.remove()
    assert (len(os.listdir("/proc/self/fd")), folders(tree)) == before


@pytest.mark.parametrize("broken", ["write", "open_meter"])
async def test_a_group_that_cannot_be_made_leaves_nothing(
    tree: CgroupTree, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EINVAL, "no")

    before = len(os.listdir("/proc/self/fd")), folders(tree)
    monkeypatch.setattr(cgroups, broken, refuse)
    with pytest.raises(OSError, match="no"):
        await tree.create(LIMITS, processes=7)
    assert (len(os.listdir("/proc/self/fd")), folders(tree)) == before


def test_a_tree_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    with pytest.raises(FileNotFoundError):
        make_tree(V1, {"memory": tmp_path / "memory", "pids": tmp_path / "gone"})
    assert os.listdir(tmp_path / "memory") == []


async def test_a_tree_is_locked_until_it_is_removed(tmp_path: Path) -> None:
    tree = make_tree(V1, dict.fromkeys(("memory", "pids", "cpu"), tmp_path))
    (parent,) = set(tree.parents.values())
    with pytest.raises(BlockingIOError):
        lock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
    await tree.remove()
    assert os.listdir(tmp_path) == []


async def test_removing_what_is_gone_already_is_no_error(tree: CgroupTree) -> None:
    cgroup = await tree.create(LIMITS, processes=7)
    for folder in folders(tree):
        if folder.name != cgroups.ZYGOTES:
            folder.rmdir()
    await cgroup.remove()
    assert {folder.name for folder in folders(tree)} == {cgroups.ZYGOTES}


def test_a_count_that_this_host_does_not_have_is_none() -> None:
    with ExitStack() as opened:
        assert cgroups.open_meter(Path("/nowhere"), "memory.peak", opened) is None
        assert cgroups.open_meter(None, "cpuacct.usage", opened) is None
    assert Usage().cpu_s is None


def folders(tree: CgroupTree) -> set[Path]:
    return {folder for parent in tree.parents.values() for folder in parent.iterdir() if folder.is_dir()}
