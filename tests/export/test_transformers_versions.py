"""Every kind of export in the releases of transformers that people have, each in an environment of its own.

uv installs a release as its users do; torch, the same for all, is lent by this environment.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from strategies import random_tokens, scrambled
from test_elastic import SPACE, TABLE
from test_export_experts import unbalanced

from llmnas.export import Card
from llmnas.export.block_configs import lay_out_blocks
from llmnas.export.elastic import export_elastic
from llmnas.export.hf import write_checkpoint
from llmnas.export.layout import lay_out
from llmnas.export.verify import INT8_TOLERANCE, relative_difference
from llmnas.space import Architecture, BaseModel, LayerSpec

VERSIONS = ("4.57.6", "5.23.0", "pinned")
BASE = BaseModel(vocab_size=300, rope_dim=8, max_seq=64)
DENSE, WIDE = LayerSpec(2, 1, 8, 16), LayerSpec(1, 3, 8, 12)
TERNARY = LayerSpec(2, 2, 8, 24, weights="ternary")
EXPERTS = LayerSpec(2, 1, 8, 16, experts=4, top_k=2)
KINDS = {
    "llama": (BASE, Architecture(16, (DENSE,) * 2)),
    "mistral": (BASE, Architecture(14, (DENSE, WIDE))),
    "qwen3": (BaseModel(300, rope_dim=8, max_seq=64, qk_norm=True), Architecture(16, (DENSE,) * 2)),
    "seed_oss": (BaseModel(300, rope_dim=8, max_seq=64, qkv_bias=True), Architecture(14, (DENSE, WIDE))),
    "qwen3_moe": (
        BaseModel(300, rope_dim=8, max_seq=64, qk_norm=True, norm_top_k=True),
        Architecture(16, (EXPERTS,) * 2),
    ),
    "mixtral": (BaseModel(300, rope_dim=8, max_seq=64, norm_top_k=True), Architecture(16, (EXPERTS,) * 2)),
    "bitnet": (BASE, Architecture(32, (TERNARY,) * 2)),
    "own": (BASE, Architecture(64, (LayerSpec(1, 8, 8, 64, weights="ternary"), LayerSpec(1, 1, 8, 24, mixer="mlgru")))),
    "blocks": (BASE, Architecture(16, (DENSE, LayerSpec(1, 1, 8, 16, mixer="none"), WIDE))),
}
# What the model card says, and what it says of an elastic checkpoint; then everything again from what was saved.
STRANGER = """
import sys
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
root, given, out = sys.argv[1:4]
tokens, found = load_file(given)["tokens"], {}
for kind in sys.argv[4:]:
    folder = f"{root}/{kind}"
    own = {"trust_remote_code": True} if kind in {"own", "blocks", "elastic"} else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **own)
    tokenizer = AutoTokenizer.from_pretrained(folder, **own)
    ids = tokenizer("The state of", return_tensors="pt")
    text = model.generate(**ids, max_new_tokens=8, do_sample=False, eos_token_id=-1)
    tokenizer.decode(text[0])
    if kind == "elastic":
        model.set_budget(params=min(one.metrics["params"] for one in model.subnetworks))
    with torch.no_grad():
        found[kind] = model(tokens).logits.float().contiguous()
        batch = tokenizer(["The state", "Of the union of states"], return_tensors="pt", padding=True)
        found[f"{kind}.text"] = text
        found[f"{kind}.batch"] = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=-1)
    model.save_pretrained(f"{out}-{kind}")
    again = AutoModelForCausalLM.from_pretrained(f"{out}-{kind}", **own)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits.float(), found[kind]), kind
    print(kind, "ok", flush=True)
save_file(found, out)
print(transformers.__version__)
"""


def lent(environment):
    """torch and what it needs, lent to another environment; returns its interpreter.

    They are named by a .pth file, which installers do not look into: what is linked into site-packages itself they take
    for their own, and replace here.
    """
    (site,) = environment.glob("lib/python*/site-packages")
    shelf = environment / "lent"
    shelf.mkdir()
    (site / "lent.pth").write_text(f"{shelf}\n")
    todo, done = ["torch"], set()
    while todo:
        name = todo.pop()
        if name in done:
            continue
        done.add(name)
        found = importlib.metadata.distribution(name)
        for part in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (shelf / part).exists():
                (shelf / part).symlink_to(found.locate_file(part))
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                todo.append(needed.name)
    return environment / "bin" / "python"


def uv(*arguments):
    program = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    assert program, "uv installs the releases of transformers; `make venv` has it"
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def exports(tokenizer_path, tmp_path_factory):
    """Every kind, random tokens, and the logits that each must give."""
    root = tmp_path_factory.mktemp("kinds")
    tokens, wanted = random_tokens(BASE, 2, 24), {}
    for kind, (base, arch) in KINDS.items():
        model = unbalanced(arch, base)
        (root / kind).mkdir()
        layout = lay_out_blocks if kind == "blocks" else lay_out
        card = Card(name=kind, metrics={}, data="speeches", seed=1, trained_tokens=0)
        stored = write_checkpoint(model, root / kind, tokenizer_path, card, 0, layout)
        classes = {"own": "LlmnasForCausalLM", "blocks": "DeciLMForCausalLM"}
        assert stored.class_name.lower().startswith(classes.get(kind, kind).replace("_", "").lower())
        with torch.no_grad():
            wanted[kind] = model(tokens)
    elastic = scrambled(SPACE).eval()
    export_elastic(elastic, TABLE, root / "elastic", tokenizer_path=tokenizer_path, card=card, context=8, seconds=0)
    smallest = min(TABLE, key=lambda one: one.metrics["params"])
    with torch.no_grad():
        wanted["elastic"] = elastic(tokens, smallest.arch)
    save_file({"tokens": tokens}, root / "tokens")
    return root, wanted


@pytest.mark.full
@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_of_export_loads_and_gives_equal_logits(version, exports, tmp_path):
    root, wanted = exports
    pins = (Path(__file__).parents[2] / "requirements" / "cpu.txt").read_text()
    release = re.search(r"^transformers==(\S+)", pins, re.M)[1] if version == "pinned" else version
    uv("venv", "--quiet", "--python", sys.executable, tmp_path / "environment")
    python = lent(tmp_path / "environment")
    uv("pip", "install", "--quiet", "--python", python, f"transformers=={release}")
    uv(
        "pip", "install", "--quiet", "--python", python, "--no-deps", "accelerate", "psutil"
    )  # for BitNet; not its torch
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", STRANGER, root, root / "tokens", tmp_path / "found", *wanted],
        capture_output=True, text=True, cwd=tmp_path,
        env=clean | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.split()[-1] == release
    found = load_file(tmp_path / "found")
    for kind, logits in wanted.items():
        assert relative_difference(found[kind], logits) <= (INT8_TOLERANCE if kind == "bitnet" else 1e-5), kind
