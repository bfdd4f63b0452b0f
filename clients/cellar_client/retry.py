"""Which failures are tried again, when, and for how long: pure functions of values.

The clients keep a `Tries` and ask it, after each failure, for the next one. All tries of one operation carry the same
`Idempotency-Key`, so the server never does the same thing twice.
"""

from dataclasses import dataclass, replace
from typing import Literal

from cellar_client.errors import (
    CellarError,
    ConnectionFailed,
    OwnerUnavailable,
    QuotaExceeded,
    RequestInProgress,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
    TooManySessions,
)

Verdict = Literal["failed", "moving", "in_progress", "final"]

ASK_AGAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Retries:
    """How patient a client is."""

    attempts: int = 5
    """Failures in a row, the first included, after which the error is raised."""
    failing_s: float = 60.0
    """No try starts later than this after the first failure in a row: longer than a server's sessions take to move."""
    in_progress_s: float = 3600.0
    """How long to wait for a request that the server says is still being answered (`request_in_progress`)."""
    first_pause_s: float = 0.1
    longest_pause_s: float = 10.0
    """Pauses double from the first to the longest; `Retry-After` comes on top."""


DEFAULT_RETRIES = Retries()
NO_RETRIES = Retries(attempts=1, failing_s=0.0, in_progress_s=0.0)


@dataclass(frozen=True, slots=True)
class Tries:
    """What one operation has been through."""

    retries: Retries
    failures: int = 0
    failing_since_s: float | None = None
    in_progress_since_s: float | None = None
    pause_s: float = 0.0
    """How long to wait before the next try."""

    def after(self, error: CellarError, *, now_s: float, jitter: float, elsewhere: bool = False) -> "Tries | None":
        """The tries with `error` counted, or None when it has to be raised.

        Args:
            now_s: a monotonic clock.
            jitter: uniform in [0, 1), so that clients that failed together do not come back together.
            elsewhere: the next try asks another server: what this one asked to wait does not hold for it.
        """
        match verdict(error):
            case "failed":
                return self._after_failure(0.0 if elsewhere else retry_after_s(error), now_s, jitter)
            case "moving":
                return self._after_moving(retry_after_s(error), now_s, jitter)
            case "in_progress":
                return self._after_in_progress(retry_after_s(error), now_s)
            case "final":
                return None

    def _after_failure(self, retry_after_s: float, now_s: float, jitter: float) -> "Tries | None":
        failures = self.failures + 1
        since_s = now_s if self.failing_since_s is None else self.failing_since_s
        pause_s = retry_after_s + jitter * backoff_s(self.retries, failures)
        if failures >= self.retries.attempts or now_s + pause_s > since_s + self.retries.failing_s:
            return None
        return replace(self, failures=failures, failing_since_s=since_s, pause_s=pause_s)

    def _after_moving(self, retry_after_s: float, now_s: float, jitter: float) -> "Tries | None":
        """No failure of who answered: a session's next server may hold it only when the last one's lease has ended."""
        since_s = now_s if self.failing_since_s is None else self.failing_since_s
        pause_s = max(retry_after_s, ASK_AGAIN_S) + jitter * self.retries.first_pause_s
        if now_s + pause_s > since_s + self.retries.failing_s:
            return None
        return replace(self, failing_since_s=since_s, pause_s=pause_s)

    def _after_in_progress(self, retry_after_s: float, now_s: float) -> "Tries | None":
        """No failure: the server lives and the first request goes on, so the count of failures in a row starts anew."""
        since_s = now_s if self.in_progress_since_s is None else self.in_progress_since_s
        pause_s = max(retry_after_s, ASK_AGAIN_S)
        if now_s + pause_s > since_s + self.retries.in_progress_s:
            return None
        return Tries(self.retries, in_progress_since_s=since_s, pause_s=pause_s)


def verdict(error: CellarError) -> Verdict:
    """Whether another try can help. A refusal is final: only these say that the same request may succeed later."""
    match error:
        case RequestInProgress():
            return "in_progress"
        case OwnerUnavailable():
            return "moving"
        case ConnectionFailed() | RequestTimeout() | TooManySessions() | QuotaExceeded() | ServerUnavailable():
            return "failed"
        case _:
            return "final"


def backoff_s(retries: Retries, failures: int) -> float:
    """The longest pause after this many failures in a row."""
    return min(retries.longest_pause_s, retries.first_pause_s * 2.0 ** (failures - 1))


def retry_after_s(error: CellarError) -> float:
    """What the server asked to wait; 0 when it did not say."""
    return (error.problem.retry_after_s or 0.0) if isinstance(error, ServerError) else 0.0
