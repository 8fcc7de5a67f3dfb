"""Custom PyTorch ops, faster than torch's own and a drop-in for them.

Importing pyext loads its libraries, compiling them first where that has not been done, and so makes
`torch.ops.pyext` known. Each op has a thin function here with the signature of torch's own op.
"""

from contextlib import suppress as _suppress

from torch import distributed as _distributed

from pyext import _load
from pyext._version import __version__

if not _load.is_command_line():  # `python -m pyext doctor` must work when loading does not
    _load.load()

    from pyext import nn, onnx, optim
    from pyext.drop_in import accelerate, replace
    from pyext.ops.bilinear import biaffine, bilinear
    from pyext.ops.bilinear_pool import bilinear_pool, unpack_symmetric
    from pyext.ops.compact_bilinear_pool import (
        TensorSketch,
        compact_bilinear_pool,
        tensor_sketch,
    )
    from pyext.ops.cross_entropy import CrossEntropyStats, cross_entropy, mixup_cross_entropy
    from pyext.ops.einsum import EinsumPlan, einsum, einsum_plan
    from pyext.ops.fused_adam import FusedAdamResult, fused_adam, fused_adam_
    from pyext.ops.matrix_sqrt_pool import matrix_sqrt_pool
    from pyext.ops.signed_sqrt import signed_sqrt, signed_sqrt_

    if _distributed.is_available():
        # It uses torch's inside. A torch in which that differs refuses DTensors, and nothing else.
        with _suppress(ImportError, AttributeError):
            from pyext.ops import _sharding  # noqa: F401

__all__ = [
    "CrossEntropyStats",
    "EinsumPlan",
    "FusedAdamResult",
    "TensorSketch",
    "__version__",
    "accelerate",
    "biaffine",
    "bilinear",
    "bilinear_pool",
    "compact_bilinear_pool",
    "cross_entropy",
    "einsum",
    "einsum_plan",
    "fused_adam",
    "fused_adam_",
    "matrix_sqrt_pool",
    "mixup_cross_entropy",
    "nn",
    "onnx",
    "optim",
    "replace",
    "signed_sqrt",
    "signed_sqrt_",
    "tensor_sketch",
    "unpack_symmetric",
]
