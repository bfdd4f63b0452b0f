"""Every term of every loss is guarded: each mutant below, one edit to one function, turns a named test red.

A row is a function, what of its source is replaced by what, and a test that has to fail. The mutant's code takes the
place of the function's own, so every module that has imported the function runs the mutant.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import Any, NamedTuple

import pytest

from cellar_trainer.learning import advantages, head, objectives
from cellar_trainer.learning.objectives import clip, eh_grpo, ih_grpo, normalisation, tokens
from tests.unit.trainer import (
    test_advantages,
    test_clip,
    test_eh_grpo,
    test_head,
    test_ih_grpo,
    test_normalisation,
    test_objectives,
    test_precision,
)


class Mutant(NamedTuple):
    function: Callable[..., Any]
    original: str
    mutated: str
    check: Callable[[], object]


def row(test: Callable[..., None], number: int) -> Callable[[], None]:
    """A test with a row of the table that parametrises it."""
    (mark,) = test.pytestmark  # type: ignore[attr-defined]  # pytest's
    return partial(test, *mark.args[1][number])


def example(test: Any, **values: object) -> Callable[[], None]:
    """A property test with one example."""
    return partial(test.hypothesis.inner_test, **values)


NONE, FIRST, SECOND, EXACT, AT_TRIGGER = (row(test_ih_grpo.test_loss_and_gradient_by_hand, n) for n in range(5))
_, CLIPPED, RELEASED, UNCLIPPED = (row(test_objectives.test_a_clipped_token_by_hand, n) for n in range(4))
PLAIN = test_objectives.test_dapo_without_a_clip_is_the_plain_policy_gradient_bit_for_bit
LIVE, FENCE = (
    partial(test_objectives.test_a_mask_leaves_the_terms_where_it_says_and_the_base_elsewhere, mask)
    for mask in ("live", "fence")
)
WEIGHT = test_ih_grpo.test_weight_scales_what_is_added_to_the_policy_gradient
DAPO = partial(row, test_clip.test_dapo_clips_higher_above_and_twice_below_by_hand)
ON_POLICY, AT_HIGH, CLIPPED_HIGH, CLIPPED_LOW, DUAL = DAPO(0), DAPO(1), DAPO(2), DAPO(5), DAPO(7)
GSPO = test_clip.test_gspo_clips_whole_sequences_by_their_geometric_mean_by_hand
TRUNCATED = test_clip.test_truncation_keeps_the_gradient_with_the_weight_of_the_cap
MASKED = test_clip.test_masking_drops_tokens_beyond_the_cap_on_both_sides
MEASURES = test_clip.test_measures_by_hand
TOKEN_MEAN, SEQUENCE_MEAN, CONSTANT_MEAN = (row(test_normalisation.test_the_three_means_by_hand, n) for n in range(3))
LAMPO = test_advantages.test_lampo_by_hand
GATE = test_eh_grpo.test_loss_and_gradient_of_both_levels_by_hand
GATE_SAMPLER = test_eh_grpo.test_the_sampler_draws_from_both_levels_by_hand
TILES = example(
    test_head.test_tiles_of_any_size_give_the_scalars_and_gradients_of_the_logits,
    **{"tokens": 7, "vocabulary": 11, "column": 0.5, "rows": 3, "columns": 4, "temperature": 0.5},
)
F_TILES = example(test_head.test_the_passes_for_f_agree_with_full_logits, eta=1.0, columns=5, seed=0)
LARGE_STEP = test_head.test_f_of_a_step_beyond_any_exponential_by_hand
RARE, CERTAIN = (
    partial(test_precision.test_values_and_gradients_at_every_probability_of_the_trigger, p, "trigger", 16)
    for p in (1e-3, 1 - 1e-12)
)
SMALL_STEP = test_head.test_f_is_accurate_in_float32_at_the_step_sizes_of_real_training

oracle, terms, correct = ih_grpo.hierarchical_loss, ih_grpo.hierarchical_terms, ih_grpo.correction
loss, ratio, importance = clip.clipped_policy_loss, clip._log_ratio, clip._importance
forward, backward = head._TokenScalars.forward, head._TokenScalars.backward

SURROGATE = {
    "policy term, sign": Mutant(oracle, "-advantages_BT *", "advantages_BT *", NONE),
    "policy term, dropped": Mutant(oracle, "-advantages_BT *", "0 *", NONE),
    "weight forgotten in the oracle": Mutant(oracle, "+ weight * hier", "+ hier", WEIGHT),
    "weight forgotten": Mutant(objectives._hierarchical, "options.weight * ", "", RELEASED),
    "gate term, sign": Mutant(terms, "return gate_N", "return -gate_N", NONE),
    "gate term, dropped": Mutant(terms, "return gate_N", "return 0 * gate_N", NONE),
    "gate term, no advantage": Mutant(terms, "= advantages_N * coeff", "= coeff", NONE),
    "gate term, log Z without gradient": Mutant(terms, "_N * scalars.log_z_N", "_N * scalars.log_z_N.detach()", NONE),
    "gamma with gradient, ordinary token": Mutant(tokens.trigger_probability, ".detach()", "", NONE),
    "gamma with gradient, trigger": Mutant(tokens.hierarchical_coefficient, ".detach()", "", AT_TRIGGER),
    "gamma for 1 - gamma": Mutant(tokens.trigger_probability, "(-gate", "(gate", NONE),
    "indicator forgotten": Mutant(
        tokens.hierarchical_coefficient, "trigger_probability(gate_logit_N)", "-gamma_N", NONE
    ),
    "indicator upside down": Mutant(tokens.hierarchical_coefficient, "where(is_", "where(~is_", AT_TRIGGER),
    "f term, sign": Mutant(terms, "- torch.where", "+ torch.where", EXACT),
    "f term, dropped": Mutant(terms, "0, f_N)", "0, 0 * f_N)", EXACT),
    "f term, on triggers": Mutant(terms, "torch.where(is_trigger_N, 0, f_N)", "f_N", AT_TRIGGER),
    "f term, no gradient": Mutant(terms, "0, f_N) * trigger_logit_N", "0, f_N) * trigger_logit_N.detach()", EXACT),
    "first order, no mean": Mutant(correct, "q_N - scalars.sum_q2_N", "q_N", FIRST),
    "first order, no q of the token": Mutant(correct, "q_N - scalars.sum_q2_N", "-scalars.sum_q2_N", FIRST),
    "first order, no advantage": Mutant(correct, "return advantages_N * mean_N\n    v", "return mean_N\n    v", FIRST),
    "second order, not halved": Mutant(correct, "eta / 2", "eta", SECOND),
    "second order, raw moment": Mutant(correct, " - mean_N**2", "", SECOND),
    "second order, no cubes": Mutant(correct, " + sum_q3()", "", SECOND),
    "second order, advantage not squared": Mutant(correct, "advantages_N**2", "advantages_N", SECOND),
    "exact, not per eta": Mutant(head.exact_f_from_logits, " / eta", "", EXACT),
    "exact, q not taken away": Mutant(head.exact_f_from_logits, "(-steps_N[..., None] *", "(0 *", EXACT),
    "exact, target not raised": Mutant(head.exact_f_from_logits, "], steps_N[", "], 0 * steps_N[", EXACT),
    "exact, no advantage": Mutant(head.exact_f_from_logits, "eta * advantages_N", "eta + 0 * advantages_N", EXACT),
    "Z includes the trigger": Mutant(head._without_trigger, "logits.index_fill(", "(lambda *_: logits)(", NONE),
    "clip not respected": Mutant(objectives._hierarchical, "if options.respect_clip", "if False", CLIPPED),
    "clip always respected": Mutant(objectives._hierarchical, "if options.respect_clip", "if True", RELEASED),
    "released, sign": Mutant(objectives._hierarchical, "else -policy", "else policy", RELEASED),
    "ratio not in the terms": Mutant(loss, "-unclipped_N, 0).detach()", "advantages_N, 0).detach()", UNCLIPPED),
    "terms without their name": Mutant(objectives.policy_objective, 'options.name == "ih_grpo" and', "", PLAIN),
    "fence without triggers": Mutant(objectives._acts, " | terms.is_trigger_N", "", FENCE),
    "fence on triggers alone": Mutant(objectives._acts, "terms.tokens.near_fence_N | ", "", FENCE),
    "live without its upper bound": Mutant(objectives._acts, " & (probability_N < high)", "", LIVE),
    "live without its lower bound": Mutant(objectives._acts, "(probability_N > low) & ", "", LIVE),
}

BASES = {
    "loss, sign": Mutant(loss, "unclipped_N = -adv", "unclipped_N = adv", ON_POLICY),
    "clipped loss, sign": Mutant(loss, " clipped_N = -adv", " clipped_N = adv", CLIPPED_HIGH),
    "ratio not applied": Mutant(loss, "-advantages_N * ratio_N\n", "-advantages_N * (ratio_N > 0)\n", AT_HIGH),
    "ratio upside down": Mutant(ratio, "terms.logprobs_N - terms.tokens", "-terms.logprobs_N + terms.tokens", AT_HIGH),
    "clip, bounds swapped": Mutant(
        loss, "1 - options.clip_low, 1 + options.clip_high", "1 - options.clip_high, 1 + options.clip_low", CLIPPED_HIGH
    ),
    "clip, no upper bound": Mutant(loss, "1 + options.clip_high", "9", CLIPPED_HIGH),
    "clip, no lower bound": Mutant(loss, "1 - options.clip_low", "0", CLIPPED_LOW),
    "clip, the smaller loss": Mutant(loss, "torch.maximum", "torch.minimum", CLIPPED_HIGH),
    "clip, coefficient goes on": Mutant(loss, " & (loss_N == unclipped_N)", "", CLIPPED_HIGH),
    "clip, coefficient's sign": Mutant(loss, "-unclipped_N, 0)", "unclipped_N, 0)", ON_POLICY),
    "dual clip, dropped": Mutant(loss, "(raw_ratio_N > options.dual_clip)", "(raw_ratio_N > 1e9)", DUAL),
    "dual clip, for gains": Mutant(loss, "(advantages_N < 0) & (raw", "(advantages_N > 0) & (raw", DUAL),
    "dual clip, gradient left": Mutant(loss, "live_N & ~beyond_N", "live_N", DUAL),
    "dual clip, no advantage": Mutant(loss, "-options.dual_clip * adv", "options.dual_clip + 0 * adv", DUAL),
    "truncation, dropped": Mutant(importance, ".clamp(max=1)", ".clamp(min=1, max=1)", TRUNCATED),
    "truncation, gradient of the cap": Mutant(importance, "ratio_N.detach()", "ratio_N", TRUNCATED),
    "mask, not above": Mutant(importance, " & (ratio_N <= cap)", "", MASKED),
    "mask, not below": Mutant(importance, "(ratio_N >= 1 / cap) & ", "", MASKED),
    "mask, the loss stays": Mutant(loss, "torch.where(kept_N, loss_N, 0)", "loss_N", MASKED),
    "gspo, each token's ratio": Mutant(ratio, 'options.ratio == "token"', "True", GSPO),
    "gspo, no gradient": Mutant(ratio, " + own_gradient_N", " + 0 * own_gradient_N", GSPO),
    "gspo, product for mean": Mutant(clip._sequence_mean, " / counts_N[sequences_N]", "", GSPO),
    "gspo, one mean for all": Mutant(clip._sequence_mean, "return", "return 0 * sums_N + values_N.mean() +", GSPO),
    "standardised, no mean": Mutant(
        advantages.group_advantages, "(reward - mean)", "reward", test_advantages.test_three_rewards_by_hand
    ),
    "standardised, not divided": Mutant(
        advantages.group_advantages, " / scale for", " for", test_advantages.test_three_rewards_by_hand
    ),
    "centred, divided": Mutant(
        advantages._mean_and_scale,
        " if normalise else 1.0",
        "",
        test_advantages.test_one_success_in_four_without_normalisation,
    ),
    "lampo, sign": Mutant(
        advantages.pairwise_advantages, "rewards_N[row] - rewards_N[other]", "rewards_N[other] - rewards_N[row]", LAMPO
    ),
    "lampo, weights upside down": Mutant(
        advantages.pairwise_advantages, "scores_N[row] - scores_N[other]", "scores_N[other] - scores_N[row]", LAMPO
    ),
    "lampo, compared with itself": Mutant(advantages.pairwise_advantages, " if other != row", "", LAMPO),
    "lampo, no tau": Mutant(
        advantages.pairwise_advantages, "other]) / tau", "other])", test_advantages.test_lampos_tau_divides_the_scores
    ),
    "lampo, one group": Mutant(
        advantages.pairwise_advantages, "groups[key]", "groups[0]", test_advantages.test_lampo_tells_groups_apart
    ),
    "token mean, over sequences": Mutant(
        normalisation.loss_weights, "/ totals.tokens", "/ totals.sequences", TOKEN_MEAN
    ),
    "sequence mean, not by length": Mutant(normalisation.loss_weights, "lengths_BT.clamp(min=1))", "1)", SEQUENCE_MEAN),
    "constant mean, no constant": Mutant(normalisation.loss_weights, " * options.constant_length", "", CONSTANT_MEAN),
    "an empty sequence counts": Mutant(normalisation.step_totals, "length_S > 0", "length_S >= 0", SEQUENCE_MEAN),
    "gate, upside down": Mutant(
        eh_grpo.explicit_terms, "-gate_logit_N), F.logsigmoid(", "gate_logit_N), F.logsigmoid(-", GATE
    ),
    "gate, not in ordinary tokens": Mutant(eh_grpo.explicit_terms, "go_on_N + ", "", GATE),
    "gate, tokens not normalised": Mutant(eh_grpo.explicit_terms, " - scalars.log_z_N", "", GATE),
    "gate's sampler, trigger in q": Mutant(eh_grpo.explicit_logprobs, 'float("-inf")', "0.0", GATE_SAMPLER),
    "gate's sampler, gate not tempered": Mutant(
        eh_grpo.explicit_logprobs, "[..., None] / temperature", "[..., None]", GATE_SAMPLER
    ),
}

HEAD = {
    "Z includes the trigger": Mutant(forward, "z[:, trigger - c.start] = _MASKED", "pass", TILES),
    "tiles not on one scale": Mutant(forward, "total[r] * shrink", "total[r]", TILES),
    "squares not on one scale": Mutant(forward, "squares[r] * shrink.square()", "squares[r] * shrink", TILES),
    "sum q^2 not normalised": Mutant(forward, " / total.square()", "", TILES),
    "gradient, temperature forgotten": Mutant(backward, "g / ctx.temperature", "g", TILES),
    "gradient, trigger dropped": Mutant(backward, "= g_trigger[r]", "= 0", TILES),
    "gradient, trigger within Z": Mutant(backward, "= g_trigger[r]", "+= g_trigger[r]", TILES),
    "gradient, target dropped": Mutant(backward, "c, g_target[r])", "c, 0 * g_target[r])", TILES),
    "gradient, log Z dropped": Mutant(backward, ".mul_(g_log_z[r, None])", ".mul_(0)", TILES),
    "gradient, last tile of hidden states": Mutant(backward, "d_hidden[r] +=", "d_hidden[r] =", TILES),
    "gradient, last tile of weights": Mutant(backward, "d_columns +=", "d_columns =", TILES),
    "f, not per eta": Mutant(head.exact_f, " / eta", "", LARGE_STEP),
    "f, q not taken away": Mutant(head.exact_f, "(-steps_N[r, None] *", "(0 *", F_TILES),
    "f, target not raised": Mutant(head.exact_f, "c, steps_N[r])", "c, 0 * steps_N[r])", F_TILES),
    "f, last tile": Mutant(head.exact_f, "growth_N[r] += growth", "growth_N[r] = growth", F_TILES),
    "f, small steps lost": Mutant(head._log_growth, "growth.log1p(), ", "log_growth, ", SMALL_STEP),
    "f, large steps overflow": Mutant(head._log_growth, "steps.abs() <= 1", "steps.abs() < 1e9", LARGE_STEP),
    "cubes are squares": Mutant(head.sum_q3, "mul_(3)", "mul_(2)", F_TILES),
    "cubes include the trigger": Mutant(head._log_q_tiles, "log_q[:, trigger - c.start] = _MASKED", "pass", F_TILES),
}

MISMATCH = {
    "log p not normalised": Mutant(tokens.implicit_terms, "torch.logaddexp(", "torch.maximum(", MEASURES),
    "log p of the trigger, upside down": Mutant(tokens.implicit_terms, "(-gate", "(gate", RARE),
    "trigger in its place": Mutant(
        tokens.implicit_terms, "_N, trigger_logprobs_N, others_N", "_N, others_N, others_N", CERTAIN
    ),
    "of triggers, over all tokens": Mutant(clip.policy_measures, ", where=terms.is_trigger_N", "", MEASURES),
    "of the gate, in logarithms": Mutant(
        clip.policy_measures, "terms.trigger_logprobs_N.exp()", "terms.trigger_logprobs_N", MEASURES
    ),
    "not absolute": Mutant(clip.policy_measures, "old_logprobs_N).abs()", "old_logprobs_N)", MEASURES),
    "clip fraction, of all": Mutant(clip.policy_measures, " & (tokens.advantages_N != 0)", "", MEASURES),
}

TABLES = {"surrogate": SURROGATE, "base": BASES, "head": HEAD, "measure": MISMATCH}
MUTANTS = {f"{table}: {name}": mutant for table, mutants in TABLES.items() for name, mutant in mutants.items()}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mutant_turns_its_test_red(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    function = inspect.unwrap(mutant.function)
    mutant.check()

    monkeypatch.setattr(function, "__code__", mutated_code(function, mutant.original, mutant.mutated))

    with pytest.raises(AssertionError):
        mutant.check()


def mutated_code(function: Callable[..., Any], original: str, mutated: str) -> CodeType:
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(original) == 1, f"{original!r} is not once in {function.__name__}"
    tree = ast.parse(source.replace(original, mutated))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    namespace = dict(function.__globals__)
    exec(compile(tree, "<mutant>", "exec"), namespace)
    code: CodeType = namespace[function.__name__].__code__
    return code
