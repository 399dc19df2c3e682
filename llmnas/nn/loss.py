"""Losses on hidden states: next-token cross entropy, and distillation from another network.

Shapes: N tokens, H hidden, V vocabulary, K kept entries of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.nn.cross_entropy import linear_cross_entropy
from llmnas.nn.moe import Routing

BlockLoss = Literal["mse", "cosine"]


class Teacher(NamedTuple):
    """The most likely tokens of a teacher: what is left lumps into one rest class.

    Attributes:
        tokens: [N, K] int64.
        probability: [N, K] float32, of the full softmax (sums to less than 1).
    """

    tokens: Tensor
    probability: Tensor


class Losses(NamedTuple):
    """What a training forward returns.

    Attributes:
        loss: scalar, what to differentiate.
        cross_entropy: scalar, nats a token, detached.
        teacher: the network's own distribution, where it was asked for.
        routings: what the routers did, by layer.
    """

    loss: Tensor
    cross_entropy: Tensor
    teacher: Teacher | None = None
    routings: Mapping[int, Routing] = MappingProxyType({})


_GAP = 0.1
"""Nats between student and teacher over which a weight that is not given changes: the noise of a batch."""


def losses(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    teacher: Teacher | None = None,
    teacher_weight: float | None = 0.5,
    emit_teacher: int = 0,
) -> Losses:
    """Mean loss over tokens: (1 - teacher_weight) cross entropy + teacher_weight KL(teacher || student).

    Without a weight it is sigmoid(gap / 0.1) / 2, where the gap is the student's cross entropy on these tokens minus
    the teacher's, nats: a half for a student far behind, a quarter at equal terms, nothing for one far ahead.

    Args:
        hidden: [..., H], after the final norm.
        head: [V, H].
        targets: [...] int64 next tokens; negative ones are only read, and count for nothing.
        teacher: a distribution over the same tokens to learn from besides the targets, or None.
        teacher_weight: its share of the loss, None to decide by this batch.
        emit_teacher: how many entries of the own distribution to return (0: none).
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    learned = targets >= 0
    if not learned.all():
        return _of_some(hidden, head, targets, learned, teacher, teacher_weight, emit_teacher)
    if teacher is None and not emit_teacher:
        loss = linear_cross_entropy(hidden, head, targets)
        return Losses(loss, loss.detach())
    log_probs = F.log_softmax(F.linear(hidden, head), dim=-1, dtype=torch.float32)
    cross_entropy = F.nll_loss(log_probs, targets)
    loss = cross_entropy
    if teacher is not None:
        divergence = top_k_divergence(log_probs, teacher)
        if teacher_weight is None:
            gap = cross_entropy.detach() - surprise(teacher, targets, log_probs.shape[-1])
            loss = torch.lerp(cross_entropy, divergence, torch.sigmoid(gap / _GAP) / 2)
        else:
            loss = torch.lerp(cross_entropy, divergence, teacher_weight)
    own = None
    if emit_teacher:
        own = most_likely(log_probs.detach(), emit_teacher)
    return Losses(loss, cross_entropy.detach(), own)


def _of_some(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    learned: Tensor,
    teacher: Teacher | None,
    weight: float | None,
    emit: int,
) -> Losses:
    """`losses` of the rows that are `learned`; the own distribution is of all rows, as a student reads them."""
    own = None
    if emit:
        with torch.no_grad():
            own = most_likely(F.log_softmax(F.linear(hidden, head), dim=-1, dtype=torch.float32), emit)
    if not learned.any():
        loss = 0.0 * (hidden.sum() + head.sum())  # every parameter has a gradient, of zero
        return Losses(loss, loss.detach(), own)
    rows = teacher and Teacher(teacher.tokens[learned], teacher.probability[learned])
    return losses(hidden[learned], head, targets[learned], rows, weight)._replace(teacher=own)


def most_likely(log_probs: Tensor, entries: int) -> Teacher:
    """The `entries` most likely tokens of every row of [N, V]; all of them where there are fewer."""
    top = log_probs.topk(min(entries, log_probs.shape[-1]))
    return Teacher(top.indices, top.values.exp())


def surprise(teacher: Teacher, targets: Tensor, vocab_size: int) -> Tensor:
    """Cross entropy of what is kept of a teacher, a scalar: tokens that are not kept share the rest equally.

    Args:
        teacher: of N tokens.
        targets: [N].
        vocab_size: V.
    """
    kept = teacher.tokens == targets[:, None]
    others = max(1, vocab_size - teacher.tokens.shape[-1])
    rest = (1 - teacher.probability.sum(-1)).clamp_min(1e-8) / others
    p = torch.where(kept.any(-1), (teacher.probability * kept).sum(-1), rest)
    return -p.clamp_min(1e-12).log().mean()


def top_k_divergence(log_probs: Tensor, teacher: Teacher) -> Tensor:
    """KL(teacher || student) over the K kept tokens and one rest class, mean over tokens.

    Merging classes never raises a KL divergence (data-processing inequality), so this is a
    lower bound of the full one, and equal to it at K = V.

    Args:
        log_probs: [N, V] of the student.
        teacher: see `Teacher`.
    """
    kept = log_probs.gather(-1, teacher.tokens)
    p = teacher.probability
    p_rest = (1 - p.sum(-1)).clamp_min(0)
    # log(1 - sum q): the clamp keeps the gradient finite where the kept tokens have all the mass
    q_rest = torch.log1p(-kept.exp().sum(-1).clamp_max(1 - 1e-6))
    return (torch.xlogy(p, p) - p * kept).sum(-1).add(torch.xlogy(p_rest, p_rest) - p_rest * q_rest).mean()


def block_distance(student: Tensor, teacher: Tensor, kind: BlockLoss) -> Tensor:
    """How far a residual stream is from a teacher's, mean over tokens; the teacher's leading channels are the aim.

    `mse`: |s - t|^2 / |t|^2, so that layers of every scale count alike (Bercovich et al. 2024, section 3.1, normalise
    likewise). `cosine`: 1 - cos(s, t).

    Args:
        student: [batch, seq, hidden].
        teacher: [batch, seq, at least hidden]; no gradient flows into it.
    """
    s, t = student.float(), teacher.detach()[..., : student.shape[-1]].float()
    if kind == "cosine":
        return (1 - F.cosine_similarity(s, t, dim=-1)).mean()
    return ((s - t).square().sum(-1) / t.square().sum(-1).clamp_min(1e-12)).mean()
