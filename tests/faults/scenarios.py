"""What may go wrong, one thing at a time, at a moment that is chosen: each scenario gives a history to check.

The same scenarios run on the executor as it is (`test_scenarios`), where the checker finds nothing, and on mutants with
a guard removed (`test_mutants`), where it does.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.faults.client import Talk, Witness, code_of, wait_until
from tests.faults.cluster import Cluster
from tests.faults.history import History

Scenario = Callable[[Cluster, History], None]
LONG_S = 1.5


def same_key_everywhere(cluster: Cluster, history: History) -> None:
    """One key at all replicas at once: one cell starts, and all get its run."""
    with talk(cluster, history, "same-key") as session:
        session.run(session.code())
        code = session.code(0.3)
        with at_once() as pool:
            answers = list(pool.map(lambda at: session.run(code, key="the-same", at=at), range(3)))
        history.expect(len({str(answer.body) for answer in answers}) == 1, answers)
        session.finish()


def owner_killed_while_a_cell_runs(cluster: Cluster, history: History) -> None:
    """kill -9 of the owner. `fail`: 410 from then on. `replay`: rebuilt elsewhere, without the cell that was cut."""
    with (
        talk(cluster, history, "killed-fail") as fails,
        talk(cluster, history, "killed-replay", replay=True) as replays,
    ):
        for session in (fails, replays):
            session.run(session.code())
        with at_once() as pool:
            cut = [
                pool.submit(session.run, session.code(LONG_S), key=f"cut-{session.session}", at=0)
                for session in (fails, replays)
            ]
            wait_until(lambda: all(started(session, 2) for session in (fails, replays)))
            history.leftovers += [f"left of a killed server: {p}" for p in cluster.kill(cluster.replicas[0])]
            again = replays.run(replays.code(), at=1)
            lost, recovered = (answer.result() for answer in cut)
        history.expect(lost.status in (200, 410), lost)
        history.expect(recovered.status == 200, recovered)
        history.expect(recovered.body.get("status") == "lost", recovered)
        history.expect(again.body.get("recovered"), again)
        history.expect(again.body.get("generation") == 2, again)
        refused = fails.run(fails.code(), at=2)
        history.expect(code_of(refused) == "session_lost", refused)
        replays.finish()
        fails.finish()
        cluster.replicas[0].start()


def owner_paused_past_its_lease(cluster: Cluster, history: History) -> None:
    """SIGSTOP: its kernels die by themselves before another replica takes over; after SIGCONT it forwards."""
    with talk(cluster, history, "paused", replay=True) as session:
        session.run(session.code())
        owner = cluster.replicas[0]
        with at_once() as pool:
            pool.submit(session.witness.once, *post_run(session, session.code(6.0)), replica=0)
            wait_until(lambda: started(session, 2))
            with history.fault("pause"):
                owner.server.pause()
                try:
                    time.sleep(0.5)
                    taken = session.run(session.code(LONG_S), at=1)
                finally:
                    owner.server.resume()
        history.expect(taken.body.get("generation") == 2, taken)
        history.expect(taken.body.get("recovered"), taken)
        back = session.run(session.code(), at=0)
        history.expect(back.ok, back)
        session.finish()


def owner_cut_off_from_redis(cluster: Cluster, history: History) -> None:
    """The owner lives, but its lease ends: its kernels die first. Later it finds that its session has moved."""
    with talk(cluster, history, "cut-off", replay=True) as session:
        session.run(session.code())
        owner = cluster.replicas[0]
        with at_once() as pool:
            pool.submit(session.witness.once, *post_run(session, session.code(6.0)), replica=0)
            wait_until(lambda: started(session, 2))
            with history.fault("partition of a replica from Redis: black hole"):
                owner.to_redis.black_hole()
                try:
                    time.sleep(0.5)
                    taken = session.run(session.code(LONG_S), at=1)
                finally:
                    owner.to_redis.heal()
        history.expect(taken.body.get("recovered"), taken)
        back = session.run(session.code(), at=0)
        history.expect(back.ok, back)
        session.finish()


def redis_killed_while_a_cell_runs(cluster: Cluster, history: History) -> None:
    """The cell goes on, its outcome is recorded when Redis is back; what was acknowledged is there."""
    with talk(cluster, history, "redis", replay=True) as session:
        session.run(session.code())
        queued = session.queue(session.code(), session.code())
        with at_once() as pool:
            running = pool.submit(session.run, session.code(1.0))
            wait_until(lambda: started(session, 4))
            with history.fault("Redis down"):
                cluster.restart_redis(down_s=0.3)
            run = running.result()
        history.expect(queued.ok and run.ok, run)
        session.finish()


def redis_full(cluster: Cluster, history: History) -> None:
    """Nothing is acknowledged that cannot be written; afterwards all goes on."""
    with talk(cluster, history, "full", replay=True) as session:
        session.run(session.code())
        with history.fault("full"):
            cluster.redis.fill()
            try:
                refused = session.witness.once(*post_run(session, session.code()), replica=0)
            finally:
                cluster.redis.empty()
        history.expect(refused.status in (503, None), refused)
        session.finish()


def graceful_stop(cluster: Cluster, history: History) -> None:
    """SIGTERM: the cell that runs ends, its session is another replica's at once, long before a lease would end."""
    with talk(cluster, history, "term", replay=True) as session:
        session.run(session.code())
        with at_once() as pool:
            running = pool.submit(session.run, session.code(1.0), at=0)
            wait_until(lambda: started(session, 2))
            cluster.replicas[0].stop()
            run = running.result()
        history.expect(run.ok, run)
        history.expect(run.body.get("status") == "ok", run)
        taken = session.witness.once(*post_run(session, session.code()), replica=1, key="after-the-stop")
        history.expect(taken.ok, taken)
        history.expect((taken.body or {}).get("recovered"), taken)
        history.expect((taken.body or {}).get("generation") == 2, taken)
        session.finish()
        cluster.replicas[0].start()


def deleted_for_good(cluster: Cluster, history: History) -> None:
    """Neither a retry nor a replica that died meanwhile brings a deleted session back, and its id is used up."""
    with talk(cluster, history, "deleted", replay=True) as session:
        session.run(session.code())
        session.delete(at=1)
        again = session.witness.surely("create", "deleted", "POST", "", {"session_id": "deleted"}, key="another")
        history.expect(code_of(again) == "session_exists", again)
        late = session.run(session.code())
        history.expect(code_of(late) == "session_not_found", late)


SCENARIOS: Mapping[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        same_key_everywhere,
        owner_killed_while_a_cell_runs,
        owner_paused_past_its_lease,
        owner_cut_off_from_redis,
        redis_killed_while_a_cell_runs,
        redis_full,
        graceful_stop,
        deleted_for_good,
    )
}


@contextlib.contextmanager
def talk(cluster: Cluster, history: History, name: str, *, replay: bool = False) -> Iterator[Talk]:
    """A session that replica 0 owns."""
    effects = cluster.folder("effects") / name
    with Witness(cluster.urls, history) as witness:
        try:
            yield Talk(witness, name, effects, replay=replay, at=0)
        finally:
            history.read_effects(name, effects)


def at_once() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8)


def started(session: Talk, count: int) -> bool:
    """Whether so many cells have written that they started."""
    assert session.effects is not None
    return session.effects.exists() and session.effects.read_text().count("start ") >= count


def post_run(session: Talk, code: str) -> tuple[Any, ...]:
    """Arguments of `Witness.once`, for a run that nobody asks for again."""
    return ("run", session.session, "POST", f"/{session.session}/run", {"code": code, "timeout_s": 20.0})
