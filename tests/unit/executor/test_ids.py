"""The same nonce makes the same ids; ids made here are told from those of clients."""

import pytest
from pydantic import TypeAdapter

from cellar_client.schemas import Identifier
from cellar_executor.ids import Ids, Ref, is_server_made


def test_ids_follow_from_the_nonce() -> None:
    first, again, other = Ids("a"), Ids("a", resumed=True), Ids("b")
    assert (first.session(), first.run(), first.cell(0)) == (again.session(), again.run(), again.cell(0))
    made = {first.session(), first.run(), first.cell(0), first.cell(1), other.session(), other.run(), other.cell(0)}
    assert len(made) == 7


def test_ids_made_here_are_identifiers_of_the_contract() -> None:
    ids = Ids.fresh()
    for made in (ids.session(), ids.run(), ids.cell(999)):
        TypeAdapter(Identifier).validate_python(made)
    assert is_server_made(ids.session())


@pytest.mark.parametrize("chosen", ["s-1", "session", "S-" + "0" * 32, "s-" + "0" * 33])
def test_ids_of_clients_are_not_taken_for_ours(chosen: str) -> None:
    assert not is_server_made(chosen)


def test_a_ref_is_read_back() -> None:
    assert Ref.parse(str(Ref("tenant", "id"))) == Ref("tenant", "id")
