"""The real Zeus on the real pynvml, over a driver library of a few lines of C instead of a GPU's."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not find_spec("pynvml"), reason="Zeus is an extra for GPUs: pip install zeus nvidia-ml-py"),
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to build the driver library with"),
]
HERE = Path(__file__).parent
# waiting for a GPU is the one thing that needs CUDA itself
SCRIPT = """
import torch
waited = []
torch.cuda.is_available = lambda: True
torch.cuda.synchronize = waited.append
from llmnas.evaluate.measure import Bench
from llmnas.evaluate.power import find_meter
for device in ("cuda:0", "cuda:1"):
    meter = find_meter(Bench(device, torch.bfloat16, 1, "wall"))
    print(meter[0], [meter.joules(lambda: None) for _ in range(2)] if len(meter) == 2 else "", waited)
"""


def found(libraries):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=True)
    return [line for line in done.stdout.splitlines() if "Zeus" in line]


def test_zeus_reads_the_counter_of_the_gpu_that_is_asked_for_and_waits_for_it(tmp_path):
    command = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libnvidia-ml.so.1"), str(HERE / "nvml_driver.c")]
    subprocess.run(command, check=True)
    whole, slice_ = found(tmp_path)
    assert whole == "Zeus (NVML), the GPU alone [1.5, 1.5] [0, 0, 0, 0, 0, 0]"  # the first window is find_meter's own
    assert slice_.startswith("Zeus cannot read this GPU (Not Supported)")


def test_without_a_driver_zeus_says_that_there_is_no_gpu(tmp_path):
    for line in found(tmp_path):
        assert line.startswith("Zeus cannot read this GPU (")
