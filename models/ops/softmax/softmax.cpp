// Full softmax cross-entropy without the [T, C] logits: loss and gradients in one call, in fp32 but
// for the factors of the products, which may be bfloat16 (gemm.hpp).
//
// Classes come in tiles of TILE_CLASSES, targets in chunks of CHUNK. For one tile of one chunk
// three products are needed: logits = H W^T, dH += E W and dW += E^T (H / Z), E the exponentials,
// Z their row sums. Two walks:
//   by rows     a thread owns chunks and keeps E of a chunk for all classes, so every product is
//               made once; dW is summed per thread. For catalogues whose E and dW fit in cache.
//   by classes  a thread owns tiles; a first pass finds log Z, a second makes the logits again.
//               A third more work, but dW is owned and memory does not grow with the catalogue.

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include <omp.h>

#include "softmax/tiles.hpp"

using namespace longhaul;

namespace {

constexpr int64_t ROW_WALK_FLOATS = 4 << 20;  // the most a thread may hold in the walk by rows

struct Problem {
    const float *hidden, *table, *bias;
    const int64_t* targets;
    int64_t classes, width;
    std::vector<int64_t> active;  // the rows that have a target

    int64_t padded_width() const { return round_up(width, PANEL); }
    int64_t padded_classes() const { return round_up(classes, GRAIN); }
    int64_t count() const { return active.size(); }
    int64_t chunks() const { return (count() + CHUNK - 1) / CHUNK; }
    int64_t tiles() const { return (padded_classes() + TILE_CLASSES - 1) / TILE_CLASSES; }
    float bias_of(int64_t c) const { return bias ? bias[c] : 0.0f; }
};

template <typename Unit>
Tile<Unit> tile_of(const Problem& problem, int64_t index) {
    const int64_t first = index * TILE_CLASSES;
    const int64_t size = std::min(TILE_CLASSES, problem.padded_classes() - first);
    return Tile<Unit>(
        first, size, std::min(size, problem.classes - first), problem.width,
        [&](int64_t c) { return problem.table + (first + c) * problem.width; },
        [&](int64_t c) { return problem.bias_of(first + c); });
}

template <typename Unit>
Chunk<Unit> chunk_of(const Problem& problem, int64_t index) {
    const int64_t begin = index * CHUNK;
    return Chunk<Unit>(problem.hidden, problem.width, &problem.active[begin],
                       std::min(CHUNK, problem.count() - begin));
}

struct Gradients {
    float *hidden, *table, *bias;  // null where not wanted, all together
};

// The loss of one row, and the share of its gradient that comes from its own target.
double finish_row(const Problem& problem, int64_t row, double log_total, const Gradients& out) {
    const int64_t d = problem.width, target = problem.targets[row];
    const float *h = problem.hidden + row * d, *w = problem.table + target * d;
    double score = problem.bias_of(target);
    for (int64_t k = 0; k < d; ++k) score += double(h[k]) * w[k];
    if (out.hidden)
        for (int64_t k = 0; k < d; ++k) out.hidden[row * d + k] -= w[k];
    return log_total - score;
}

// Every target's pull on its own class, in the order of the rows.
void subtract_targets(const Problem& problem, const Gradients& out) {
    const int64_t d = problem.width;
    for (int64_t row : problem.active) {
        float* w = out.table + problem.targets[row] * d;
        for (int64_t k = 0; k < d; ++k) w[k] -= problem.hidden[row * d + k];
        out.bias[problem.targets[row]] -= 1.0f;
    }
}

template <typename Unit>
double walk_by_rows(const Problem& problem, const Gradients& out, int threads) {
    const int64_t d = problem.padded_width(), width = problem.width, tiles = problem.tiles();
    const int64_t classes = problem.padded_classes(), chunks = problem.chunks();
    std::vector<std::unique_ptr<Tile<Unit>>> tile(tiles);
    std::vector<double> losses(chunks);
    std::vector<Buffer> dtables(threads), dbiases(threads);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tiles; ++i)
            tile[i] = std::make_unique<Tile<Unit>>(tile_of<Unit>(problem, i));
        Buffer& dtable = dtables[omp_get_thread_num()];
        Buffer& dbias = dbiases[omp_get_thread_num()];
        Buffer e = allocate(CHUNK * classes), dhidden = allocate(CHUNK * d);
        if (out.table) {
            dtable = zeros(classes * d);
            dbias = zeros(classes);
        }
#pragma omp for schedule(static)
        for (int64_t index = 0; index < chunks; ++index) {
            Chunk<Unit> chunk = chunk_of<Unit>(problem, index);
            std::fill_n(dhidden.get(), CHUNK * d, 0.0f);
            for (const auto& t : tile) logits(chunk, *t, d, &e[chunk.padded * t->first]);
            for (const auto& t : tile) {
                float* values = &e[chunk.padded * t->first];
                exponentials(chunk, *t, chunk.best, values);
                if (out.table) settle(chunk, *t, values);
                if (out.hidden) add_hidden_gradient(chunk, *t, d, values, dhidden.get());
            }
            double loss = 0;
            for (int64_t r = 0; r < chunk.rows; ++r) {
                const int64_t row = problem.active[index * CHUNK + r];
                chunk.weight[r] = float(1.0 / chunk.total[r]);
                if (out.hidden)
                    for (int64_t k = 0; k < width; ++k)
                        out.hidden[row * width + k] = dhidden[r * d + k] * chunk.weight[r];
                loss += finish_row(problem, row, chunk.best[r] + std::log(chunk.total[r]), out);
            }
            losses[index] = loss;
            if (!out.table) continue;
            chunk.scale(d);
            for (const auto& t : tile)
                add_table_gradient(chunk, *t, d, &e[chunk.padded * t->first],
                                   &dtable[t->first * d], &dbias[t->first]);
        }
        if (out.table) {
#pragma omp for schedule(static)
            for (int64_t c = 0; c < problem.classes; ++c) {
                out.bias[c] = 0.0f;
                std::fill_n(out.table + c * width, width, 0.0f);
                for (int thread = 0; thread < threads; ++thread) {
                    if (!dtables[thread]) continue;
                    out.bias[c] += dbiases[thread][c];
                    for (int64_t k = 0; k < width; ++k)
                        out.table[c * width + k] += dtables[thread][c * d + k];
                }
            }
        }
    }
    double loss = 0;
    for (double part : losses) loss += part;
    return loss;
}

template <typename Unit>
double walk_by_classes(const Problem& problem, const Gradients& out, int threads) {
    const int64_t d = problem.padded_width(), width = problem.width;
    const int64_t count = problem.count(), chunks = problem.chunks(), tiles = problem.tiles();
    std::vector<std::unique_ptr<Chunk<Unit>>> states(threads * chunks);  // running max and sum
    std::vector<Buffer> dhiddens(threads);
    std::vector<float> shifts(chunks * CHUNK), weights(chunks * CHUNK);
    std::vector<double> losses(count);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
        Buffer values = allocate(CHUNK * TILE_CLASSES), dtable = allocate(TILE_CLASSES * d);
        Buffer dbias = allocate(TILE_CLASSES);
        for (int64_t index = 0; index < chunks; ++index)
            states[me * chunks + index] =
                std::make_unique<Chunk<Unit>>(chunk_of<Unit>(problem, index));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tiles; ++i) {
            const Tile<Unit> tile = tile_of<Unit>(problem, i);
            for (int64_t index = 0; index < chunks; ++index) {
                Chunk<Unit>& chunk = *states[me * chunks + index];
                float before[CHUNK];
                std::copy_n(chunk.best, CHUNK, before);
                logits(chunk, tile, d, values.get());
                for (int64_t r = 0; r < chunk.padded; ++r)
                    if (chunk.best[r] > before[r])
                        chunk.total[r] *= std::exp(double(before[r]) - chunk.best[r]);
                exponentials(chunk, tile, chunk.best, values.get());
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count; ++i) {
            float best = -INFINITY;
            for (int thread = 0; thread < threads; ++thread)
                if (const auto& state = states[thread * chunks + i / CHUNK])
                    best = std::max(best, state->best[i % CHUNK]);
            double total = 0;
            for (int thread = 0; thread < threads; ++thread)
                if (const auto& state = states[thread * chunks + i / CHUNK])
                    total += state->total[i % CHUNK] *
                             std::exp(double(state->best[i % CHUNK]) - best);
            const double log_total = best + std::log(total);
            shifts[i] = best;
            weights[i] = float(1.0 / total);
            losses[i] = finish_row(problem, problem.active[i], log_total, out);
        }
        if (out.table) {
            Buffer& dhidden = dhiddens[me] = zeros(chunks * CHUNK * d);
            for (int64_t index = 0; index < chunks; ++index) {
                Chunk<Unit>& chunk = *states[me * chunks + index];
                std::copy_n(&weights[index * CHUNK], CHUNK, chunk.weight);
                chunk.scale(d);
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < tiles; ++i) {
                const Tile<Unit> tile = tile_of<Unit>(problem, i);
                std::fill_n(dtable.get(), tile.size * d, 0.0f);
                std::fill_n(dbias.get(), tile.size, 0.0f);
                for (int64_t index = 0; index < chunks; ++index) {
                    Chunk<Unit>& chunk = *states[me * chunks + index];
                    products(chunk, tile, d, values.get());
                    exponentials(chunk, tile, &shifts[index * CHUNK], values.get());
                    settle(chunk, tile, values.get());
                    add_hidden_gradient(chunk, tile, d, values.get(), &dhidden[index * CHUNK * d]);
                    add_table_gradient(chunk, tile, d, values.get(), dtable.get(), dbias.get());
                }
                const int64_t real = std::min(tile.size, problem.classes - tile.first);
                for (int64_t c = 0; c < real; ++c) {
                    out.bias[tile.first + c] = dbias[c];
                    std::copy_n(&dtable[c * d], width, out.table + (tile.first + c) * width);
                }
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count; ++i)
                for (int thread = 0; thread < threads; ++thread)
                    if (dhiddens[thread])
                        for (int64_t k = 0; k < width; ++k)
                            out.hidden[problem.active[i] * width + k] +=
                                dhiddens[thread][i * d + k] * weights[i];
        }
    }
    double loss = 0;
    for (double part : losses) loss += part;
    return loss;
}

template <typename Unit>
double walk(const Problem& problem, const Gradients& out, int threads) {
    const int64_t held = problem.padded_classes() * (CHUNK + problem.padded_width());
    const auto chosen = held <= ROW_WALK_FLOATS ? walk_by_rows<Unit> : walk_by_classes<Unit>;
    return chosen(problem, out, threads);
}

}  // namespace

// Gradients may be null, all together; dhidden arrives as zeros. bias may be null. narrow: hidden
// and table hold bfloat16 values, and where the processor multiplies those, E is rounded too.
extern "C" int64_t softmax_loss(const float* hidden, const float* table, const float* bias,
                                const int64_t* targets, int64_t tokens, int64_t classes,
                                int64_t width, int64_t narrow, double* loss, float* dhidden,
                                float* dtable, float* dbias, int64_t threads) {
    Problem problem{hidden, table, bias, targets, classes, width, {}};
    for (int64_t t = 0; t < tokens; ++t)
        if (targets[t] > 0) problem.active.push_back(t);
    const Gradients out{dhidden, dtable, dbias};
    *loss = (narrow ? walk<Narrow> : walk<float>)(problem, out, int(threads));
    if (dtable) subtract_targets(problem, out);
    return 0;
}
