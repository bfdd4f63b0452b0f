from pathlib import Path

import pytest

from cellar_executor.kernels.host import SECCOMP_PROFILE, remedy


@pytest.mark.parametrize(
    ("switch", "value", "command"),
    [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=65536"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_a_closed_switch_is_named_with_the_command_that_opens_it(
    tmp_path: Path, switch: str, value: str, command: str
) -> None:
    (tmp_path / switch).parent.mkdir()
    (tmp_path / switch).write_text(value + "\n")
    assert f"sudo sysctl -w {command}" in remedy(tmp_path)


def test_with_open_switches_the_container_is_suspected(tmp_path: Path) -> None:
    assert SECCOMP_PROFILE in remedy(tmp_path)
