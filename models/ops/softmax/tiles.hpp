// Blocks of a softmax over many classes: classes in tiles, the rows that have a target in chunks,
// and the products between them, padded so that there are no edges.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "gemm.hpp"

namespace longhaul {

constexpr int64_t CHUNK = 96;         // targets; a multiple of ROWS
constexpr int64_t GRAIN = 3 * PANEL;  // classes are padded to this: divides by ROWS and PANEL
// A multiple of GRAIN, with few factors of two in cache lines.
constexpr int64_t TILE_CLASSES = LANES == 16 ? 288 : 240;
static_assert(CHUNK % ROWS == 0 && GRAIN % (2 * ROWS) == 0 && TILE_CLASSES % GRAIN == 0);

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <typename Unit>
using Units = std::unique_ptr<Unit[], Free>;
using Buffer = Units<float>;

template <typename Unit = float>
inline Units<Unit> allocate(int64_t units) {
    const int64_t bytes = round_up(std::max<int64_t>(units, 16), 16) * sizeof(Unit);
    return Units<Unit>((Unit*)std::aligned_alloc(64, bytes));
}
template <typename Unit = float>
inline Units<Unit> zeros(int64_t units) {
    Units<Unit> buffer = allocate<Unit>(units);
    std::fill_n(buffer.get(), units, Unit{});
    return buffer;
}

// Terms of units: `put` takes numbers that already are what a unit holds, as `rounded` makes them.
inline void put(float& unit, int, float value) { unit = value; }
inline float get(float unit, int) { return unit; }
template <typename Unit>
inline float rounded(float value) {
    if (TERMS<Unit> == 1) return value;
    return widen(narrow(value));
}
#ifdef __AVX512BF16__
inline void put(Pair& unit, int term, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    unit.bits[term] = uint16_t(bits >> 16);
}
inline float get(Pair unit, int term) { return widen(unit.bits[term]); }
#endif

// The table rows of one tile in both layouts the products want, padded with zeros and with a
// bias of minus infinity, so that classes past the end have probability zero.
template <typename Unit>
struct Tile {
    static constexpr int N = TERMS<Unit>;
    int64_t first, size;
    Units<Unit> by_class;  // [size / PANEL][width / N][PANEL], N along the width
    Units<Unit> by_width;  // [width / PANEL][size / N][PANEL], N along the classes
    Buffer bias;

    // The first `real` classes have a row and a bias, told by their place in the tile.
    template <typename Row, typename Bias>
    Tile(int64_t first, int64_t size, int64_t real, int64_t width, Row row_of, Bias bias_of)
        : first(first), size(size) {
        const int64_t d = round_up(width, PANEL);
        by_class = zeros<Unit>(size * d / N);
        by_width = zeros<Unit>(size * d / N);
        bias = allocate(size);
        for (int64_t c = 0; c < size; ++c) {
            bias[c] = c < real ? bias_of(c) : -INFINITY;
            if (c >= real) continue;
            const float* row = row_of(c);
            for (int64_t k = 0; k < width; ++k) {
                put(by_class[((c / PANEL * d + k) / N) * PANEL + c % PANEL], k % N, row[k]);
                put(by_width[((k / PANEL * size + c) / N) * PANEL + k % PANEL], c % N, row[k]);
            }
        }
    }
};

// The hidden rows of one chunk, gathered and padded with zeros, and their softmax state.
template <typename Unit>
struct Chunk {
    static constexpr int N = TERMS<Unit>;
    int64_t rows, padded;
    Units<Unit> hidden = nullptr;   // [padded][width / N], N along the width
    Units<Unit> scaled = nullptr;   // [width / PANEL][padded / N][PANEL], each row times `weight`
    Unit weights[CHUNK / N];        // N rows each
    float best[CHUNK], weight[CHUNK];
    double total[CHUNK];

    Chunk(const float* all, int64_t width, const int64_t* chosen, int64_t rows) : rows(rows) {
        const int64_t d = round_up(width, PANEL);
        padded = round_up(rows, ROWS);
        hidden = zeros<Unit>(padded * d / N);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t k = 0; k < width; ++k)
                put(hidden[(r * d + k) / N], k % N, all[chosen[r] * width + k]);
        std::fill_n(best, CHUNK, -INFINITY);
        std::fill_n(weight, CHUNK, 0.0f);
        std::fill_n(total, CHUNK, 0.0);
    }

    void scale(int64_t d) {
        if (!scaled) scaled = allocate<Unit>(padded * d / N);
        for (int64_t r = 0; r < padded; ++r) {
            put(weights[r / N], r % N, rounded<Unit>(weight[r]));
            for (int64_t k = 0; k < d; ++k)
                put(scaled[(k / PANEL * padded + r) / N * PANEL + k % PANEL], r % N,
                    rounded<Unit>(get(hidden[(r * d + k) / N], k % N) * weight[r]));
        }
    }
};

// The terms E of a chunk and a tile, [padded][size] floats once `settled` as factors of products.
// Floats are both as they are. Pairs lie there twice: in the first half of each row the row's own,
// neighbours along the classes; in the second halves of two rows those of both, along the rows.
template <typename Unit>
struct Terms {
    static constexpr int N = TERMS<Unit>;
    const Unit* units;
    int64_t size;

    Terms(const Tile<Unit>& tile, const float* e) : units((const Unit*)e), size(tile.size) {}
    const Unit* of_row(int64_t r) const { return units + r * size; }
    const Unit* of_class(int64_t c) const {
        if (N == 1) return units + c;
        return units + c + (c < size / 2 ? size / 2 : size);
    }
};

inline void settle(const Chunk<float>&, const Tile<float>&, float*) {}
#ifdef __AVX512BF16__
inline void settle(const Chunk<Pair>& chunk, const Tile<Pair>& tile, float* e) {
    const int64_t size = tile.size, half = size / 2;
    uint16_t own[2][TILE_CLASSES];
    uint32_t both[TILE_CLASSES];
    for (int64_t r = 0; r < chunk.padded; r += 2) {
        float *first = e + r * size, *second = first + size;
        for (int64_t c = 0; c < size; c += LANES) {
            const __m256i a = (__m256i)_mm512_cvtneps_pbh((__m512)load_wide(first + c));
            const __m256i b = (__m256i)_mm512_cvtneps_pbh((__m512)load_wide(second + c));
            _mm256_storeu_si256((__m256i*)&own[0][c], a);
            _mm256_storeu_si256((__m256i*)&own[1][c], b);
            _mm512_storeu_si512(&both[c], _mm512_or_si512(_mm512_cvtepu16_epi32(a),
                                                          _mm512_slli_epi32(
                                                              _mm512_cvtepu16_epi32(b), 16)));
        }
        std::memcpy(first, own[0], half * 4);
        std::memcpy(second, own[1], half * 4);
        std::memcpy(first + half, both, half * 4);
        std::memcpy(second + half, both + half, half * 4);
    }
}
#endif

// out[r][c] = hidden[r] . table[c] + bias[c]
template <typename Unit>
inline void products(const Chunk<Unit>& chunk, const Tile<Unit>& tile, int64_t d, float* out) {
    const int64_t depth = d / TERMS<Unit>;
    for (int64_t c = 0; c < tile.size; c += PANEL) {
        const f32wide bias0 = load_wide(&tile.bias[c]), bias1 = load_wide(&tile.bias[c + LANES]);
        for (int64_t r = 0; r < chunk.padded; r += ROWS) {
            Sums sums(bias0, bias1);
            sums.add_product(&chunk.hidden[r * depth], depth, 1, &tile.by_class[c * depth], PANEL,
                             depth);
            sums.write(out + r * tile.size + c, tile.size);
        }
    }
}

// `best` follows the largest of each row.
template <typename Unit>
inline void raise_best(Chunk<Unit>& chunk, const Tile<Unit>& tile, const float* out) {
    for (int64_t r = 0; r < chunk.padded; ++r) {
        f32wide most = load_wide(out + r * tile.size);
        for (int64_t c = LANES; c < tile.size; c += LANES)
            most = maximum(most, load_wide(out + r * tile.size + c));
        const float value = maximum(most);
        if (value > chunk.best[r]) chunk.best[r] = value;
    }
}

template <typename Unit>
inline void logits(Chunk<Unit>& chunk, const Tile<Unit>& tile, int64_t d, float* out) {
    products(chunk, tile, d, out);
    raise_best(chunk, tile, out);
}

// Logits to exp(logits - shift) in place, added to the row totals.
template <typename Unit>
inline void exponentials(Chunk<Unit>& chunk, const Tile<Unit>& tile, const float* shift,
                         float* values) {
    for (int64_t r = 0; r < chunk.padded; ++r) {
        f32wide total = {};
        for (int64_t c = 0; c < tile.size; c += LANES) {
            f32wide e = exp_negative(load_wide(values + r * tile.size + c) - shift[r]);
            store_wide(values + r * tile.size + c, e);
            total += e;
        }
        chunk.total[r] += sum(total);
    }
}

// dhidden[r] += sum over classes of e[r][c] table[c]; e is settled
template <typename Unit>
inline void add_hidden_gradient(const Chunk<Unit>& chunk, const Tile<Unit>& tile, int64_t d,
                                const float* e, float* dhidden) {
    const Terms<Unit> terms(tile, e);
    const int64_t depth = tile.size / terms.N;
    for (int64_t k = 0; k < d; k += PANEL) {
        for (int64_t r = 0; r < chunk.padded; r += ROWS) {
            Sums sums(f32wide{}, f32wide{});
            sums.add_product(terms.of_row(r), tile.size, 1, &tile.by_width[k * depth], PANEL,
                             depth);
            sums.add_to(dhidden + r * d + k, d);
        }
    }
}

// dtable[c] += sum over rows of e[r][c] weight[r] hidden[r]; dbias[c] += sum of e[r][c] weight[r];
// e is settled
template <typename Unit>
inline void add_table_gradient(const Chunk<Unit>& chunk, const Tile<Unit>& tile, int64_t d,
                               const float* e, float* dtable, float* dbias) {
    const Terms<Unit> terms(tile, e);
    const int64_t depth = chunk.padded / terms.N, stride = terms.N * tile.size;
    for (int64_t c = 0; c < tile.size; c += ROWS) {
        for (int64_t k = 0; k < d; k += PANEL) {
            Sums sums(f32wide{}, f32wide{});
            sums.add_product(terms.of_class(c), 1, stride, &chunk.scaled[k * depth], PANEL, depth);
            sums.add_to(dtable + c * d + k, d);
        }
    }
    for (int64_t c = 0; c < tile.size; c += LANES) {
        f32wide sum = {};
        for (int64_t r = 0; r < depth; ++r)
            sum = add_terms(sum, chunk.weights[r], load_units(terms.of_class(c) + r * stride));
        store_wide(dbias + c, load_wide(dbias + c) + sum);
    }
}

}  // namespace longhaul
