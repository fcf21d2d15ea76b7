// Diagonal complex recurrence over packed segments, forward and backward.
//
// An item of work is a run of whole segments times a block of BLOCK channels. It walks its tokens
// in order, all channels of its block at once, with the state in fp32.

#include <vector>

#include "runs.hpp"
#include "simd.hpp"

using namespace longhaul;

namespace {

constexpr int64_t BLOCK = 64;  // channels; 256 contiguous bytes of each part of a row

// The real and imaginary parts of a block of channels, padded with zero lanes.
struct Block {
    float re[BLOCK] = {}, im[BLOCK] = {};

    template <typename T>
    void load_from(const T* row, int64_t channels, int64_t first, int64_t count) {
        for (int64_t c = 0; c < count; c += 8) {
            store(re + c, load(row + first + c, count - c));
            store(im + c, load(row + channels + first + c, count - c));
        }
    }
};

template <typename T>
void forward(const T* u, const float* decay, const uint8_t* reset, const float* initial, T* h,
             Range run, int64_t channels, int64_t first, int64_t count) {
    Block lambda, state;
    lambda.load_from(decay, channels, first, count);
    if (run.begin == 0 && initial) state.load_from(initial, channels, first, count);
    for (int64_t t = run.begin; t < run.end; ++t) {
        if (reset[t]) state = Block();
        const T* from = u + t * 2 * channels + first;
        T* to = h + t * 2 * channels + first;
        for (int64_t c = 0; c < count; c += 8) {
            f32x8 re = load(state.re + c), im = load(state.im + c);
            f32x8 lre = load(lambda.re + c), lim = load(lambda.im + c);
            f32x8 hre = load(from + c, count - c) + lre * re - lim * im;
            f32x8 him = load(from + channels + c, count - c) + lre * im + lim * re;
            store(state.re + c, hre);
            store(state.im + c, him);
            store(to + c, hre, count - c);
            store(to + channels + c, him, count - c);
        }
    }
}

void flush(Block& sums, double* total, int64_t channels, int64_t first, int64_t count) {
    for (int64_t c = 0; c < count; ++c) {
        total[first + c] += sums.re[c];
        total[channels + first + c] += sums.im[c];
    }
    sums = Block();
}

// g_t = dh_t + conj(lambda) g_{t+1} within a segment; du_t = g_t; dlambda = sum g_t conj(h_{t-1}).
template <typename T>
void backward(const T* dh, const T* h, const float* decay, const uint8_t* reset,
              const float* initial, T* du, double* ddecay, float* dinitial, Range run,
              int64_t channels, int64_t first, int64_t count) {
    Block lambda, state, sums;
    lambda.load_from(decay, channels, first, count);
    Block before;
    if (run.begin == 0 && initial) before.load_from(initial, channels, first, count);
    for (int64_t t = run.end - 1; t >= run.begin; --t) {
        // From here on `state` is conj(lambda) g_{t+1}, already zero across a reset.
        const T* from = dh + t * 2 * channels + first;
        const T* previous = h + (t - 1) * 2 * channels + first;
        T* to = du + t * 2 * channels + first;
        const bool carries = !reset[t];
        for (int64_t c = 0; c < count; c += 8) {
            f32x8 gre = load(from + c, count - c) + load(state.re + c);
            f32x8 gim = load(from + channels + c, count - c) + load(state.im + c);
            store(to + c, gre, count - c);
            store(to + channels + c, gim, count - c);
            if (!carries) continue;
            f32x8 lre = load(lambda.re + c), lim = load(lambda.im + c);
            store(state.re + c, lre * gre + lim * gim);
            store(state.im + c, lre * gim - lim * gre);
            f32x8 pre = t > 0 ? load(previous + c, count - c) : load(before.re + c);
            f32x8 pim = t > 0 ? load(previous + channels + c, count - c) : load(before.im + c);
            store(sums.re + c, load(sums.re + c) + (gre * pre + gim * pim));
            store(sums.im + c, load(sums.im + c) + (gim * pre - gre * pim));
        }
        if (!carries) state = Block();
        if ((t - run.begin) % RUN == 0) flush(sums, ddecay, channels, first, count);
    }
    if (run.begin == 0 && dinitial) {
        for (int64_t c = 0; c < count; ++c) {
            dinitial[first + c] = state.re[c];
            dinitial[channels + first + c] = state.im[c];
        }
    }
}

template <typename T>
void forward_all(const void* u, const float* decay, const uint8_t* reset, const float* initial,
                 void* h, int64_t tokens, int64_t channels, int threads) {
    const std::vector<Range> runs = runs_of_segments(reset, tokens);
    const int64_t blocks = (channels + BLOCK - 1) / BLOCK, items = runs.size() * blocks;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < items; ++item) {
        const int64_t first = item % blocks * BLOCK;
        const int64_t count = channels - first < BLOCK ? channels - first : BLOCK;
        forward((const T*)u, decay, reset, initial, (T*)h, runs[item / blocks], channels, first,
                count);
    }
}

template <typename T>
void backward_all(const void* dh, const void* h, const float* decay, const uint8_t* reset,
                  const float* initial, void* du, double* ddecay, float* dinitial, int64_t tokens,
                  int64_t channels, int threads) {
    const std::vector<Range> runs = runs_of_segments(reset, tokens);
    const int64_t blocks = (channels + BLOCK - 1) / BLOCK, items = runs.size() * blocks;
    // One partial sum a run, added up in order: the result does not depend on the threads.
    std::vector<double> partial(runs.size() * 2 * channels);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < items; ++item) {
        const int64_t run = item / blocks, first = item % blocks * BLOCK;
        const int64_t count = channels - first < BLOCK ? channels - first : BLOCK;
        backward((const T*)dh, (const T*)h, decay, reset, initial, (T*)du,
                 partial.data() + run * 2 * channels, dinitial, runs[run], channels, first, count);
    }
    for (size_t run = 0; run < runs.size(); ++run)
        for (int64_t c = 0; c < 2 * channels; ++c) ddecay[c] += partial[run * 2 * channels + c];
}

}  // namespace

extern "C" {

int64_t recurrence_forward(int64_t dtype, const void* u, const float* decay, const uint8_t* reset,
                           const float* initial, void* h, int64_t tokens, int64_t channels,
                           int64_t threads) {
    auto run = dtype ? forward_all<bf16> : forward_all<float>;
    run(u, decay, reset, initial, h, tokens, channels, int(threads));
    return 0;
}

// ddecay is fp64 and arrives as zeros; initial and dinitial may be null.
int64_t recurrence_backward(int64_t dtype, const void* dh, const void* h, const float* decay,
                            const uint8_t* reset, const float* initial, void* du, double* ddecay,
                            float* dinitial, int64_t tokens, int64_t channels, int64_t threads) {
    auto run = dtype ? backward_all<bf16> : backward_all<float>;
    run(dh, h, decay, reset, initial, du, ddecay, dinitial, tokens, channels, int(threads));
    return 0;
}
}
