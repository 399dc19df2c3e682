"""Losses against torch's own cross entropy and KL divergence."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import assume, given
from hypothesis import strategies as st

from llmnas.nn.loss import Teacher, losses, surprise, top_k_divergence

CASES = st.tuples(st.integers(1, 6), st.integers(2, 12), st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 5.0]))


def distributions(tokens, vocab, seed, scale):
    """Log-probabilities of a student and a teacher, [N, V] each, float64: 1 - sum(q) of float32 would be rounding."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, tokens, vocab, dtype=torch.float64, generator=generator)
    return logits.log_softmax(-1)


def top(log_probs, kept):
    best = log_probs.topk(kept)
    return Teacher(best.indices, best.values.exp())


def full_divergence(student, teacher):
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean")


@given(CASES)
def test_all_tokens_kept_is_the_full_divergence(case):
    student, teacher = distributions(*case)
    expected = full_divergence(student, teacher)
    everything = top(teacher, teacher.shape[-1])
    torch.testing.assert_close(top_k_divergence(student, everything), expected, rtol=1e-9, atol=1e-9)
    everything = Teacher(everything.tokens, everything.probability.float())
    torch.testing.assert_close(top_k_divergence(student.float(), everything).double(), expected, rtol=1e-4, atol=2e-5)


@given(CASES, st.data())
def test_fewer_tokens_are_a_lower_bound_that_grows(case, data):
    student, teacher = distributions(*case)
    kept = data.draw(st.integers(1, teacher.shape[-1] - 1))
    found = [top_k_divergence(student, top(teacher, k)).item() for k in (kept, kept + 1)]
    assert -2e-6 <= found[0] <= found[1] + 2e-6  # the clamp of the rest at 1e-6
    assert found[1] <= full_divergence(student, teacher).item() + 2e-6


@given(CASES, st.data())
def test_the_rest_is_one_class(case, data):
    """Recomputed on K + 1 classes in float64, where the student's rest is far from the clamp at 1e-6."""
    student, teacher = distributions(*case)
    kept = data.draw(st.integers(1, teacher.shape[-1] - 1))
    chosen = top(teacher, kept)
    p, q = (d.exp().gather(-1, chosen.tokens) for d in (teacher, student))
    p, q = (torch.cat([d, (1 - d.sum(-1, keepdim=True)).clamp_min(1e-12)], -1) for d in (p, q))
    assume(q[:, -1].min() > 2e-6)
    expected = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(top_k_divergence(student, chosen), expected, rtol=1e-6, atol=1e-6)


@given(CASES, st.data())
def test_a_network_is_its_own_best_student(case, data):
    student, _ = distributions(*case)
    kept = data.draw(st.integers(1, student.shape[-1]))
    logits = student.clone().requires_grad_()
    divergence = top_k_divergence(logits.log_softmax(-1), top(student, kept))
    divergence.backward()
    assert abs(divergence.item()) < 2e-5
    assert logits.grad.abs().max() < 1e-3


@pytest.mark.parametrize("peak", [0.0, 20.0, 200.0])
@pytest.mark.parametrize("kept", [1, 3, 4])
def test_gradients_are_finite_where_the_kept_tokens_have_all_the_mass(kept, peak):
    logits = torch.tensor([[peak, 0.0, 0.0, 0.0]], requires_grad=True)
    certain = Teacher(torch.arange(kept)[None], torch.tensor([[1.0, 0.0, 0.0, 0.0]])[:, :kept])
    loss = top_k_divergence(logits.log_softmax(-1), certain)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-peak)), abs=1e-5)


def test_a_student_far_from_a_rest_still_has_a_finite_gradient():
    logits = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    loss = top_k_divergence(logits.log_softmax(-1), Teacher(torch.tensor([[0]]), torch.tensor([[0.5]])))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def operands(seed=0, batch=2, seq=5, hidden=6, vocab=9):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, seq, hidden, generator=generator, requires_grad=True)
    head = torch.randn(vocab, hidden + 2, generator=generator, requires_grad=True)
    targets = torch.randint(vocab, (batch, seq), generator=generator)
    return states, head, targets


def reference(states, head, targets):
    log_probs = (states.double() @ head[:, : states.shape[-1]].double().T).log_softmax(-1)
    return -log_probs.gather(-1, targets[..., None]).mean(), log_probs.flatten(0, 1)


@pytest.mark.parametrize("emit", [0, 4])
def test_without_a_teacher_it_is_cross_entropy(emit):
    states, head, targets = operands()
    result = losses(states, head[:, :6], targets, emit_teacher=emit)
    expected, _ = reference(states, head, targets)
    logits = F.linear(states, head[:, :6])
    torch.testing.assert_close(result.loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    torch.testing.assert_close(result.loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(result.loss, result.cross_entropy)
    assert not result.cross_entropy.requires_grad
    assert (result.teacher is None) == (emit == 0)
    found = torch.autograd.grad(result.loss, (states, head))
    for gradient, wanted in zip(found, torch.autograd.grad(expected, (states, head)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_teacher_is_mixed_in_by_its_weight(weight):
    states, head, targets = operands()
    with torch.no_grad():
        _, own = reference(*operands(seed=1))
    result = losses(states, head[:, :6], targets, top(own.float(), 9), teacher_weight=weight)
    cross_entropy, student = reference(states, head, targets)
    expected = (1 - weight) * cross_entropy + weight * full_divergence(student, own)
    torch.testing.assert_close(result.loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.cross_entropy.double(), cross_entropy.detach(), rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(result.loss, (states, head))
    for gradient, wanted in zip(found, torch.autograd.grad(expected, (states, head)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_the_emitted_teacher_is_the_own_distribution_without_history():
    states, head, targets = operands()
    emitted = losses(states, head[:, :6], targets, emit_teacher=4).teacher
    _, log_probs = reference(states, head, targets)
    assert emitted.tokens.shape == emitted.probability.shape == (10, 4)
    assert not emitted.probability.requires_grad
    torch.testing.assert_close(emitted.probability.double(), log_probs.exp().topk(4).values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_probs.exp().gather(-1, emitted.tokens), log_probs.exp().topk(4).values)


def test_half_precision_is_summed_in_float32():
    states, head, targets = operands()
    result = losses(states.bfloat16(), head[:, :6].bfloat16(), targets, emit_teacher=3)
    expected, _ = reference(states.bfloat16(), head.bfloat16(), targets)
    assert result.loss.dtype == result.teacher.probability.dtype == torch.float32
    torch.testing.assert_close(result.loss.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("emit", [0, 3])
def test_tokens_that_are_only_read_count_for_nothing(taught, emit):
    hidden, head = torch.randn(2, 5, 6, requires_grad=True), torch.randn(7, 6, requires_grad=True)
    targets = torch.randint(7, (2, 5))
    learned = torch.tensor([[True, False, True, True, False], [False, True, False, False, True]])
    teacher = top(torch.randn(10, 7).log_softmax(-1), 4) if taught else None
    found = losses(hidden, head, targets.masked_fill(~learned, -100), teacher, 0.3, emit)
    rows = teacher and Teacher(teacher.tokens[learned.flatten()], teacher.probability[learned.flatten()])
    expected = losses(hidden[learned], head, targets[learned], rows, 0.3)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.cross_entropy, expected.cross_entropy)
    for ours, theirs in zip(*(torch.autograd.grad(o.loss, (hidden, head)) for o in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (found.teacher is not None) == bool(emit)
    if emit:  # of all tokens: a student reads it where its own targets are
        assert found.teacher.tokens.shape == (10, emit)
    nothing = losses(hidden, head, torch.full((2, 5), -100), teacher, 0.3, emit)
    assert nothing.loss == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(nothing.loss, (hidden, head)))


def test_a_teacher_that_the_student_beats_is_heard_less():
    """The weight of its distribution is sigmoid(gap / 0.1) / 2 of what is known of both on the batch."""
    targets = torch.arange(6)
    good, bad = (torch.full((6, 7), -3.0).scatter(1, targets[:, None], value).log_softmax(1) for value in (3.0, -6.0))
    head = torch.eye(7)
    for student, teacher, heard in ((bad, good, 0.5), (good, good, 0.25), (good, bad, 0.0)):
        everything = top(teacher, 7)
        entropy = F.nll_loss(teacher, targets)
        torch.testing.assert_close(surprise(everything, targets, 7), entropy)
        found = losses(student, head, targets, everything, None)
        expected = losses(student, head, targets, everything, heard)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-5)
    kept = top(good.roll(1, 1), 2)  # never the target: the five others share the rest
    rest = (1 - kept.probability.sum(1)) / 5
    torch.testing.assert_close(surprise(kept, targets, 7), -rest.log().mean())
