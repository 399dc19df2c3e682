"""One folder, many networks: what a budget picks, what switching does, what a cache in the middle of a text allows."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file
from strategies import random_tokens, scrambled
from torch.utils._python_dispatch import TorchDispatchMode

from llmnas.cost import count_params
from llmnas.errors import RunError, UserError
from llmnas.export import Card, elastic
from llmnas.export.elastic import export_elastic
from llmnas.export.generate import load_model
from llmnas.export.modeling_llmnas import LlmnasForCausalLM
from llmnas.export.own import own_config
from llmnas.export.subnetworks import Subnetwork, latencies, pick
from llmnas.space import Architecture, LayerSpec, SearchSpace
from llmnas.supernet import extract

SPACE = SearchSpace.from_dict({
    "base": {"vocab_size": 300, "max_seq": 32}, "layers": 4, "hidden_size": [8, 16], "depth": [1, 2, 3, 4],
    "kv_heads": [1, 2], "queries_per_group": 1, "head_dim": 4, "ffn_size": [8, 16],
    "weights": {"choices": ["ternary", "dense"], "per_layer": True},
    "mixer": {"choices": ["mlgru", "attention"], "per_layer": True},
})  # fmt: skip
WIDE, NARROW = LayerSpec(2, 1, 4, 16), LayerSpec(1, 1, 4, 8, weights="ternary", mixer="mlgru")
FULL = Architecture(16, (WIDE,) * 4)
THREE = Architecture(16, (WIDE, None, WIDE, WIDE))
TWO = Architecture(16, (WIDE, None, None, WIDE))
SMALL = Architecture(8, (None, NARROW, None, NARROW))
LOSSES = {FULL: 3.0, THREE: 3.1, TWO: 3.3, SMALL: 4.0}
TABLE = [
    Subnetwork(arch, {
        "val_loss": loss, "params": float(count_params(arch, SPACE.base).total), "memory_bytes": 1e4 * arch.depth,
    })
    for arch, loss in LOSSES.items()
]  # fmt: skip
MS = {one.id: 4.0 - i for i, one in enumerate(TABLE)}
CARD = Card(name="elastic", metrics={}, data="speeches", seed=3, trained_tokens=0)


@pytest.fixture(scope="module")
def supernet():
    return scrambled(SPACE).eval()


@pytest.fixture(scope="module")
def written(supernet, tokenizer_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic") / "all"
    return export_elastic(
        supernet, TABLE[::-1], folder, tokenizer_path=tokenizer_path, card=CARD, context=16, seconds=0.01
    )


@pytest.fixture
def model(written):
    return load_model(written.folder)


def params(arch):
    return count_params(arch, SPACE.base).total


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({"params": 10**9}, FULL),
        ({"params": params(FULL)}, FULL),
        ({"params": params(FULL) - 1}, THREE),
        ({"latency_ms": 2.5}, TWO),
        ({"latency_ms": 10, "memory_bytes": 3e4}, THREE),
        ({"latency_ms": 1.0, "params": params(SMALL)}, SMALL),
    ],
)
def test_budget_picks_the_least_loss_within(limits, wanted):
    assert pick(TABLE, limits, MS).arch == wanted


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "none given; allowed: latency_ms, params, memory_bytes"),
        ({"speed": 3}, "speed does not exist"),
        ({"params": -1}, "must be a positive number"),
        ({"params": float("nan")}, "must be a positive number"),
        ({"params": True}, "must be a positive number"),
        ({"params": "1M"}, "must be a positive number"),
        ({"latency_ms": 0.5}, "latency_ms = 0.5 is below the smallest sub-network's 1"),
        ({"params": 10}, f"params = 10 is below the smallest sub-network's {params(SMALL)}"),
    ],
)
def test_impossible_budgets_are_refused_in_one_line(limits, message):
    with pytest.raises(ValueError, match=message) as refused:
        pick(TABLE, limits, MS)
    assert "\n" not in str(refused.value)


def test_limits_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="no sub-network keeps params and memory_bytes together"):
        pick(
            [replace(TABLE[0], metrics={"val_loss": 1, "params": 5, "memory_bytes": 9}),
             replace(TABLE[1], metrics={"val_loss": 1, "params": 9, "memory_bytes": 5})],
            {"params": 5, "memory_bytes": 5},
        )  # fmt: skip


def test_an_unknown_device_is_said_with_what_to_do():
    table = {"fingerprint": {"device": "A", "threads": 1}, "ms": MS}
    assert latencies([table], {"device": "A", "threads": 1}) == MS
    with pytest.raises(ValueError, match=r"no latencies of this device \(device B.*known: device A.*measure_latency"):
        latencies([table], {"device": "B", "threads": 1})


def test_every_row_of_the_table_computes_its_network(written, model, supernet):
    tokens = random_tokens(SPACE.base, 2, 9)
    assert [one.arch for one in model.subnetworks] == [FULL, THREE, TWO, SMALL]
    assert written.difference <= 1e-6
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, supernet(tokens, FULL))
        for one in model.subnetworks:
            assert model.set_budget(params=one.metrics["params"]) == one
            assert torch.equal(model(tokens).logits, supernet(tokens, one.arch))
            torch.testing.assert_close(model(tokens).logits, extract(supernet, one.arch)(tokens), rtol=1e-4, atol=1e-4)


class Operations(TorchDispatchMode):
    """The names of all tensor operations, those that allocate among them."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_switching_copies_and_allocates_no_tensor(model):
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    with Operations() as seen:
        for one in model.subnetworks:
            model.set_budget(params=one.metrics["params"], memory_bytes=1e9)
    assert not seen.names
    with Operations() as seen:
        torch.empty(1)
    assert seen.names, "the check sees operations"
    other = model.sharing(model.subnetworks[1].arch)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert {name: tensor.data_ptr() for name, tensor in other.state_dict().items()} == before


def test_budget_of_one_call_leaves_the_model_as_it_was(model, supernet):
    tokens = random_tokens(SPACE.base, 1, 5)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}
    found = model.generate(tokens, budget={"params": params(SMALL)}, **settings)
    small = extract(supernet, SMALL)
    wanted = tokens
    for _ in range(8):
        with torch.no_grad():
            wanted = torch.cat([wanted, small(wanted)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, wanted)
    assert model.arch == FULL
    with pytest.raises(ValueError, match="assistant_model"):
        model.generate(tokens, budget={"params": 1e9}, assistant_model=model.sharing(TWO), **settings)


def test_fewer_layers_in_the_middle_of_a_text_go_on_with_the_cache(model, supernet):
    """Defined as: the tokens before were read by more layers; each layer that is left has its keys of all of them."""
    tokens = random_tokens(SPACE.base, 1, 10)
    with torch.no_grad():
        cache = model(tokens[:, :6], arch=FULL, use_cache=True).cache
        found = model(tokens[:, 6:], arch=TWO, cache=cache).logits
        own = supernet.new_cache(FULL, 1, 10)
        supernet(tokens[:, :6], FULL, cache=own)
        assert torch.equal(found, supernet(tokens[:, 6:], TWO, cache=own))
        with pytest.raises(ValueError, match="layer 2 has not read the text before; read the text again"):
            model(tokens[:, :1], arch=THREE, cache=cache)


def test_another_width_in_the_middle_of_a_text_is_refused(model):
    tokens = random_tokens(SPACE.base, 1, 6)
    with torch.no_grad():
        cache = model(tokens, use_cache=True).cache
        model.set_budget(params=params(SMALL))
        with pytest.raises(ValueError, match="hidden_size changes from 16 to 8 in the middle of a text"):
            model(tokens[:, :1], cache=cache)
        thinner = replace(FULL, layers=(replace(WIDE, kv_heads=1), *FULL.layers[1:]))
        with pytest.raises(ValueError, match="sizes of layer 0 change"):
            model(tokens[:, :1], arch=thinner, cache=cache)


def test_measured_latencies_are_remembered_and_saved(model, tmp_path):
    model.config.latency_tables = []
    with pytest.raises(ValueError, match="no latencies of this device"):
        model.set_budget(latency_ms=5)
    table = model.measure_latency(context=8, seconds=0)
    assert table.ms.keys() == MS.keys()
    assert min(table.ms.values()) > 0
    assert model.set_budget(latency_ms=1e6).arch == FULL
    model.save_pretrained(tmp_path / "again")
    again = LlmnasForCausalLM.from_pretrained(tmp_path / "again")
    assert again.config.latency_tables == [table.to_dict()]
    assert again.choose(latency_ms=1e6).arch == FULL


def test_single_network_has_no_budget(supernet):
    with pytest.raises(ValueError, match="holds one network"):
        LlmnasForCausalLM(own_config(supernet, None), supernet).set_budget(params=5)


def test_existing_folder_is_refused_and_a_bad_one_never_appears(
    written, supernet, tokenizer_path, tmp_path, in_this_process
):
    in_this_process(elastic)
    options = {"tokenizer_path": tokenizer_path, "card": CARD, "context": 8, "seconds": 0}
    with pytest.raises(UserError, match="is there already"):
        export_elastic(supernet, TABLE, written.folder, **options)
    copy = shutil.copytree(written.folder, tmp_path / "copy")
    broken = scrambled(SPACE)
    with torch.no_grad():
        broken.norm[0] = torch.nan
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(RunError, match="logits differ by nan"):
        export_elastic(broken, TABLE, copy, force=True, **options)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    with pytest.raises(UserError, match="no sub-network to write"):
        export_elastic(supernet, [], tmp_path / "none", **options)


STRANGER = """
import sys
sys.modules["llmnas"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = tokenizer("the state of", return_tensors="pt")["input_ids"]
model.measure_latency(context=8, seconds=0)
print(model.set_budget(latency_ms=1e6, params=float(sys.argv[2])).id)
print(model.generate(ids, max_new_tokens=5, do_sample=False).shape[1] > ids.shape[1])
model.save_pretrained(sys.argv[3])
again = AutoModelForCausalLM.from_pretrained(sys.argv[3], trust_remote_code=True)
print(torch.equal(model(ids).logits, again(ids).logits))
"""


@pytest.mark.full
def test_a_stranger_without_llmnas_sets_a_budget_and_saves_again(written, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, written.folder, str(params(TWO)), tmp_path / "again"],
        capture_output=True, text=True, env=tiny.environment(HF_MODULES_CACHE=str(tmp_path / "modules")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [TWO.id, "True", "True"]


def test_weights_are_there_once(written, supernet):
    weights = load_file(written.folder / "model.safetensors")
    assert weights.keys() == {f"model.{name}" for name in supernet.state_dict()}
    card = (written.folder / "README.md").read_text()
    assert f"| {FULL.id} | 3.0000 | {params(FULL):,} | 16 | 4 |" in card
