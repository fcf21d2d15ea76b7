// Draws dropout masks: one bit an element, a pure function of (seed, element index).
//
// Philox 4x32-7 on eight counters at a time, two groups interleaved to hide the latency of the
// multiplications. masks/reference.py draws the same bits; a test compares them.

#include "simd.hpp"

using namespace longhaul;

namespace {

constexpr int64_t TILE = 64;  // elements: 8 counters x 4 words x 2 halves
constexpr int ROUNDS = 7;
constexpr int TOGETHER = 2;

inline void multiply(u32x8 a, uint32_t factor, u32x8& high, u32x8& low) {
#ifdef __AVX2__
    __m256i wide = _mm256_set1_epi64x(factor);
    __m256i even = _mm256_mul_epu32((__m256i)a, wide);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), wide);
    low = (u32x8)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    high = (u32x8)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#else
    for (int lane = 0; lane < 8; ++lane) {
        uint64_t product = uint64_t(a[lane]) * factor;
        high[lane] = uint32_t(product >> 32);
        low[lane] = uint32_t(product);
    }
#endif
}

// One bit for each of the 32 halves of two words of eight counters, set where the half reaches the
// threshold. Order: four counters, both halves, of the first word; the same of the second; then
// the other four counters. It is what AVX2 packs with one instruction.
inline uint64_t reaches(u32x8 first, u32x8 second, uint16_t threshold) {
#ifdef __AVX2__
    const __m256i least = _mm256_set1_epi16(int16_t(threshold));
    const __m256i one = (__m256i)first, two = (__m256i)second;
    const __m256i kept = _mm256_packs_epi16(_mm256_cmpeq_epi16(_mm256_max_epu16(one, least), one),
                                            _mm256_cmpeq_epi16(_mm256_max_epu16(two, least), two));
    return uint32_t(_mm256_movemask_epi8(kept));
#else
    uint64_t bits = 0;
    for (int i = 0; i < 32; ++i) {
        const uint32_t word = (i & 8 ? second : first)[i / 16 * 4 + i % 8 / 2];
        bits |= uint64_t((i % 2 ? word >> 16 : word & 0xffffu) >= threshold) << i;
    }
    return bits;
#endif
}

// The masks of TOGETHER tiles: bit i of a tile is 1 where element i is kept.
inline void draw(uint64_t seed, uint16_t threshold, uint64_t tile, uint64_t bits[TOGETHER]) {
    u32x8 a[TOGETHER], b[TOGETHER], c[TOGETHER] = {}, d[TOGETHER] = {};
    for (int j = 0; j < TOGETHER; ++j) {
        const uint64_t first = (tile + j) * 8;
        a[j] = u32x8{0, 1, 2, 3, 4, 5, 6, 7} + uint32_t(first);
        b[j] = u32x8{} + uint32_t(first >> 32);
    }
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    for (int round = 0; round < ROUNDS; ++round) {
        for (int j = 0; j < TOGETHER; ++j) {
            u32x8 high0, low0, high1, low1;
            multiply(a[j], 0xD2511F53u, high0, low0);
            multiply(c[j], 0xCD9E8D57u, high1, low1);
            a[j] = high1 ^ b[j] ^ key0;
            b[j] = low1;
            c[j] = high0 ^ d[j] ^ key1;
            d[j] = low0;
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    for (int j = 0; j < TOGETHER; ++j)
        bits[j] = reaches(a[j], b[j], threshold) | reaches(c[j], d[j], threshold) << 32;
}

}  // namespace

// mask receives `tiles` words of 64 bits, in little-endian order of elements; tiles is even.
extern "C" int64_t draw_mask(int64_t seed, int64_t threshold, uint64_t* mask, int64_t tiles,
                             int64_t threads) {
    // At p = 1 the scale is zero, whatever the mask.
    const uint16_t least = threshold > 65535 ? 65535 : uint16_t(threshold);
#pragma omp parallel for schedule(static) num_threads(int(threads))
    for (int64_t tile = 0; tile < tiles; tile += TOGETHER)
        draw(uint64_t(seed), least, uint64_t(tile), mask + tile);
    return 0;
}
