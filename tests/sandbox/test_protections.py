"""`tests.sandbox.without` takes each protection away by a change of the code: that has to be where it was."""

from pathlib import Path

import pytest

import cellar_executor
from tests.sandbox.protections import PROTECTIONS, SELF_TEST, Edit

KERNELS = Path(cellar_executor.__file__).parent / "kernels"


@pytest.mark.parametrize("edit", sorted({SELF_TEST, *(edit for each in PROTECTIONS for edit in each.edits)}), ids=str)
def test_each_protection_is_where_it_is_taken_away(edit: Edit) -> None:
    name, old, _ = edit
    assert (KERNELS / name).read_text().count(old) == 1
