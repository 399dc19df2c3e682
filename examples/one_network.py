"""Sub-networks by hand: one supernet, two architectures, and the smaller one cut out of it.

python examples/one_network.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from llmnas import SearchSpace, count_params
from llmnas.supernet import Transformer, extract

SPACE = Path(__file__).parents[1] / "search_configs" / "quickstart.yaml"


def main() -> None:
    """Run a random architecture inside the supernet and by itself."""
    space = SearchSpace.from_yaml(SPACE)
    supernet = Transformer(space).eval()
    tokens = torch.randint(space.base.vocab_size, (1, 32), generator=torch.Generator().manual_seed(0))
    arch = space.sample(np.random.default_rng(0))
    small = extract(supernet, arch).eval()
    with torch.no_grad():
        difference = (supernet(tokens, arch) - small(tokens)).abs().max()
    for name, one in (("largest", space.largest()), ("sampled", arch)):
        print(f"{name}: {one.depth} layers, {one.hidden_size} wide, {count_params(one, space.base).total:,} parameters")
    print(f"logits inside the supernet and cut out of it differ by {difference:.1e}")


if __name__ == "__main__":
    main()
