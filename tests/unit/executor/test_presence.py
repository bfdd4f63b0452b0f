"""Whether a client is still there."""

import asyncio

import pytest

from cellar_executor import presence as presence_module
from cellar_executor.presence import Presence, attended


class Client:
    """ASGI's `receive` of a client that disconnects when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.asked = 0

    async def receive(self) -> dict[str, str]:
        self.asked += 1
        await self.left.wait()
        return {"type": "http.disconnect"}


def test_it_is_heard_once_and_also_by_who_comes_later() -> None:
    presence, heard = Presence(), list[str]()
    with presence.or_else(lambda: heard.append("before")):
        pass
    with presence.or_else(lambda: heard.append("here")):
        presence.leave()
        presence.leave()
    with presence.or_else(lambda: heard.append("after")):
        pass
    assert (heard, presence.gone) == (["here", "after"], True)


async def test_a_client_that_leaves_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "LISTEN_AFTER_S", 0.01)
    client, presence = Client(), Presence()
    ended = asyncio.Event()
    work = asyncio.create_task(attended(ended.wait(), client.receive, presence))
    await asyncio.sleep(0.05)
    assert not presence.gone
    client.left.set()
    await asyncio.sleep(0.01)
    assert presence.gone
    ended.set()
    assert await work


async def test_a_quick_answer_does_not_ask() -> None:
    client, presence = Client(), Presence()
    assert await attended(asyncio.sleep(0, "answer"), client.receive, presence) == "answer"
    assert (client.asked, presence.gone) == (0, False)


async def test_who_has_the_answer_is_not_listened_to_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "LISTEN_AFTER_S", 0.0)
    client, presence = Client(), Presence()
    await attended(asyncio.sleep(0.02), client.receive, presence)
    client.left.set()
    await asyncio.sleep(0.02)
    assert (client.asked, presence.gone) == (1, False)
