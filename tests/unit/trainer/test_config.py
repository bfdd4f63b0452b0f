"""Configurations that are taken, and mistakes that are named."""

from pathlib import Path

import pytest

from cellar_client import calls
from cellar_trainer.config import Config, ConfigError, load_config, parse_config
from cellar_trainer.learning.model import ControlTokens
from cellar_trainer.types import StopReason

MINIMAL = {"output": "runs/x", "model": {"path": "m"}, "tasks": {"path": "t.jsonl"}}
EXAMPLES = Path("services/trainer/configs")


def written(folder: Path, text: str = "") -> Path:
    path = folder / "c.toml"
    path.write_text('output = "o"\n' + text + '\n[model]\npath = "m"\n[tasks]\npath = "t.jsonl"\n')
    return path


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_configuration(example: Path) -> None:
    assert load_config(example).output.parts[0] == "runs"


def test_what_is_left_out_has_a_default() -> None:
    config = parse_config(MINIMAL)
    assert config.rollout.max_turns == 5
    assert config.objective.name == "ih_grpo"
    assert config.train.masked_stop_reasons == {StopReason.VOID, StopReason.DEADLINE}


def test_changes_are_toml_values_or_bare_text_at_dotted_paths(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path),
        [
            "train.steps=7",
            "optimiser.learning_rate = 1e-5",
            "policy.kind=local",
            'train.masked_stop_reasons=["max_tokens"]',
            "collect.dynamic_sampling=true",
            "output=elsewhere/run",
        ],
    )
    assert (config.train.steps, config.optimiser.learning_rate, config.policy.kind) == (7, 1e-5, "local")
    assert config.train.masked_stop_reasons == {StopReason.MAX_TOKENS}
    assert config.collect.dynamic_sampling
    assert config.output == Path("elsewhere/run")


def test_values_are_taken_as_they_are(tmp_path: Path) -> None:
    values = {"eval.suite": "2024", "eval.data": Path("2026-11-21"), "eval.n": 3}
    config = load_config(written(tmp_path), ["eval.n=2", "eval.limit=4"], values)
    assert (config.eval.suite, config.eval.data) == ("2024", Path("2026-11-21"))
    assert (config.eval.n, config.eval.limit) == (3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.stepz=7", "train.stepz: no such key; did you mean train.steps?"),
        ("trian.steps=7", "trian: no such key; did you mean train?"),
        ("objective.waight=1", "objective.waight: no such key; did you mean objective.weight?"),
        ("objective.qqqqqq=1", "objective.qqqqqq: no such key"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("rollout.temperature=0", "rollout.temperature: Input should be greater than 0"),
        ("objective.preset=best", "objective: Value error, no preset 'best'; there are exact, released"),
        ("train.masked_stop_reasons=['tired']", "train.masked_stop_reasons.0: Input should be 'answered'"),
        ("objective.name=eh_grpo", 'Value error, objective.name = "eh_grpo" needs policy.kind = "local"'),
        ("train.evaluate_every=1", "Value error, train.evaluate_every: name the problems in eval.suite"),
        ("policy.transfer=ipc", 'Value error, policy.transfer = "ipc" needs model.device = "cuda"'),
        ("policy.timeout_s=600", "Value error, policy.timeout_s has to be less than rollout.deadline_s"),
        ("train.checkpoints_kept=0", "train.checkpoints_kept: Input should be greater than or equal to 1"),
        ("train.steps", "'train.steps' is not of the form key=value"),
        ("output.x=1", "output.x: output is not a section"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path), [change])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("key", "taken", "refused"),
    [
        ("cell_timeout_s", (0.1, 86_400), (0, -1, 86_401, float("nan"))),
        ("deadline_s", (600.1, 86_400), (0, -1, 86_401, float("inf"))),
        ("memory_mb", (32,), (31, 0)),
        ("max_turn_tokens", (1,), (0,)),
        ("max_context_tokens", (1,), (0,)),
        ("max_turns", (1,), (0,)),
        ("max_runs", (0,), (-1,)),
        ("concurrency", (1,), (0,)),
    ],
)
def test_rollouts_are_bounded_as_the_wire_is(key: str, taken: tuple[float, ...], refused: tuple[float, ...]) -> None:
    for value in taken:
        rollout = parse_config({**MINIMAL, "rollout": {key: value}}).rollout
        limits = {} if rollout.memory_mb is None else {"memory_mb": rollout.memory_mb}
        calls.create_session(limits=limits, idle_ttl_s=rollout.deadline_s)
        calls.run("s", timeout_s=rollout.cell_timeout_s)
    for value in refused:
        with pytest.raises(ConfigError, match=f"rollout.{key}: Input should be"):
            parse_config({**MINIMAL, "rollout": {key: value}})


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"output": "o", "model": {"path": "m", "tigger": "x"}})
    assert sorted(str(caught.value).splitlines()) == [
        "model.tigger: no such key; did you mean model.trigger?",
        "tasks: Field required",
    ]


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: Invalid value"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'output = "\xe9"')
    with pytest.raises(ConfigError, match=r"latin\.toml: 'utf-8' codec"):
        load_config(tmp_path / "latin.toml")


def test_overlap_needs_weights_that_may_be_one_step_old() -> None:
    with pytest.raises(ConfigError, match="max_staleness has to be 1 or more"):
        parse_config({**MINIMAL, "train": {"overlap": "between", "max_staleness": 0}})


def test_a_preset_gives_values_that_single_keys_change() -> None:
    config = parse_config({**MINIMAL, "objective": {"preset": "released", "clip_high": 0.4}})
    assert (config.objective.weight, config.objective.f, config.objective.clip_high) == (0.001, "none", 0.4)


def test_the_demos_objective_is_a_token_mean_with_two_clips() -> None:
    demo = load_config(Path("demo/config.toml"), ["output=o", "model.path=m", "tasks.path=t.jsonl"]).objective
    assert (demo.name, demo.f, demo.weight, demo.respect_clip, demo.mask) == ("ih_grpo", "none", 1.0, True, "response")
    assert (demo.advantage, demo.ratio, demo.loss_mean) == ("standardised", "token", "token")
    assert (demo.clip_low, demo.clip_high, demo.dual_clip) == (0.2, 0.28, 3.0)
    assert (demo.importance, demo.importance_cap) == ("truncate", 2.0)


def test_an_explicit_gate_needs_the_local_policy() -> None:
    config = parse_config({**MINIMAL, "objective": {"name": "eh_grpo"}, "policy": {"kind": "local"}})
    assert config.objective.base == "dapo"


def test_a_turn_ends_at_the_trigger_or_the_end_of_sequence() -> None:
    sampling = parse_config(MINIMAL).rollout.options(ControlTokens(trigger_id=5, eos_id=6, pad_id=0)).sampling
    assert (sampling.stop_token_ids, sampling.trigger_id) == ((5, 6), 5)


def test_a_key_is_not_written_into_checkpoints() -> None:
    config = parse_config({**MINIMAL, "policy": {"api_key": "hush"}, "executor": {"api_key": "hush"}})
    assert "hush" not in str(config.model_dump(mode="json")) + repr(config)
    assert config.policy.api_key is not None
    assert config.policy.api_key.get_secret_value() == "hush"


def test_a_configuration_written_as_json_reads_back_the_same() -> None:
    config = parse_config({**MINIMAL, "objective": {"preset": "released"}})
    assert Config.model_validate_json(config.model_dump_json()) == config
