"""What is evaluated, and how often each problem is played."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, slots=True)
class EvalOptions:
    suite: str | None = None
    """What to play: a suite (`math6`, or a .toml file), or a task file, a folder of them, or a data set on the hub, as
    `tasks.path` takes them. Without one nothing is evaluated during training."""
    data: Path = Path("data")
    """The folder that a suite's own paths are relative to."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Trajectories per problem, in every set; when left out, what the suite says, and 1 for task files."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many problems of each set; when left out, what the suite says, and all of task files."""
    seed: int = 0
    """Of the sampling: the same seed gives each trajectory the same seed as before."""
