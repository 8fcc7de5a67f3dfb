"""sign(x) sqrt(|x| + eps), with the derivative 0 at 0 that sign(0) = 0 asks for."""

import torch
from torch import Tensor


def signed_sqrt(input: Tensor, eps: float = 1e-5) -> Tensor:
    nonzero = torch.where(input == 0, 1.0, input)  # keeps sqrt'(0) = inf out of the derivative
    root = nonzero.sign() * torch.sqrt(nonzero.abs() + eps)
    return torch.where(input == 0, 0.0, root)
