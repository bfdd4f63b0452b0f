"""The server process from its first lock to its last: Redis, kernels, HTTP, and the orderly way down."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
import uvloop

from cellar_client.schemas import Isolation
from cellar_executor.addresses import listen, url_for_others, url_of
from cellar_executor.errors import CannotServe, StoreUnavailable
from cellar_executor.http.app import create_app
from cellar_executor.http.gate import refuse_open_house
from cellar_executor.http.peers import Peers, open_peers
from cellar_executor.kernel import Supervisor, SupervisorConfig
from cellar_executor.kernels import descriptors
from cellar_executor.kernels.supervisor import open_supervisor
from cellar_executor.records import Quotas
from cellar_executor.redis_server import RedisServer, redis_server
from cellar_executor.service import Service
from cellar_executor.settings import Settings, find_binary
from cellar_executor.store import Store, open_store
from cellar_executor.store.durability import insist_on_durability
from cellar_executor.store.lease import Lease
from cellar_executor.telemetry import tracing
from cellar_executor.telemetry.logs import log_as
from cellar_executor.tenancy.tenants import Tenants

HOUSEKEEPING_EVERY_S = 1.0

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises `CannotServe`, `redis_server.RedisError`, `kernel.IsolationUnavailable`, `OSError` (the address is taken),
    `ValueError` (too few open files are allowed).
    """
    descriptors.reserve(settings.max_sessions + settings.ready_sessions * len(settings.runtimes))
    with contextlib.closing(listen(settings.host, settings.port)) as listener, _redis(settings) as redis:
        try:
            asyncio.run(_serve(settings, listener, redis), loop_factory=uvloop.new_event_loop)
        except StoreUnavailable as error:
            raise CannotServe(f"Redis cannot be used: {error.detail}") from error


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
    url = redis.url if redis is not None else settings.redis_url
    assert url is not None
    async with contextlib.AsyncExitStack() as stack:
        instance = secrets.token_hex(8)
        log_as(instance)
        if settings.traces:
            stack.callback(tracing.start(instance))
        store = await stack.enter_async_context(open_store(url, instance, _quotas(settings)))
        tenants = Tenants(settings.api_keys, settings.default_quota)
        await insist_on_durability(store, settings.durability)
        await tenants.refresh(store)
        refuse_open_house(settings.host, tenants)
        supervisor = await open_supervisor(_supervisor_config(settings))
        stack.push_async_callback(supervisor.close)
        service = _service(settings, store, supervisor, tenants)
        advertised = settings.advertise_url or url_for_others(listener, url)
        await stack.enter_async_context(_member(settings, store, service, supervisor, advertised))
        stack.push_async_callback(service.close)
        peers = await stack.enter_async_context(open_peers(service)) if settings.redis_url is not None else None
        server = _Server(settings, service, peers, listener, supervisor.isolation)
        housekeeping = asyncio.create_task(_housekeeping(service, store, redis))
        await server.serve(sockets=[listener])
        housekeeping.cancel()


def _quotas(settings: Settings) -> Quotas:
    return Quotas(
        max_pending_cells=settings.max_pending_cells,
        max_log_bytes=settings.max_log_mb * 2**20,
        answer_ttl_s=settings.idempotency_ttl_s,
    )


@contextlib.asynccontextmanager
async def _member(
    settings: Settings, store: Store, service: Service, supervisor: Supervisor, url: str
) -> AsyncIterator[None]:
    """This server lives, for the others on its Redis; one with a Redis of its own knows that there are none."""
    lease: Lease | None = None
    if settings.redis_url is None:
        await store.bury_others()
    else:
        forget = partial(asyncio.get_running_loop().call_soon_threadsafe, service.holding.forget_all)
        lease = Lease(settings.redis_url, store.lease_key, url, settings.lease_s, supervisor.fence, forget)
        service.status.lease = lease
    await store.register(url, settings.lease_s if lease else None)
    try:
        if lease is not None:
            await asyncio.to_thread(lease.open)
        yield
    finally:
        if lease is not None:
            await asyncio.to_thread(lease.close)
        with contextlib.suppress(StoreUnavailable):  # then the lease ends by itself
            await store.unregister()


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


def _service(settings: Settings, store: Store, supervisor: Supervisor, tenants: Tenants) -> Service:
    return Service(
        store,
        supervisor,
        tenants,
        limits=settings.limits,
        runtimes=frozenset(settings.runtimes),
        max_sessions=settings.max_sessions,
        max_running=settings.max_running,
        idle_ttl_s=settings.idle_ttl_s,
        park_after_s=settings.park_after_s,
        min_free_memory_mb=settings.min_free_memory_mb,
        replay_timeout_s=settings.replay_timeout_s,
    )


async def _housekeeping(service: Service, store: Store, redis: RedisServer | None) -> None:
    """Once a second: a Redis of our own that died is started again, keys and quotas are read, idle sessions seen to."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_EVERY_S)
        try:
            if redis is not None:
                redis.ensure_running()
            await service.tenants.refresh(store)
            await service.holding.expire()
            await service.idle.park()
            await service.idle.relieve()
        except StoreUnavailable as error:
            log.warning("Redis does not answer: %s", error.detail)
        except Exception:
            log.exception("housekeeping failed; it goes on")


class _Server(uvicorn.Server):
    """uvicorn, with an announcement at the start and a drain before the end."""

    def __init__(
        self,
        settings: Settings,
        service: Service,
        peers: Peers | None,
        listener: socket.socket,
        isolation: Isolation,
    ) -> None:
        max_body_bytes = settings.max_body_mb * 2**20
        app = create_app(service, max_body_bytes=max_body_bytes, peers=peers)
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
        _announce(url_of(self._listener), self._settings, self._isolation)

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
