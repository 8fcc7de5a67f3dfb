"""Modules, with the constructor signatures of torch's own."""

from pyext.nn.bilinear import Biaffine, Bilinear
from pyext.nn.cross_entropy import LSR, CrossEntropyLoss, LabelSmoothingCrossEntropy
from pyext.nn.pooling import BilinearPooling, CompactBilinearPooling, MatrixSqrtPooling

__all__ = [
    "LSR",
    "Biaffine",
    "Bilinear",
    "BilinearPooling",
    "CompactBilinearPooling",
    "CrossEntropyLoss",
    "LabelSmoothingCrossEntropy",
    "MatrixSqrtPooling",
]
