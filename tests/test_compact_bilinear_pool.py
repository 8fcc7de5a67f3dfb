"""What is particular to compact_bilinear_pool: its sketches, and that it equals the definition."""

import copy

import pytest
import torch

import pyext
from tests.memory import peak_bytes
from tests.references.compact_bilinear_pool import compact_bilinear_pool as by_fourier_transform


def test_sketches_are_reproducible_from_a_seed():
    first, again = (pyext.tensor_sketch(50, 60, 1000, seed=3) for _ in range(2))
    other = pyext.tensor_sketch(50, 60, 1000, seed=4)
    for x, y, z in zip(first, again, other, strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    pyext.tensor_sketch(50)
    assert torch.equal(torch.rand(1), expected)  # torch's own generator is left alone


def test_sketches_look_drawn_at_random():
    sketch = pyext.tensor_sketch(20_000, 20_000, output_dim=10)
    assert not torch.equal(sketch.hash1, sketch.hash2)
    for hashes, signs in ((sketch.hash1, sketch.sign1), (sketch.hash2, sketch.sign2)):
        assert set(signs.tolist()) == {-1.0, 1.0}
        assert abs(signs.mean()) < 0.03  # four standard deviations
        counts = torch.bincount(hashes, minlength=10)
        assert ((counts - 2000).abs() < 200).all()


@pytest.mark.parametrize(("d1", "d2", "s", "d"), [(5, 5, 7, 16), (40, 33, 49, 100), (3, 70, 1, 7)])
def test_it_equals_the_definition_by_fourier_transforms(d1, d2, s, d):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, c, s, generator=generator, dtype=torch.float64) for c in (d1, d2))
    for arguments in ((x, None), (x, y)):
        torch.testing.assert_close(
            pyext.compact_bilinear_pool(*arguments, d, seed=5),
            by_fourier_transform(*arguments, d, seed=5),
            rtol=1e-11,
            atol=1e-11,
        )


def test_inner_products_approximate_those_of_the_full_form():
    x = torch.rand(6, 24, 10, generator=torch.Generator().manual_seed(1))
    full = pyext.bilinear_pool(x, normalize=(), scale=1.0).flatten(1)
    products = [
        z @ z.T for z in (pyext.compact_bilinear_pool(x, output_dim=512, seed=i) for i in range(40))
    ]
    # Four standard deviations of the mean of 40 sketches of this size.
    torch.testing.assert_close(torch.stack(products).mean(0), full @ full.T, rtol=0.04, atol=0)


def test_one_input_is_that_input_twice():
    x = torch.rand(3, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(
        pyext.compact_bilinear_pool(x, None, 20), pyext.compact_bilinear_pool(x, x, 20)
    )


def test_each_example_of_vmap_may_have_its_own_sketches():
    x = torch.rand(3, 2, 5, 7, dtype=torch.float64)
    sketches = [pyext.tensor_sketch(5, output_dim=8, seed=seed) for seed in range(3)]

    def pooled(x, sketch):
        return pyext.compact_bilinear_pool(x, output_dim=8, sketch=sketch)

    stacked = pyext.TensorSketch(*map(torch.stack, zip(*sketches, strict=True)))
    expected = [pooled(*pair) for pair in zip(x, sketches, strict=True)]
    torch.testing.assert_close(torch.vmap(pooled)(x, stacked), torch.stack(expected))

    def gradient(x, sketch):
        return torch.func.grad(lambda x: pooled(x, sketch).square().sum())(x)

    expected = [gradient(*pair) for pair in zip(x, sketches, strict=True)]
    torch.testing.assert_close(torch.vmap(gradient)(x, stacked), torch.stack(expected))


def test_sketches_are_the_same_inside_transforms():
    expected = pyext.tensor_sketch(6, 7, 40, seed=3)
    traced = torch.compile(pyext.tensor_sketch, fullgraph=True, backend="aot_eager")
    mapped = torch.vmap(lambda x: (pyext.tensor_sketch(6, 7, 40, seed=3), x)[0], out_dims=None)
    for sketch in (traced(6, 7, 40, seed=3), mapped(torch.zeros(2))):
        for x, y in zip(sketch, expected, strict=True):
            assert torch.equal(x, y)


def test_training_after_a_first_call_in_inference_mode():
    x = torch.rand(2, 5, 6, requires_grad=True)
    with torch.inference_mode():
        expected = pyext.compact_bilinear_pool(x, output_dim=9)
    result = pyext.compact_bilinear_pool(x, output_dim=9)
    result.sum().backward()
    assert torch.equal(result, expected)


def test_no_tensor_of_positions_by_output():
    x = torch.rand(2, 16, 400)
    module = pyext.nn.CompactBilinearPooling(16, output_dim=4096)
    bytes_ = peak_bytes(lambda: module(x), "cpu")
    assert bytes_ <= 2 * 4096 * 4 + 8192


def test_the_module_keeps_its_sketches():
    module = pyext.nn.CompactBilinearPooling(6, 5, output_dim=32, seed=7)
    x, y = torch.rand(2, 6, 3, 3), torch.rand(2, 5, 3, 3)
    expected = pyext.compact_bilinear_pool(x, y, 32, seed=7)
    assert torch.equal(module(x, y), expected)
    assert [*module.state_dict()] == ["hash1", "sign1", "hash2", "sign2"]
    other = pyext.nn.CompactBilinearPooling(6, 5, output_dim=32, seed=8)
    assert not torch.equal(other(x, y), expected)
    other.load_state_dict(module.state_dict())
    assert torch.equal(copy.deepcopy(other)(x, y), expected)
    assert "output_dim=32" in repr(module)
    assert module.half()(x.half(), y.half()).dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "channels1 >= 1, got 0"), ((3, 0), "channels2"), ((3, 3, 0), "output_dim >= 1, got 0")],
)
def test_sketches_refuse_sizes_below_one(arguments, message):
    with pytest.raises(ValueError, match=message):
        pyext.tensor_sketch(*arguments)


def test_hashes_outside_the_output_are_refused():
    x, sketch = torch.rand(1, 4, 3), pyext.tensor_sketch(4, output_dim=8)
    with pytest.raises(ValueError, match=r"hash1 in \[0, output_dim = 2\)"):
        pyext.compact_bilinear_pool(x, output_dim=2, sketch=sketch._replace(hash1=torch.arange(4)))
