"""Checks an exported folder as a stranger would use it: `python -m llmnas.export.verify FOLDER EXPECTED`.

EXPECTED is a safetensors file with `tokens` [batch, seq] and the `logits` [batch, seq, vocab] they
must give, and `logits.<i>` of sub-network i of an elastic checkpoint. Prints the largest difference of
a logit relative to the largest logit; exits with 1, and the reason on the last line of stderr, when
the folder is not what it should be.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from llmnas.errors import RunError, UserError
from llmnas.export.bitnet import BITNET
from llmnas.export.loading import OURS, open_config, open_model
from llmnas.export.ship import shipped_files
from llmnas.files import read_text

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
_ENTRIES = 20_000  # of the vocabulary, one after the other: text that asks for many merges
_COMPILERS = (os.environ.get("CXX", "g++"), "g++", "clang++")


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| / max |expected|; NaN where either holds one."""
    return float((actual - expected).abs().max() / expected.abs().max())


def check_model(folder: Path, tokens: Tensor, logits: Tensor, others: Mapping[int, Tensor] | None = None) -> float:
    """Load the model, our own class as it is installed, and compare logits; returns `relative_difference`.

    Args:
        folder: the export.
        tokens: [batch, seq].
        logits: [batch, seq, vocab] of what runs by default.
        others: those of further sub-networks, by their place in the table of an elastic checkpoint.

    Raises:
        RunError: not loaded at all, not the class that it says, other code than ours, weights missing or left over,
            or other logits.
    """
    try:
        model = open_model(folder)
    except UserError as error:
        raise RunError(f"does not load: {error}") from None
    name = type(model).__name__
    check_code(folder, name)
    # BitLinear compiles itself, as for any user who has a compiler; without one it computes the same
    stance = "default" if name != BITNET or any(map(shutil.which, _COMPILERS)) else "force_eager"
    with torch.no_grad(), torch.compiler.set_stance(stance):
        differences = [_checked(model(tokens).logits, logits, INT8_TOLERANCE if name == BITNET else TOLERANCE)]
        for number, wanted in (others or {}).items():
            differences.append(_checked(model(tokens, arch=model.subnetworks[number].arch).logits, wanted))
    return max(differences)


def check_code(folder: Path, name: str) -> None:
    """The code in the folder must be what this package ships, byte for byte, and nothing else.

    Raises:
        RunError: names the first file that differs.
    """
    shipped = shipped_files(OURS[name][0].__module__) if name in OURS else {}
    found = {path.name: read_text(path) for path in sorted(folder.glob("*.py"))}
    for file in sorted({*shipped, *found}):
        if shipped.get(file) != found.get(file):
            raise RunError(f"{file}: is not the code that belongs to {name}")


def _checked(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> float:
    difference = relative_difference(found, wanted)
    if not difference <= tolerance:  # NaN must fail
        raise RunError(f"logits differ by {difference:.1e} of their scale, at most {tolerance:.0e} is allowed")
    return difference


def check_tokenizer(folder: Path) -> None:
    """AutoTokenizer must make the ids and texts of an export's `tokenizer.json`, special tokens among the text.

    Raises:
        RunError: it does something else.
    """
    _check_reading(folder, AutoTokenizer.from_pretrained(folder, config=open_config(folder), trust_remote_code=False))


def check_source_tokenizer(folder: Path) -> None:
    """The same of a pretrained model's folder: its texts were split by AutoTokenizer, ours are by the file alone.

    Raises:
        RunError: transformers rebuilds it by its class, with other ids, or loads none without running its code.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # noqa: BLE001 (loading raises errors of every kind)
        raise RunError(f"AutoTokenizer does not load it: {' '.join(str(error).split())}") from None
    _check_reading(folder, loaded)


def _check_reading(folder: Path, loaded: Any) -> None:
    """Compare ids and texts: files say the same in several ways (`trim_offsets` of Qwen's)."""
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = bool(loaded.split_special_tokens)
    entries = sorted(plain.get_vocab().values())
    vocabulary = random.Random(0).sample(entries, min(len(entries), _ENTRIES))
    added = [token.content for token in plain.get_added_tokens_decoder().values()]
    for text in (*PROBES, plain.decode(vocabulary), *(f"a {token}b" for token in added)):
        ids = plain.encode(text, add_special_tokens=False).ids
        theirs = loaded(text, add_special_tokens=False)["input_ids"]
        if theirs != ids:
            place = next((i for i, (a, b) in enumerate(zip(theirs, ids, strict=False)) if a != b), len(ids))
            what = f"splits {text[:40]!r} otherwise: token {place} is {theirs[place:][:1]}, not {ids[place:][:1]}"
            raise RunError(f"AutoTokenizer loads a {type(loaded).__name__} that {what}")
        back = loaded.decode(ids, clean_up_tokenization_spaces=False)
        if back != plain.decode(ids, skip_special_tokens=False):
            raise RunError(f"AutoTokenizer loads a {type(loaded).__name__} that gives {text[:40]!r} back as {back!r}")


def main(folder: Path, expected: Path) -> int:
    """Check one folder; returns the exit status."""
    reference = load_file(expected)
    try:
        others = {int(name.removeprefix(OTHER)): value for name, value in reference.items() if name.startswith(OTHER)}
        difference = check_model(folder, reference["tokens"], reference["logits"], others)
        if (folder / "tokenizer.json").exists():
            check_tokenizer(folder)
    except (RunError, UserError) as error:
        print(error, file=sys.stderr)
        return 1
    print(difference)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
