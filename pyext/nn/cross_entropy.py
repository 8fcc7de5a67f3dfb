"""Loss modules on :func:`pyext.cross_entropy`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyext.ops.cross_entropy import cross_entropy

__all__ = ["LSR", "CrossEntropyLoss", "LabelSmoothingCrossEntropy"]


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """:class:`torch.nn.CrossEntropyLoss` by :func:`pyext.cross_entropy`, with what that adds.

    Args:
        weight: see :func:`pyext.cross_entropy`, like all arguments.
        size_average: deprecated by torch, see ``reduction``.
        ignore_index: see :func:`pyext.cross_entropy`.
        reduce: deprecated by torch, see ``reduction``.
        reduction: see :func:`pyext.cross_entropy`.
        label_smoothing: see :func:`pyext.cross_entropy`; a float in [0, 1].
        smoothing: see :func:`pyext.cross_entropy`; a tensor is kept as the buffer ``prior``.
        z_loss: see :func:`pyext.cross_entropy`.
        logit_scale: see :func:`pyext.cross_entropy`.
        softcap: see :func:`pyext.cross_entropy`.
        out_dtype: see :func:`pyext.cross_entropy`.
        masked: see :func:`pyext.cross_entropy`.
        validate: see :func:`pyext.cross_entropy`.
        return_stats: see :func:`pyext.cross_entropy`.

    Shape:
        As :class:`torch.nn.CrossEntropyLoss`.

    Example:
        >>> import torch, pyext
        >>> loss = pyext.nn.CrossEntropyLoss(label_smoothing=0.1)
        >>> print(f"{loss(torch.zeros(2, 8), torch.tensor([1, 7])):.4f}")
        2.0794
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        smoothing: str | Tensor = "uniform",
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        out_dtype: torch.dtype | None = None,
        masked: bool = False,
        validate: bool = False,
        return_stats: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.prior: Tensor | None
        self.register_buffer("prior", smoothing if isinstance(smoothing, Tensor) else None)
        self.smoothing = "prior" if isinstance(smoothing, Tensor) else smoothing
        self.z_loss = z_loss
        self.logit_scale = logit_scale
        self.softcap = softcap
        self.out_dtype = out_dtype
        self.masked = masked
        self.validate = validate
        self.return_stats: Any = return_stats  # a bool: which overload is meant shows at run time

    @classmethod
    def adopt(cls, module: torch.nn.CrossEntropyLoss) -> None:
        """Makes a module of torch's class one of this class, with no extras."""
        module.__class__ = cls
        for name, value in vars(cls()).items():
            module.__dict__.setdefault(name, value)
        module.register_buffer("prior", None)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``input`` (N, C, ...) against ``target``; a tuple with statistics.

        TorchScript wants one type: there the statistics are left to ``torch.ops.pyext``.
        """
        if torch.jit.is_scripting():
            if self.return_stats:
                raise RuntimeError("CrossEntropyLoss: return_stats=True cannot be scripted")
            return torch.ops.pyext.cross_entropy(
                input,
                target,
                self.weight,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
                smoothing=self.smoothing,
                prior=self.prior,
                z_loss=self.z_loss,
                logit_scale=self.logit_scale,
                softcap=self.softcap,
                masked=self.masked,
                validate=self.validate,
                out_dtype=self.out_dtype,
            )[0]
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            smoothing=self.smoothing if self.prior is None else self.prior,
            z_loss=self.z_loss,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            out_dtype=self.out_dtype,
            masked=self.masked,
            validate=self.validate,
            return_stats=self.return_stats,
        )


class LabelSmoothingCrossEntropy(torch.nn.Module):
    """Label smoothing that spreads ``e`` over the classes other than the target, by default.

    Args:
        e: the mass that is taken from the target, in [0, 1].
        reduction: "mean", "sum" or "none".
        smoothing: see :func:`pyext.cross_entropy`.

    Example:
        >>> import torch, pyext
        >>> loss = pyext.nn.LabelSmoothingCrossEntropy(e=0.1)
        >>> print(f"{loss(torch.zeros(2, 8), torch.tensor([1, 7])):.4f}")
        2.0794
    """

    def __init__(
        self, e: float = 0.1, reduction: str = "mean", smoothing: str | Tensor = "others"
    ) -> None:
        super().__init__()
        self.e = e
        self.reduction = reduction
        self.prior: Tensor | None
        self.register_buffer("prior", smoothing if isinstance(smoothing, Tensor) else None)
        self.smoothing = "prior" if isinstance(smoothing, Tensor) else smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``input`` (N, C, ...) against class indices ``target``."""
        if torch.jit.is_scripting():
            return torch.ops.pyext.cross_entropy(
                input,
                target,
                reduction=self.reduction,
                label_smoothing=self.e,
                smoothing=self.smoothing,
                prior=self.prior,
            )[0]
        return cross_entropy(
            input,
            target,
            reduction=self.reduction,
            label_smoothing=self.e,
            smoothing=self.smoothing if self.prior is None else self.prior,
        )

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"e={self.e}, reduction={self.reduction!r}, smoothing={self.smoothing!r}"


class LSR(LabelSmoothingCrossEntropy):
    """The widely copied ``LSR`` class: one-hot times (1 - e), plus e/(C - 1) on *every* class.

    Its masses sum to 1 + e/(C - 1); use it to repeat old runs.

    Args:
        e: the mass that is taken from the target, in [0, 1].
        reduction: "mean", "sum" or "none".

    Example:
        >>> import torch, pyext
        >>> print(f"{pyext.nn.LSR(e=0.1)(torch.zeros(2, 8), torch.tensor([1, 7])):.4f}")
        2.1091
    """

    def __init__(self, e: float = 0.1, reduction: str = "mean") -> None:
        super().__init__(e, reduction, smoothing="lsr")
