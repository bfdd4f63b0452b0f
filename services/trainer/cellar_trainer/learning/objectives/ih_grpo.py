"""IH-GRPO: two terms that make a step on one softmax equal the step of an explicit gate and a softmax below it.

With A the advantage, gamma the gate's probability of going on, Z and q the sum and the softmax over the vocabulary
without the trigger, beta_0 the trigger's logit, i the sampled token and sg the stop of the gradient:

    L = -A log p_i  +  weight * ( A (1[i != trigger] - sg(gamma)) log Z  -  1[i != trigger] f_i beta_0 )
    f_i = (1/eta) log sg(Z'_i / Z),   Z'_i = sum_s exp(beta_s + eta A ([s = i] - q_s))

Source: arXiv 2605.18500, appendix A, whose released code leaves f out and has a weight of 0.001.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cellar_trainer.learning.head import TokenScalars, exact_f_from_logits, scalars_from_logits, sum_q3_from_logits
from cellar_trainer.learning.objectives.options import Correction
from cellar_trainer.learning.objectives.tokens import hierarchical_coefficient


def hierarchical_loss(
    logits_BTV: Tensor,
    token_ids_BT: Tensor,
    trigger_id: int,
    advantages_BT: Tensor,
    *,
    f: Correction = "exact",
    eta: float = 1.0,
    weight: float = 1.0,
) -> Tensor:
    """The surrogate loss of each token, from full logits: the oracle of everything faster.

    `token_ids_BT[b, t]` was sampled from `logits_BTV[b, t]`. One gradient step of size `eta` on the logits, down the
    sum of the losses, is the explicit policy's step. Half precision is computed and returned in float32. Masked (-inf)
    columns are allowed. A weight of 0 leaves the plain policy gradient.
    """
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    advantages_BT = advantages_BT.to(logits_BTV.dtype)
    loss_BT = -advantages_BT * logits_BTV.log_softmax(-1).gather(-1, token_ids_BT[..., None])[..., 0]
    scalars = scalars_from_logits(logits_BTV, token_ids_BT, trigger_id)
    f_BT = correction(
        f,
        scalars,
        advantages_BT,
        eta,
        sum_q3=lambda: sum_q3_from_logits(logits_BTV, trigger_id),
        exact=lambda: exact_f_from_logits(logits_BTV, token_ids_BT, advantages_BT, trigger_id, eta=eta),
    )
    return loss_BT + weight * hierarchical_terms(scalars, token_ids_BT == trigger_id, advantages_BT, f_BT)


def hierarchical_terms(scalars: TokenScalars, is_trigger_N: Tensor, advantages_N: Tensor, f_N: Tensor) -> Tensor:
    """The two terms beside the policy gradient, for any leading shape; `f_N` counts only where i is not the trigger."""
    # A masked trigger has no logit to move; its -inf times a small f would only spoil the sum.
    trigger_logit_N = scalars.trigger_logit_N.masked_fill(scalars.trigger_logit_N.isneginf(), 0)
    coefficient_N = hierarchical_coefficient(scalars.log_z_N - scalars.trigger_logit_N, is_trigger_N)
    gate_N = advantages_N * coefficient_N * scalars.log_z_N
    return gate_N - torch.where(is_trigger_N, 0, f_N) * trigger_logit_N


@torch.no_grad()
def correction(
    f: Correction,
    scalars: TokenScalars,
    advantages_N: Tensor,
    eta: float,
    *,
    sum_q3: Callable[[], Tensor],
    exact: Callable[[], Tensor],
) -> Tensor:
    """f_i by itself or expanded in `eta`; the two callables cost a pass over the vocabulary, so only who needs it pays.

    With u_s = [s = i] - q_s, the expansion is A E_q[u] + (eta/2) A^2 Var_q[u] + ...
    """
    if f == "none":
        return torch.zeros_like(advantages_N)
    if f == "exact":
        return exact()
    q_N = (scalars.target_logit_N - scalars.log_z_N).exp()
    mean_N = q_N - scalars.sum_q2_N
    if f == "first":
        return advantages_N * mean_N
    variance_N = q_N * (1 - 2 * q_N) + sum_q3() - mean_N**2
    return advantages_N * mean_N + eta / 2 * advantages_N**2 * variance_N
