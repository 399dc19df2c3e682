"""The run folder belongs to one config, and its manifest says what is done."""

import errno

import pytest
import yaml

from llmnas.config import differences
from llmnas.errors import UserError
from llmnas.files import read_json
from llmnas.runs import RunFolder, identity

VALUES = {"seed": 0, "train": {"lr": 0.1, "steps": 5}, "search": {"evaluations": 10}}


def claim(run, values, made=True):
    """As a verb does that then makes something."""
    run.claim(
        yaml.safe_dump(values), values, lambda all_: {key: all_.get(key) for key in ("seed", "train")}, differences
    )
    if made:
        run.tokenizer.parent.mkdir(exist_ok=True)
        run.tokenizer.touch()


def test_the_first_claim_writes_and_the_same_config_may_come_again(tmp_path):
    run = RunFolder(tmp_path / "deep" / "run")
    claim(run, VALUES)
    claim(run, VALUES)
    assert yaml.safe_load(run.config.read_text()) == VALUES


def test_what_is_not_fixed_may_change_and_the_first_config_stays(tmp_path):
    """What a refused command was given must not stand in the config that the next one reads."""
    run = RunFolder(tmp_path)
    claim(run, VALUES)
    claim(run, VALUES | {"search": {"evaluations": 20}})
    assert yaml.safe_load(run.config.read_text()) == VALUES


def test_a_folder_in_which_nothing_was_made_takes_another_config(tmp_path):
    """The advice of a command that failed can be followed."""
    run = RunFolder(tmp_path)
    claim(run, VALUES, made=False)
    assert not run.bound
    claim(run, VALUES | {"seed": 1})
    assert run.bound
    assert yaml.safe_load(run.config.read_text())["seed"] == 1


def test_another_config_is_refused_with_the_difference_and_nothing_changes(tmp_path):
    run = RunFolder(tmp_path)
    claim(run, VALUES)
    before = run.config.read_bytes()
    with pytest.raises(UserError, match=r"another config: seed: 0 -> 1; train.lr: 0.1 -> 0.2; use another --run-dir"):
        claim(run, {"seed": 1, "train": {"lr": 0.2, "steps": 5}, "search": {}})
    assert run.config.read_bytes() == before


def test_many_differences_stay_one_line(tmp_path):
    run = RunFolder(tmp_path)
    claim(run, {"seed": 0, "train": dict.fromkeys("abcdef", 1)})
    with pytest.raises(UserError, match=r"and 3 more") as error:
        claim(run, {"seed": 0, "train": dict.fromkeys("abcdef", 2)})
    assert "\n" not in str(error.value)


def test_a_damaged_stored_config_is_named(tmp_path):
    run = RunFolder(tmp_path)
    claim(run, VALUES)
    run.config.write_text("{")
    with pytest.raises(UserError, match=r"config\.yaml"):
        claim(run, VALUES)


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run: cannot write there .*--run-dir"):
        claim(RunFolder(tmp_path / "file" / "run"), VALUES)


def test_a_full_disk_is_not_the_users_mistake(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    run = RunFolder(tmp_path)
    with pytest.raises(OSError, match="the disk is full") as error:
        claim(run, VALUES)
    assert error.value.filename == str(run.config)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_names_the_verb_that_makes_it(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match=r"model.safetensors: not there yet; run `llmnas train`"):
        run.require(run.supernet, "train")


def test_the_manifest_keeps_earlier_stages_and_replaces_its_own(tmp_path):
    run = RunFolder(tmp_path)
    run.record("prepare", documents=3)
    run.record("train", steps=5)
    run.record("train", steps=6)
    stages = read_json(run.manifest)["stages"]
    assert stages["prepare"]["documents"] == 3
    assert stages["train"]["steps"] == 6
    assert read_json(run.manifest)["versions"]["llmnas"]


@pytest.mark.parametrize("content", ["{}", "[]", '{"stages": 3}', '{"stages": {"train": 3}}', "null"])
def test_a_manifest_of_another_form_is_named(tmp_path, content):
    run = RunFolder(tmp_path)
    run.manifest.write_text(content)
    for use in (lambda: run.recorded("train"), lambda: run.record("train", steps=5)):
        with pytest.raises(UserError, match=r"manifest\.json: damaged .* delete it"):
            use()
    assert run.manifest.read_text() == content


def test_identity_sees_every_value_and_no_order_of_keys():
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
    assert len({identity({"a": 1}), identity({"a": 2}), identity({"a": 1}, 0), identity({"b": 1})}) == 4
    assert len(identity(1)) == 12
