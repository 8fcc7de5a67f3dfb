"""What einsum says of calls that cannot be; that they raise is for tests/test_errors.py."""

import re

import pytest
import torch

import pyext
from tests.registry import ENTRIES, made
from tests.samples.einsum_bad import REFUSED

ENTRY = next(entry for entry in ENTRIES if entry.name == "einsum")
BAD_CALLS = made(ENTRY, "bad_calls", "cpu", torch.float32)


def message_of(*args, **kwargs):
    with pytest.raises(REFUSED) as raised:
        pyext.einsum(*args, **kwargs)
    return str(raised.value)


@pytest.mark.parametrize("call", BAD_CALLS, ids=lambda call: call.name)
def test_messages_name_the_op_and_quote_the_equation(call):
    message = message_of(*call.args, **call.kwargs)
    assert re.match(r"einsum(\(\))?: ", message)
    assert call.args[0][:30] in message
    assert len(message) < 2000


# The equation, with its place marked, and the shapes of the operands.
MARKED = [
    ("ij,jk->i[z]", (3, 4), (4, 5)),
    ("ij, jk -> [z] k", (3, 4), (4, 5)),
    ("ij,[j]k->ik", (3, 4), (5, 6)),
    ("aij,a[j]k->aik", (2, 3, 4), (2, 5, 6)),
    ("...ij,...[j]k->...ik", (2, 3, 4), (2, 5, 6)),
    ("ij,jk,[k]l->il", (3, 4), (4, 5), (6, 7)),
    ("i[i]->i", (3, 4)),
    ("ai[a]->i", (3, 4, 1)),
    ("i[1],jk->ik", (3, 4), (4, 5)),
    ("i[#]->i", (3, 4)),
    ("ij[-]i", (3, 4)),
    ("ij->i[-]>j", (3, 4)),
    ("i...j[.]..", (3, 4)),
    ("i[.]j", (3, 4)),
    ("i[.].j", (3, 4)),
    ("ij->...[.]", (3, 4)),
    ("βδ,[δ]λ->βλ", (3, 4), (5, 6)),
    ("zé,[é]ŷ->zŷ", (3, 4), (5, 6)),
]


@pytest.mark.parametrize("case", MARKED, ids=lambda case: case[0])
def test_the_place_is_marked(case):
    marked, *shapes = case
    equation = re.sub(r"\[(.)\]", r"\1", marked)
    lines = message_of(equation, *map(torch.ones, shapes)).splitlines()
    mark = next(i for i, line in enumerate(lines) if line.strip() == "^")
    assert equation in lines[mark - 1]
    start = lines[mark - 1].index(equation)
    assert lines[mark].index("^") - start == marked.index("[")


def test_the_place_is_marked_in_a_long_equation():
    equation = "ab," * 400 + "a!," + "ab," * 400 + "ab->ab"
    lines = message_of(equation, *[torch.ones(2, 2)] * 802).splitlines()
    mark = next(i for i, line in enumerate(lines) if line.strip() == "^")
    assert lines[mark - 1][lines[mark].index("^")] == "!"
    assert len(lines[mark - 1]) < 300


def test_sizes_that_differ_are_both_named():
    message = message_of("ij,jk->ik", torch.ones(3, 41), torch.ones(57, 5))
    assert re.search(r"\bj\b", message)
    assert re.search(r"\b41\b", message)
    assert re.search(r"\b57\b", message)


# What torch.einsum refuses, here without the text: the equation and the shapes of the operands.
REFUSED_BY_TORCH = [
    (". ..", (2,)),
    ("... ...", (2,)),
    ("1", (2,)),
    (",", (2,)),
    ("", (2,), (2,)),
    ("", (2,)),
    ("ai", (2,)),
    ("ai...", (2,)),
    ("a->... .", (2,)),
    ("a->..", (2,)),
    ("a->1", (2,)),
    ("a->i", (2,)),
    ("aa", (2, 3)),
    ("a, ba", (2,), (2, 3)),
    ("a,", (2,)),
    ("->a", ()),
    ("a->b->c", (2,)),
    ("a\x00", (2, 3)),
    ("a\n", (2,)),
    ("a_", (2, 3)),
]


@pytest.mark.parametrize("case", REFUSED_BY_TORCH, ids=str)
def test_what_torch_refuses_is_refused(case):
    equation, *shapes = case
    operands = [torch.ones(shape) for shape in shapes]
    with pytest.raises((RuntimeError, ValueError)):
        torch.einsum(equation, operands)
    message_of(equation, *operands)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("ij",),
        ("ij", []),
        (torch.ones(2), [-1]),
        (torch.ones(2), [0], [1]),
        (torch.ones(2), [0, 1]),
        (torch.ones(2), [0], torch.ones(3), [0]),
        (torch.ones(2), [..., 0, ...]),
    ],
    ids=["nothing", "no-operands", "empty-list", "negative", "unknown", "many", "sizes", "dots"],
)
def test_calls_without_a_sensible_equation(args):
    with pytest.raises((RuntimeError, ValueError, TypeError), match="einsum"):
        pyext.einsum(*args)


@pytest.mark.parametrize(
    "args",
    [
        ("ij,jk->ik", [[1.0]], torch.ones(1, 1)),
        ("ij,jk->ik", torch.ones(1, 1), None),
        (torch.ones(2), "i"),
        (torch.ones(2), [0.5]),
        (torch.ones(2), ["i"]),
    ],
    ids=["list", "None", "letters", "fraction", "string"],
)
def test_arguments_of_other_types(args):
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        pyext.einsum(*args)


def test_results_that_no_memory_holds_are_refused_at_once(device):
    """Before anything is allocated; the sizes are in the message."""
    vectors = [torch.ones(1, device=device).expand(n) for n in (2**31, 2**31 + 1, 2**31 + 3)]
    message = message_of("i,j,k->ijk", *vectors)
    assert re.match(r"einsum(\(\))?: ", message)
    with pytest.raises(RuntimeError):  # 2**62 numbers can be counted, but not allocated
        pyext.einsum("i,j->ij", *vectors[:2])


def test_a_plan_raises_as_the_call_does(device):
    for call in BAD_CALLS:
        if call.kwargs or call.name == "devices":
            continue
        with pytest.raises(REFUSED):
            pyext.einsum_plan(*call.args)
