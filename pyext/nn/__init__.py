"""Modules, with the constructor signatures of torch's own."""

from pyext.nn.cross_entropy import LSR, CrossEntropyLoss, LabelSmoothingCrossEntropy

__all__ = ["LSR", "CrossEntropyLoss", "LabelSmoothingCrossEntropy"]
