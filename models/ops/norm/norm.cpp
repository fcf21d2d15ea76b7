// LayerNorm(residual + dropout(x)), forward and backward, one pass over each row.

#include <algorithm>
#include <cmath>
#include <vector>

#include "masks/mask.hpp"

using namespace longhaul;

namespace {

constexpr int64_t ROWS = 64;  // a partial sum of the weight gradients covers this many rows

struct Shape {
    int64_t rows, columns;
    int64_t padded() const { return (columns + 7) / 8 * 8; }
};

// residual + dropout(x) of one row in fp32, zero past the last column.
template <typename T>
void add(const T* x, const T* residual, const Mask& mask, int64_t row, int64_t columns,
         float* sum_row) {
    const int64_t first = row * columns;
    for (int64_t c = 0; c < columns; c += 8) {
        f32x8 value = load(x + first + c, columns - c) * mask.factors(first + c);
        if (residual) value += load(residual + first + c, columns - c);
        store(sum_row + c, value);
    }
}

template <typename T>
void forward(const void* x_, const void* residual_, const float* weight, const float* bias,
             void* y_, float* statistics, Shape shape, double eps, Mask mask, int threads) {
    const T *x = (const T*)x_, *residual = (const T*)residual_;
    T* y = (T*)y_;
    const int64_t d = shape.columns;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> buffer(shape.padded());
        float* s = buffer.data();
#pragma omp for schedule(dynamic, ROWS)
        for (int64_t row = 0; row < shape.rows; ++row) {
            add(x, residual, mask, row, d, s);
            f32x8 total = {};
            for (int64_t c = 0; c < d; c += 8) total += load(s + c);
            const float mean = sum(total) / float(d);
            f32x8 squares = {};
            for (int64_t c = 0; c < d; c += 8) {
                f32x8 centred = load(s + c) - mean;
                if (d - c < 8)
                    for (int64_t lane = d - c; lane < 8; ++lane) centred[lane] = 0.0f;
                squares += centred * centred;
            }
            const float scale = 1.0f / std::sqrt(sum(squares) / float(d) + float(eps));
            for (int64_t c = 0; c < d; c += 8) {
                f32x8 normal = (load(s + c) - mean) * scale;
                store(y + row * d + c, normal * load(weight + c, d - c) + load(bias + c, d - c),
                      d - c);
            }
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = scale;
        }
    }
}

// ds = scale (dy w - mean(dy w) - n mean(dy w n)), n the normalised row; dx = factor * ds.
template <typename T>
void backward(const void* dy_, const void* x_, const void* residual_, const float* weight,
              const float* statistics, void* dx_, void* dresidual_, float* dweight, float* dbias,
              Shape shape, Mask mask, int threads) {
    const T *dy = (const T*)dy_, *x = (const T*)x_, *residual = (const T*)residual_;
    T *dx = (T*)dx_, *dresidual = (T*)dresidual_;
    const int64_t d = shape.columns, padded = shape.padded();
    const int64_t blocks = (shape.rows + ROWS - 1) / ROWS;
    std::vector<float> partial(blocks * 2 * padded);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> buffer(3 * padded);
        float *normal = buffer.data(), *gradient = normal + padded, *w = gradient + padded;
        for (int64_t c = 0; c < d; ++c) w[c] = weight[c];
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < blocks; ++block) {
            float *dw = partial.data() + block * 2 * padded, *db = dw + padded;
            const int64_t end = std::min(shape.rows, (block + 1) * ROWS);
            for (int64_t row = block * ROWS; row < end; ++row) {
                const float mean = statistics[2 * row], scale = statistics[2 * row + 1];
                add(x, residual, mask, row, d, normal);
                f32x8 sum_g = {}, sum_gn = {};
                for (int64_t c = 0; c < d; c += 8) {
                    f32x8 n = (load(normal + c) - mean) * scale;
                    f32x8 upstream = load(dy + row * d + c, d - c);
                    f32x8 g = upstream * load(w + c);
                    store(normal + c, n);
                    store(gradient + c, g);
                    store(dw + c, load(dw + c) + upstream * n);
                    store(db + c, load(db + c) + upstream);
                    sum_g += g;
                    sum_gn += g * n;
                }
                const float mean_g = sum(sum_g) / float(d), mean_gn = sum(sum_gn) / float(d);
                for (int64_t c = 0; c < d; c += 8) {
                    f32x8 ds = (load(gradient + c) - mean_g - load(normal + c) * mean_gn) * scale;
                    if (dresidual) store(dresidual + row * d + c, ds, d - c);
                    store(dx + row * d + c, ds * mask.factors(row * d + c), d - c);
                }
            }
        }
    }
    for (int64_t c = 0; c < d; ++c) {
        double total_w = 0, total_b = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            total_w += partial[block * 2 * padded + c];
            total_b += partial[block * 2 * padded + padded + c];
        }
        dweight[c] = float(total_w);
        dbias[c] = float(total_b);
    }
}

}  // namespace

extern "C" {

// statistics [rows, 2] receives mean and 1 / deviation; residual may be null.
int64_t norm_forward(int64_t dtype, const void* x, const void* residual, const float* weight,
                     const float* bias, void* y, float* statistics, int64_t rows, int64_t columns,
                     double eps, const uint8_t* mask, double scale, int64_t threads) {
    auto run = dtype ? forward<bf16> : forward<float>;
    run(x, residual, weight, bias, y, statistics, {rows, columns}, eps, Mask{mask, float(scale)},
        int(threads));
    return 0;
}

int64_t norm_backward(int64_t dtype, const void* dy, const void* x, const void* residual,
                      const float* weight, const float* statistics, void* dx, void* dresidual,
                      float* dweight, float* dbias, int64_t rows, int64_t columns,
                      const uint8_t* mask, double scale, int64_t threads) {
    auto run = dtype ? backward<bf16> : backward<float>;
    run(dy, x, residual, weight, statistics, dx, dresidual, dweight, dbias, {rows, columns},
        Mask{mask, float(scale)}, int(threads));
    return 0;
}
}
