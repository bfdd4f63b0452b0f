"""The durable truth about sessions, cells, files and idempotency keys: only this package knows Redis (6.2 or later).

A cell's log: accepted (durable before the client is answered) -> started (run, generation, epoch; written before the
kernel gets it) -> finished (outcome, immutable). Each change of more than one key is one named script in
`scripts/`; finishing a cell and starting the next is one write, so a run of n cells costs n + 1. A change of a file is
staged before the kernel makes it, and kept afterwards (`files`).

The keys. `{ref}` is `tenant/session_id`. No session key has a TTL: the server's sweeper deletes what is idle,
and its kernel with it.

    cellar:instances        set      names of the servers; those that died are forgotten by and by
    cellar:instance:{name}  string   URL of a server that lives. TTL: its lease, which it renews; none with a Redis of
                                     its own, where the server's lock file stands behind it
    cellar:probe            string   written to see whether Redis takes writes. TTL: a minute
    cellar:sessions         zset     ref by expires_at: what is idle, and how many there are
    cellar:listing:{tenant} zset     session ids in order of their bytes: pages that stay put while sessions come and go
    cellar:deleted:{ref}    string   tombstone: the id is never used again. No TTL for ids that clients chose; that of
                                     idempotency keys for ids made here, which only a retry could ask for again
    cellar:session:{ref}    hash     owner (name of a server, or ''), epoch (fencing token: scripts of another owner or
                                     of an earlier epoch are refused), generation, base (first generation that may be
                                     replayed), cells, files, bytes (of both logs), created_at, expires_at, config
                                     (JSON), origin (nonce of the request), running (index), unrepeatable (its state is
                                     not to be rebuilt), lost (nor is its kernel alive)
    cellar:ids:{ref}        hash     cell_id -> index
    cellar:pending:{ref}    zset     indices of pending cells
    cellar:runs:{ref}       hash     run_id -> head of the run (JSON); the rest of a run is its cells
    cellar:queued:{ref}     hash     run_id -> what a run asks that is accepted, answered for, and not begun (JSON)
    cellar:cell:{ref}:{i}   hash     cell_id, code, status, run_id, generation, epoch, outcome (JSON),
                                     provisional (its run is atomic and has not ended well: it is never played again)
    cellar:file:{ref}:{n}   hash     kind (put, delete), path, data, before (index of the first cell that may see it).
                                     The one numbered `files` is only staged. Gone after a reset
    cellar:answer:{t}:{key} hash     digest, nonce, instance (who answers it), status, body of the first request with an
                                     idempotency key. TTL: a setting, longer than any
                                     client retries
    cellar:keys             hash     name -> API key (JSON: its digest, tenant, created_at)
    cellar:quotas           hash     tenant -> what its quota has instead of the server's default (JSON)
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cellar_executor.records import Quotas
from cellar_executor.store.answers import Answers
from cellar_executor.store.cells import CellLog
from cellar_executor.store.files import FileLog
from cellar_executor.store.keys import Keys
from cellar_executor.store.line import Line
from cellar_executor.store.ownership import Ownership


class Store(CellLog, FileLog, Answers, Ownership, Keys):
    """All that Redis keeps: changes over one line, the rest over a pool of connections."""


@asynccontextmanager
async def open_store(url: str, instance: str, quotas: Quotas, *, timeout_s: float = 5) -> AsyncIterator[Store]:
    """A store on the Redis at `url` (`redis://...` or `unix://...`); nothing is asked of it yet."""
    # No retries below us: a script that is sent twice would not know it, and each caller here decides for itself.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=32,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )
    redis, line = Redis.from_pool(pool), Line(url, timeout_s)
    try:
        yield Store(redis, line, instance, quotas)
    finally:
        line.close()
        await redis.aclose()
