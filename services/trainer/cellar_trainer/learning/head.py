"""The language model's head, tile by tile: hidden states into the few numbers per token that an objective needs.

The logits [tokens, vocabulary] never exist at once: the forward pass keeps running sums over tiles of `rows` tokens by
`columns` vocabulary entries, and the backward pass computes each tile again. With z the logits after temperature, t the
trigger and a the target (Z sums over the vocabulary without the trigger, q is the softmax over it):

    outputs      z_a,   z_t,   log Z = log sum_{j != t} exp z_j,   sum q^2
    gradient     dz_j = g_Z q_j [j != t]  +  g_a [j = a]  +  g_t [j = t]

Log Z is summed without the trigger, not recovered from the total, so it stays right as the trigger's probability nears
1. Tiles are multiplied in the dtype of the hidden states, whatever that of the weight or autocast say; all else is
float32 (float64 if the hidden states are), the sums of gradients over tiles among it. A gradient has the dtype of what
it belongs to.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS, COLUMNS = 1024, 2048
"""Of a tile. Its 8 MiB stay in a processor's cache, and rows enough to multiply at full speed."""
_MASKED = float("-inf")


class TokenScalars(NamedTuple):
    """What an objective needs of the logits, per token."""

    target_logit_N: Tensor
    trigger_logit_N: Tensor
    log_z_N: Tensor
    """Log of the sum of exp(logit) over the vocabulary without the trigger."""
    sum_q2_N: Tensor
    """Sum of the squared probabilities of a softmax over the vocabulary without the trigger; carries no gradient."""


def token_scalars(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    trigger_id: int,
    *,
    temperature: float = 1.0,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> TokenScalars:
    """Scalars of the logits `hidden @ weight.T / temperature`, differentiable in `hidden_ND` and `weight_VD`."""
    tiled = _TokenScalars.apply
    return TokenScalars(*tiled(hidden_ND, weight_VD, targets_N, trigger_id, temperature, rows, columns))  # type: ignore[no-untyped-call]  # torch's


def scalars_from_logits(logits_NV: Tensor, targets_N: Tensor, trigger_id: int) -> TokenScalars:
    """The same from logits of any leading shape, untiled and in their own dtype: the oracle of `token_scalars`."""
    others_NV = _without_trigger(logits_NV, trigger_id)
    return TokenScalars(
        logits_NV.gather(-1, targets_N[..., None])[..., 0],
        logits_NV[..., trigger_id],
        others_NV.logsumexp(-1),
        others_NV.detach().softmax(-1).square().sum(-1),
    )


@torch.no_grad()
def exact_f(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    advantages_N: Tensor,
    trigger_id: int,
    *,
    eta: float,
    temperature: float = 1.0,
    rows: int = ROWS,
    columns: int = COLUMNS,
    log_z_N: Tensor | None = None,
) -> Tensor:
    """How much log Z grows, per `eta`, when a step of size `eta` raises the target's logit: (1/eta) log(Z'/Z).

    Z' = sum_{j != t} exp(z_j + eta A ([j = a] - q_j)). Costs one more pass over the vocabulary, two if `log_z_N` is not
    given. Its value means nothing where the target is the trigger.
    """
    if log_z_N is None:
        log_z_N = token_scalars(
            hidden_ND, weight_VD, targets_N, trigger_id, temperature=temperature, rows=rows, columns=columns
        ).log_z_N
    steps_N = eta * advantages_N.to(log_z_N.dtype)
    growth_N, log_growth_N = torch.zeros_like(log_z_N), torch.full_like(log_z_N, _MASKED)
    for r, c, log_q in _log_q_tiles(hidden_ND, weight_VD, log_z_N, trigger_id, temperature, rows, columns):
        q = log_q.exp()
        raised = (-steps_N[r, None] * q).scatter_add_(1, *_at_targets(targets_N[r], c, steps_N[r]))
        growth, log_growth = _growth(log_q, q, raised)
        growth_N[r] += growth
        log_growth_N[r] = torch.logaddexp(log_growth_N[r], log_growth)
    return _log_growth(steps_N, growth_N, log_growth_N) / eta


@torch.no_grad()
def exact_f_from_logits(
    logits_NV: Tensor, targets_N: Tensor, advantages_N: Tensor, trigger_id: int, *, eta: float
) -> Tensor:
    """The oracle of `exact_f`, for logits of any leading shape."""
    log_q_NV = _without_trigger(logits_NV, trigger_id).log_softmax(-1)
    steps_N = eta * advantages_N
    q_NV = log_q_NV.exp()
    raised_NV = (-steps_N[..., None] * q_NV).scatter_add_(-1, targets_N[..., None], steps_N[..., None])
    return _log_growth(steps_N, *_growth(log_q_NV, q_NV, raised_NV)) / eta


@torch.no_grad()
def sum_q3(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    log_z_N: Tensor,
    trigger_id: int,
    *,
    temperature: float = 1.0,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> Tensor:
    """Sum of the cubed probabilities of the softmax over the vocabulary without the trigger: one pass, no gradient."""
    sum_q3_N = torch.zeros_like(log_z_N)
    for r, _, log_q in _log_q_tiles(hidden_ND, weight_VD, log_z_N, trigger_id, temperature, rows, columns):
        sum_q3_N[r] += log_q.mul_(3).exp_().sum(1)
    return sum_q3_N


@torch.no_grad()
def sum_q3_from_logits(logits_NV: Tensor, trigger_id: int) -> Tensor:
    """The oracle of `sum_q3`, for logits of any leading shape."""
    return _without_trigger(logits_NV, trigger_id).softmax(-1).pow(3).sum(-1)


class _TokenScalars(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        trigger: int,
        temperature: float,
        rows: int,
        columns: int,
    ) -> tuple[Tensor, ...]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        target, at_trigger, total, squares = hidden.new_zeros(4, len(hidden), dtype=dtype)
        # Sums are of exp(z - peak), the largest logit so far: a number even while nothing but the trigger was seen.
        peak = torch.full_like(total, torch.finfo(dtype).min)
        for r, c, z in _logit_tiles(hidden, weight, temperature, rows, columns):
            index, inside = _locate(targets[r], c)
            target[r] += torch.where(inside, z.gather(1, index[:, None])[:, 0], 0)
            if c.start <= trigger < c.stop:
                at_trigger[r] = z[:, trigger - c.start]
                z[:, trigger - c.start] = _MASKED
            higher = torch.maximum(peak[r], z.amax(1))
            shrink = (peak[r] - higher).exp()
            z = z.sub_(higher[:, None]).exp_()
            total[r] = total[r] * shrink + z.sum(1)
            squares[r] = squares[r] * shrink.square() + torch.linalg.vector_norm(z, dim=1).square()
            peak[r] = higher
        log_z = peak + total.log()
        sum_q2 = squares / total.square()
        ctx.save_for_backward(hidden, weight, targets, log_z)
        ctx.trigger, ctx.temperature, ctx.rows, ctx.columns = trigger, temperature, rows, columns
        ctx.mark_non_differentiable(sum_q2)
        return target, at_trigger, log_z, sum_q2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_z = ctx.saved_tensors
        g_target, g_trigger, g_log_z = (g / ctx.temperature for g in gradients[:3])
        d_hidden = torch.zeros_like(hidden, dtype=log_z.dtype) if ctx.needs_input_grad[0] else None
        d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for c in _slices(len(weight), ctx.columns):
            weight_c = weight[c].to(hidden.dtype)
            d_columns = torch.zeros_like(weight_c, dtype=log_z.dtype)
            for r in _slices(len(hidden), ctx.rows):
                dz = _logits(hidden[r], weight_c, ctx.temperature).sub_(log_z[r, None]).exp_().mul_(g_log_z[r, None])
                if c.start <= ctx.trigger < c.stop:
                    dz[:, ctx.trigger - c.start] = g_trigger[r]
                dz = dz.scatter_add_(1, *_at_targets(targets[r], c, g_target[r])).to(hidden.dtype)
                if d_hidden is not None:
                    d_hidden[r] += _product(dz, weight_c)
                if d_weight is not None:
                    d_columns += _product(dz.T, hidden[r])
            if d_weight is not None:
                d_weight[c] = d_columns
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, None, None, None, None, None


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """A new tensor, which the caller may write to."""
    return _product(hidden, weight.T).to(torch.promote_types(hidden.dtype, torch.float32)).div_(temperature)


def _logit_tiles(
    hidden: Tensor, weight: Tensor, temperature: float, rows: int, columns: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    for c in _slices(len(weight), columns):
        weight_c = weight[c].to(hidden.dtype)
        for r in _slices(len(hidden), rows):
            yield r, c, _logits(hidden[r], weight_c, temperature)


def _locate(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Each target's place within the columns, and whether it lies there at all (else the place is arbitrary)."""
    inside = (targets >= columns.start) & (targets < columns.stop)
    return torch.where(inside, targets - columns.start, 0), inside


def _at_targets(targets: Tensor, columns: slice, values: Tensor) -> tuple[Tensor, Tensor]:
    """What `scatter_add_` needs to add each value at its target, if that lies within the columns."""
    index, inside = _locate(targets, columns)
    return index[:, None], torch.where(inside, values, 0)[:, None]


def _log_q_tiles(
    hidden: Tensor, weight: Tensor, log_z: Tensor, trigger: int, temperature: float, rows: int, columns: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Logarithms of the softmax without the trigger."""
    for r, c, z in _logit_tiles(hidden, weight, temperature, rows, columns):
        log_q = z.sub_(log_z[r, None])
        if c.start <= trigger < c.stop:
            log_q[:, trigger - c.start] = _MASKED
        yield r, c, log_q


def _growth(log_q: Tensor, q: Tensor, raised: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of q (exp(raised) - 1), and log of the sum of q exp(raised)."""
    return (q * raised.expm1()).sum(-1), (log_q + raised).logsumexp(-1)


def _log_growth(steps: Tensor, growth: Tensor, log_growth: Tensor) -> Tensor:
    """log(Z'/Z), from the sum that is accurate: small steps vanish in the one, large steps overflow the other."""
    return torch.where(steps.abs() <= 1, growth.log1p(), log_growth)


def _without_trigger(logits: Tensor, trigger: int) -> Tensor:
    """The trigger at the lowest finite number: at -inf, a row that is masked but for it would have no gradient."""
    return logits.index_fill(-1, torch.tensor(trigger, device=logits.device), torch.finfo(logits.dtype).min)
