from typing import get_args

import pytest

from cellar_client import errors
from cellar_client.schemas import ErrorCode, FieldProblem, Problem


def test_every_code_of_the_contract_has_a_class() -> None:
    assert set(errors.BY_CODE) == set(get_args(ErrorCode))


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_a_problem_becomes_the_class_of_its_code(code: str) -> None:
    error = errors.from_problem(Problem(title="no", status=400, code=code))
    assert type(error) is errors.BY_CODE[code]
    assert isinstance(error, errors.CellarError)


def test_a_code_of_a_newer_server_is_a_plain_server_error() -> None:
    problem = Problem.model_validate({"title": "no", "status": 418, "code": "teapot"})
    assert type(errors.from_problem(problem)) is errors.ServerError


def test_the_message_names_code_detail_and_fields() -> None:
    fields = [FieldProblem(field="limits.memory_mb", message="too much")]
    problem = Problem(title="no", status=422, code="limit_too_high", detail="not so high", errors=fields)
    assert str(errors.from_problem(problem)) == "limit_too_high: not so high; limits.memory_mb: too much"


def test_the_tree_at_the_top_of_the_file_shows_every_class() -> None:
    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert errors.__doc__ is not None
    shown = {word for word in errors.__doc__.replace("─", " ").split() if word in classes}
    assert shown == classes
