// Depthwise causal convolution over packed segments, forward and backward.
//
// The weight arrives as [width][channels]; its last row applies to the token itself, the row
// before to the token one earlier, and so on. Sums are in fp32. The sums over tokens of the
// weight's and the bias's gradients are cut into blocks of ROWS tokens, added up in order, so that
// the result does not depend on the number of threads.

#include <algorithm>
#include <vector>

#include "simd.hpp"

using namespace longhaul;

namespace {

constexpr int64_t ROWS = 64;

struct Shape {
    int64_t tokens, channels, width;
};

// How many tokens, at most `width`, token t sees in its segment: itself and those before it.
inline int64_t count_seen(const uint8_t* reset, int64_t t, Shape shape) {
    int64_t count = 1;
    while (count < shape.width && count <= t && !reset[t - count + 1]) ++count;
    return count;
}

// How many tokens see token t: itself and those after it.
inline int64_t count_seers(const uint8_t* reset, int64_t t, Shape shape) {
    int64_t count = 1;
    while (count < shape.width && t + count < shape.tokens && !reset[t + count]) ++count;
    return count;
}

template <typename T>
void forward(const void* x_, const float* weight, const float* bias, const uint8_t* reset, void* y_,
             Shape shape, int threads) {
    const T* x = (const T*)x_;
    T* y = (T*)y_;
    const int64_t channels = shape.channels;
    const float* newest = weight + (shape.width - 1) * channels;
#pragma omp parallel for schedule(dynamic, ROWS) num_threads(threads)
    for (int64_t t = 0; t < shape.tokens; ++t) {
        const int64_t seen = count_seen(reset, t, shape);
        for (int64_t c = 0; c < channels; c += 8) {
            const int64_t at = t * channels + c, left = channels - c;
            f32x8 total = load(bias + c, left);
            for (int64_t lag = 0; lag < seen; ++lag)
                total += load(newest - lag * channels + c, left) *
                         load(x + at - lag * channels, left);
            store(y + at, total, left);
        }
    }
}

// dx of one token; its share of dweight and dbias is added to `sums`, [width + 1][padded], the
// row `lag` for the token that much earlier and the last row for the bias.
template <typename T>
void backward_token(const T* dy, const T* x, const float* newest, const uint8_t* reset, T* dx,
                    float* sums, int64_t padded, int64_t t, Shape shape) {
    const int64_t channels = shape.channels;
    const int64_t seen = count_seen(reset, t, shape), seers = count_seers(reset, t, shape);
    for (int64_t c = 0; c < channels; c += 8) {
        const int64_t at = t * channels + c, left = channels - c;
        f32x8 total = {};
        for (int64_t lag = 0; lag < seers; ++lag)
            total += load(newest - lag * channels + c, left) * load(dy + at + lag * channels, left);
        store(dx + at, total, left);
        const f32x8 gradient = load(dy + at, left);
        for (int64_t lag = 0; lag < seen; ++lag) {
            float* sum = sums + lag * padded + c;
            store(sum, load(sum) + gradient * load(x + at - lag * channels, left));
        }
        float* sum = sums + shape.width * padded + c;
        store(sum, load(sum) + gradient);
    }
}

template <typename T>
void backward(const void* dy, const void* x, const float* weight, const uint8_t* reset, void* dx,
              float* dweight, float* dbias, Shape shape, int threads) {
    const int64_t channels = shape.channels, width = shape.width;
    const int64_t padded = (channels + 7) / 8 * 8, size = (width + 1) * padded;
    const int64_t blocks = (shape.tokens + ROWS - 1) / ROWS;
    const float* newest = weight + (width - 1) * channels;
    std::vector<float> partial(blocks * size);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t block = 0; block < blocks; ++block) {
        float* sums = partial.data() + block * size;
        const int64_t end = std::min(shape.tokens, (block + 1) * ROWS);
        for (int64_t t = block * ROWS; t < end; ++t)
            backward_token((const T*)dy, (const T*)x, newest, reset, (T*)dx, sums, padded, t,
                           shape);
    }
    for (int64_t row = 0; row <= width; ++row) {
        float* to = row < width ? dweight + (width - 1 - row) * channels : dbias;
        for (int64_t c = 0; c < channels; ++c) {
            double total = 0;
            for (int64_t block = 0; block < blocks; ++block)
                total += partial[block * size + row * padded + c];
            to[c] = float(total);
        }
    }
}

}  // namespace

extern "C" {

int64_t convolution_forward(int64_t dtype, const void* x, const float* weight, const float* bias,
                            const uint8_t* reset, void* y, int64_t tokens, int64_t channels,
                            int64_t width, int64_t threads) {
    auto run = dtype ? forward<bf16> : forward<float>;
    run(x, weight, bias, reset, y, Shape{tokens, channels, width}, int(threads));
    return 0;
}

int64_t convolution_backward(int64_t dtype, const void* dy, const void* x, const float* weight,
                             const uint8_t* reset, void* dx, float* dweight, float* dbias,
                             int64_t tokens, int64_t channels, int64_t width, int64_t threads) {
    auto run = dtype ? backward<bf16> : backward<float>;
    run(dy, x, weight, reset, dx, dweight, dbias, Shape{tokens, channels, width}, int(threads));
    return 0;
}
}
