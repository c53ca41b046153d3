// Products of rows with matrices, over threads.
#pragma once

#include <algorithm>
#include <span>

#include "memory.h"
#include "operations.h"
#include "thread_pool.h"
#include "weights.h"

namespace salmonrun {

inline std::size_t size(int rows, int stride) { return static_cast<std::size_t>(rows) * static_cast<std::size_t>(stride); }

inline float* row_of(Buffer<float>& buffer, int row, int stride) { return buffer.data() + size(row, stride); }

// Keeps the rows that products take as their inputs, quantized, until others take their place.
class Products {
 public:
  struct Output {
    const Matrix* matrix;
    float* out;
    int stride;
  };

  // Both must outlive this.
  Products(const Operations& operations, ThreadPool& pool) : operations_(operations), pool_(pool) {}

  // Makes room to unpack a matrix that products will be asked of.
  void expect(const Matrix& matrix);

  // Room for the inputs of a matrix.
  ActivationsView activations(int rows, const MatrixView& matrix);

  // x [rows][stride], zeros behind the matrix's columns up to its view's.
  void quantize(const float* x, int stride, int rows, const Matrix& matrix);

  // With the rows that were quantized last, which all the matrices take.
  void product(std::span<const Output> outputs, int rows, bool add);

  // The same of one matrix, whose outputs go through `elementwise` and become the rows of `to`, quantized for the matrix that
  // takes them next: piece by piece, so that they are never in memory as floats.
  void product(const Matrix& matrix, int rows, void (*elementwise)(float* x, int n), const Matrix& next, Products& to);

  // Groups of a matrix's inputs that lie in whole blocks, as a thread makes them at once.
  static int groups_of_inputs(const MatrixView& matrix);

  // A piece [rows][groups of inputs] of what a matrix takes, from one of its groups on, to rows of `out`; what is behind the
  // matrix's columns is lost.
  void quantize_piece(float* x, int rows, const Matrix& matrix, int group, const ActivationsView& out) const;

  // One loop over pieces, of `at_once` groups, of the outputs of some matrices: run(which of them, its first group, groups,
  // thread).
  template <class Groups, class Run>
  void over_groups(std::size_t matrices, int at_once, Groups&& groups_of, Run&& run) {
    const auto pieces_of = [&](std::size_t i) { return (groups_of(i) + at_once - 1) / at_once; };
    int pieces = 0;
    for (std::size_t i = 0; i < matrices; ++i) pieces += pieces_of(i);
    pool_.parallel(pieces, [&](int piece, int thread) {
      std::size_t i = 0;
      for (; piece >= pieces_of(i); ++i) piece -= pieces_of(i);
      const int group = piece * at_once;
      run(i, group, std::min(at_once, groups_of(i) - group), thread);
    });
  }

  std::uint8_t* unpack_scratch(int thread) { return unpacked_.data() + static_cast<std::size_t>(thread) * unpack_stride_; }

 private:
  const Operations& operations_;
  ThreadPool& pool_;
  std::size_t unpack_stride_ = 0;
  Buffer<std::int8_t> values_;
  Buffer<float> value_scales_, floats_, pieces_;
  Buffer<std::int32_t> starts_;
  Buffer<std::uint8_t> unpacked_;
};

}  // namespace salmonrun
