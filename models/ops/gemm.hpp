// Small matrix products: fixed register blocks of R rows by two vectors, no edges inside.
#pragma once

#include "simd.hpp"

namespace longhaul {

// Two vectors of sums a row, 2 of operands and 1 broadcast: 15 registers of 16, or 27 of 32.
constexpr int ROWS = LANES == 16 ? 12 : 6;
constexpr int PANEL = 2 * LANES;  // columns of a register block

// sums[i][:] += sum over k of a[i * row_stride + k * depth_stride] * b[k * PANEL + :]
template <int R = ROWS>
struct Sums {
    f32wide v[R][2];

    // Every row starts from the same PANEL values.
    inline __attribute__((always_inline)) Sums(f32wide left, f32wide right) {
        for (int i = 0; i < R; ++i) {
            v[i][0] = left;
            v[i][1] = right;
        }
    }

    inline __attribute__((always_inline)) void add_product(const float* a, int64_t row_stride,
                                                           int64_t depth_stride, const float* b,
                                                           int64_t b_stride, int64_t depth) {
        for (int64_t k = 0; k < depth; ++k) {
            const f32wide b0 = load_wide(b + k * b_stride);
            const f32wide b1 = load_wide(b + k * b_stride + LANES);
#pragma GCC unroll 12
            for (int i = 0; i < R; ++i) {
                const float x = a[i * row_stride + k * depth_stride];
                v[i][0] += x * b0;
                v[i][1] += x * b1;
            }
        }
    }
    // Long sums are made of short ones, which keeps their rounding small.
    inline void add_to(float* c, int64_t stride) const {
        for (int i = 0; i < R; ++i) {
            float* right = c + i * stride + LANES;
            store_wide(c + i * stride, load_wide(c + i * stride) + v[i][0]);
            store_wide(right, load_wide(right) + v[i][1]);
        }
    }
    inline void write(float* c, int64_t stride) const {
        for (int i = 0; i < R; ++i) {
            store_wide(c + i * stride, v[i][0]);
            store_wide(c + i * stride + LANES, v[i][1]);
        }
    }
};

}  // namespace longhaul
