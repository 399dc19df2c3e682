"""`llmnas verify`: every damage of a run and of its export is named; the loss of the card is measured again."""

import json
import shutil

import pytest

from llmnas.files.export_hashes import HASHES, note
from llmnas.manifest import Ledger


def change_a_byte(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 64
    file.write_bytes(data)


def export_of(folder):
    return folder / json.loads((folder / "manifest.json").read_text())["stages"]["export"]["folder"]


def test_a_whole_run_is_whole_and_its_model_has_the_loss_of_its_card(copied, llmnas):
    done = llmnas("verify", copied.folder)
    assert done.code == 0, done.out
    assert "0 damaged, " in done.out
    assert "val_loss " in done.out
    noted = Ledger(copied.folder / "manifest.json").files()
    stand_alone = {name for name in noted if name.startswith("retrain/") and name.endswith("model.safetensors")}
    assert len(stand_alone) >= 2
    assert {"supernet/model.safetensors", "data/tokenizer.json", "decision.json"} <= noted.keys()


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("supernet/model.safetensors", "search"),
        ("data/tokenizer.json", "export"),
        ("decision.json", "retrain"),
        ("retrain/result.json", "export"),
    ],
)
def test_a_changed_file_is_named_by_verify_and_by_the_verb_that_would_use_it(copied, llmnas, name, verb):
    change_a_byte(copied.folder / name)
    done = llmnas("verify", copied.folder)
    assert done.code == 1
    assert f"{copied.folder / name}: damaged" in done.out
    done = llmnas(verb, copied.config, "--run-dir", copied.folder, "--resume")
    assert done.code == 2
    assert f"{copied.folder / name}: damaged" in done.complaint


def test_changed_weights_of_a_winner_are_not_exported(copied, llmnas):
    for path in copied.folder.glob("retrain/found-*/model.safetensors"):
        change_a_byte(path)
    done = llmnas("export", copied.config, "--run-dir", copied.folder, "--resume")
    assert done.code == 2
    assert "model.safetensors: damaged: its content is not what was written" in done.complaint


def test_a_changed_export_is_neither_verified_nor_run(copied, llmnas):
    export = export_of(copied.folder)
    change_a_byte(export / "model.safetensors")
    for arguments in (("verify", export), ("generate", export, "--prompt", "The")):
        done = llmnas(*arguments)
        assert done.code in (1, 2)
        assert f"{export / 'model.safetensors'}: damaged" in done.out + done.err


def test_an_export_elsewhere_needs_its_tokens_for_the_loss(copied, llmnas, tmp_path):
    moved = shutil.copytree(export_of(copied.folder), tmp_path / "elsewhere" / "a" / "model")
    done = llmnas("verify", moved)
    assert done.code == 0, done.err
    assert "hashes alone" in done.out
    done = llmnas("verify", moved, "--tokens", copied.folder)
    assert done.code == 0, done.out
    assert "its card says" in done.out


def test_a_loss_that_is_not_the_models_is_noticed(copied, llmnas):
    """Hashes that somebody made anew say nothing of what the card tells."""
    export = export_of(copied.folder)
    values = json.loads((export / HASHES).read_text())
    from llmnas.files.export_hashes import Measured

    measured = Measured.model_validate({**values["measured"], "val_loss": values["measured"]["val_loss"] + 0.01})
    note(export, measured=measured)
    done = llmnas("verify", export)
    assert done.code == 1
    assert "another model than the one it was measured of" in done.out


def test_a_run_without_hashes_stays_readable_and_says_so(copied, llmnas, caplog):
    manifest = json.loads((copied.folder / "manifest.json").read_text())
    del manifest["files"], manifest["sha256"]
    (copied.folder / "manifest.json").write_text(json.dumps(manifest))
    done = llmnas("report", copied.config, "--run-dir", copied.folder, "--resume")
    assert done.code == 0, done.err
    assert "made before files had hashes" in caplog.text
    change_a_byte(copied.folder / "data" / "tokenizer.json")
    done = llmnas("report", copied.config, "--run-dir", copied.folder, "--resume")
    assert "tokenizer.json: damaged: not the tokenizer that the text was prepared with" in done.complaint
