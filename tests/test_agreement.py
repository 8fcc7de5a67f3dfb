"""Every op agrees with its float64 reference, and is never further from it than torch's own op."""

import pytest
import torch

from tests.measure import assert_agrees, errors, run
from tests.registry import ENTRIES, each, made

ALL = ("samples", "large_samples")


@each(*ALL)
def test_outputs_and_gradients_agree_with_the_reference(entry, sample):
    double = sample.as_double()
    # The derivative of an op that saves its result is taken from the rounded result.
    roundings = 2 if entry.saves_result else 1
    for ones in (True, False):
        outputs, gradients = run(entry.function, sample, ones=ones)
        expected_outputs, expected_gradients = run(entry.reference, double, ones=ones)
        for actual, expected in zip(outputs, expected_outputs, strict=True):
            assert_agrees(actual, expected)
        for actual, expected in zip(gradients, expected_gradients, strict=True):
            assert_agrees(actual, expected, roundings=roundings, summed=entry.sums_result)


# Not float64: the reference is no more exact than what it would judge.
BELOW_DOUBLE = (torch.float32, torch.bfloat16, torch.float16)


def errors_beside_torch(entry, sample):
    """Our errors and those of torch's own op, in our unit: of the outputs, of the gradients."""
    ours, torchs = run(entry.function, sample), run(entry.native, sample)
    references = run(entry.reference, sample.as_double())
    for kind in (0, 1):
        tensors = list(zip(ours[kind], torchs[kind], references[kind], strict=True))
        if not tensors:
            continue
        yield (
            torch.cat([errors(x, expected, x.dtype).flatten() for x, _, expected in tensors]),
            torch.cat([errors(y, expected, x.dtype).flatten() for x, y, expected in tensors]),
        )


@each(*ALL, dtypes=BELOW_DOUBLE)
def test_error_of_a_sample_is_not_larger_than_that_of_torch(entry, sample):
    """Two units are left to the chance of the last digit.

    On one small sample torch's result may happen to be rounded well; see the next test.
    """
    if entry.native(*sample.args, **sample.kwargs) is NotImplemented:
        pytest.skip("torch's own op has no such option")
    for ours, torchs in errors_beside_torch(entry, sample):
        if ours.numel():
            assert ours.max().item() <= max(torchs.max().item(), 2)


@pytest.mark.parametrize("dtype", BELOW_DOUBLE)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_error_over_all_samples_is_not_larger_than_that_of_torch(entry, dtype, device):
    """No slack here: neither the largest error nor the root of the mean square."""
    kinds = [([], []), ([], [])]
    for kind in ALL:
        for sample in made(entry, kind, device, dtype):
            if entry.native(*sample.args, **sample.kwargs) is NotImplemented:
                continue
            # An op without a derivative has one kind.
            for errors_of_kind, (ours, torchs) in zip(
                kinds, errors_beside_torch(entry, sample), strict=False
            ):
                both = ours.isfinite() & torchs.isfinite()
                errors_of_kind[0].append(ours[both])
                errors_of_kind[1].append(torchs[both])
    assert kinds[0][0]
    for ours, torchs in kinds if entry.has_derivative else kinds[:1]:
        ours, torchs = torch.cat(ours), torch.cat(torchs)
        assert ours.max().item() <= torchs.max().item()
        assert ours.square().mean().item() <= torchs.square().mean().item()
