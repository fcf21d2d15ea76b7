// Vectors of the kernels, on the compiler's portable vector types: loads and stores of float and
// bfloat16, exp, and sums over lanes in a fixed order. Eight lanes; where products count, as many
// as the processor takes at once.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX__
#include <immintrin.h>
#endif

namespace longhaul {

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
#ifdef __AVX512F__
typedef float f32wide __attribute__((vector_size(64)));
#else
typedef f32x8 f32wide;
#endif
constexpr int LANES = sizeof(f32wide) / sizeof(float);

struct bf16 {
    uint16_t bits;
};

inline f32x8 splat(float v) { return f32x8{v, v, v, v, v, v, v, v}; }

inline f32wide load_wide(const float* from) {
    f32wide value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
inline void store_wide(float* to, f32wide value) { std::memcpy(to, &value, sizeof value); }

inline f32x8 widen(f32x8 value) { return value; }
inline f32x8 widen(u16x8 bits) {
    return (f32x8)(__builtin_convertvector(bits, u32x8) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline u16x8 narrow(f32x8 value) {
    u32x8 bits = (u32x8)value;
    u32x8 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    u32x8 nan = (u32x8)(value != value);
    rounded = (nan & 0x7fc0u) | (~nan & rounded);
    return __builtin_convertvector(rounded, u16x8);
}

inline float widen(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}
inline uint16_t narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return value != value ? 0x7fc0 : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline f32x8 load(const float* from) {
    f32x8 value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
inline f32x8 load(const bf16* from) {
    u16x8 bits;
    std::memcpy(&bits, from, sizeof bits);
    return widen(bits);
}
inline void store(float* to, f32x8 value) { std::memcpy(to, &value, sizeof value); }
inline void store(bf16* to, f32x8 value) {
    u16x8 bits = narrow(value);
    std::memcpy(to, &bits, sizeof bits);
}

// The first `count` lanes (all from eight on); the others read as zero and are not written.
template <typename T>
inline f32x8 load(const T* from, int64_t count) {
    if (count >= 8) return load(from);
    T lanes[8] = {};
    std::memcpy(lanes, from, count * sizeof(T));
    return load(lanes);
}
template <typename T>
inline void store(T* to, f32x8 value, int64_t count) {
    if (count >= 8) return store(to, value);
    T lanes[8];
    store(lanes, value);
    std::memcpy(to, lanes, count * sizeof(T));
}

// The second where the two do not compare: NaN there stays.
inline f32x8 maximum(f32x8 a, f32x8 b) {
#ifdef __AVX__
    return (f32x8)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

#ifdef __AVX512F__
inline f32wide maximum(f32wide a, f32wide b) {
    return (f32wide)_mm512_max_ps((__m512)a, (__m512)b);
}
#endif

inline float sum(f32x8 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
template <typename V>
inline float maximum(V v) {
    float best = v[0];
    for (unsigned lane = 1; lane < sizeof v / sizeof best; ++lane)
        best = best < v[lane] ? v[lane] : best;
    return best;
}
#ifdef __AVX512F__
inline float sum(f32wide v) {
    f32x8 halves[2];
    std::memcpy(halves, &v, sizeof v);
    return sum(halves[0] + halves[1]);
}
#endif

// exp for x <= 0 with a relative error of about 1e-7; from -87 down it stays at exp(-87).
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor polynomial, 2^n by the exponent bits.
template <typename V>
inline V exp_negative(V x) {
    typedef decltype(x < x) Integers;
    x = maximum(V{} - 87.0f, x);
    const float round_to_integer = 12582912.0f;  // 1.5 * 2^23
    V shifted = x * 1.44269504f + round_to_integer;
    V n = shifted - round_to_integer;
    V r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    V p = V{} + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    Integers power = ((Integers)shifted << 23) + 0x3f800000;
    return p * (V)power;
}

}  // namespace longhaul
