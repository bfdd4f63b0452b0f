import pytest
from pydantic import ValidationError

from cellar_trainer.learning.objectives.options import BASES, PRESETS, ObjectiveOptions

TABLE = {
    "grpo": ("standardised", "token", 0.2, 0.2, "none", "sequence"),
    "dr_grpo": ("centred", "token", 0.2, 0.2, "none", "constant"),
    "dapo": ("standardised", "token", 0.2, 0.28, 3.0, "token"),
    "gspo": ("standardised", "sequence", 3e-4, 4e-4, "none", "sequence"),
    "lampo": ("pairwise", "token", 0.2, 0.2, "none", "sequence"),
}


def row(options: ObjectiveOptions) -> tuple[object, ...]:
    return (
        options.advantage,
        options.ratio,
        options.clip_low,
        options.clip_high,
        options.dual_clip,
        options.loss_mean,
    )


@pytest.mark.parametrize("base", BASES)
def test_a_name_stands_for_its_options_by_itself_and_below_a_gate(base: str) -> None:
    for given in ({"name": base}, {"name": "ih_grpo", "base": base}, {"name": "eh_grpo", "base": base}):
        options = ObjectiveOptions.model_validate(given)
        assert row(options) == TABLE[base]
        assert options.base == base


def test_without_a_base_the_gated_ones_are_as_dapo() -> None:
    assert row(ObjectiveOptions()) == row(ObjectiveOptions(name="eh_grpo")) == TABLE["dapo"]
    assert ObjectiveOptions() == ObjectiveOptions(name="ih_grpo", base="dapo")


def test_a_given_option_wins_over_the_names() -> None:
    options = ObjectiveOptions(name="gspo", clip_high=0.1, dual_clip=2.0)
    assert row(options) == ("standardised", "sequence", 3e-4, 0.1, 2.0, "sequence")


def test_presets_can_be_changed_and_unknown_names_are_refused() -> None:
    assert ObjectiveOptions.preset("exact") == ObjectiveOptions()
    assert ObjectiveOptions.preset("released", weight=0.01).weight == 0.01
    assert row(ObjectiveOptions.preset("exact", base="gspo")) == TABLE["gspo"]
    with pytest.raises(KeyError):
        ObjectiveOptions.preset("unknown")


@pytest.mark.parametrize("options", [*({"name": name} for name in BASES), *PRESETS.values()])
def test_options_survive_json(options: dict[str, object]) -> None:
    built = ObjectiveOptions.model_validate(options)
    assert ObjectiveOptions.model_validate_json(built.model_dump_json()) == built


@pytest.mark.parametrize(
    "bad",
    [
        {"eta": 0},
        {"weight": -1},
        {"f": "third"},
        {"clip_low": 1.0},
        {"dual_clip": 1.0},
        {"lampo_tau": 0},
        {"constant_length": 0},
        {"unknown": 1},
        {"name": ["grpo"]},
        {"base": "ih_grpo"},
        {"name": "grpo", "base": "dapo"},
    ],
)
def test_options_that_make_no_sense_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ObjectiveOptions.model_validate(bad)
