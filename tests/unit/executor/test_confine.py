"""What of the clone's steps can be seen without a clone; the walls themselves are tried in test_zygote_main."""

import os
from pathlib import Path

from cellar_executor.kernels.confine import data_bytes, filter_program, mount_points_below

MOUNTS = """\
20 1 0:1 / / ro - tmpfs tmpfs ro
21 20 0:2 / /tmp rw - tmpfs tmpfs rw
22 21 0:3 / /tmp/a\\040clone/.venv ro - ext4 /dev/vda ro
23 22 0:3 / /tmp/a\\040clone/.venv/inner ro - ext4 /dev/vda ro
24 20 0:4 / /tmpfs ro - ext4 /dev/vda ro
25 20 0:5 / /home/cell rw - tmpfs tmpfs rw
26 25 0:6 / /home/cell/x rw - tmpfs tmpfs rw
"""


def test_only_the_outermost_mounts_below_the_folders_are_found(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    found = mount_points_below(["/tmp", "/home/cell"], str(tmp_path / "mountinfo"))
    assert found == ["/home/cell/x", "/tmp/a clone/.venv"]


def test_data_is_what_the_limit_counts_but_for_the_stack() -> None:
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    data, stack = (int(status.partition(f"{name}:")[2].split()[0]) << 10 for name in ("VmData", "VmStk"))
    assert abs(data_bytes() - (data + stack)) < 4 << 20


def test_a_filter_counts_instructions() -> None:
    assert filter_program(bytes(8 * 5)).length == 5
