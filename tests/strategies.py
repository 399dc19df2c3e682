"""Small random search spaces, their members by brute force, and models with nothing left at its initial value."""

import itertools
import math

import numpy as np
import torch
from hypothesis import strategies as st

from llmnas.space import DIMENSIONS, Architecture, BaseModel, LayerSpec, SearchSpace
from llmnas.supernet import Transformer

VALUES = {
    "kv_heads": [1, 2, 3],
    "queries_per_group": [1, 2, 3],
    "head_dim": [2, 4, 6, 8],
    "ffn_size": [4, 7, 12, 16],
}
KIND_VALUES = {"weights": ["binary", "ternary", "dense"], "mixer": ["none", "mlgru", "attention"]}


def subsets_of(values, most):
    return st.lists(st.sampled_from(values), min_size=1, max_size=most, unique=True)


@st.composite
def base_models(draw):
    return BaseModel(
        vocab_size=draw(st.sampled_from([11, 32])),
        tied=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        rope_order=draw(st.sampled_from(["leading", "spread"])),
        shared_gate=draw(st.booleans()),
        router=draw(st.sampled_from(["softmax", "sigmoid"])),
        norm_top_k=draw(st.booleans()),
        max_seq=16,
    )


@st.composite
def spaces(draw, max_layers=4, most_choices=2, kinds=False):
    """A space of any depth policy whose dimensions are a mix of shared and per layer; `kinds`: of any sort of layer."""
    layers = draw(st.integers(1, max_layers))
    policy = draw(st.sampled_from(["any", "keep_ends", "even"]))
    low = min(2, layers) if policy == "keep_ends" else 1
    dimensions = {
        name: {"choices": draw(subsets_of(values, most_choices)), "per_layer": draw(st.booleans())}
        for name, values in VALUES.items()
    }
    if kinds:
        dimensions |= {
            name: {"choices": draw(subsets_of(values, 3)), "per_layer": draw(st.booleans())}
            for name, values in KIND_VALUES.items()
        }
        experts = draw(st.sampled_from([[1], [2], [1, 4], [2, 4]]))
        most = min((e for e in experts if e > 1), default=1)
        dimensions["experts"] = {"choices": experts, "per_layer": draw(st.booleans())}
        if most > 1:
            dimensions["ffn_size"]["choices"] = draw(subsets_of([4, 12, 16], most_choices))
        if most > 1:
            dimensions["shared_experts"] = {
                "choices": draw(subsets_of(range(3), 2)), "per_layer": draw(st.booleans())
            }  # fmt: skip
        dimensions["top_k"] = {
            "choices": draw(subsets_of(range(1, most + 1), 2)), "per_layer": draw(st.booleans())
        }  # fmt: skip
    return SearchSpace.from_dict(
        {
            "base": draw(base_models()),
            "layers": layers,
            "hidden_size": draw(subsets_of([4, 8, 12] if kinds else [4, 6, 8, 12], 2)),
            "depth": {"choices": draw(subsets_of(range(low, layers + 1), 3)), "policy": policy},
            **dimensions,
        }
    )


def architectures(space):
    return st.integers(0, 2**32 - 1).map(lambda seed: space.sample(np.random.default_rng(seed)))


@st.composite
def spaces_with_members(draw, members=1, **kwargs):
    space = draw(spaces(**kwargs))
    return (space, *(draw(architectures(space)) for _ in range(members)))


def allowed_subset(space, kept):
    """The depth policies, written again from their description."""
    if len(kept) not in space.depth.choices:
        return False
    if space.depth.policy == "keep_ends":
        return {0, space.layers - 1} <= set(kept)
    if space.depth.policy == "even":
        even = [0] if len(kept) == 1 else np.linspace(0, space.layers - 1, len(kept)).round().astype(int).tolist()
        return list(kept) == even
    return True


def members_with_probability(space):
    """{architecture: probability under `space.sample`}, by trying every value of every decision."""
    shared = [name for name in DIMENSIONS if not getattr(space, name).per_layer]
    own = [name for name in DIMENSIONS if getattr(space, name).per_layer]
    subsets = {
        depth: [kept for kept in itertools.combinations(range(space.layers), depth) if allowed_subset(space, kept)]
        for depth in space.depth.choices
    }

    def settings(names):
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(getattr(space, name).choices for name in names))
        ]

    found = {}
    options = settings(own)
    for hidden_size, setting, (depth, layouts) in itertools.product(
        space.hidden_size, settings(shared), subsets.items()
    ):
        weight = len(space.hidden_size) * len(settings(shared)) * len(subsets) * len(layouts) * len(options) ** depth
        for kept, chosen in itertools.product(layouts, itertools.product(options, repeat=depth)):
            layers = [None] * space.layers
            for i, values in zip(kept, chosen, strict=True):
                layers[i] = LayerSpec(**setting, **values)
            arch = Architecture(hidden_size, tuple(layers))
            found[arch] = found.get(arch, 0) + 1 / weight
    return found


def brute_size(space):
    """Upper bound on the work of `members_with_probability`."""
    options = math.prod(len(getattr(space, name).choices) for name in DIMENSIONS)
    return len(space.hidden_size) * (1 + options) ** max(space.depth.choices)


def scrambled(shape, seed=0):
    """A model whose gains and biases are random too, so that a wrongly sliced one is seen."""
    model = Transformer(shape, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 and not name.endswith("bias"):
                parameter.uniform_(0.5, 1.5, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=generator)
            elif name.endswith(("embedding.weight", "head.weight", "router.weight")):
                parameter.normal_(std=0.3, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("balance"):
                buffer.normal_(std=0.1, generator=generator)
    return model


def random_tokens(base, batch, seq, seed=0):
    return torch.randint(base.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(seed))
