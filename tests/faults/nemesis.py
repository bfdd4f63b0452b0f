"""What makes the cluster fail, at random moments: one thread for each replica, one for Redis."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.faults.cluster import LEASE_S, Cluster, Replica
from tests.faults.history import History

Draw = tuple[tuple[str, int], ...]
TO_REPLICAS: Draw = (
    ("kill -9", 10),
    ("SIGTERM", 2),
    ("pause", 1),
    ("partition from Redis", 1),
    ("black hole to Redis", 1),
    ("partition from clients", 1),
    ("resets", 2),
    ("latency", 1),
)
TO_REDIS: Draw = (("kill -9", 8), ("full", 1), ("pause", 1))
CALM_S = 1.5
"""The longest pause between two faults of one victim."""


class Nemesis:
    """`with Nemesis(...)`: it rages inside, and the cluster is whole afterwards."""

    def __init__(self, cluster: Cluster, history: History, seed: int) -> None:
        self._cluster = cluster
        self._history = history
        self._seed = seed
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.done: Counter[str] = Counter()
        self.mishaps: list[BaseException] = []

    def __enter__(self) -> "Nemesis":
        for replica in self._cluster.replicas:
            self._start(self._vex_replica, replica, random.Random(self._seed + replica.number))
        self._start(self._vex_redis, random.Random(self._seed + 100))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._cluster.heal()
        if self.mishaps:
            raise ExceptionGroup("the nemesis itself failed", [m for m in self.mishaps if isinstance(m, Exception)])

    def _start(self, vex: Callable[..., None], *args: Any) -> None:
        def run() -> None:
            try:
                vex(*args)
            except Exception as mishap:
                self.mishaps.append(mishap)

        thread = threading.Thread(target=run, name="nemesis")
        self._threads.append(thread)
        thread.start()

    def _vex_replica(self, replica: Replica, dice: random.Random) -> None:
        while not self._stopping.wait(dice.uniform(0, CALM_S)):
            what = _drawn(TO_REPLICAS, dice)
            with self._history.fault(f"{what} {replica.number}"):
                self._do_to_replica(replica, what, dice)
            self.done[what] += 1

    def _do_to_replica(self, replica: Replica, what: str, dice: random.Random) -> None:
        past_the_lease = dice.uniform(0.5, 1.5) * LEASE_S
        match what:
            case "kill -9":
                left = self._cluster.kill(replica)
                self._history.leftovers += [f"left of a killed server: {process}" for process in left]
                time.sleep(dice.choice((0.0, 0.0, past_the_lease)))
                self._up(replica)
            case "SIGTERM":
                replica.stop()
                self._up(replica)
            case "pause":
                replica.server.pause()
                time.sleep(past_the_lease)
                replica.server.resume()
            case "partition from Redis":
                replica.to_redis.cut()
                time.sleep(past_the_lease)
                replica.to_redis.heal()
            case "black hole to Redis":
                replica.to_redis.black_hole()
                time.sleep(past_the_lease)
                replica.to_redis.heal()
            case "partition from clients":
                replica.front.cut()
                time.sleep(past_the_lease)
                replica.front.heal()
            case "resets":
                (replica.front if dice.random() < 0.7 else replica.to_redis).reset_after(dice.randrange(4000))
                time.sleep(dice.uniform(0.2, 1.0))
                replica.front.heal()
                replica.to_redis.heal()
            case "latency":
                replica.to_redis.delay(dice.uniform(0.005, 0.1))
                time.sleep(past_the_lease)
                replica.to_redis.heal()

    def _up(self, replica: Replica) -> None:
        """A server does not start without Redis: it is tried again, as whatever runs it would."""
        while True:
            try:
                return replica.start()
            except (RuntimeError, OSError):
                if self._stopping.is_set():
                    return
                self.done["start in vain"] += 1

    def _vex_redis(self, dice: random.Random) -> None:
        redis = self._cluster.redis
        while not self._stopping.wait(dice.uniform(0, 4 * CALM_S)):
            what = _drawn(TO_REDIS, dice)
            match what:
                case "kill -9":
                    with self._history.fault("Redis down"):
                        self._cluster.restart_redis(dice.choice((0.0, dice.uniform(0, LEASE_S))))
                case "full":
                    with self._history.fault("full"):
                        redis.fill()
                        time.sleep(dice.uniform(0, LEASE_S))
                        redis.empty()
                case "pause":
                    with self._history.fault("pause of Redis"):
                        redis.pause()
                        time.sleep(dice.uniform(0, 2 * LEASE_S))
                        redis.resume()
            self.done[f"Redis: {what}"] += 1


def _drawn(draw: Draw, dice: random.Random) -> str:
    return dice.choices([name for name, _ in draw], [weight for _, weight in draw])[0]
