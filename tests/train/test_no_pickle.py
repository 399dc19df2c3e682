"""What a checkpoint may make torch's reader call: nothing, but to name a stage of ZeRO."""

import operator

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from llmnas.train.no_pickle import no_pickle


class Calls:
    """Stored as a call, which an ordinary unpickler would make."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def read_back(folder, value):
    torch.save({"value": value}, folder / "file.pt")
    with no_pickle():
        return torch.load(folder / "file.pt", weights_only=False)["value"]  # DeepSpeed asks for it like this


@pytest.mark.parametrize("stage", list(ZeroStageEnum))
def test_a_stage_is_read_however_the_python_that_wrote_it_stores_members(stage, tmp_path):
    assert read_back(tmp_path, stage) is stage
    assert read_back(tmp_path, Calls(getattr, ZeroStageEnum, stage.name)) is stage


@pytest.mark.parametrize(
    "call",
    [
        Calls(getattr, ZeroStageEnum, "__class__"),
        Calls(getattr, torch.Tensor, "__init__"),
        Calls(operator.add, 1, 2),
        Calls(print, "executed"),
    ],
    ids=["attribute of the stages", "attribute of another class", "operator", "print"],
)
def test_no_other_call_is_made(call, tmp_path, capsys):
    with pytest.raises(Exception, match=r"only ZeRO stages are read|Weights only load failed"):
        read_back(tmp_path, call)
    assert "executed" not in capsys.readouterr().out
