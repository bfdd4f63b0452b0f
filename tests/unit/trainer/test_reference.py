"""Every key of the configuration is documented, and the page says what the source says."""

from pathlib import Path

from cellar_trainer.config import Config
from cellar_trainer.reference import NEEDED, markdown, options

PAGE = Path(__file__).parents[3] / "docs/configuration.md"


def test_every_key_is_documented_in_its_source() -> None:
    assert [option.key for option in options() if not option.doc] == []


def test_every_section_is_there_with_types_and_defaults() -> None:
    found = {option.key: option for option in options()}
    assert {key.split(".")[0] for key in found} == set(Config.model_fields)
    assert (found["model.path"].kind, found["model.path"].default) == ("string", NEEDED)
    assert (found["objective.clip_high"].kind, found["objective.clip_high"].default) == ("number", "0.28")
    assert found["objective.dual_clip"].kind == 'number or "none"'
    assert found["train.masked_stop_reasons"].default == '["deadline", "void"]'
    assert found["policy.api_key"].default == ""


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == markdown(), "cellar-trainer options --markdown > docs/configuration.md"
