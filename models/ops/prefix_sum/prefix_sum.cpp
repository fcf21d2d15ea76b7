// Running sum over packed segments, from either end.
//
// An item of work is a run of whole segments times a block of BLOCK columns. It walks its tokens
// in order, all columns of its block at once, with the sum in fp32.

#include <vector>

#include "runs.hpp"
#include "simd.hpp"

using namespace longhaul;

namespace {

constexpr int64_t BLOCK = 64;  // columns

// `last` takes the sum that leaves the run's first token when walking backwards.
template <typename T>
void walk(bool backwards, const T* x, const uint8_t* reset, const float* initial, T* sums,
          float* last, Range run, int64_t width, int64_t count) {
    float state[BLOCK] = {};
    if (initial) std::memcpy(state, initial, count * sizeof(float));
    for (int64_t i = 0; i < run.end - run.begin; ++i) {
        const int64_t t = backwards ? run.end - 1 - i : run.begin + i;
        if (!backwards && reset[t]) std::memset(state, 0, sizeof state);
        for (int64_t c = 0; c < count; c += 8) {
            f32x8 sum = load(state + c) + load(x + t * width + c, count - c);
            store(state + c, sum);
            store(sums + t * width + c, sum, count - c);
        }
        if (backwards && reset[t]) std::memset(state, 0, sizeof state);
    }
    if (last) std::memcpy(last, state, count * sizeof(float));
}

template <typename T>
void walk_all(bool backwards, const void* x, const uint8_t* reset, const float* initial,
              void* sums, float* last, int64_t tokens, int64_t width, int threads) {
    const std::vector<Range> runs = runs_of_segments(reset, tokens);
    const int64_t blocks = (width + BLOCK - 1) / BLOCK, items = runs.size() * blocks;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < items; ++item) {
        const int64_t run = item / blocks, first = item % blocks * BLOCK;
        const int64_t count = width - first < BLOCK ? width - first : BLOCK;
        walk(backwards, (const T*)x + first, reset, run == 0 && initial ? initial + first : nullptr,
             (T*)sums + first, run == 0 && last ? last + first : nullptr, runs[run], width, count);
    }
}

}  // namespace

// initial (of a forward walk) and last (of a backward walk) may be null.
extern "C" int64_t prefix_sum(int64_t dtype, int64_t backwards, const void* x,
                              const uint8_t* reset, const float* initial, void* sums, float* last,
                              int64_t tokens, int64_t width, int64_t threads) {
    auto run = dtype ? walk_all<bf16> : walk_all<float>;
    run(backwards, x, reset, initial, sums, last, tokens, width, int(threads));
    return 0;
}
