"""Open files: what a session takes of the server's, and whether so many sessions can be had."""

import resource

SESSION_FDS = 8
"""Its process twice, the control channel, stdout and stderr, and three counters of its control group."""
SERVER_FDS = 1024
"""Connections, Redis, zygotes, sessions that are being made, the server itself."""


def reserve(sessions: int) -> None:
    """Raise this process's limit as far as it may. Raises `ValueError` when it is too low for so many sessions."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = needed_for(sessions)
    if hard != resource.RLIM_INFINITY and hard < needed:
        room = max(0, (hard - SERVER_FDS) // SESSION_FDS)
        raise ValueError(
            f"{sessions} sessions take {needed} open files, and {hard} are allowed: `ulimit -n {needed}` before the "
            f"start, or at most {room} in --max-sessions and --ready-sessions together"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def needed_for(sessions: int) -> int:
    return SERVER_FDS + SESSION_FDS * sessions
