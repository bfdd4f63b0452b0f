"""Cellar's client: sessions, deferred cells and runs over HTTP, and the `cellar` command.

Start with `AsyncCellar` or `Cellar`; what the server says is in `schemas`, what can go wrong in `errors`.
"""

from importlib.metadata import version

from cellar_client.aio import AsyncCellar, AsyncSession
from cellar_client.errors import (
    BadRequest,
    BodyTooLarge,
    CellarError,
    CellNotFound,
    CellNotPending,
    Conflict,
    ConnectionFailed,
    IdempotencyMismatch,
    InternalError,
    InvalidReply,
    KernelUnavailable,
    LimitTooHigh,
    NotFound,
    NotSupported,
    RequestInProgress,
    RequestTimeout,
    RunNotFound,
    ServerError,
    ServerUnavailable,
    SessionExists,
    SessionLost,
    SessionNotFound,
    ShuttingDown,
    StoreUnavailable,
    TooMany,
    TooManyCells,
    TooManySessions,
    TransportError,
    Unauthorized,
    UnknownRuntime,
)
from cellar_client.retry import DEFAULT_RETRIES, NO_RETRIES, Retries
from cellar_client.schemas import Cell, CellError, Info, Limits, LimitsRequest, Run, Session
from cellar_client.sync import Cellar, SyncSession

__version__ = version("cellar")

__all__ = [
    "AsyncCellar",
    "AsyncSession",
    "BadRequest",
    "BodyTooLarge",
    "Cell",
    "CellError",
    "CellNotFound",
    "CellNotPending",
    "Cellar",
    "CellarError",
    "Conflict",
    "ConnectionFailed",
    "DEFAULT_RETRIES",
    "IdempotencyMismatch",
    "Info",
    "InternalError",
    "InvalidReply",
    "KernelUnavailable",
    "LimitTooHigh",
    "Limits",
    "LimitsRequest",
    "NO_RETRIES",
    "NotFound",
    "NotSupported",
    "RequestInProgress",
    "RequestTimeout",
    "Retries",
    "Run",
    "RunNotFound",
    "ServerError",
    "ServerUnavailable",
    "Session",
    "SessionExists",
    "SessionLost",
    "SessionNotFound",
    "ShuttingDown",
    "StoreUnavailable",
    "SyncSession",
    "TooMany",
    "TooManyCells",
    "TooManySessions",
    "TransportError",
    "Unauthorized",
    "UnknownRuntime",
    "__version__",
]
