"""The mixture against a loop over tokens and experts, slices of it, and what its statistics promise."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from llmnas.nn.ffn import FeedForward
from llmnas.nn.moe import Experts, Routing
from llmnas.space import BaseModel, LayerKinds, LayerSpec

LARGEST = LayerSpec(1, 1, 2, 16, experts=6, top_k=4)
H = 12


def experts(base=None, seed=0):
    base = base or BaseModel(vocab_size=8)
    module = Experts(base, H, LARGEST, LayerKinds())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5, generator=generator)
        module.balance.normal_(std=0.2, generator=generator)
    return module


def one_by_one(module, x, spec):
    """Every token through each of its experts by itself, in float64."""
    gate, up, down, router = (getattr(module, name).weight.double() for name in ("gate", "up", "down", "router"))
    f, e, h = spec.ffn_size, spec.experts, x.shape[-1]
    rows = []
    for token in x.double():
        logits = router[:e, :h] @ token
        scores = logits.softmax(0) if module.score == "softmax" else logits.sigmoid()
        chosen = (scores + module.balance[:e]).topk(spec.top_k).indices.tolist()
        total = sum(scores[i] for i in chosen) if module.renormalise else 1
        row = 0
        for i in chosen:
            hidden = F.silu(gate[i, :f, :h] @ token) * (up[i, :f, :h] @ token)
            row = row + scores[i] / total * (down[i, :h, :f] @ hidden)
        rows.append(row)
    return torch.stack(rows)


CASES = st.tuples(
    st.sampled_from([(2, 1), (3, 2), (6, 1), (6, 4), (4, 4)]),
    st.sampled_from([4, 8, 16]),
    st.sampled_from([4, 12]),
    st.sampled_from(["softmax", "sigmoid"]),
    st.booleans(),
    st.integers(1, 9),
)


@given(CASES, st.integers(0, 1000))
@settings(max_examples=60)
def test_a_slice_is_the_mixture_of_the_leading_experts(case, seed):
    (count, k), ffn_size, width, router, norm, tokens = case
    spec = LayerSpec(1, 1, 2, ffn_size, experts=count, top_k=k)
    module = experts(BaseModel(vocab_size=8, router=router, norm_top_k=norm), seed)
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    found, routing = module(x[None], spec)
    expected = one_by_one(module, x, spec)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed + 1))
    inputs = (x, *(getattr(module, name).weight for name in ("gate", "up", "down", "router")))
    ours = torch.autograd.grad((found[0] * weight).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((expected * weight.double()).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert routing.load.sum().item() == pytest.approx(1)


def detached(value, quantised):
    return value + (quantised - value).detach()


def int8(x):
    scale = 127 / x.abs().amax(-1, keepdim=True)
    return detached(x, (x * scale).round() / scale)


def low_bit(kind, weight, x):
    """One expert's leading block and tokens as its product sees them, quantised in floats."""
    if kind == "ternary":
        gamma = weight.abs().mean()
        codes, seen = (weight / gamma).round().clamp(-1, 1) * gamma, int8(x)
    else:
        beta = x.abs().mean(-1, keepdim=True)
        codes, seen = weight.sign() * weight.abs().mean(-1, keepdim=True), detached(x, x.sign() * beta)
    return detached(weight, codes), seen


@pytest.mark.parametrize("kind", ["ternary", "binary"])
@pytest.mark.parametrize(("count", "k"), [(3, 2), (6, 1)])
def test_low_bit_experts_are_the_detach_formulation(kind, count, k):
    """Values and gradients of a slice; the scales are those of whole matrices, the channels are normalised."""
    spec, width = LayerSpec(1, 1, 2, 8, experts=count, top_k=k, weights=kind), 8
    module = Experts(BaseModel(vocab_size=8), H, LARGEST, LayerKinds(weights=("dense", kind))).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(9, width, dtype=torch.float64, requires_grad=True)
    found, _ = module(x, spec)
    chosen, weight, _ = module.route(x, spec)
    expected = []
    for token, experts_of, weights in zip(x, chosen.tolist(), weight, strict=True):
        row = 0
        for e, share in zip(experts_of, weights, strict=True):
            gate, seen = low_bit(kind, module.gate.weight[e], token)
            up, _ = low_bit(kind, module.up.weight[e], token)
            down, _ = low_bit(kind, module.down.weight[e], token)
            channels = F.silu(gate[:8, :width] @ seen) * (up[:8, :width] @ seen)
            normed = F.rms_norm(channels, (8,), module.inner_norm[:8], module.eps)
            row = row + share * (down[:width, :8] @ int8(normed))
        expected.append(row)
    torch.testing.assert_close(found, torch.stack(expected))
    inputs = (x, *(getattr(module, name).weight for name in ("gate", "up", "down", "router")), module.inner_norm)
    direction = torch.randn_like(found)
    ours = torch.autograd.grad((found * direction).sum(), inputs)
    theirs = torch.autograd.grad((torch.stack(expected) * direction).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b)


def test_one_expert_is_the_dense_feed_forward_and_needs_no_router():
    module, spec = experts(), LayerSpec(1, 1, 2, 8)
    dense = FeedForward(BaseModel(vocab_size=8), H, 16, LayerKinds())
    dense.load_state_dict({f"{name}.weight": getattr(module, name).weight[0] for name in ("gate", "up", "down")})
    x = torch.randn(2, 3, H)
    found, routing = module(x, spec)
    torch.testing.assert_close(found, dense(x, spec))
    assert routing is None
    found.sum().backward()
    assert module.router.weight.grad is None


@pytest.mark.parametrize("norm", [False, True])
def test_experts_and_a_shared_one_are_the_block_of_qwen2_moe(norm):
    """Values and gradients; the shared feed-forward is three experts wide and has its own gate."""
    spec = LayerSpec(1, 1, 2, 8, experts=6, top_k=2, shared_experts=3)
    module = Experts(BaseModel(vocab_size=8, shared_gate=True, norm_top_k=norm), H, spec, LayerKinds())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    config = Qwen2MoeConfig(
        hidden_size=H, moe_intermediate_size=8, shared_expert_intermediate_size=24, num_experts=6,
        num_experts_per_tok=2, norm_topk_prob=norm, experts_implementation="eager",
    )  # fmt: skip
    theirs = Qwen2MoeSparseMoeBlock(config)
    shared = {
        f"shared_expert.{name}_proj.weight": getattr(module.shared, name).weight for name in ("gate", "up", "down")
    }
    theirs.load_state_dict({
        "gate.weight": module.router.weight, "experts.down_proj": module.down.weight,
        "experts.gate_up_proj": torch.cat([module.gate.weight, module.up.weight], 1),
        "shared_expert_gate.weight": module.shared_gate[None], **shared,
    })  # fmt: skip
    x = torch.randn(2, 9, H)
    found, expected = module(x, spec)[0], theirs(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(2, 9, H)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for ours, other in (
        (module.down.weight, theirs.experts.down_proj),
        (module.shared.up.weight, theirs.shared_expert.up_proj.weight),
        (module.router.weight, theirs.gate.weight),
    ):
        assert other.grad.abs().max() > 1e-3
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(module.shared_gate.grad, theirs.shared_expert_gate.weight.grad[0], rtol=1e-3, atol=1e-4)


def test_fewer_shared_experts_are_a_slice_and_none_is_none():
    largest = LayerSpec(1, 1, 2, 16, experts=4, top_k=2, shared_experts=2)
    module = Experts(BaseModel(vocab_size=8), H, largest, LayerKinds())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(7, H)
    without = LayerSpec(1, 1, 2, 8, experts=4, top_k=2)
    for count in (0, 1, 2):
        f = count * 8
        gate, up, down = module.shared.gate.weight[:f], module.shared.up.weight[:f], module.shared.down.weight[:, :f]
        expected = module(x, without)[0] + (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
        found = module(x, LayerSpec(1, 1, 2, 8, experts=4, top_k=2, shared_experts=count))[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_experts_without_tokens_are_fine():
    """All tokens choose one expert: the others get a zero gradient and the output is that expert's alone."""
    module, spec = experts(), LayerSpec(1, 1, 2, 16, experts=6, top_k=1)
    with torch.no_grad():
        module.balance.copy_(torch.tensor([0.0, 0, 0, 9, 0, 0]))
    found, routing = module(torch.randn(1, 7, H), spec)
    assert routing.load.tolist() == [0, 0, 0, 1, 0, 0]
    found.sum().backward()
    assert (module.gate.weight.grad.flatten(1).abs().sum(1) > 0).tolist() == [False, False, False, True, False, False]


def test_statistics_are_those_of_the_papers():
    module, spec = experts(), LayerSpec(1, 1, 2, 16, experts=4, top_k=2)
    x = torch.randn(50, H)
    logits = x @ module.router.weight[:4].T
    chosen, _, routing = module.route(x, spec)
    p = logits.softmax(-1)
    share = torch.stack([(chosen == e).float().mean() for e in range(4)])
    torch.testing.assert_close(routing.load, share)
    torch.testing.assert_close(routing.balance_loss(), 4 * (share * p.mean(0)).sum())
    torch.testing.assert_close(routing.z, logits.exp().sum(-1).log().square().mean())
    torch.testing.assert_close(routing.entropy, -(p * p.log()).sum(-1).mean())


def test_balance_loss_is_one_where_even_and_the_number_of_experts_where_one_has_all():
    even, all_of_it = torch.full((8,), 1 / 8), F.one_hot(torch.tensor(2), 8).float()
    zero = torch.tensor(0.0)
    assert Routing(even, even, zero, zero).balance_loss().item() == pytest.approx(1)
    assert Routing(all_of_it, all_of_it, zero, zero).balance_loss().item() == pytest.approx(8)


def test_the_bias_chooses_but_does_not_weigh():
    module, spec = experts(), LayerSpec(1, 1, 2, 16, experts=6, top_k=6)
    x = torch.randn(1, 5, H)
    before = module(x, spec)[0]
    with torch.no_grad():
        module.balance.add_(torch.randn(6))
    torch.testing.assert_close(module(x, spec)[0], before)  # all experts are chosen either way


class Operations(TorchDispatchMode):
    """Every operation that torch runs, and what of them the grouped products cost."""

    def __init__(self):
        super().__init__()
        self.names, self.multiplications = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[str(func)] += 1
        if func is torch.ops.aten._grouped_mm.default:
            rows, columns = args[0].shape
            self.multiplications += rows * columns * args[1].shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("top_k", [1, 2])
def test_cost_is_that_of_the_experts_in_use_and_nothing_loops_over_experts(top_k):
    """Three grouped products forward and six backward, however many experts there are; each sees N K rows, no fewer:
    no token is dropped, none is padded."""
    seen = {}
    for count in (2, 5):
        module, spec = experts(), LayerSpec(1, 1, 2, 16, experts=count, top_k=top_k)
        x = torch.randn(1, 40, H, requires_grad=True)
        with Operations() as forward:
            out = module(x, spec)[0]
        assert forward.names["aten._grouped_mm.default"] == 3
        assert forward.multiplications == 40 * top_k * 3 * H * 16
        with Operations() as backward:
            out.square().sum().backward()
        assert backward.multiplications == 2 * forward.multiplications
        seen[count] = forward.names + backward.names
    assert seen[2] == seen[5]


def test_a_uniform_router_has_the_greatest_entropy():
    module, spec = experts(), LayerSpec(1, 1, 2, 16, experts=6, top_k=2)
    with torch.no_grad():
        module.router.weight.zero_()
    _, _, routing = module.route(torch.randn(9, H), spec)
    assert routing.entropy.item() == pytest.approx(math.log(6), abs=1e-5)
