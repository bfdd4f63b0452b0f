"""Each gap between two writes to Redis, hit for sure: the server kills itself right before a script is sent, or right
after its reply came. The client asks again, of any replica, and gets a definite answer; the checker finds nothing.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from cellar_executor.store.connection import OTHER_SCRIPTS, SESSION_SCRIPTS
from tests.faults.checker import check
from tests.faults.client import Talk, Witness, code_of
from tests.faults.cluster import Cluster
from tests.faults.history import Call, History

Deed = Callable[[Cluster, Talk], Call]
OFFLINE = {"add_key"}
"""Scripts of the command line, which no server runs."""


def nothing(cluster: Cluster, session: Talk) -> None: ...


def pending_cell(cluster: Cluster, session: Talk) -> None:
    session.queue(session.code(), at=0)


def a_file(cluster: Cluster, session: Talk) -> None:
    session.ask("PUT", "/files/a.txt", b"content")


def cell_that_cannot_be_repeated(cluster: Cluster, session: Talk) -> None:
    """It ends otherwise when it is played again; and a kernel that is dead."""
    once = session.code().replace("\n", f"\nimport os; os.mkdir({str(session.effects)!r} + '.once')\n", 1)
    assert session.run(once).body["status"] == "ok"
    assert session.run(session.code().replace("\n", "\nimport os; os._exit(1)\n", 1)).body["status"] == "killed"


def successor(cluster: Cluster, session: Talk) -> None:
    """The session's owner is dead, and another server in its place."""
    cluster.kill(cluster.replicas[0])
    cluster.replicas[0].start()


def new_session(cluster: Cluster, session: Talk) -> Call:
    return Talk(session.witness, f"{session.session}-new", None, at=0).created


def refused(cluster: Cluster, session: Talk) -> Call:
    name = f"{session.session}-nobody"
    return session.witness.surely("run", name, "POST", f"/{name}/run", {}, key=name, replica=0)


def run(cluster: Cluster, session: Talk) -> Call:
    return session.run(session.code(), at=0)


def run_at_the_other(cluster: Cluster, session: Talk) -> Call:
    return session.run(session.code(), at=1)


def queue(cluster: Cluster, session: Talk) -> Call:
    return session.queue(session.code(), session.code(), at=0)


def run_later(cluster: Cluster, session: Talk) -> Call:
    return session.run_later(session.code(), at=0)


def withdraw(cluster: Cluster, session: Talk) -> Call:
    last = session.read(at=1).cells[-1]
    return session.ask("DELETE", f"/cells/{last['cell_id']}")


def put_file(cluster: Cluster, session: Talk) -> Call:
    return session.ask("PUT", "/files/b.txt", b"content")


def read_file(cluster: Cluster, session: Talk) -> Call:
    return session.ask("GET", "/files/a.txt")


def reset(cluster: Cluster, session: Talk) -> Call:
    return session.ask("POST", "/reset", key=f"r-{session.session}")


def fork(cluster: Cluster, session: Talk) -> Call:
    return session.ask("POST", "/fork", {"session_ids": [f"{session.session}-x"]}, key=f"f-{session.session}")


def delete(cluster: Cluster, session: Talk) -> Call:
    return session.delete(at=0)


def stop(cluster: Cluster, session: Talk) -> Call:
    cluster.replicas[0].stop()
    return session.run(session.code(), at=1)


def restart(cluster: Cluster, session: Talk) -> Call:
    cluster.kill(cluster.replicas[0])
    with pytest.raises(RuntimeError, match="did not start"):
        cluster.replicas[0].start()
    return session.run(session.code(), at=1)


Before = Callable[[Cluster, Talk], None]
DEEDS: Mapping[str, tuple[Before, Deed]] = {
    "create": (nothing, new_session),
    "take": (successor, run),
    "release": (nothing, stop),
    "fork": (nothing, fork),
    "touch": (a_file, read_file),
    "renew": (nothing, reset),
    "lose": (cell_that_cannot_be_repeated, run),
    "delete": (nothing, delete),
    "accept": (nothing, queue),
    "begin": (pending_cell, run),
    "step": (pending_cell, run),
    "enqueue": (nothing, run_later),
    "withdraw": (pending_cell, withdraw),
    "stage": (nothing, put_file),
    "keep": (nothing, put_file),
    "claim": (nothing, run),
    "settle": (nothing, new_session),
    "unclaim": (nothing, refused),
    "whereabouts": (nothing, run_at_the_other),
    "register": (nothing, restart),
    "unregister": (nothing, stop),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("failpoints")
    with Cluster(folder, 2, env={"FAIL_AT_FILE": str(folder / "fail_at")}) as running:
        yield running


@pytest.fixture
def fail_at(cluster: Cluster) -> Iterator[Path]:
    file = cluster.folder("effects").parent / "fail_at"
    yield file
    file.unlink(missing_ok=True)
    cluster.heal()


def test_every_script_has_a_deed() -> None:
    assert DEEDS.keys() - {"register", "unregister"} == {*SESSION_SCRIPTS, *OTHER_SCRIPTS} - OFFLINE


@pytest.mark.parametrize(("script", "side"), [*itertools.product(DEEDS, ("before", "after"))])
def test_a_server_that_dies_there_breaks_nothing(cluster: Cluster, fail_at: Path, script: str, side: str) -> None:
    before, deed = DEEDS[script]
    history, name = History(), f"{script}-{side}"
    with Witness(cluster.urls, history) as witness:
        session = Talk(witness, name, cluster.folder("effects") / name, replay=True, at=0)
        session.run(session.code())
        before(cluster, session)
        fail_at.write_text(f"{script}:{side}")
        answer = deed(cluster, session)
        assert not fail_at.exists(), "the server did not die there"
        for replica in cluster.replicas:
            if replica.died():
                replica.start()
        expected_loss = script in ("lose", "unclaim", "delete")
        assert answer.ok or (expected_loss and code_of(answer) in ("session_lost", "session_not_found")), answer
        if script != "renew":  # a reset forgets on purpose
            session.finish()
    violations = check(history)
    assert not violations, "\n".join(map(str, violations))
