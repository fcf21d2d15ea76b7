// Small matrix products for the softmax loss: fixed register blocks of ROWS x 16, operands packed
// so that every stream is contiguous. Sizes are padded by the caller: no edges inside.
#pragma once

#include "simd.hpp"

namespace longhaul {

constexpr int ROWS = 6;    // 6 x 2 vectors of sums, 2 of operands, 1 broadcast: 15 registers
constexpr int PANEL = 16;  // columns of a register block

// sums[i][:] += sum over k of a[i * row_stride + k * depth_stride] * b[k * PANEL + :]
struct Sums {
    f32x8 v[ROWS][2];

    // Every row starts from the same PANEL values.
    inline __attribute__((always_inline)) Sums(f32x8 left, f32x8 right) {
        for (int i = 0; i < ROWS; ++i) {
            v[i][0] = left;
            v[i][1] = right;
        }
    }

    inline __attribute__((always_inline)) void add_product(const float* a, int64_t row_stride,
                                                           int64_t depth_stride, const float* b,
                                                           int64_t b_stride, int64_t depth) {
        for (int64_t k = 0; k < depth; ++k) {
            const f32x8 b0 = load(b + k * b_stride), b1 = load(b + k * b_stride + 8);
#pragma GCC unroll 6
            for (int i = 0; i < ROWS; ++i) {
                const f32x8 x = splat(a[i * row_stride + k * depth_stride]);
                v[i][0] += x * b0;
                v[i][1] += x * b1;
            }
        }
    }
    // Long sums are made of short ones, which keeps their rounding small.
    inline void add_to(float* c, int64_t stride) const {
        for (int i = 0; i < ROWS; ++i) {
            store(c + i * stride, load(c + i * stride) + v[i][0]);
            store(c + i * stride + 8, load(c + i * stride + 8) + v[i][1]);
        }
    }
    inline void write(float* c, int64_t stride) const {
        for (int i = 0; i < ROWS; ++i) {
            store(c + i * stride, v[i][0]);
            store(c + i * stride + 8, v[i][1]);
        }
    }
};

}  // namespace longhaul
