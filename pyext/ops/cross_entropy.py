"""Cross-entropy with label smoothing, mixup, z-loss and soft-capped logits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypedDict, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyext.ops import _cross_entropy_fakes, _cross_entropy_vmap  # noqa: F401  registered there

__all__ = ["CrossEntropyStats", "cross_entropy", "mixup_cross_entropy"]


class CrossEntropyStats(NamedTuple):
    """What :func:`cross_entropy` knows of each row (``return_stats=True``).

    Attributes:
        lse: log-sum-exp of the logits, differentiable.
        entropy: entropy of the softmax in nats, differentiable.
        target_log_prob: log-probability of the target; its expectation for class probabilities or
            two targets; 0 where the target is ignored. Not differentiable.
        argmax: index of the largest logit. Not differentiable.
    """

    lse: Tensor
    entropy: Tensor
    target_log_prob: Tensor
    argmax: Tensor


class _Extras(TypedDict, total=False):
    """The keyword arguments that both losses add to torch's, for type checkers."""

    smoothing: str | Tensor
    z_loss: float
    logit_scale: float
    softcap: float | None
    out_dtype: torch.dtype | None
    masked: bool
    validate: bool


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    size_average: bool | None = ...,
    ignore_index: int = ...,
    reduce: bool | None = ...,
    reduction: str = ...,
    label_smoothing: float | Tensor = ...,
    *,
    return_stats: Literal[False] = ...,
    **extras: Unpack[_Extras],
) -> Tensor: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    size_average: bool | None = ...,
    ignore_index: int = ...,
    reduce: bool | None = ...,
    reduction: str = ...,
    label_smoothing: float | Tensor = ...,
    *,
    return_stats: Literal[True],
    **extras: Unpack[_Extras],
) -> tuple[Tensor, CrossEntropyStats]: ...
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float | Tensor = 0.0,
    *,
    smoothing: str | Tensor = "uniform",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    out_dtype: torch.dtype | None = None,
    masked: bool = False,
    validate: bool = False,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, CrossEntropyStats]:
    r"""Cross-entropy between logits and targets, with label smoothing; one pass over the logits.

    A drop-in for :func:`torch.nn.functional.cross_entropy`. With masses :math:`t_c` over the
    classes, :math:`T = \sum_c t_c` and :math:`\mathrm{lse} = \log \sum_c e^{z_c}`, the loss of a
    row is :math:`T\,\mathrm{lse} - \sum_c t_c z_c`. Label smoothing gives the target class the
    mass ``on`` and every other class ``off``:

    ============= =========================== =================== ==================================
    ``smoothing`` on                          off                 used by
    ============= =========================== =================== ==================================
    "uniform"     1 - e + e/C                 e/C                 torch, timm, Szegedy et al. 2016
    "others"      1 - e                       e/(C - 1)           Pereyra-style recipes, Megatron
    "lsr"         1 - e + e/(C - 1)           e/(C - 1)           the widely copied ``LSR`` class
    a (C,) tensor 1 - e + e prior\ :sub:`y`   e prior\ :sub:`c`   smoothing towards a prior
    ============= =========================== =================== ==================================

    ``"lsr"`` is odd: its masses sum to 1 + e/(C - 1), because that class adds e/(C - 1) to the
    target too. It is here so that old runs can be repeated.

    float16 and bfloat16 logits are computed in float32, and the loss is float32 unless
    ``out_dtype`` says otherwise (torch returns the half type, and NaN for float16 with more than
    65,504 rows).

    Args:
        input: logits, floating point, of shape (C), (N, C) or (N, C, d1, ...), any strides.
        target: class indices of any integer dtype, of shape (), (N) or (N, d1, ...); or class
            probabilities, floating point, of the shape of ``input``.
        weight: a weight per class, shape (C).
        size_average: deprecated by torch, see ``reduction``.
        ignore_index: a class index whose rows count for nothing.
        reduce: deprecated by torch, see ``reduction``.
        reduction: "mean" (weighted by ``weight``, over the rows that are not ignored), "sum" or
            "none".
        label_smoothing: the mass e in [0, 1] that is taken from the target; a float, or a tensor
            with one value per sample (N) or per row.
        smoothing: how that mass is spread, see above.
        z_loss: weight of ``lse**2``, added to the loss of each row that is not ignored (PaLM,
            arXiv 2204.02311).
        logit_scale: factor on the logits (an inverse temperature).
        softcap: if given, logits z become ``softcap * tanh(z / softcap)`` after scaling (Gemma 2,
            arXiv 2408.00118).
        out_dtype: dtype of the loss; default: float32 for half types, else that of ``input``.
        masked: logits of -inf take no part in smoothing: their share goes to the finite ones. With
            ``masked=False`` they make a smoothed loss infinite, as in torch.
        validate: on CUDA, check the targets, at the price of a synchronisation. Without it a row
            whose class index is out of range has the loss NaN. The CPU always checks.
        return_stats: also return a :class:`CrossEntropyStats`.

    Returns:
        The loss, a scalar, or for ``reduction="none"`` of the shape of the class indices. With
        ``return_stats=True``, a tuple of the loss and the statistics.

    Raises:
        IndexError: a class index is out of range and is not ``ignore_index``; names row and value.
        ValueError: a number out of its range, an unknown ``reduction`` or ``smoothing``, shapes
            that do not fit, devices that differ, one class with "others" or "lsr".
        TypeError: a dtype that does not fit, such as a floating-point target where indices are
            needed.

    Example:
        >>> import torch, pyext
        >>> logits = torch.tensor([[2.0, 0.0, -2.0], [0.0, 0.0, 0.0]], requires_grad=True)
        >>> loss = pyext.cross_entropy(logits, torch.tensor([0, 2]), label_smoothing=0.1)
        >>> loss.backward()
        >>> print(f"{loss:.4f}")
        0.7208
    """
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
    return _loss(
        (input, target, weight, ignore_index, reduction),
        label_smoothing,
        smoothing,
        (None, 1.0, None),
        (z_loss, logit_scale, softcap, masked, validate),
        return_stats,
        out_dtype,
    )


@overload
def mixup_cross_entropy(
    input: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    lam: float | Tensor,
    weight: Tensor | None = ...,
    *,
    ignore_index: int = ...,
    reduction: str = ...,
    label_smoothing: float | Tensor = ...,
    return_stats: Literal[False] = ...,
    **extras: Unpack[_Extras],
) -> Tensor: ...
@overload
def mixup_cross_entropy(
    input: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    lam: float | Tensor,
    weight: Tensor | None = ...,
    *,
    ignore_index: int = ...,
    reduction: str = ...,
    label_smoothing: float | Tensor = ...,
    return_stats: Literal[True],
    **extras: Unpack[_Extras],
) -> tuple[Tensor, CrossEntropyStats]: ...
def mixup_cross_entropy(
    input: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    lam: float | Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float | Tensor = 0.0,
    smoothing: str | Tensor = "uniform",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    out_dtype: torch.dtype | None = None,
    masked: bool = False,
    validate: bool = False,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, CrossEntropyStats]:
    r"""The loss of mixup, :math:`\lambda\,CE(x, a) + (1 - \lambda)\,CE(x, b)`, in one pass.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization" (arXiv 1710.09412).

    Args:
        input: logits of mixed inputs, as in :func:`cross_entropy`.
        target_a: class indices, shape () or (N) or (N, d1, ...).
        target_b: class indices of the same shape.
        lam: the share of ``target_a`` in [0, 1]; a float, or a tensor with one value per sample
            (N) or per row.
        weight: as in :func:`cross_entropy`, like all further arguments. Each target's mean is
            taken over its own weights and ignored rows.
        ignore_index: see :func:`cross_entropy`.
        reduction: see :func:`cross_entropy`.
        label_smoothing: see :func:`cross_entropy`.
        smoothing: see :func:`cross_entropy`.
        z_loss: see :func:`cross_entropy`.
        logit_scale: see :func:`cross_entropy`.
        softcap: see :func:`cross_entropy`.
        out_dtype: see :func:`cross_entropy`.
        masked: see :func:`cross_entropy`.
        validate: see :func:`cross_entropy`.
        return_stats: see :func:`cross_entropy`.

    Returns:
        As :func:`cross_entropy`.

    Raises:
        ValueError: as :func:`cross_entropy`; also ``lam`` outside [0, 1].
        IndexError: as :func:`cross_entropy`.
        TypeError: as :func:`cross_entropy`.

    Example:
        >>> import torch, pyext
        >>> logits = torch.zeros(2, 4)
        >>> a, b = torch.tensor([0, 1]), torch.tensor([2, 3])
        >>> pyext.mixup_cross_entropy(logits, a, b, 0.3)
        tensor(1.3863)
    """
    mixed = (target_b, 1.0, lam) if isinstance(lam, Tensor) else (target_b, lam, None)
    return _loss(
        (input, target_a, weight, ignore_index, reduction),
        label_smoothing,
        smoothing,
        mixed,
        (z_loss, logit_scale, softcap, masked, validate),
        return_stats,
        out_dtype,
    )


def _loss(
    leading: tuple[Any, ...],
    label_smoothing: float | Tensor,
    smoothing: str | Tensor,
    mixed: tuple[Any, ...],
    extras: tuple[Any, ...],
    return_stats: bool,
    out_dtype: torch.dtype | None,
) -> Any:
    """Calls the op, in which a value per row and a prior have arguments of their own.

    By position: each keyword would cost a small batch a tenth of a microsecond.
    """
    row_smoothing = prior = None
    if isinstance(label_smoothing, Tensor):
        label_smoothing, row_smoothing = 0.0, label_smoothing
    if isinstance(smoothing, Tensor):
        smoothing, prior = "prior", smoothing
    loss, _, *stats = torch.ops.pyext.cross_entropy.default(
        *leading,
        label_smoothing,
        smoothing,
        row_smoothing,
        prior,
        *mixed,
        *extras,
        return_stats,
        out_dtype,
    )
    return (loss, CrossEntropyStats(*stats)) if return_stats else loss
