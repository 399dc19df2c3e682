"""The rule that turns what routers learnt into numbers of experts, by hand and on random findings."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmnas.archive import Archive
from llmnas.search import search
from llmnas.search.experts import LEVELS, LayerFindings, Level, choices_a_token, needed, propose
from llmnas.space import SearchSpace

SPACE = {
    "base": {"vocab_size": 16}, "layers": 3, "hidden_size": 8, "depth": [2, 3], "kv_heads": 1, "queries_per_group": 1,
    "head_dim": 4, "ffn_size": {"choices": [4, 8], "per_layer": True},
    "experts": {"choices": [1, 2, 4, 8], "per_layer": True}, "top_k": {"choices": [1, 2], "per_layer": True},
}  # fmt: skip
UNLIKE = np.eye(4).tolist()


def test_who_is_needed():
    even = LayerFindings([0.25] * 4, UNLIKE, [0.8, 1.0])
    level = Level(0.5, 0.9, 0.9)
    assert needed(even, level) == [0, 1, 2, 3]
    idle = LayerFindings([0.1, 0.5, 0.4, 0.0], UNLIKE, [0.8, 1.0])
    assert needed(idle, level) == [1, 2]
    alike = np.eye(4)
    alike[1, 2] = alike[2, 1] = 0.95
    assert needed(LayerFindings([0.25, 0.2, 0.3, 0.25], alike.tolist(), [1.0]), level) == [2, 0, 3]
    assert choices_a_token(even, level) == 2
    assert choices_a_token(even, level._replace(mass=0.8)) == 1


def test_the_space_has_its_say():
    space = SearchSpace.from_dict(SPACE)
    found = {0: LayerFindings([0.4, 0.3, 0.3, *[0.0] * 5], np.eye(8).tolist(), [0.5, 1.0]),
             2: LayerFindings([1.0, *[0.0] * 7], np.eye(8).tolist(), [0.99, 1.0])}  # fmt: skip
    proposal = propose(space, space.largest(), found, Level(0.5, 0.9, 0.9))
    assert [(spec.experts, spec.top_k) for spec in proposal.layers] == [(4, 2), (8, 2), (1, 1)]
    shared = SearchSpace.from_dict({**SPACE, "experts": [1, 2, 4, 8], "top_k": [1, 2]})
    both = {0: found[0], 1: found[2], 2: found[2]}
    proposal = propose(shared, shared.largest(), both, Level(0.5, 0.9, 0.9))
    assert [(spec.experts, spec.top_k) for spec in proposal.layers] == [(4, 2)] * 3


@given(st.integers(0, 10**6), st.sampled_from(sorted(LEVELS)), st.booleans(), st.booleans())
def test_proposals_are_members_that_have_no_more_than_before(seed, level, experts_per_layer, k_per_layer):
    space = SearchSpace.from_dict({
        **SPACE, "experts": {"choices": [1, 2, 4, 8], "per_layer": experts_per_layer},
        "top_k": {"choices": [1, 2], "per_layer": k_per_layer},
    })  # fmt: skip
    rng = np.random.default_rng(seed)
    arch, found = space.sample(rng), {}
    for i, spec in arch.kept:
        if spec.experts > 1:
            like = rng.uniform(0.5, 1, (spec.experts,) * 2)
            mass = np.sort(rng.uniform(0, 1, spec.top_k))
            mass[-1] = 1
            found[i] = LayerFindings(
                rng.dirichlet([0.5] * spec.experts).tolist(), np.maximum(like, like.T).tolist(), mass.tolist()
            )
    proposal = propose(space, arch, found, LEVELS[level])
    assert space.contains(proposal)
    for old, new in zip(arch.layers, proposal.layers, strict=True):
        assert (old is None) == (new is None)
        if old and new:
            assert new.experts <= old.experts
            assert new.top_k <= old.top_k
            assert new.ffn_size == old.ffn_size


def test_a_search_goes_on_as_if_nothing_had_been_proposed(tmp_path):
    """Also where it asks for what was proposed: that is answered from the archive, and not counted."""
    space, calls = SearchSpace.from_dict(SPACE), []

    def evaluate(archs):
        calls.extend(archs)
        return [{"cost": sum(s.experts * s.ffn_size for _, s in a.kept), "loss": 1 / a.depth} for a in archs]

    def run(path, evaluations):
        archive = search(space, evaluate, "random", {"cost": "min", "loss": "min"}, None, {}, evaluations, 0,
                         archive_path=path)  # fmt: skip
        found = [e.arch for e in archive.evaluations if not e.proposed]
        archive.close()
        return found

    straight = run(tmp_path / "straight.sqlite", 30)
    run(tmp_path / "proposed.sqlite", 12)
    archive = Archive.load(tmp_path / "proposed.sqlite")
    foreign, later = space.smallest(), straight[20]
    assert foreign not in straight
    archive.append([foreign, later], evaluate([foreign, later]), proposed=True)
    archive.close()
    calls.clear()
    assert run(tmp_path / "proposed.sqlite", 29) == [arch for arch in straight if arch != later]
    assert later not in calls
