// dropout(gelu(x + bias)) with the exact (erf) GELU, forward and backward.

#include <algorithm>
#include <vector>

#include "masks/mask.hpp"

using namespace longhaul;

namespace {

constexpr int64_t ROWS = 64;  // a partial sum of the bias gradient covers this many rows

// The normal distribution function and density.
struct Normal {
    f32x8 below, density;
};

// erfc(z) = exp(-z^2) t P(t), t = 1 / (1 + z / 2), z >= 0: P is the degree-8 fit with the least
// relative error, 4.3e-8. Both tails keep their relative accuracy.
inline Normal normal(f32x8 x) {
    f32x8 magnitude = x < 0.0f ? -x : x;
    f32x8 t = 1.0f / (1.0f + magnitude * 0.353553391f);
    f32x8 p = splat(-0.0590692158f);
    p = p * t + 0.28457617f;
    p = p * t + -0.487202302f;
    p = p * t + 0.27806979f;
    p = p * t + -0.0266278664f;
    p = p * t + 0.202687575f;
    p = p * t + 0.243103601f;
    p = p * t + 0.282375329f;
    p = p * t + 0.282086417f;
    f32x8 bell = exp_negative(x * x * -0.5f);
    f32x8 tail = p * t * bell * 0.5f;
    return {x < 0.0f ? tail : 1.0f - tail, bell * 0.39894228f};
}

template <typename T>
void forward(const void* x_, const float* bias, void* y_, int64_t rows, int64_t columns, Mask mask,
             int threads) {
    const T* x = (const T*)x_;
    T* y = (T*)y_;
#pragma omp parallel for schedule(dynamic, ROWS) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t c = 0; c < columns; c += 8) {
            const int64_t at = row * columns + c, left = columns - c;
            const f32x8 value = load(x + at, left) + load(bias + c, left);
            store(y + at, value * normal(value).below * mask.factors(at), left);
        }
    }
}

template <typename T>
void backward(const void* dy_, const void* x_, const float* bias, void* dx_, float* dbias,
              int64_t rows, int64_t columns, Mask mask, int threads) {
    const T *dy = (const T*)dy_, *x = (const T*)x_;
    T* dx = (T*)dx_;
    const int64_t padded = (columns + 7) / 8 * 8, blocks = (rows + ROWS - 1) / ROWS;
    std::vector<float> partial(blocks * padded);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t block = 0; block < blocks; ++block) {
        float* sums = partial.data() + block * padded;
        for (int64_t row = block * ROWS; row < std::min(rows, (block + 1) * ROWS); ++row) {
            for (int64_t c = 0; c < columns; c += 8) {
                const int64_t at = row * columns + c, left = columns - c;
                const f32x8 value = load(x + at, left) + load(bias + c, left);
                const Normal n = normal(value);
                const f32x8 slope = n.below + value * n.density;
                const f32x8 gradient = load(dy + at, left) * mask.factors(at) * slope;
                store(dx + at, gradient, left);
                store(sums + c, load(sums + c) + gradient);
            }
        }
    }
    for (int64_t c = 0; c < columns; ++c) {
        double total = 0;
        for (int64_t block = 0; block < blocks; ++block) total += partial[block * padded + c];
        dbias[c] = float(total);
    }
}

}  // namespace

extern "C" {

int64_t activation_forward(int64_t dtype, const void* x, const float* bias, void* y, int64_t rows,
                           int64_t columns, const uint8_t* mask, double scale, int64_t threads) {
    auto run = dtype ? forward<bf16> : forward<float>;
    run(x, bias, y, rows, columns, Mask{mask, float(scale)}, int(threads));
    return 0;
}

int64_t activation_backward(int64_t dtype, const void* dy, const void* x, const float* bias,
                            void* dx, float* dbias, int64_t rows, int64_t columns,
                            const uint8_t* mask, double scale, int64_t threads) {
    auto run = dtype ? backward<bf16> : backward<float>;
    run(dy, x, bias, dx, dbias, rows, columns, Mask{mask, float(scale)}, int(threads));
    return 0;
}
}
