"""Checks an exported folder as a stranger would use it: `python -m llmnas.export.verify FOLDER EXPECTED`.

EXPECTED is a safetensors file with `tokens` [batch, seq] and the `logits` [batch, seq, vocab] they
must give, and `logits.<i>` of sub-network i of an elastic checkpoint. Prints the largest difference of
a logit relative to the largest logit; exits with 1, and the reason on the last line of stderr, when
the folder is not what it should be.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmnas.errors import RunError
from llmnas.export.bitnet import BITNET
from llmnas.files import ABOUT_FILE, read_json

# float32 arithmetic in another order differs by about 1e-6
TOLERANCE = 1e-4
# and where activations are rounded to 8 bits such a difference may tip one over to the next of 255 steps
INT8_TOLERANCE = 2e-2
OTHER = "logits."
PROBES = (
    "The quick brown fox, it's 12:30; 3.14159 & 1234567 people.", "I'll we've DON'T o'clock", "A", " ", "\n", "",
    "  leading and   inner  spaces\t\ttabs\n\n\nnew lines \r\n end ", "def f(x):\n    return x**2  # [ok]\n\treturn",
    "Ünïcödé ﬁ ½ Å Å e\u0301 ẞ", "日本語のテキスト 中文字符 한국어", "עברית العربية हिन्दी ไทย", "🙂👩‍👩‍👧 🇩🇪 ∀x∈∅",
    "https://example.org/a_b?q=1&r=%20#x", "aaaaaaaaaaaaaaaa!!!???...", "▁ Ġ Ċ <0x0A>", "\u200b\ufeff\u00a0|",
)  # fmt: skip
"""Texts that tokenizers split differently: words, numbers, space, code, many scripts, their own signs."""


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| / max |expected|; NaN where either holds one."""
    return float((actual - expected).abs().max() / expected.abs().max())


def check_model(folder: Path, tokens: Tensor, logits: Tensor, others: Mapping[int, Tensor] | None = None) -> float:
    """Load the model by its folder alone, with the code in it where no class is stock; returns `relative_difference`.

    Args:
        folder: the export.
        tokens: [batch, seq].
        logits: [batch, seq, vocab] of what runs by default.
        others: those of further sub-networks, by their place in the table of an elastic checkpoint.

    Raises:
        RunError: not loaded at all, not the stock class, weights missing or left over, or other logits.
    """
    about = read_json(folder / ABOUT_FILE)["export"]
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=about["tier"] == 3
        )
    except ValueError as error:
        raise RunError(f"does not load: {error}") from None
    name, module = type(model).__name__, type(model).__module__
    owner = "transformers_modules" if about["tier"] == 3 else "transformers"
    if name != about["class"] or not module.startswith(f"{owner}."):
        raise RunError(f"loads as {module}.{name}, should be {owner}' {about['class']}")
    wrong = {kind: sorted(names) for kind, names in loading.items() if names}
    if wrong:
        raise RunError(f"weights do not fit the class: {wrong}")
    with torch.no_grad():
        differences = [_checked(model(tokens).logits, logits, INT8_TOLERANCE if name == BITNET else TOLERANCE)]
        for number, wanted in (others or {}).items():
            differences.append(_checked(model(tokens, arch=model.subnetworks[number].arch).logits, wanted))
    return max(differences)


def _checked(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> float:
    difference = relative_difference(found, wanted)
    if not difference <= tolerance:  # NaN must fail
        raise RunError(f"logits differ by {difference:.1e} of their scale, at most {tolerance:.0e} is allowed")
    return difference


def check_tokenizer(folder: Path) -> None:
    """AutoTokenizer must split text as `tokenizer.json` says, and take special tokens in a text as text where it is
    ours: that of a pretrained model stays as it came, and chat templates write special tokens into the text.

    transformers rebuilds some tokenizers by model type, some with another pre-tokenizer. What counts are the ids of
    texts: files say the same in several ways (`trim_offsets` of Qwen's).

    Raises:
        RunError: it does something else.
    """
    about = read_json(folder / ABOUT_FILE)["export"]
    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=about["tier"] == 3)
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours.encode_special_tokens = bool(loaded.split_special_tokens)
    added = [token.content for token in ours.get_added_tokens_decoder().values()]
    for text in (*PROBES, *(f"a {token}b" for token in added)):
        ids = ours.encode(text, add_special_tokens=False).ids
        theirs = loaded(text, add_special_tokens=False)["input_ids"]
        if theirs != ids:
            raise RunError(
                f"AutoTokenizer loads a {type(loaded).__name__} that splits {text!r} into {theirs}, not {ids}"
            )
        back = loaded.decode(ids, clean_up_tokenization_spaces=False)
        if back != ours.decode(ids, skip_special_tokens=False):
            raise RunError(f"AutoTokenizer loads a {type(loaded).__name__} that gives {text!r} back as {back!r}")
    if about["tokenizer"] == "ours" and loaded.eos_token_id in loaded.encode(f"a{loaded.eos_token}b"):
        raise RunError(f"a text can forge the special token {loaded.eos_token}")


def main(folder: Path, expected: Path) -> int:
    """Check one folder; returns the exit status."""
    reference = load_file(expected)
    try:
        others = {int(name.removeprefix(OTHER)): value for name, value in reference.items() if name.startswith(OTHER)}
        difference = check_model(folder, reference["tokens"], reference["logits"], others)
        if (folder / "tokenizer.json").exists():
            check_tokenizer(folder)
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    print(difference)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
