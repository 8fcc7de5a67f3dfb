"""What holds for every test: which kernels run is said, and no test leaves a setting behind."""

from __future__ import annotations

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Runs a test on every kind of device that the machine has."""
    return request.param


def pytest_report_header() -> str:
    try:
        import pyext
    except Exception as error:  # the tests will say more
        return f"pyext cannot be imported: {error}"
    devices = "cpu and cuda" if torch.cuda.is_available() else "cpu (torch sees no GPU)"
    return (
        f"pyext {pyext.__version__}: {pyext._C.instruction_set()} kernels, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {devices}"
    )


@pytest.fixture(autouse=True)
def _settings_restored():
    torch.manual_seed(0)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
