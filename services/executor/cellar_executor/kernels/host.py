"""Why a host does not let a jail start, and the command that mends it."""

from pathlib import Path

_SWITCHES = (
    ("user/max_user_namespaces", "0", "user.max_user_namespaces=65536"),
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
)
SYSCTL = Path("/proc/sys")


def remedy(sysctl: Path = SYSCTL) -> str:
    """The one thing to do, judged by the switches with which distributions close user namespaces."""
    for path, closed, opened in _SWITCHES:
        switch = sysctl / path
        if switch.exists() and switch.read_text().strip() == closed:
            return f"User namespaces are switched off on this host: `sudo sysctl -w {opened}`"
    return (
        "If it was not permitted to make namespaces, as in a container by default: `docker run --security-opt "
        "seccomp=PROFILE`, with a profile that allows clone, unshare, mount, umount2, pivot_root and sethostname"
    )
