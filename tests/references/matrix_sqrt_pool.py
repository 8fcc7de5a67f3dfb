"""Newton-Schulz iterations on the covariance, as in algorithm 1 of arXiv 1712.01034."""

import torch
from torch import Tensor

from tests.references.bilinear_pool import packed_triangle


def matrix_sqrt_pool(x: Tensor, iterations: int = 5, *, packed: bool = True) -> Tensor:
    x = x.flatten(2)
    x = x - x.mean(2, keepdim=True)
    covariance = torch.bmm(x, x.mT) / x.shape[2]
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1).clamp(min=1e-12).view(-1, 1, 1)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(covariance)
    y, z = covariance / trace, identity
    for _ in range(iterations):
        t = (3 * identity - torch.bmm(z, y)) / 2
        y, z = torch.bmm(y, t), torch.bmm(t, z)
    result = trace.sqrt() * y
    return packed_triangle(result) if packed else result
