"""Configs, command lines, model folders and tokenizers that nobody should write, the same each time."""

import copy
import json
import os
import random

import yaml

WRONG = (
    None, True, False, -1, 0, 1, 3, 7.5, 1e308, -1e308, 10**30, 2**63, float("nan"), float("inf"), "", "x", "../x",
    "/dev/zero", "0x1F", "1e-3", "nan", [], [1, 2], [[]], [None], {}, {"a": 1}, {"choices": []}, "x" * 5000,
    "a\nb\x1b[2J", [0], [-1], [10**9], {"choices": [1, 10**6], "per_layer": True}, "sotu",
    "!!python/object:os.system", ["x"] * 1000,
)  # fmt: skip


def places(value, place=()):
    """The place of everything within a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*place, key)
        yield from places(item, (*place, key))


def mutated(value, rng, count=1):
    """A copy in which something is replaced, missing, doubled or new."""
    value = copy.deepcopy(value)
    for _ in range(count):
        found = list(places(value))
        if not found:
            return value
        *above, last = rng.choice(found)
        inner = value
        for part in above:
            inner = inner[part]
        how = rng.random()
        if how < 0.7:
            inner[last] = copy.deepcopy(rng.choice(WRONG))
        elif how < 0.85:
            del inner[last]
        elif isinstance(inner, dict):
            inner[f"{last}_"] = inner[last]
        else:
            inner.append(inner[last])
    return value


def flipped(data, rng):
    """Bytes with one changed, cut out or put in."""
    place = rng.randrange(len(data) + 1)
    how = rng.randrange(4)
    if how == 0:
        return data[:place]
    if how == 1:
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if how == 2:
        return (
            data[:place]
            + rng.choice([b"\n", b": ", b"[", b"{", b"\t", b"&a ", b"*a ", b"\xff", b"\x00"])
            + data[place:]
        )
    return data[:place] + data[place : place + 40] * rng.randrange(2, 50) + data[place:]


def configs(base, count, seed=0):
    """Texts of configs."""
    for number in range(count):
        rng = random.Random(f"config {seed} {number}")
        if number % 4 == 3:
            yield flipped(yaml.safe_dump(base, sort_keys=False).encode(), rng)
        else:
            yield yaml.safe_dump(mutated(base, rng, rng.randrange(1, 4)), sort_keys=False, allow_unicode=True).encode(
                "utf-8", "surrogatepass"
            )


VERBS = (
    "init", "doctor", "run", "compress", "prepare", "train", "search", "retrain", "export", "report", "generate",
    "correlate", "ladder", "speculate", "compare", "extract", "analyse", "plan", "verify", "nonsense", "--help", "-h",
    "",
)  # fmt: skip
WORDS = (
    "tiny.yaml", "absent.yaml", "run", "text", "/dev/zero", "/dev/null", ".", "", "pipe", "--resume", "--force",
    "--elastic", "--set", "--set=x", "--set=train.lr=1", "--set=a.b.c={", "--set=data.source=pipe", "--run-dir",
    "--run-dir=run", "--run-dir=tiny.yaml", "--run-dir=/proc/x", "--prompt", "--prompt=We", "--prompt=", "--tokens=0",
    "--tokens=5", "--tokens=x", "--temperature=-1", "--temperature=nan", "--temperature=inf", "--seed=-1",
    "--seed=99999999999999999999", "--format", "--format=gguf", "--format=zip", "--ternary=tq2_0", "--corpus=text",
    "--corpus=pipe", "--corpus=/dev/zero", "--max-params=1M", "--max-params=nan", "--max-params=-1",
    "--max-params=1e400", "--latency-ms=0", "--latency-ms=nan", "--params=1k", "--memory=x", "--gpus=0", "--gpus=3",
    "--gpu-memory=nan", "--init-from=run", "--init-from=pipe", "--method=darts", "--targets=params=1k", "--targets=x",
    "--objective=x.py:f", "--objective=x", "--table=absent.csv.gz", "--table=pipe", "--port=70000", "experts", "--",
    "a\nllmnas: all is well", "\udcff", "--adapt", "--device=this", "--prepare", "--baselines", "-x",
)  # fmt: skip


def command_lines(count, seed=0):
    """Arguments; none of them starts a server or a long work."""
    for number in range(count):
        rng = random.Random(f"command {seed} {number}")
        yield [rng.choice(VERBS), *rng.choices(WORDS, k=rng.randrange(5))]


CODE = "from pathlib import Path\nPath('code-ran').touch()\nclass Model: pass\nclass Tokenizer: pass\n"


def damage_model(folder, number, seed=0):
    """Damage a folder of a model in one of many ways."""
    rng = random.Random(f"model {seed} {number}")
    jsons = sorted(path for path in folder.rglob("*.json") if path.stat().st_size < 1 << 20)
    others = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in {".safetensors", ".json"})
    how = number % 6
    if how <= 1:
        path = rng.choice(jsons)
        value = mutated(json.loads(path.read_text()), rng, rng.randrange(1, 4))
        path.write_text(json.dumps(value))
    elif how == 2:
        path = rng.choice(others)
        path.write_bytes(flipped(path.read_bytes(), rng))
    elif how == 3:
        foreign_code(folder, rng)
    elif how == 4:
        path = rng.choice(others)
        path.unlink()
        rng.choice(
            [lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to(path)]
        )()
    else:
        weights = next(iter(folder.glob("*.safetensors")))
        data = weights.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(mutated(json.loads(data[8 : 8 + length]), rng, 2)).encode()
        weights.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def foreign_code(folder, rng):
    """Code beside the model, and settings that ask for it; pickles."""
    (folder / "modeling_x.py").write_text(CODE)
    names = ("AutoModelForCausalLM", "AutoConfig", "AutoTokenizer", "AutoModel")
    asked = {"auto_map": dict.fromkeys(rng.sample(names, rng.randrange(1, 5)), "modeling_x.Model")}
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        if rng.random() < 0.6:
            value = json.loads(path.read_text()) if path.is_file() else {}
            more = {"trust_remote_code": True, "_attn_implementation": "stranger/kernel", "custom_generate": "."}
            chosen = {key: more[key] for key in rng.sample(sorted(more), rng.randrange(3))}
            path.write_text(json.dumps(value | asked | chosen))
    if rng.random() < 0.3:
        weights = next(iter(folder.glob("*.safetensors")))
        weights.unlink()
        pickled = b"cposix\nsystem\n(S'touch code-ran'\ntR."
        (folder / "pytorch_model.bin").write_bytes(pickled)


def tokenizers(stored, count, seed=0):
    """Texts of tokenizer.json."""
    for number in range(count):
        rng = random.Random(f"tokenizer {seed} {number}")
        if number % 4 == 3:
            yield flipped(json.dumps(stored).encode(), rng)
            continue
        value = {key: item for key, item in stored.items() if key != "model"}
        model = {key: item for key, item in stored["model"].items() if key not in ("vocab", "merges")}
        changed = mutated({"rest": value, "model": model}, rng, rng.randrange(1, 4))
        inner = changed.get("model")
        known = {key: stored["model"][key] for key in ("vocab", "merges") if rng.random() < 0.95}
        found = changed.get("rest") if isinstance(changed.get("rest"), dict) else {}
        kinds = ["Precompiled", "NFKC", "Lowercase", "Strip", "Nmt", "BertNormalizer", "Prepend", "ByteLevel", "Split"]
        if rng.random() < 0.4:
            found["normalizer"] = {
                "type": rng.choice(kinds), "precompiled_charsmap": rng.choice(["", "AAAA", "BAAAAAAAAABhYmMA", "x"]),
                "prepend": "x", "strip_left": True, "strip_right": True,
            }  # fmt: skip
        if rng.random() < 0.2 and isinstance(inner, dict):
            inner["dropout"] = rng.choice([0.1, 1.0, -1, 2, 1e-12])
        yield json.dumps(found | {"model": {**inner, **known} if isinstance(inner, dict) else inner}).encode()
