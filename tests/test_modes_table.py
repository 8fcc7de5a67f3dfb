"""docs/modes.md says what is registered and tested; `python -m tests.modes` writes it."""

import pytest

from tests import modes
from tests.registry import GPUS

pytestmark = pytest.mark.once


@pytest.mark.parametrize("mode", [m for m in modes.MODES if GPUS or m not in modes.ON_GPU])
def test_every_op_has_a_test_or_a_reason(mode):
    excused = {op for op, of in modes.REASONS if of == mode}
    assert modes.covered(mode) | excused == set(modes.OPS)
    assert not modes.covered(mode) & excused, "these have both"


def test_the_committed_table_is_that_of_the_ops_and_modes():
    pages = [modes.page(gpu=gpu) for gpu in (False, True)]
    assert modes.PAGE.read_text() in pages, "run `python -m tests.modes`"


def test_an_op_without_a_test_is_noticed(monkeypatch):
    monkeypatch.setattr(modes, "OPS", (*modes.OPS, "new_op"))
    assert modes.covered("CPU") != set(modes.OPS)
    assert modes.PAGE.read_text() not in [modes.page(gpu=gpu) for gpu in (False, True)]
