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
static_assert(CHUNK % ROWS == 0 && GRAIN % ROWS == 0 && TILE_CLASSES % GRAIN == 0);

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

struct Free {
    void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

inline Buffer allocate(int64_t floats) {
    return Buffer((float*)std::aligned_alloc(64, round_up(std::max<int64_t>(floats, 16), 16) * 4));
}
inline Buffer zeros(int64_t floats) {
    Buffer buffer = allocate(floats);
    std::fill_n(buffer.get(), floats, 0.0f);
    return buffer;
}

// The table rows of one tile in both layouts the products want, padded with zeros and with a
// bias of minus infinity, so that classes past the end have probability zero.
struct Tile {
    int64_t first, size;
    Buffer by_class;  // [size / PANEL][width][PANEL]
    Buffer by_width;  // [width / PANEL][size][PANEL]
    Buffer bias;

    // The first `real` classes have a row and a bias, told by their place in the tile.
    template <typename Row, typename Bias>
    Tile(int64_t first, int64_t size, int64_t real, int64_t width, Row row_of, Bias bias_of)
        : first(first), size(size) {
        const int64_t d = round_up(width, PANEL);
        by_class = zeros(size * d);
        by_width = zeros(size * d);
        bias = allocate(size);
        for (int64_t c = 0; c < size; ++c) {
            bias[c] = c < real ? bias_of(c) : -INFINITY;
            if (c >= real) continue;
            const float* row = row_of(c);
            for (int64_t k = 0; k < width; ++k) {
                by_class[(c / PANEL * d + k) * PANEL + c % PANEL] = row[k];
                by_width[(k / PANEL * size + c) * PANEL + k % PANEL] = row[k];
            }
        }
    }
};

// The hidden rows of one chunk, gathered and padded with zeros, and their softmax state.
struct Chunk {
    int64_t rows, padded;
    Buffer hidden = nullptr;   // [padded][width]
    Buffer scaled = nullptr;   // [width / PANEL][padded][PANEL], each row times `weight`
    float best[CHUNK], weight[CHUNK];
    double total[CHUNK];

    Chunk(const float* all, int64_t width, const int64_t* chosen, int64_t rows) : rows(rows) {
        const int64_t d = round_up(width, PANEL);
        padded = round_up(rows, ROWS);
        hidden = zeros(padded * d);
        for (int64_t r = 0; r < rows; ++r)
            std::copy_n(all + chosen[r] * width, width, hidden.get() + r * d);
        std::fill_n(best, CHUNK, -INFINITY);
        std::fill_n(weight, CHUNK, 0.0f);
        std::fill_n(total, CHUNK, 0.0);
    }

    void scale(int64_t d) {
        if (!scaled) scaled = allocate(padded * d);
        for (int64_t r = 0; r < padded; ++r)
            for (int64_t k = 0; k < d; ++k)
                scaled[(k / PANEL * padded + r) * PANEL + k % PANEL] = hidden[r * d + k] * weight[r];
    }
};

// out[r][c] = hidden[r] . table[c] + bias[c]
inline void products(const Chunk& chunk, const Tile& tile, int64_t d, float* out) {
    for (int64_t c = 0; c < tile.size; c += PANEL) {
        const f32wide bias0 = load_wide(&tile.bias[c]), bias1 = load_wide(&tile.bias[c + LANES]);
        for (int64_t r = 0; r < chunk.padded; r += ROWS) {
            Sums sums(bias0, bias1);
            sums.add_product(&chunk.hidden[r * d], d, 1, &tile.by_class[c * d], PANEL, d);
            sums.write(out + r * tile.size + c, tile.size);
        }
    }
}

// `best` follows the largest of each row.
inline void raise_best(Chunk& chunk, const Tile& tile, const float* out) {
    for (int64_t r = 0; r < chunk.padded; ++r) {
        f32wide most = load_wide(out + r * tile.size);
        for (int64_t c = LANES; c < tile.size; c += LANES)
            most = maximum(most, load_wide(out + r * tile.size + c));
        const float value = maximum(most);
        if (value > chunk.best[r]) chunk.best[r] = value;
    }
}

inline void logits(Chunk& chunk, const Tile& tile, int64_t d, float* out) {
    products(chunk, tile, d, out);
    raise_best(chunk, tile, out);
}

// Logits to exp(logits - shift) in place, added to the row totals.
inline void exponentials(Chunk& chunk, const Tile& tile, const float* shift, float* values) {
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

// dhidden[r] += sum over classes of e[r][c] table[c]
inline void add_hidden_gradient(const Chunk& chunk, const Tile& tile, int64_t d, const float* e,
                         float* dhidden) {
    for (int64_t k = 0; k < d; k += PANEL) {
        for (int64_t r = 0; r < chunk.padded; r += ROWS) {
            Sums sums(f32wide{}, f32wide{});
            sums.add_product(e + r * tile.size, tile.size, 1, &tile.by_width[k * tile.size], PANEL,
                             tile.size);
            sums.add_to(dhidden + r * d + k, d);
        }
    }
}

// dtable[c] += sum over rows of e[r][c] weight[r] hidden[r]; dbias[c] += sum of e[r][c] weight[r]
inline void add_table_gradient(const Chunk& chunk, const Tile& tile, int64_t d, const float* e,
                        float* dtable, float* dbias) {
    for (int64_t c = 0; c < tile.size; c += ROWS) {
        for (int64_t k = 0; k < d; k += PANEL) {
            Sums sums(f32wide{}, f32wide{});
            sums.add_product(e + c, 1, tile.size, &chunk.scaled[k * chunk.padded], PANEL,
                             chunk.padded);
            sums.add_to(dtable + c * d + k, d);
        }
    }
    for (int64_t c = 0; c < tile.size; c += PANEL) {
        f32wide sum0 = {}, sum1 = {};
        for (int64_t r = 0; r < chunk.padded; ++r) {
            sum0 += load_wide(e + r * tile.size + c) * chunk.weight[r];
            sum1 += load_wide(e + r * tile.size + c + LANES) * chunk.weight[r];
        }
        store_wide(dbias + c, load_wide(dbias + c) + sum0);
        store_wide(dbias + c + LANES, load_wide(dbias + c + LANES) + sum1);
    }
}

}  // namespace longhaul
