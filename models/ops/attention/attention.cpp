// Attention within the segments of a packed batch, causal or two-way, forward and backward, fp32.
//
// The unit of work is one head of one segment; whoever takes it owns all of its gradients. A
// stretch of queries is scored against all the keys it may see: scores stay in cache, and their
// softmax is the plain one. The backward pass makes the weights again from the log of their sum.

#include <algorithm>
#include <cmath>
#include <vector>

#include <omp.h>

#include "gemm.hpp"

using namespace longhaul;

namespace {

constexpr int64_t STRETCH = 48;  // queries; a multiple of ROWS

int64_t whole_panels(int64_t rows) { return (rows + PANEL - 1) / PANEL * PANEL; }

// Rows of one head: `width` numbers every `stride`.
template <typename T>
struct Rows {
    T* data;
    int64_t stride;

    T* at(int64_t row) const { return data + row * stride; }
};
using Read = Rows<const float>;
using Written = Rows<float>;

// Calls act(R, first) for blocks of R rows that make up `rows`.
template <typename Act>
inline void in_blocks(int64_t rows, Act act) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS) act(std::integral_constant<int, ROWS>(), row);
    for (; row + 4 <= rows; row += 4) act(std::integral_constant<int, 4>(), row);
    for (; row < rows; ++row) act(std::integral_constant<int, 1>(), row);
}

// [whole_panels(rows) / PANEL][width][PANEL], zeros past the end.
void transpose(Read from, int64_t rows, int64_t width, float* to) {
    for (int64_t first = 0; first < rows; first += PANEL)
        for (int64_t k = 0; k < width; ++k, to += PANEL)
            for (int64_t lane = 0; lane < PANEL; ++lane)
                to[lane] = first + lane < rows ? from.at(first + lane)[k] : 0.0f;
}

// out[i][j] = a[i] . b[j] for all columns; b is transposed.
void dot_products(Read a, int64_t rows, const float* b, int64_t columns, int64_t width,
                  Written out) {
    for (int64_t j = 0; j < columns; j += PANEL)
        in_blocks(rows, [&](auto block, int64_t i) {
            Sums<block> sums(f32wide{}, f32wide{});
            sums.add_product(a.at(i), a.stride, 1, b + j * width, PANEL, width);
            sums.write(out.at(i) + j, out.stride);
        });
}

// out[i] = sum over j of w[i][j] b[j].
void mix(Read w, int64_t rows, Read b, int64_t count, int64_t width, Written out) {
    for (int64_t k = 0; k < width; k += PANEL)
        in_blocks(rows, [&](auto block, int64_t i) {
            Sums<block> sums(f32wide{}, f32wide{});
            sums.add_product(w.at(i), w.stride, 1, b.data + k, b.stride, count);
            sums.write(out.at(i) + k, out.stride);
        });
}

// out[j] += sum over i of w[i][j] b[i].
void add_mixed(Read w, int64_t count, Read b, int64_t rows, int64_t width, Written out) {
    for (int64_t k = 0; k < width; k += PANEL)
        in_blocks(rows, [&](auto block, int64_t j) {
            Sums<block> sums(f32wide{}, f32wide{});
            sums.add_product(w.data + j, 1, w.stride, b.data + k, b.stride, count);
            sums.add_to(out.at(j) + k, out.stride);
        });
}

struct Batch {
    const int64_t* offsets;
    int64_t segments, heads, width;
    bool causal;

    double scale() const { return 1 / std::sqrt(double(width)); }
    int64_t longest() const {
        int64_t most = 0;
        for (int64_t s = 0; s < segments; ++s) most = std::max(most, offsets[s + 1] - offsets[s]);
        return whole_panels(most);
    }
    // Keys that the queries of a stretch may see, and those that one of them may.
    int64_t seen(int64_t length, int64_t past) const { return causal ? past : length; }
};

// Scores to exp(scale * score - shift) in place, and zeros from `seen` to `columns`, where it finds
// minus infinity up to a whole vector. Their sum.
float exponentials(float* scores, int64_t seen, int64_t columns, float scale, float shift) {
    f32wide total = {};
    for (int64_t j = 0; j < seen; j += LANES) {
        const f32wide e = exp_negative(load_wide(scores + j) * scale - shift);
        store_wide(scores + j, e);
        total += e;
    }
    std::fill(scores + seen, scores + columns, 0.0f);
    return sum(total);
}

float largest(const float* scores, int64_t seen) {
    f32wide best = load_wide(scores);
    for (int64_t j = LANES; j < seen; j += LANES) best = maximum(best, load_wide(scores + j));
    return maximum(best);
}

// One head of a segment.
void forward(const Batch& batch, int64_t length, Read q, Read k, Read v, Written y, float* logs,
             float* keys, float* scores) {
    const int64_t width = batch.width, stride = whole_panels(length);
    const float scale = float(batch.scale());
    transpose(k, length, width, keys);
    for (int64_t first = 0; first < length; first += STRETCH) {
        const int64_t rows = std::min(STRETCH, length - first);
        const int64_t all = batch.seen(length, first + rows), columns = whole_panels(all);
        dot_products({q.at(first), q.stride}, rows, keys, columns, width, {scores, stride});
        float totals[STRETCH];
        for (int64_t i = 0; i < rows; ++i) {
            float* row = scores + i * stride;
            const int64_t seen = batch.seen(length, first + i + 1);
            std::fill(row + seen, row + columns, -INFINITY);
            const float shift = scale * largest(row, seen);
            totals[i] = exponentials(row, seen, columns, scale, shift);
            logs[(first + i) * batch.heads] = shift + std::log(totals[i]);
        }
        mix({scores, stride}, rows, v, all, width, {y.at(first), y.stride});
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t c = 0; c < width; ++c) y.at(first + i)[c] /= totals[i];
    }
}

void backward(const Batch& batch, int64_t length, Read dy, Read q, Read k, Read v,
              const float* logs, Written dq, Written dk, Written dv, float* keys, float* values,
              float* weights, float* slopes) {
    const int64_t width = batch.width, stride = whole_panels(length);
    const float scale = float(batch.scale());
    transpose(k, length, width, keys);
    transpose(v, length, width, values);
    for (int64_t j = 0; j < length; ++j) {
        std::fill_n(dk.at(j), width, 0.0f);
        std::fill_n(dv.at(j), width, 0.0f);
    }
    for (int64_t first = 0; first < length; first += STRETCH) {
        const int64_t rows = std::min(STRETCH, length - first);
        const int64_t all = batch.seen(length, first + rows), columns = whole_panels(all);
        const Read queries{q.at(first), q.stride}, gradients{dy.at(first), dy.stride};
        dot_products(queries, rows, keys, columns, width, {weights, stride});
        dot_products(gradients, rows, values, columns, width, {slopes, stride});
        for (int64_t i = 0; i < rows; ++i) {
            float *weight = weights + i * stride, *slope = slopes + i * stride;
            const int64_t seen = batch.seen(length, first + i + 1);
            std::fill(weight + seen, weight + columns, -INFINITY);
            const float total =
                exponentials(weight, seen, columns, scale, logs[(first + i) * batch.heads]);
            f32wide means = {};
            for (int64_t j = 0; j < columns; j += LANES)
                means += load_wide(weight + j) * load_wide(slope + j);
            const float mean = sum(means) / total;  // of the weights as they came out here
            for (int64_t j = 0; j < columns; ++j) slope[j] = weight[j] * (slope[j] - mean) * scale;
        }
        add_mixed({weights, stride}, rows, gradients, all, width, dv);
        add_mixed({slopes, stride}, rows, queries, all, width, dk);
        mix({slopes, stride}, rows, k, all, width, {dq.at(first), dq.stride});
    }
}

// act(segment, head, buffer) for every unit, one thread each; a buffer of so many floats a thread.
template <typename Act>
void each_unit(const Batch& batch, int64_t floats, int threads, Act act) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> buffer(floats);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < batch.segments * batch.heads; ++unit)
            act(unit / batch.heads, unit % batch.heads, buffer.data());
    }
}

}  // namespace

extern "C" {

// What the width of a head has to be a multiple of.
int64_t attention_grain(int64_t) { return PANEL; }

// q, k, v: rows [heads, width] every q_stride, k_stride, v_stride; y, and in the backward pass
// all gradients, [T, heads, width]; logs [T, heads]: of the sums of the weights.
int64_t attention_forward(const float* q, const float* k, const float* v, int64_t q_stride,
                          int64_t k_stride, int64_t v_stride, const int64_t* offsets,
                          int64_t segments, int64_t heads, int64_t width, int64_t causal, float* y,
                          float* logs, int64_t threads) {
    const Batch batch{offsets, segments, heads, width, bool(causal)};
    const int64_t longest = batch.longest(), each = heads * width;
    each_unit(batch, longest * (width + STRETCH), int(threads),
              [&](int64_t segment, int64_t head, float* buffer) {
                  const int64_t begin = offsets[segment], at = head * width;
                  forward(batch, offsets[segment + 1] - begin,
                          {q + begin * q_stride + at, q_stride},
                          {k + begin * k_stride + at, k_stride},
                          {v + begin * v_stride + at, v_stride}, {y + begin * each + at, each},
                          logs + begin * heads + head, buffer, buffer + longest * width);
              });
    return 0;
}

int64_t attention_backward(const float* dy, const float* q, const float* k, const float* v,
                           int64_t q_stride, int64_t k_stride, int64_t v_stride,
                           const int64_t* offsets, int64_t segments, int64_t heads, int64_t width,
                           int64_t causal, const float* logs, float* dq, float* dk, float* dv,
                           int64_t threads) {
    const Batch batch{offsets, segments, heads, width, bool(causal)};
    const int64_t longest = batch.longest(), each = heads * width;
    each_unit(batch, 2 * longest * (width + STRETCH), int(threads),
              [&](int64_t segment, int64_t head, float* buffer) {
                  const int64_t begin = offsets[segment], at = head * width;
                  const int64_t out = begin * each + at;
                  float *values = buffer + longest * width, *weights = values + longest * width;
                  backward(batch, offsets[segment + 1] - begin, {dy + out, each},
                           {q + begin * q_stride + at, q_stride},
                           {k + begin * k_stride + at, k_stride},
                           {v + begin * v_stride + at, v_stride}, logs + begin * heads + head,
                           {dq + out, each}, {dk + out, each}, {dv + out, each}, buffer, values,
                           weights, weights + longest * STRETCH);
              });
    return 0;
}
}
