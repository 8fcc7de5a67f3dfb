// Where the upper triangle of a symmetric matrix of d rows lies when it is packed row by row, as
// torch.triu_indices numbers it: (i, j), i <= j, at packed_row(i, d) + j - i. Off-diagonal values
// are stored times sqrt(2), so that the inner product of two packed matrices is that of the full.
#pragma once

#include <cstdint>

#include "math.h"

namespace pyext {

constexpr double kSqrtTwo = 1.41421356237309504880;

PYEXT_HOST_DEVICE int64_t packed_size(int64_t d) { return d * (d + 1) / 2; }

// The position of (i, i).
PYEXT_HOST_DEVICE int64_t packed_row(int64_t i, int64_t d) { return i * d - i * (i - 1) / 2; }

}  // namespace pyext
