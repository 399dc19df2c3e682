"""A target latency under changing load: the controller by an injected clock, and a real process beside it."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.own import own_config
from llmnas.export.stopwatch import decode_ms
from llmnas.export.subnetworks import Subnetwork
from llmnas.serve.adaptive import Controller, Settings, draw, generate, ladder
from llmnas.space import Architecture, LayerSpec, SearchSpace
from llmnas.supernet import Transformer, extract

MS = (1.0, 2.0, 4.0, 8.0)


def follow(controller, loads):
    """The rung of every token, where a token takes its tabled time x the load."""
    rungs = []
    for load in loads:
        rungs.append(controller.rung)
        controller.observe(MS[controller.rung] * load)
    return rungs


def changes(rungs):
    return sum(a != b for a, b in itertools.pairwise(rungs))


def test_load_rises_and_falls():
    controller = Controller(MS, target_ms=10)
    quiet, loaded, again = (follow(controller, [load] * 200) for load in (1.0, 3.0, 1.0))
    assert set(quiet) == {3}
    assert loaded[0] == 3
    assert set(loaded[50:]) == {1}, "2 ms x 3 is the most within 10 ms"
    assert again[-1] == 3
    assert changes(loaded) == 2
    assert changes(again) == 2, "one rung after the other"
    assert controller.load == pytest.approx(1.0, abs=0.01)


def test_bounds():
    assert set(follow(Controller(MS, 10), [1e-3] * 300)) == {3}
    assert follow(Controller(MS, 10), [1e6] * 300)[-1] == 0
    assert Controller(MS, target_ms=0.5).rung == 0, "nothing keeps it: the fastest"
    assert set(follow(Controller(MS[:1], 10), [100.0] * 50)) == {0}


def test_headroom_keeps_a_rung_that_barely_fits_from_being_taken():
    controller = Controller(MS, target_ms=8)  # rung 3 takes exactly the target
    assert controller.rung == 3
    follow(controller, [1.5] * 100)
    assert set(follow(controller, [0.95] * 400)[-200:]) == {2}, "7.6 ms leaves less than 10 % free"
    assert follow(controller, [0.8] * 400)[-1] == 3


def test_a_stall_now_and_then_changes_nothing():
    rungs = follow(Controller(MS, target_ms=10), [1.0 if i % 50 else 4.0 for i in range(1, 500)])
    assert set(rungs) == {3}


def test_noise_never_makes_it_change_from_token_to_token():
    noise = torch.rand(3000, generator=torch.Generator().manual_seed(0))
    rungs = follow(Controller(MS, target_ms=10), (0.7 + noise).tolist())  # 8 ms x 1.2 on average: at the target
    ups = [i for i, (a, b) in enumerate(itertools.pairwise(rungs)) if b > a]
    assert all(b - a > Settings().patience for a, b in itertools.pairwise(ups))


def test_a_wrong_table_does_not_make_it_swing():
    """Rung 3 takes twice its tabled time, the others theirs: every try is taken back, and tries become rare."""
    controller, rungs = Controller(MS, target_ms=10), []
    for _ in range(4000):
        rungs.append(controller.rung)
        controller.observe(MS[controller.rung] * (2 if controller.rung == 3 else 1))
    ups = [i for i, (a, b) in enumerate(itertools.pairwise(rungs)) if b > a]
    waits = [b - a for a, b in itertools.pairwise(ups)]
    assert waits == sorted(waits)
    assert waits[-1] > 10 * Settings().patience
    assert rungs.count(3) < 0.1 * len(rungs)


@pytest.mark.parametrize(("ms", "target"), [((), 1), ((2, 1), 1), ((0, 1), 1), (MS, 0), (MS, float("nan"))])
def test_ladders_and_targets_that_mean_nothing(ms, target):
    with pytest.raises(ValueError, match="must be"):
        Controller(ms, target)
    with pytest.raises(ValueError, match="patience"):
        Settings(patience=0)


WIDE, NARROW = LayerSpec(2, 1, 8, 32), LayerSpec(1, 1, 8, 16)
FULL = Architecture(32, (WIDE,) * 4)
HALF = Architecture(32, (WIDE, None, None, WIDE))
THIN = Architecture(16, (NARROW, None, None, NARROW))
RUNGS = [THIN, HALF, FULL]
SPACE = SearchSpace.from_dict({
    "base": {"vocab_size": 64, "max_seq": 512}, "layers": 4, "hidden_size": [16, 32], "depth": [2, 3, 4],
    "kv_heads": [1, 2], "queries_per_group": 1, "head_dim": 8, "ffn_size": [16, 32],
})  # fmt: skip


def row(arch, loss, params=1.0):
    return Subnetwork(arch, {"val_loss": loss, "params": params})


def test_ladder_holds_what_is_worth_its_time():
    three = Architecture(32, (WIDE, None, WIDE, WIDE))
    table = [row(FULL, 3.0, 9), row(three, 3.5, 6), row(HALF, 3.2, 5), row(THIN, 4.0, 1)]
    ms = {FULL.id: 4.0, three.id: 3.0, HALF.id: 2.0, THIN.id: 1.0}
    assert [one.arch for one in ladder(table, ms, {"latency_ms": 0.1})] == [THIN, HALF, FULL]
    assert [one.arch for one in ladder(table, ms, {"params": 6})] == [THIN, HALF]
    assert [one.arch for one in ladder(table, ms | {THIN.id: 2.0}, {})] == [HALF, FULL]


@pytest.fixture
def model():
    supernet = Transformer(SPACE).eval()
    with torch.no_grad():
        for weight in supernet.parameters():
            weight.normal_(std=0.3)
    return LlmnasForCausalLM(own_config(supernet, None), supernet)


def timed(model, load):
    """A clock that stands still but for the passes of the model: 1, 2, 4 ms by rung, times load(passes so far)."""
    now, passes = [0.0], [0]

    def passed(_module, _args, options, _out):
        now[0] += 1e-3 * MS[RUNGS.index(options["arch"])] * load(passes[0])
        passes[0] += 1

    model.register_forward_hook(passed, with_kwargs=True)
    return lambda: now[0]


def test_text_under_load_is_that_of_the_sub_networks(model):
    """Down by leaving layers out goes on with the cache; another width and a layer that comes back read again."""
    clock = timed(model, lambda i: 1.0 if i < 20 or i > 160 else 2.0 if i < 80 else 4.0)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    text, trace = generate(
        model, ids, RUNGS, Controller(MS[:3], 5), tokens=300, next_token=draw(0, 0), clock=clock
    )  # fmt: skip
    moves = [(a, b) for a, b in zip(trace.rungs, trace.rungs[1:], strict=False) if a != b]
    assert moves == [(2, 1), (1, 0), (0, 1), (1, 2)]
    assert len(trace.read_again) == 3, "all but the first"
    first = trace.rungs.index(1)
    alone = [extract(model.model, arch) for arch in RUNGS]
    assert trace.changes == len(moves)
    for place, rung in enumerate(trace.rungs):
        if first <= place < trace.read_again[0]:
            continue  # the cache of the whole network, see the next test
        with torch.no_grad():
            wanted = alone[rung](text[:, : 5 + place])[:, -1].argmax(-1)
        assert text[0, 5 + place] == wanted, place


def test_layers_left_out_go_on_with_what_they_have_read(model):
    clock = timed(model, lambda i: 1.0 if i < 10 else 2.0)
    text, trace = generate(
        model, torch.tensor([[3, 1, 4]]), RUNGS, Controller(MS[:3], 5), tokens=40, next_token=draw(0, 0), clock=clock
    )
    switch = 3 + trace.rungs.index(1) - 1  # tokens that the whole network has read
    assert not trace.read_again
    supernet, cache = model.model, model.model.new_cache(FULL, 1, 50)
    with torch.no_grad():
        supernet(text[:, :switch], FULL, cache=cache)
        wanted = supernet(text[:, switch:-1], HALF, cache=cache).argmax(-1)
    assert torch.equal(text[:, switch + 1 :], wanted)


def test_without_a_change_it_is_the_text_of_transformers(model):
    ids = torch.tensor([[3, 1, 4]])
    found, trace = generate(
        model, ids, RUNGS, Controller(MS[:3], 5), tokens=20, next_token=draw(0, 0), clock=lambda: 0.0
    )
    assert trace.changes == 0
    assert torch.equal(found, model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20))
    model.generation_config.eos_token_id = int(found[0, 8])
    ended, _ = generate(model, ids, RUNGS, Controller(MS[:3], 5), tokens=20, next_token=draw(0, 0), clock=lambda: 0.0)
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, pad_token_id=0)
    assert torch.equal(ended, wanted)


def test_drawn_by_seed():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    one, other = draw(0.5, 7), draw(0.5, 7)
    drawn = [int(one(logits)) for _ in range(4000)]
    assert drawn[:50] == [int(other(logits)) for _ in range(50)]
    shares = torch.bincount(torch.tensor(drawn), minlength=3) / len(drawn)
    torch.testing.assert_close(shares, (logits[0] / 0.5).softmax(-1), atol=0.03, rtol=0)


@pytest.fixture
def one_core():
    """This process on one core, which a second process then shares."""
    before = os.sched_getaffinity(0)
    core = min(before)
    os.sched_setaffinity(0, {core})
    yield core
    os.sched_setaffinity(0, before)


BUSY = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print(flush=True)\nwhile True: pass"


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process is put on a core on Linux only")
def test_real_processes_on_the_core_bring_it_down_and_it_comes_back(model, one_core):
    """Twelve busy processes leave little of the core, whoever else runs; the target is twice the time before."""
    ms = decode_ms(model.model, RUNGS, 64, 1.0)
    ids, controller = torch.tensor([[3, 1, 4]]), Controller([ms[0], ms[2]], 1.0)

    def rungs(texts):
        found = []
        for _ in range(texts):
            _, trace = generate(model, ids, [THIN, FULL], controller, tokens=400, next_token=draw(0, 0))
            found += trace.rungs
        return found

    for _ in range(5):
        controller.target_ms = 1e9
        rungs(2)
        controller.target_ms = 2 * controller.predicted_ms(1)
        if set(rungs(4)[-400:]) == {1}:
            break
    else:
        pytest.skip("other programs double the time of a token on this core: no quiet moment to begin with")
    busy = [
        subprocess.Popen([sys.executable, "-c", BUSY, str(one_core)], stdout=subprocess.PIPE, text=True)
        for _ in range(12)
    ]
    try:
        for process in busy:
            process.stdout.readline()
        loaded = rungs(6)
    finally:
        for process in busy:
            process.kill()
            process.communicate()
    assert 0 in loaded
    assert loaded.count(0) > 0.4 * len(loaded)
    for _ in range(30):
        if set(rungs(1)[-100:]) == {1}:
            break
    assert controller.rung == 1


def test_several_texts_and_several_ends_are_those_of_transformers(model):
    ids, mask = torch.tensor([[3, 1, 4, 1], [0, 0, 2, 7]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])

    def both():
        found, trace = generate(
            model, ids, RUNGS, Controller(MS[:3], 5), tokens=20, next_token=draw(0, 0), attention_mask=mask,
            clock=lambda: 0.0,
        )  # fmt: skip
        return found, model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False), trace

    free, wanted, _ = both()
    assert torch.equal(free, wanted)
    first, second = int(free[0, 6]), int(free[1, 9])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [first, second], 63
    found, wanted, trace = both()
    assert torch.equal(found, wanted)
    assert found.shape[1] < free.shape[1]
    assert len(trace.ms) == found.shape[1] - 4
    alone, _ = generate(
        model, ids[1:, 2:], RUNGS, Controller(MS[:3], 5), tokens=20, next_token=draw(0, 0), clock=lambda: 0.0
    )
    assert torch.equal(found[1, 2 : 2 + alone.shape[1]], alone[0])
