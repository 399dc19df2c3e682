"""Every kernel against its equation, recomputed in plain Python from raw codes; positive semi-definiteness."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from toy_problem import SPACE

from llmnas.search.arch_kernel import Layout, edit_distances, make_kernel
from llmnas.space import SearchSpace

PER_LAYER = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 5,
        "hidden_size": [32, 64],
        "depth": [1, 2, 3, 4, 5],
        "kv_heads": {"choices": [1, 2, 4], "per_layer": True},
        "queries_per_group": [1, 2],
        "head_dim": [8],
        "ffn_size": {"choices": [32, 64, 128], "per_layer": True},
    }
)
ALL_SHARED = SPACE.model_copy(update={"ffn_size": SPACE.ffn_size.model_copy(update={"per_layer": False})})
MIXED = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64},
        "layers": 4,
        "hidden_size": [32, 64],
        "depth": [2, 3, 4],
        "kv_heads": {"choices": [1, 2], "per_layer": True},
        "queries_per_group": [1, 2],
        "head_dim": [8],
        "ffn_size": {"choices": [32, 64], "per_layer": True},
        "mixer": {"choices": ["attention", "mlgru", "none"], "per_layer": True},
        "weights": ["dense", "ternary"],
        "experts": {"choices": [1, 4, 8], "per_layer": True},
        "top_k": {"choices": [1, 2], "per_layer": True},
        "shared_experts": [0, 1],
    }
)
SPACES = [SPACE, PER_LAYER, ALL_SHARED, MIXED]
KERNELS = ["hamming", "edit_distance", "walk"]


def draw(space, count, seed=0):
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


def learned(kernel, seed=0):
    """Hyperparameters moved away from where they begin."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return kernel


def setup(name, space, count=25):
    layout = Layout(space)
    kernel = learned(make_kernel(name, layout, draw(space, 12, seed=7)))
    archs = draw(space, count)
    return layout, kernel, archs, layout.codes(archs)


def matrix(kernel, a, b):
    return kernel(kernel.embed(a), kernel.embed(b)).to_dense().detach()


def sequence(space, arch):
    """The kept layers as tuples of their own decisions."""
    return [
        tuple(getattr(spec, name) if spec.uses(name) else None for name in space.layer_dimensions)
        for _, spec in arch.kept
    ]


def global_decisions(space, arch):
    specs = [spec for _, spec in arch.kept]
    found = [arch.hidden_size]
    for name in space.shared_dimensions:
        values = [getattr(spec, name) for spec in specs if spec.uses(name)]
        found.append(values[0] if values else space.dimension(name).choices[0])
    return tuple(found)


def decisions(space, arch):
    """Every decision by itself; what a skipped layer does not decide is None."""
    found = list(global_decisions(space, arch))
    for spec in arch.layers:
        found.append(spec is not None)
        found += [getattr(spec, name) if spec and spec.uses(name) else None for name in space.layer_dimensions]
    return found


def levenshtein(a, b):
    @cache
    def cost(i, j):
        if not i or not j:
            return float(i + j)
        x, y = a[i - 1], b[j - 1]
        change = sum(p != q for p, q in zip(x, y, strict=True)) / max(len(x), 1)
        return min(cost(i - 1, j) + 1, cost(i, j - 1) + 1, cost(i - 1, j - 1) + change)

    return cost(len(a), len(b))


def distance(space, a, b):
    differ = sum(x != y for x, y in zip(global_decisions(space, a), global_decisions(space, b), strict=True))
    return differ + levenshtein(sequence(space, a), sequence(space, b))


def by_equation(name, space, kernel, a, b):
    if name == "hamming":
        pairs = zip(kernel.weight.tolist(), decisions(space, a), decisions(space, b), strict=True)
        return math.exp(-sum(w for w, x, y in pairs if x != y))
    if name == "edit_distance":
        anchors = draw(space, 12, seed=7)
        square = sum((distance(space, a, z) - distance(space, b, z)) ** 2 for z in anchors)
        return math.exp(-square / (2 * len(anchors) * kernel.scale.item() ** 2))
    ends = [(*global_decisions(space, arch), arch.depth) for arch in (a, b)]
    same = math.exp(-sum(w for w, x, y in zip(kernel.weight.tolist(), *ends, strict=True) if x != y))
    return same * walks(space, kernel, a, b) / math.sqrt(walks(space, kernel, a, a) * walks(space, kernel, b, b))


def walks(space, kernel, a, b):
    """Pairs of equal label sequences, found by comparing every walk of `a` with every walk of `b`."""
    total = 0.0
    first, second = sequence(space, a), sequence(space, b)
    for t, share in enumerate(kernel.share.tolist()):
        x, y = ([layer[t] if layer else 0 for layer in layers] for layers in (first, second))
        for m in (1, 2, 3):
            starts = itertools.product(range(len(x) - m + 1), range(len(y) - m + 1))
            common = sum(x[i : i + m] == y[j : j + m] for i, j in starts)
            total += share * kernel.decay.item() ** (m - 1) * common
    return total


@pytest.mark.parametrize("space", SPACES, ids=["toy", "per_layer", "all_shared", "mixed"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_its_equation(name, space):
    _, kernel, archs, codes = setup(name, space, 12)
    expected = [[by_equation(name, space, kernel, a, b) for b in archs[5:]] for a in archs]
    np.testing.assert_allclose(matrix(kernel, codes, codes[5:]), expected, rtol=1e-9, atol=1e-12)
    diagonal = kernel(kernel.embed(codes), diag=True).detach()
    np.testing.assert_allclose(diagonal, np.ones(len(archs)), atol=1e-12)


@pytest.mark.parametrize("space", SPACES, ids=["toy", "per_layer", "all_shared", "mixed"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_is_positive_semi_definite(name, space):
    for seed in range(3):
        layout = Layout(space)
        kernel = learned(make_kernel(name, layout, draw(space, 12, seed=7)), seed)
        codes = layout.codes(draw(space, 80, seed))
        gram = matrix(kernel, codes, codes)
        assert torch.equal(gram, gram.T) or (gram - gram.T).abs().max() < 1e-12
        assert torch.linalg.eigvalsh(gram).min() > -1e-9 * len(codes)


def test_exp_of_an_edit_distance_is_not_positive_semi_definite():
    """Why the kernel goes through anchors."""
    layout = Layout(PER_LAYER)
    worst = 0.0
    for seed in range(5):
        codes = layout.codes(draw(PER_LAYER, 200, seed))
        distances = edit_distances(layout, codes, codes)
        worst = min(
            worst, *(torch.linalg.eigvalsh(torch.exp(-scale * distances)).min().item() for scale in (0.03, 0.1, 0.3))
        )
    assert worst < -1e-3


@pytest.mark.parametrize("space", SPACES, ids=["toy", "per_layer", "all_shared", "mixed"])
def test_edit_distance_is_the_textbook_recursion(space):
    layout = Layout(space)
    a, b = draw(space, 15), draw(space, 10, seed=1)
    expected = [[distance(space, x, y) for y in b] for x in a]
    np.testing.assert_allclose(edit_distances(layout, layout.codes(a), layout.codes(b)), expected)


def test_a_skipped_layer_is_a_value_of_its_own():
    layout = Layout(PER_LAYER)
    arch = PER_LAYER.smallest()  # every kept layer makes its first choices, as a code of zeros would say
    (code,) = layout.codes([arch])
    layers = layout.layers(code[None])[0]
    for spec, row in zip(arch.layers, layers.tolist(), strict=True):
        assert row == ([0, 3, 3] if spec is None else [1, 0, 0])


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_reach_every_hyperparameter(name):
    _, kernel, _, codes = setup(name, PER_LAYER)
    matrix_ = kernel(kernel.embed(codes), kernel.embed(codes)).to_dense()
    matrix_.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in kernel.parameters())


@pytest.mark.parametrize("name", KERNELS)
def test_no_step_of_the_fit_leaves_the_support_of_the_priors(name):
    kernel = make_kernel(name, Layout(PER_LAYER), draw(PER_LAYER, 12))
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.fill_(-2000.0)  # a softplus of it is 0
    priors = list(kernel.named_priors())
    assert priors
    assert all(torch.isfinite(prior.log_prob(closure(module))).all() for _, module, prior, closure, _ in priors)


def test_walks_need_no_column_for_every_possible_word():
    """64 choices: 262,144 words of three layers, of which a network has four."""
    sizes = {"choices": [8 * i for i in range(1, 65)], "per_layer": True}
    space = SearchSpace.from_dict({**SPACE.model_dump(mode="json"), "layers": 6, "depth": [3, 6], "ffn_size": sizes})
    _, kernel, archs, codes = setup("walk", space, 6)
    assert kernel.embed(codes).shape[1] < 100
    expected = [[by_equation("walk", space, kernel, a, b) for b in archs] for a in archs]
    np.testing.assert_allclose(matrix(kernel, codes, codes), expected, rtol=1e-12)
