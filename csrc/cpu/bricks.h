// How the indices of a contraction are cut into tiles. Those of M, of N and of K are groups; a tile
// takes a brick of each, which spans whole runs of memory in both tensors that the group lies in.
#pragma once

#include <c10/util/SmallVector.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "contraction.h"

namespace pyext {
namespace {

// An index of a group, with its strides in two tensors and its extent in a brick.
struct GroupDim {
  int64_t size, x, y;
  std::array<int64_t, 2> pair = {};  // strides in the factors of a product formed while packing
  int64_t brick = 1;
};

// One brick: how many values, where it begins in both tensors, and its begin and extent in each
// index.
struct Brick {
  int64_t size = 1, x = 0, y = 0;
  int64_t begin[kMaxIndices], extent[kMaxIndices];
};

struct IndexGroup {
  static constexpr int64_t kVector = 16;  // values

  // The slowest first, as the values lie in a packed tile.
  c10::SmallVector<GroupDim, 8> dims;

  int count() const { return static_cast<int>(dims.size()); }

  int64_t size() const {
    int64_t product = 1;
    for (const auto& dim : dims) product *= dim.size;
    return product;
  }

  int64_t brick_size() const {
    int64_t product = 1;
    for (const auto& dim : dims) product *= dim.brick;
    return product;
  }

  int64_t bricks() const {
    int64_t product = 1;
    for (const auto& dim : dims) product *= (dim.size + dim.brick - 1) / dim.brick;
    return product;
  }

  Brick at(int64_t number) const {
    Brick result;
    for (int i = count() - 1; i >= 0; --i) {
      const GroupDim& dim = dims[i];
      const int64_t along = (dim.size + dim.brick - 1) / dim.brick;
      const int64_t begin = number % along * dim.brick;
      number /= along;
      result.begin[i] = begin;
      result.extent[i] = std::min(dim.brick, dim.size - begin);
      result.size *= result.extent[i];
      result.x += begin * dim.x;
      result.y += begin * dim.y;
    }
    return result;
  }

  // The index that is contiguous in a tensor, or -1.
  int contiguous(int64_t GroupDim::* stride) const {
    for (int i = 0; i < count(); ++i) {
      if (dims[i].*stride == 1) return i;
    }
    return -1;
  }

  // How far apart the first and the last value lie in a tensor.
  int64_t span(int64_t GroupDim::* stride) const {
    int64_t span = 0;
    for (const GroupDim& dim : dims) span += (dim.size - 1) * dim.*stride;
    return span;
  }

  // How far apart neighbours of a brick lie in a tensor, or -1 if not all equally far.
  int64_t step(int64_t GroupDim::* stride) const {
    int64_t step = 0, length = 1;
    bool even = true;  // every brick is as long in the faster indices
    for (int i = count() - 1; i >= 0; --i) {
      const GroupDim& dim = dims[i];
      if (dim.brick == 1) continue;
      if (length == 1) step = dim.*stride;
      if (dim.*stride != step * length || !even) return -1;
      length *= dim.brick;
      even = dim.size % dim.brick == 0;
    }
    return step;
  }

  // Makes an index the fastest of packed tiles.
  void make_fastest(int i) { std::rotate(dims.begin() + i, dims.begin() + i + 1, dims.end()); }

  // Sorts by a stride, the largest first.
  void sort_by(int64_t GroupDim::* stride) {
    std::stable_sort(dims.begin(), dims.end(), [stride](const GroupDim& a, const GroupDim& b) {
      return a.*stride > b.*stride;
    });
  }

  // Chooses bricks of at most `limit` values: first runs of the given lengths in both tensors, then
  // as much as fits of the indices that continue the run in y, then of the others.
  void cut(int64_t limit, int64_t x_length = 64, int64_t y_length = 64) {
    for (auto& dim : dims) dim.brick = 1;
    int64_t left = std::max<int64_t>(limit, 1);
    const auto grow = [&](int i, int64_t extent) {
      GroupDim& dim = dims[i];
      const int64_t room = left * dim.brick;
      const int64_t wanted = std::clamp<int64_t>(std::min(extent, room), dim.brick, dim.size);
      left = room / wanted;
      dim.brick = wanted;
    };
    const int y_run = contiguous(&GroupDim::y), x_run = contiguous(&GroupDim::x);
    if (y_run >= 0) grow(y_run, y_length);
    if (x_run >= 0) grow(x_run, x_length);
    if (y_run >= 0) grow(y_run, limit);
    if (x_run >= 0) grow(x_run, limit);
    c10::SmallVector<int, 8> order(dims.size());
    for (int i = 0; i < count(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [this](int a, int b) { return dims[a].y < dims[b].y; });
    for (const int i : order) grow(i, limit);
    for (auto& dim : dims) {  // bricks of even size: 312 as 3 x 104, not 2 x 128 + 56
      const int64_t along = (dim.size + dim.brick - 1) / std::max<int64_t>(dim.brick, 1);
      if (along > 0) dim.brick = (dim.size + along - 1) / along;
    }
    // Of whole vectors, where that costs little.
    if (!dims.empty() && dims.back().brick > 2 * kVector) {
      dims.back().brick =
          std::min(dims.back().size, (dims.back().brick + kVector - 1) / kVector * kVector);
    }
  }
};

}  // namespace
}  // namespace pyext
