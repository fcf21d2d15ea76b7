// Causal linear attention over packed segments, from either end.
//
// An item of work is a run of whole segments, times a head, times a block of at most BLOCK columns
// of v. It walks its tokens in order with its columns of S, m rows of them, in fp32.

#include <algorithm>
#include <vector>

#include "runs.hpp"
#include "simd.hpp"

using namespace longhaul;

namespace {

constexpr int64_t BLOCK = 32;  // columns

struct Shape {
    int64_t tokens, heads, m, n;
};

struct Item {
    Range run;
    int64_t head, first;  // column
    bool begins;          // holds token 0
};

// `last` takes the state that leaves token 0 when walking backwards.
template <typename T>
struct Pass {
    bool backwards;
    const T *q, *k, *v;
    const uint8_t* reset;
    const float* initial;
    T* o;
    float* last;
    Shape shape;
};

// The item's columns, whose vectors number VECTORS; beyond the last column lie zeros.
template <int VECTORS, typename T>
void walk(const Pass<T>& pass, const Item& item) {
    const auto [tokens, heads, m, n] = pass.shape;
    constexpr int64_t width = 8 * VECTORS;
    const int64_t count = n - item.first < width ? n - item.first : width;
    std::vector<float> state(m * width), query(m + 8), key(m + 8);
    if (item.begins && pass.initial)
        for (int64_t i = 0; i < m; ++i)
            std::memcpy(&state[i * width], pass.initial + (item.head * m + i) * n + item.first,
                        count * sizeof(float));
    for (int64_t step = 0; step < item.run.end - item.run.begin; ++step) {
        const int64_t t = pass.backwards ? item.run.end - 1 - step : item.run.begin + step;
        if (!pass.backwards && pass.reset[t]) std::fill(state.begin(), state.end(), 0.0f);
        const int64_t row = t * heads + item.head;
        for (int64_t i = 0; i < m; i += 8) {
            store(&query[i], load(pass.q + row * m + i, m - i));
            store(&key[i], load(pass.k + row * m + i, m - i));
        }
        f32x8 value[VECTORS], sum[VECTORS] = {};
        for (int c = 0; c < VECTORS; ++c)
            value[c] = load(pass.v + row * n + item.first + 8 * c, count - 8 * c);
        for (int64_t i = 0; i < m; ++i) {
            for (int c = 0; c < VECTORS; ++c) {
                f32x8 now = load(&state[i * width + 8 * c]) + key[i] * value[c];
                store(&state[i * width + 8 * c], now);
                sum[c] += query[i] * now;
            }
        }
        for (int c = 0; c < VECTORS; ++c)
            store(pass.o + row * n + item.first + 8 * c, sum[c], count - 8 * c);
        if (pass.backwards && pass.reset[t]) std::fill(state.begin(), state.end(), 0.0f);
    }
    if (item.begins && pass.last)
        for (int64_t i = 0; i < m; ++i)
            std::memcpy(pass.last + (item.head * m + i) * n + item.first, &state[i * width],
                        count * sizeof(float));
}

template <typename T>
void walk_all(const Pass<T>& pass, int threads) {
    const std::vector<Range> runs = runs_of_segments(pass.reset, pass.shape.tokens);
    const int64_t heads = pass.shape.heads, n = pass.shape.n, blocks = (n + BLOCK - 1) / BLOCK;
    const int64_t items = runs.size() * heads * blocks;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < items; ++i) {
        const int64_t first = i % blocks * BLOCK, run = i / blocks / heads;
        const Item item{runs[run], i / blocks % heads, first, run == 0};
        const int64_t vectors = (n - first + 7) / 8;
        if (vectors == 1) walk<1>(pass, item);
        else if (vectors == 2) walk<2>(pass, item);
        else if (vectors == 3) walk<3>(pass, item);
        else walk<4>(pass, item);
    }
}

}  // namespace

// initial (of a forward walk) and last (of a backward walk) may be null.
extern "C" int64_t linear_attention(int64_t dtype, int64_t backwards, const void* q, const void* k,
                                    const void* v, const uint8_t* reset, const float* initial,
                                    void* o, float* last, int64_t tokens, int64_t heads, int64_t m,
                                    int64_t n, int64_t threads) {
    const Shape shape{tokens, heads, m, n};
    auto run = [&](auto zero) {
        using T = decltype(zero);
        walk_all(Pass<T>{backwards != 0, (const T*)q, (const T*)k, (const T*)v, reset, initial,
                         (T*)o, last, shape},
                 int(threads));
    };
    dtype ? run(bf16{}) : run(float{});
    return 0;
}
