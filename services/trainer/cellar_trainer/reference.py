"""Every key of the configuration, as its own source documents it: `cellar-trainer options`, docs/configuration.md."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from cellar_trainer.config import Config

NEEDED = "needed"
TOML_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", SecretStr: "string"}


@dataclass(frozen=True, slots=True)
class Option:
    key: str
    """Its whole path, as on the command line: section.name."""
    kind: str
    default: str
    """As TOML; `NEEDED` where there is none, empty for one that is left out."""
    doc: str


def options() -> Iterator[Option]:
    """All of them, section by section, in the order of the source."""
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and (is_dataclass(section) or issubclass(section, BaseModel)):
            yield from _section(name, section)
        else:
            yield _option(name, Config, name)


def markdown() -> str:
    """The reference as a page: one table per section."""
    lines = ["# Configuration", "", *textwrap.wrap(INTRODUCTION, 160)]
    section = None
    for option in options():
        name, _, key = option.key.rpartition(".")
        if name != section:
            section = name
            title = f"`[{name}]`" if name else "At the top"
            lines += ["", f"## {title}", "", "| key | type | default | |", "|---|---|---|---|"]
        default = f"`{option.default}`" if option.default not in ("", NEEDED) else option.default
        doc = option.doc.replace("|", "\\|")
        lines.append(f"| `{key}` | {option.kind} | {default} | {doc} |")
    return "\n".join(lines) + "\n"


INTRODUCTION = (
    "A TOML file, and `key=value` changes on the command line, as in `optimiser.learning_rate=1e-5`. This page is "
    "printed by `cellar-trainer options --markdown`; services/trainer/configs/math.toml is a file to start from."
)


def _section(name: str, section: type) -> Iterator[Option]:
    keys = [f.name for f in fields(section)] if is_dataclass(section) else list(_model_fields(section))
    for key in keys:
        yield _option(f"{name}.{key}", section, key)


def _option(path: str, owner: type, key: str) -> Option:
    return Option(path, _kind(get_type_hints(owner)[key]), _default(owner, key), _docs(owner)[key])


def _docs(owner: type) -> Mapping[str, str]:
    """Of each attribute of a class the string that follows it in the source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(body, ast.ClassDef)
    return {
        statement.target.id: _doc(following)
        for statement, following in zip(body.body, [*body.body[1:], None], strict=True)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def _kind(hint: Any) -> str:
    """A type as somebody who writes TOML thinks of it."""
    parts = [part for part in get_args(hint) if part is not NoneType]
    if get_origin(hint) is Literal:
        return " or ".join(json.dumps(part) for part in parts)
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_kind, parts))
    if get_origin(hint) is tuple:
        return f"[{', '.join(_kind(part) for part in parts if part is not ...)}]"
    if parts:
        return f"list of {_kind(parts[0])}"
    if issubclass(hint, Enum):
        return " or ".join(json.dumps(member.value) for member in hint)
    return TOML_TYPES[hint]


def _doc(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""


def _default(owner: type, key: str) -> str:
    if is_dataclass(owner):
        field = next(f for f in fields(owner) if f.name == key)
        value = field.default if field.default_factory is MISSING else field.default_factory()
    else:
        value = _model_fields(owner)[key].get_default(call_default_factory=True)
    if value is MISSING or value is PydanticUndefined:
        return NEEDED
    return "" if value is None else _toml(value)


def _model_fields(owner: type) -> Mapping[str, Any]:
    assert issubclass(owner, BaseModel)
    return owner.model_fields


def _toml(value: Any) -> str:
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, Path):
        value = str(value)
    text = json.dumps(value)
    return text if len(text) <= 80 else "(see the source)"
