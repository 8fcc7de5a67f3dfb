"""Bad input raises the exception that its page names, with a message that says what came."""

import re

import pytest
import torch

from tests.registry import each

pytestmark = pytest.mark.once

MODES = {
    "plain": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@each("bad_calls", dtypes=[torch.float32])
def test_bad_calls_raise(entry, sample, mode):
    with mode(), pytest.raises(sample.error, match=sample.message) as raised:
        entry.function(*sample.args, **sample.kwargs)
    assert {entry.op, entry.name} & {*re.findall(r"\w+", str(raised.value))}


@each("bad_calls", dtypes=[torch.float32])
def test_bad_calls_raise_while_recording(entry, sample):
    args = list(sample.args)
    at = [i for i, x in enumerate(args) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    if at:
        args[at[0]] = args[at[0]].detach().requires_grad_()
    with pytest.raises(sample.error, match=sample.message):
        entry.function(*args, **sample.kwargs)
