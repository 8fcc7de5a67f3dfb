// What a step of an einsum should take. The rates are those of two cores of a present server; they
// choose between kernels and orders, where only their ratios matter, and do not depend on the
// machine, so that a plan, and with it every bit of a result, is the same everywhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace pyext {

struct GroupSizes {
  double batch = 1, m = 1, n = 1, k = 1;
};

constexpr double kBytesPerSecond = 50e9;
constexpr double kFlopsPerSecond = 200e9;     // of 4-byte elements, in a matrix product
constexpr double kTermsPerSecond = 32e9;      // of 4-byte elements, in a fused loop over vectors
constexpr double kPackedPerSecond = 4e9;      // terms of factors that must be packed first
constexpr double kSecondsPerRun = 20e-9;      // to begin and end a sum over vectors
constexpr double kSecondsPerBlock = 150e-9;   // to set up the tiles of one matrix
constexpr double kSecondsPerGather = 2.5e-9;  // an element that has no neighbour in its matrix
constexpr double kFormedPerSecond = 16e9;     // elements of a product that is formed while packing
// Intermediates beyond what stays in cache are fresh pages.
constexpr double kFreshBytesPerSecond = 4e9, kCachedBytes = 1 << 20;

inline double floor_seconds(double flops, double bytes, double element) {
  return std::max(flops * element / 4 / kFlopsPerSecond, bytes / kBytesPerSecond);
}

// `runs`: of vectors, each with its sum to finish; 0: factors must be packed to have vectors.
inline double fused_seconds(double terms, double bytes, double element, double runs) {
  const double rate = runs > 0 ? kTermsPerSecond : kPackedPerSecond;
  return std::max(terms * element / 4 / rate + runs * kSecondsPerRun, bytes / kBytesPerSecond);
}

// `scattered`: elements of tensors whose contiguous index is one of the batch.
inline double contract_seconds(const GroupSizes& x, double bytes, double element,
                               double scattered) {
  const double lanes = 64 / element;  // short rows and columns leave lanes of vectors empty
  const double padded =
      std::min(x.m * std::ceil(x.n / lanes), std::ceil(x.m / lanes) * x.n) * lanes;
  return x.batch * (kSecondsPerBlock + 2 * padded * x.k * element / 4 / kFlopsPerSecond) +
         scattered * kSecondsPerGather + bytes / kBytesPerSecond;
}

// `formed`: elements of the factor, or of the result, that are multiplied on their way.
inline double three_factors_seconds(const GroupSizes& x, double formed, double scattered,
                                    double bytes, double element) {
  if (x.m == 1 || x.n == 1 || x.k == 1) return std::numeric_limits<double>::infinity();
  return formed * element / 4 / kFormedPerSecond + contract_seconds(x, bytes, element, scattered);
}

}  // namespace pyext
