"""Names of devices and backends, checked without torch."""

import subprocess
import sys

import pytest

from canopy.errors import ModelError
from canopy.models.options import BACKENDS, check_backend, check_device, no_interval


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:11", "mps", "cpu:0"])
def test_devices_that_may_exist_pass(device: str) -> None:
    check_device(device)


@pytest.mark.parametrize("device", ["xpu", "meta", "mpsx", "gpu", "CPU", "", "cuda:", "cuda:-1", "auto:0", "cpu cuda"])
def test_other_devices_are_one_line(device: str) -> None:
    """torch has xpu and meta; a meta tensor has no values, and ours never run on the others."""
    with pytest.raises(ModelError) as caught:
        check_device(device)
    assert str(caught.value) == f"no device {device!r}: auto, cpu, cuda or mps expected"


def test_backends_run_on_their_device_alone() -> None:
    for backend in BACKENDS:
        check_backend(backend)
    on_cpu, others = ("openvino", "bf16", "int8"), (("bf16", "cuda:1"), ("compile", "mps"), ("eager", "cuda"))
    for backend, device in (*((backend, "cpu") for backend in on_cpu), *others):
        check_backend(backend, device)
    with pytest.raises(ModelError, match="no backend 'fast': auto, eager, compile, openvino, openvino-bf16, bf16, int"):
        check_backend("fast")
    with pytest.raises(ModelError, match="bf16 backend runs on cpu or cuda, not on mps: use auto, or --device cpu"):
        check_backend("bf16", "mps")
    with pytest.raises(ModelError, match="openvino backend runs on cpu, not on cuda"):
        check_backend("openvino", "cuda:0")


def test_the_command_that_fits_intervals_can_be_pasted() -> None:
    assert "(canopy models calibrate 'my models/a.safetensors' --imagery" in no_interval("my models/a.safetensors")


def test_checking_needs_no_torch() -> None:
    code = "import sys, canopy.models.options; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
