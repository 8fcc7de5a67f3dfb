"""Every op keeps to the memory budget that its entry states."""

from dataclasses import replace

import torch

from tests.measure import cotangents_for, outputs_of
from tests.memory import peak_bytes, saved_tensors, storage_bytes
from tests.registry import each

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def derived(entry):
    return entry.has_derivative


def only_the_first(sample):
    """The sample with a derivative in one argument alone."""
    return replace(sample, grad=sample.grad[:1]).recording()


@each("large_samples", dtypes=DTYPES, where=derived)
def test_forward_and_backward_keep_to_the_budget(entry, sample):
    sample = only_the_first(sample)
    (x,) = sample.leaves()
    outputs = outputs_of(entry.function(*sample.args, **sample.kwargs))
    derived = [y.requires_grad for y in outputs]
    ones = cotangents_for([y for y in outputs if y.requires_grad], ones=True)

    def forward_and_backward(cotangents):
        ys = outputs_of(entry.function(*sample.args, **sample.kwargs))
        ys = [y for y, is_derived in zip(ys, derived, strict=True) if is_derived]
        return torch.autograd.grad(ys, x, cotangents)

    for cotangents in (ones, [-2 * c for c in ones]):
        extra = peak_bytes(lambda c=cotangents: forward_and_backward(c), x.device.type)
        assert extra <= entry.extra_bytes(sample)


@each("large_samples", dtypes=DTYPES, where=derived)
def test_no_more_is_saved_than_stated(entry, sample):
    sample = only_the_first(sample)
    results = []
    saved = saved_tensors(lambda: results.append(entry.function(*sample.args, **sample.kwargs)))
    assert saved
    known = sample.tensors() + outputs_of(results[0])
    assert storage_bytes(saved, without=known) <= entry.saved_bytes(sample)


@each("large_samples", dtypes=[torch.float32], where=derived)
def test_without_recording_nothing_is_kept_and_no_gradient_formed(entry, sample):
    x = sample.leaves()[0]
    with torch.no_grad():
        extra = peak_bytes(lambda: entry.function(*sample.args, **sample.kwargs), x.device.type)
    assert extra <= entry.extra_bytes(sample) - x.nbytes
