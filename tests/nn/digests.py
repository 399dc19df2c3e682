"""Digests of results that processors may or may not compute alike, one JSON object: started by test_processors.py."""

import hashlib
import json

import numpy as np
import torch

from llmnas import Budget, SearchSpace
from llmnas.cost import costs
from llmnas.cost.sampler import BudgetSampler
from llmnas.data import Sequences
from llmnas.nn import kernels, packed_cpu
from llmnas.rng import generator
from llmnas.supernet import Transformer
from llmnas.triton_kernels import reference

SPACE = SearchSpace.from_dict(
    {
        "base": {"vocab_size": 64}, "layers": 3, "hidden_size": [64, 128], "depth": [2, 3],
        "kv_heads": {"choices": [1, 2], "per_layer": True}, "queries_per_group": 1, "head_dim": 16,
        "ffn_size": {"choices": [64, 192], "per_layer": True}, "weights": ["dense", "ternary"],
    }
)  # fmt: skip


def digest(*values):
    found = hashlib.sha256()
    for value in values:
        found.update(value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:16]


def tokens():
    """[40, 192] fp32 from integers: no function whose last bit a library decides; some are not finite."""
    x = np.random.default_rng(0).integers(-(2**20), 2**20, (40, 192)).astype(np.float32) / 2**17
    x[3, 5], x[9, 190], x[21, 64] = np.nan, np.inf, -np.inf
    return torch.from_numpy(x)


def main():
    x, weight = tokens(), tokens().nan_to_num(0.0, 1.0, -1.0)[:24]
    codes = kernels.quantise(x, packed=True)
    plain = kernels.quantise(x, packed=False)
    ternary, bits = kernels.pack(weight, torch.tensor(2.5)), kernels.pack_signs(weight)
    drawn = BudgetSampler(SPACE, Budget(max_params=400_000)).sample_many(generator(0, "digests"), 40)
    order = Sequences(np.arange(5000, dtype=np.uint16) % 64, 16, seed=3).batch(70, 200)
    initial = Transformer(SPACE, seed=0)
    found = {
        "drawn architectures": digest("".join(arch.id for arch in drawn).encode()),
        "costs": digest(json.dumps([costs(arch, SPACE.base, Budget().workload) for arch in drawn]).encode()),
        "order of the data": digest(order),
        "integers of tokens": digest(codes.codes, codes.scales, plain.codes, plain.scales),
        "packed weights": digest(ternary.codes, bits, reference.pack3(reference.ternary_codes(weight, ternary.gamma))),
        "packed products": digest(
            *(
                kernels.packed_linear(kernels.quantise(some, packed=True), ternary).nan_to_num(7.0)
                for some in (x, x[:2])
            ),
            kernels.packed_binary_linear(codes, bits, torch.ones(24)).nan_to_num(7.0),
        ),
        "initial weights": digest(*(value.detach() for value in initial.parameters())),
        "logits": digest(initial(torch.arange(32)[None] % 64).detach()),
    }
    print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), "vnni": packed_cpu.HAS_VNNI, **found}))


if __name__ == "__main__":
    main()
