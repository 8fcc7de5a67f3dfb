"""Custom PyTorch ops, faster than torch's own and a drop-in for them.

Importing pyext loads its libraries, compiling them first where that has not been done, and so makes
`torch.ops.pyext` known. Each op has a thin function here with the signature of torch's own op.
"""

from pyext import _load
from pyext._version import __version__

if not _load.is_command_line():  # `python -m pyext doctor` must work when loading does not
    _load.load()

    from pyext import nn, optim
    from pyext.ops.cross_entropy import CrossEntropyStats, cross_entropy, mixup_cross_entropy
    from pyext.ops.einsum import EinsumPlan, einsum, einsum_plan
    from pyext.ops.fused_adam import FusedAdamResult, fused_adam, fused_adam_
    from pyext.ops.signed_sqrt import signed_sqrt, signed_sqrt_

__all__ = [
    "CrossEntropyStats",
    "EinsumPlan",
    "FusedAdamResult",
    "__version__",
    "cross_entropy",
    "einsum",
    "einsum_plan",
    "fused_adam",
    "fused_adam_",
    "mixup_cross_entropy",
    "nn",
    "optim",
    "signed_sqrt",
    "signed_sqrt_",
]
