// Small matrix products: fixed register blocks of R rows by two vectors, no edges inside.
//
// A product's sums are fp32. Its factors come in units of four bytes: a float, or two numbers of
// bfloat16 that are neighbours along the sum, which a processor with AVX-512 BF16 takes at once.
#pragma once

#include <type_traits>

#include "simd.hpp"

namespace longhaul {

// Two vectors of sums a row, 2 of operands and 1 broadcast: 15 registers of 16, or 27 of 32.
constexpr int ROWS = LANES == 16 ? 12 : 6;
constexpr int PANEL = 2 * LANES;  // columns of a register block

inline f32wide load_units(const float* from) { return load_wide(from); }
inline f32wide add_terms(f32wide sum, float a, f32wide b) { return sum + a * b; }

#ifdef __AVX512BF16__
struct Pair {
    uint16_t bits[2];
};
inline __m512bh load_units(const Pair* from) { return (__m512bh)_mm512_loadu_si512(from); }
inline f32wide add_terms(f32wide sum, Pair a, __m512bh b) {
    int both;
    std::memcpy(&both, &a, sizeof both);
    return (f32wide)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), b);
}
typedef Pair Narrow;
#else
typedef float Narrow;
#endif

template <typename Unit>
constexpr int TERMS = std::is_same_v<Unit, float> ? 1 : 2;

// sums[i][:] += sum over k of a[i * row_stride + k * depth_stride] * b[k * b_stride + :]
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

    // Strides and depth count units.
    template <typename Unit>
    inline __attribute__((always_inline)) void add_product(const Unit* a, int64_t row_stride,
                                                           int64_t depth_stride, const Unit* b,
                                                           int64_t b_stride, int64_t depth) {
        for (int64_t k = 0; k < depth; ++k) {
            const auto b0 = load_units(b + k * b_stride);
            const auto b1 = load_units(b + k * b_stride + LANES);
#pragma GCC unroll 12
            for (int i = 0; i < R; ++i) {
                const Unit x = a[i * row_stride + k * depth_stride];
                v[i][0] = add_terms(v[i][0], x, b0);
                v[i][1] = add_terms(v[i][1], x, b1);
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
