"""The server process from its first lock to its last: Redis, kernels, HTTP, and the orderly way down."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType

import uvicorn
import uvloop

from cellar_client.schemas import Isolation
from cellar_executor.app import create_app
from cellar_executor.errors import StoreUnavailable
from cellar_executor.kernel import Supervisor, SupervisorConfig
from cellar_executor.kernels import descriptors
from cellar_executor.kernels.supervisor import open_supervisor
from cellar_executor.records import Quotas
from cellar_executor.redis_server import RedisServer, redis_server
from cellar_executor.service import Service
from cellar_executor.settings import Settings, find_binary
from cellar_executor.store import Store, open_store

HOUSEKEEPING_EVERY_S = 1.0
LEASE_S = 10.0
"""With a Redis of its own the server's lock file says who owns the store; with a shared one this lease does."""

log = logging.getLogger(__name__)


class CannotServe(Exception):
    """The server does not start; the message says why."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises `CannotServe`, `redis_server.RedisError`, `kernel.IsolationUnavailable`, `OSError` (the address is taken),
    `ValueError` (too few open files are allowed).
    """
    descriptors.reserve(settings.max_sessions + settings.ready_sessions * len(settings.runtimes))
    with contextlib.closing(_listen(settings.host, settings.port)) as listener, _redis(settings) as redis:
        asyncio.run(_serve(settings, listener, redis), loop_factory=uvloop.new_event_loop)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


@contextlib.contextmanager
def _redis(settings: Settings) -> Iterator[RedisServer | None]:
    if settings.redis_url is not None:
        yield None
        return
    binary = find_binary("redis-server")
    if binary is None:
        raise CannotServe("there is no redis-server beside this Python or on PATH; install it, or give --redis-url")
    with redis_server(binary, settings.data_dir) as redis:
        yield redis


async def _serve(settings: Settings, listener: socket.socket, redis: RedisServer | None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(_owned_store(settings, redis))
        supervisor = await open_supervisor(_supervisor_config(settings))
        stack.push_async_callback(supervisor.close)
        service = _service(settings, store, supervisor)
        stack.push_async_callback(service.close)
        server = _Server(settings, service, listener, supervisor.isolation)
        housekeeping = asyncio.create_task(_housekeeping(service, store, redis, server))
        await server.serve(sockets=[listener])
        housekeeping.cancel()


@contextlib.asynccontextmanager
async def _owned_store(settings: Settings, redis: RedisServer | None) -> AsyncIterator[Store]:
    quotas = Quotas(
        max_sessions=settings.max_sessions,
        max_pending_cells=settings.max_pending_cells,
        max_log_bytes=settings.max_log_mb * 2**20,
        answer_ttl_s=settings.idempotency_ttl_s,
    )
    url = redis.url if redis is not None else settings.redis_url
    assert url is not None
    async with open_store(url, instance=secrets.token_hex(8), quotas=quotas) as store:
        try:
            if redis is not None:
                await store.take_over()
                yield store
            else:
                await _lease(store)
                yield store
                with contextlib.suppress(StoreUnavailable):  # then the lease ends by itself
                    await store.release_lease()
        except StoreUnavailable as error:
            raise CannotServe(f"Redis does not answer: {error.detail}") from error


async def _lease(store: Store) -> None:
    policy = await store.eviction_policy()
    if policy != "noeviction":
        raise CannotServe(f"this Redis may evict sessions (maxmemory-policy {policy}): set it to noeviction")
    for _ in range(round(LEASE_S) + 2):
        if await store.renew_lease(LEASE_S):
            return
        await asyncio.sleep(1)
    raise CannotServe("another server uses this Redis")


def _supervisor_config(settings: Settings) -> SupervisorConfig:
    return SupervisorConfig(
        runtimes=settings.runtimes,
        nsjail=settings.nsjail,
        tier=settings.isolation,
        zygotes=settings.zygotes,
        ready_sessions=settings.ready_sessions,
        ready_limits=settings.limits,
        recycle_after_sessions=settings.recycle_after_sessions,
        recycle_after_s=settings.recycle_after_s,
        insecure_no_isolation=settings.insecure_no_isolation,
    )


def _service(settings: Settings, store: Store, supervisor: Supervisor) -> Service:
    return Service(
        store,
        supervisor,
        limits=settings.limits,
        runtimes=frozenset(settings.runtimes),
        max_sessions=settings.max_sessions,
        idle_ttl_s=settings.idle_ttl_s,
        replay_timeout_s=settings.replay_timeout_s,
    )


async def _housekeeping(service: Service, store: Store, redis: RedisServer | None, server: "_Server") -> None:
    """Once a second: a Redis that died is started again, or the lease renewed; idle sessions are deleted."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_EVERY_S)
        try:
            if redis is not None:
                redis.ensure_running()
            elif not await store.renew_lease(LEASE_S):
                log.error("another server has taken over this Redis; shutting down")
                server.begin_shutdown()
                return
            await service.expire()
        except StoreUnavailable as error:
            log.warning("Redis does not answer: %s", error.detail)
        except Exception:
            log.exception("housekeeping failed; it goes on")


class _Server(uvicorn.Server):
    """uvicorn, with an announcement at the start and a drain before the end."""

    def __init__(self, settings: Settings, service: Service, listener: socket.socket, isolation: Isolation) -> None:
        app = create_app(service, api_keys=settings.api_keys, max_body_bytes=settings.max_body_mb * 2**20)
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nothing here asks who is behind a proxy
                timeout_graceful_shutdown=5,
            )
        )
        self._settings = settings
        self._service = service
        self._listener = listener
        self._isolation = isolation
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        _announce(url, self._settings, self._isolation)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        asyncio.get_event_loop().call_soon_threadsafe(self.begin_shutdown)

    def begin_shutdown(self) -> None:
        """New work is refused with an answer while what runs may end; then the listener closes."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        log.info("shutting down")
        await self._service.drain(self._settings.drain_timeout_s)
        await self._service.close()
        self.should_exit = True


def _announce(url: str, settings: Settings, isolation: Isolation) -> None:
    state = _without_password(settings.redis_url) if settings.redis_url else str(settings.data_dir.absolute())
    sys.stderr.write(f"cellar-executor serves {url}; {_in_force(settings, isolation)}; state in {state}\n")
    sys.stderr.flush()
    if settings.address_file is not None:
        _write_whole(settings.address_file, url)


def _in_force(settings: Settings, isolation: Isolation) -> str:
    if isolation.tier == "none":
        return "INSECURE: no isolation"
    tiers = "isolation strict"
    if isolation.tier == "warm":
        tiers = (
            f"isolation warm, or strict on request; of each runtime {settings.zygotes} zygotes and "
            f"{settings.ready_sessions} ready sessions"
        )
    memory = "rlimits and watchdog" if isolation.cgroup == "none" else f"cgroup {isolation.cgroup}"
    return f"{tiers} (seccomp {isolation.seccomp}, {memory}, host uid {isolation.host_uid})"


def _write_whole(path: Path, text: str) -> None:
    """Whoever sees the file sees all of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
