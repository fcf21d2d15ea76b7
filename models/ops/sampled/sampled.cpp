// Losses of each target beside negatives that a block of tokens shares: loss and gradients in one
// call, without the logits of a block; in fp32 but for the factors of the products, which may be
// bfloat16 (gemm.hpp).
//
// Within a block the work is that of the walk by rows in softmax.cpp: a thread owns chunks of
// targets and keeps the terms E of a chunk for all negatives, so every product is made once; the
// gradient of the negatives is summed per thread. A negative that is the target itself is masked.
//   softmax  E = exp(logit + log weight), divided by Z = exp(score of the target) + sum of E
//   binary   E = sigmoid(logit), beside the target's sigmoid

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include <omp.h>

#include "softmax/tiles.hpp"

using namespace longhaul;

namespace {

struct Problem {
    const float *hidden, *rows, *bias;
    const int64_t* targets;
    int64_t width;

    double score(int64_t token) const {
        const int64_t row = targets[token];
        const float *h = hidden + token * width, *w = rows + row * width;
        double sum = bias ? bias[row] : 0.0;
        for (int64_t k = 0; k < width; ++k) sum += double(h[k]) * w[k];
        return sum;
    }
};

struct Gradients {
    float *hidden, *rows, *bias;  // null where not wanted, all together; they arrive as zeros
};

// What a block of tokens is trained against.
struct Negatives {
    const int64_t* rows;
    const float* log_weights;  // null: nothing is added
    int64_t count;

    int64_t padded() const { return round_up(count, GRAIN); }
    int64_t tiles() const { return (padded() + TILE_CLASSES - 1) / TILE_CLASSES; }
};

// A tile of the negatives, and the rows they are, to tell a target's own.
template <typename Unit>
struct Block {
    std::vector<std::unique_ptr<Tile<Unit>>> tiles;
    std::vector<int32_t> ids;

    Block(const Negatives& negatives) : tiles(negatives.tiles()), ids(negatives.padded(), -1) {
        std::copy_n(negatives.rows, negatives.count, ids.begin());
    }

    void pack(const Problem& problem, const Negatives& negatives, int64_t index) {
        const int64_t first = index * TILE_CLASSES;
        const int64_t size = std::min(TILE_CLASSES, negatives.padded() - first);
        tiles[index] = std::make_unique<Tile<Unit>>(
            first, size, std::min(size, negatives.count - first), problem.width,
            [&](int64_t c) { return problem.rows + negatives.rows[first + c] * problem.width; },
            [&](int64_t c) {
                return (problem.bias ? problem.bias[negatives.rows[first + c]] : 0.0f) +
                       (negatives.log_weights ? negatives.log_weights[first + c] : 0.0f);
            });
    }

    // The logits of a row's own target become minus infinity.
    void mask(const Tile<Unit>& tile, int32_t target, float* logits) const {
        const i32x8 own = {target, target, target, target, target, target, target, target};
        const f32x8 never = splat(-INFINITY);
        for (int64_t c = 0; c < tile.size; c += 8) {
            i32x8 id;
            std::memcpy(&id, &ids[tile.first + c], sizeof id);
            const i32x8 hit = id == own;
            store(logits + c,
                  (f32x8)((hit & (i32x8)never) | (~hit & (i32x8)load(logits + c))));
        }
    }
};

// Each kind turns logits to terms in place, and a row's sums to its loss, to the weight of its
// terms, and to the pull on its target's score.
struct Row {
    double loss;
    float weight, pull;
};

struct Softmax {
    template <typename Unit>
    void terms(Chunk<Unit>& chunk, const Block<Unit>& block, float* e) const {
        for (const auto& tile : block.tiles)
            raise_best(chunk, *tile, e + chunk.padded * tile->first);
        for (const auto& tile : block.tiles)
            exponentials(chunk, *tile, chunk.best, e + chunk.padded * tile->first);
    }
    template <typename Unit>
    Row finish(const Chunk<Unit>& chunk, int64_t r, double score) const {
        const double total = chunk.total[r] + std::exp(score - chunk.best[r]);
        return {chunk.best[r] + std::log(total) - score, float(1.0 / total),
                float(chunk.total[r] / total)};
    }
};

struct Binary {
    double positive, scale;

    // Sums log(1 + exp(logit)) = max(logit, 0) + log(1 + exp(-|logit|)). The factors 1 + exp(-|x|)
    // are at most 2, and a lane has TILE_CLASSES / 8 of them: their product is far from overflow.
    template <typename Unit>
    void terms(Chunk<Unit>& chunk, const Block<Unit>& block, float* e) const {
        for (const auto& tile : block.tiles)
            for (int64_t r = 0; r < chunk.padded; ++r) {
                float* values = e + chunk.padded * tile->first + r * tile->size;
                f32x8 above = {}, product = splat(1.0f);
                for (int64_t c = 0; c < tile->size; c += 8) {
                    const f32x8 x = load(values + c), zero = {};
                    const f32x8 over = maximum(zero, x), small = exp_negative(x - over - over);
                    above += over;
                    product *= 1.0f + small;
                    const i32x8 positive_x = x >= zero;
                    const f32x8 top = (f32x8)((positive_x & (i32x8)splat(1.0f)) |
                                              (~positive_x & (i32x8)small));
                    store(values + c, top / (1.0f + small));
                }
                double all = 1.0;
                for (int lane = 0; lane < 8; ++lane) all *= product[lane];
                chunk.total[r] += sum(above) + std::log(all);
            }
    }
    template <typename Unit>
    Row finish(const Chunk<Unit>& chunk, int64_t r, double score) const {
        const double miss = 1.0 / (1.0 + std::exp(score));  // 1 - sigmoid
        const double own = std::max(-score, 0.0) + std::log1p(std::exp(-std::abs(score)));
        return {scale * (positive * own + chunk.total[r]), float(scale),
                float(scale * positive * miss)};
    }
};

template <typename Unit, typename Kind>
double train_block(const Kind& kind, const Problem& problem, const Negatives& negatives,
                   const std::vector<int64_t>& active, const Gradients& out, int threads) {
    const int64_t d = round_up(problem.width, PANEL), width = problem.width;
    const int64_t padded = negatives.padded();
    const int64_t chunks = (int64_t(active.size()) + CHUNK - 1) / CHUNK;
    Block<Unit> block(negatives);
    std::vector<double> losses(chunks);
    std::vector<float> pulls(active.size());
    std::vector<Buffer> dtables(threads), dbiases(threads);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < int64_t(block.tiles.size()); ++i) block.pack(problem, negatives, i);
        Buffer& dtable = dtables[omp_get_thread_num()];
        Buffer& dbias = dbiases[omp_get_thread_num()];
        Buffer e = allocate(CHUNK * padded), dhidden = allocate(CHUNK * d);
        if (out.rows) {
            dtable = zeros(padded * d);
            dbias = zeros(padded);
        }
#pragma omp for schedule(static)
        for (int64_t index = 0; index < chunks; ++index) {
            const int64_t* own = &active[index * CHUNK];
            const int64_t rows = std::min<int64_t>(CHUNK, active.size() - index * CHUNK);
            Chunk<Unit> chunk(problem.hidden, width, own, rows);
            double scores[CHUNK];
            for (int64_t r = 0; r < rows; ++r) {
                scores[r] = problem.score(own[r]);
                chunk.best[r] = float(scores[r]);
            }
            for (const auto& tile : block.tiles) {
                float* values = &e[chunk.padded * tile->first];
                products(chunk, *tile, d, values);
                for (int64_t r = 0; r < rows; ++r)
                    block.mask(*tile, int32_t(problem.targets[own[r]]), values + r * tile->size);
            }
            kind.terms(chunk, block, e.get());
            double loss = 0;
            for (int64_t r = 0; r < rows; ++r) {
                const Row row = kind.finish(chunk, r, scores[r]);
                loss += row.loss;
                chunk.weight[r] = row.weight;
                pulls[index * CHUNK + r] = row.pull;
            }
            losses[index] = loss;
            if (!out.rows) continue;
            std::fill_n(dhidden.get(), CHUNK * d, 0.0f);
            chunk.scale(d);
            for (const auto& tile : block.tiles) {
                float* values = &e[chunk.padded * tile->first];
                settle(chunk, *tile, values);
                add_hidden_gradient(chunk, *tile, d, values, dhidden.get());
                add_table_gradient(chunk, *tile, d, values, &dtable[tile->first * d],
                                   &dbias[tile->first]);
            }
            for (int64_t r = 0; r < rows; ++r) {
                const float* w = problem.rows + problem.targets[own[r]] * width;
                float* dh = out.hidden + own[r] * width;
                const float pull = pulls[index * CHUNK + r];
                for (int64_t k = 0; k < width; ++k)
                    dh[k] = dhidden[r * d + k] * chunk.weight[r] - pull * w[k];
            }
        }
    }
    // Rows may be shared by negatives and targets, so they are added to one after another.
    if (out.rows) {
        for (int64_t j = 0; j < negatives.count; ++j) {
            const int64_t row = negatives.rows[j];
            for (int thread = 0; thread < threads; ++thread) {
                if (!dtables[thread]) continue;
                out.bias[row] += dbiases[thread][j];
                for (int64_t k = 0; k < width; ++k)
                    out.rows[row * width + k] += dtables[thread][j * d + k];
            }
        }
        for (size_t i = 0; i < active.size(); ++i) {
            const int64_t row = problem.targets[active[i]];
            const float* h = problem.hidden + active[i] * width;
            out.bias[row] -= pulls[i];
            for (int64_t k = 0; k < width; ++k) out.rows[row * width + k] -= pulls[i] * h[k];
        }
    }
    double loss = 0;
    for (double part : losses) loss += part;
    return loss;
}

template <typename Unit, typename Kind>
double train(const Kind& kind, const Problem& problem, const int64_t* negatives,
             const float* log_weights, int64_t tokens, int64_t count, int64_t block_tokens,
             const Gradients& out, int threads) {
    double loss = 0;
    std::vector<int64_t> active;
    for (int64_t block = 0; block * block_tokens < tokens; ++block) {
        active.clear();
        const int64_t end = std::min(tokens, (block + 1) * block_tokens);
        for (int64_t t = block * block_tokens; t < end; ++t)
            if (problem.targets[t] >= 0) active.push_back(t);
        if (active.empty()) continue;
        const float* added = log_weights ? log_weights + block * count : nullptr;
        const Negatives own{negatives + block * count, added, count};
        loss += train_block<Unit>(kind, problem, own, active, out, threads);
    }
    return loss;
}

}  // namespace

// bias may be null; gradients may be null, all together, and arrive as zeros. narrow: see
// softmax.cpp.
extern "C" int64_t sampled_softmax_loss(const float* hidden, const float* rows, const float* bias,
                                        const int64_t* targets, const int64_t* negatives,
                                        const float* log_weights, int64_t tokens, int64_t width,
                                        int64_t count, int64_t block_tokens, int64_t narrow,
                                        double* loss, float* dhidden, float* drows, float* dbias,
                                        int64_t threads) {
    const Problem problem{hidden, rows, bias, targets, width};
    const auto chosen = narrow ? train<Narrow, Softmax> : train<float, Softmax>;
    *loss = chosen({}, problem, negatives, log_weights, tokens, count, block_tokens,
                   {dhidden, drows, dbias}, int(threads));
    return 0;
}

extern "C" int64_t sampled_binary_loss(const float* hidden, const float* rows, const float* bias,
                                       const int64_t* targets, const int64_t* negatives,
                                       double positive, double scale, int64_t tokens,
                                       int64_t width, int64_t count, int64_t block_tokens,
                                       int64_t narrow, double* loss, float* dhidden, float* drows,
                                       float* dbias, int64_t threads) {
    const Problem problem{hidden, rows, bias, targets, width};
    const auto chosen = narrow ? train<Narrow, Binary> : train<float, Binary>;
    *loss = chosen({positive, scale}, problem, negatives, nullptr, tokens, count, block_tokens,
                   {dhidden, drows, dbias}, int(threads));
    return 0;
}
