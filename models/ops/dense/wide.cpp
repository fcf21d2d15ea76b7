// The gradients of a linear map's weight and bias: sums over many rows, fp32.
//
// A thread owns blocks of the gradients and goes through the rows in stretches that stay in cache:
// nothing is summed over threads, and results do not depend on their number.

#include <algorithm>
#include <vector>

#include <omp.h>

#include "gemm.hpp"

using namespace longhaul;

namespace {

constexpr int64_t STRETCH = 256;  // rows; sums are made of sums of so many
constexpr int FEW = 4;            // rows of a block where fewer than ROWS are left

struct Stretch {
    const float *dy, *x;
    int64_t rows, out, in;
    bool first;

    // R rows of the weight's gradient and one panel of its columns.
    template <int R>
    void add(int64_t o, int64_t i, float* dweight) const {
        Sums<R> sums(f32wide{}, f32wide{});
        sums.add_product(dy + o, 1, out, x + i, in, rows);
        first ? sums.write(dweight + o * in + i, in) : sums.add_to(dweight + o * in + i, in);
    }

    // In the order of memory: with it the stretch comes into cache.
    void add(int64_t begin, int64_t end, float* sums, float* dbias) const {
        std::fill(sums + begin, sums + end, 0.0f);
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t o = begin; o < end; ++o) sums[o] += dy[row * out + o];
        for (int64_t o = begin; o < end; ++o) dbias[o] = first ? sums[o] : dbias[o] + sums[o];
    }
};

}  // namespace

// dweight [out, in] = dy^T x and dbias [out] of dy [rows, out] and x [rows, in]; dbias may be null.
// Where blocks of ROWS and FEW do not make up `out`, or panels `in`: writes nothing, returns 1.
extern "C" int64_t linear_gradients(const float* dy, const float* x, int64_t rows, int64_t out,
                                    int64_t in, float* dweight, float* dbias, int64_t threads) {
    if (rows == 0 || out % ROWS % FEW || in % PANEL) return 1;
    const int64_t large = out / ROWS, blocks = large + out % ROWS / FEW, panels = in / PANEL;
    const int64_t units = blocks * panels;
    const bool wide = in >= out;  // the threads share out the longer side
#pragma omp parallel num_threads(int(threads))
    {
        const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        std::vector<float> sums(out);
        for (int64_t row = 0; row < rows; row += STRETCH) {
            const int64_t count = std::min(STRETCH, rows - row);
            const Stretch stretch{dy + row * out, x + row * in, count, out, in, row == 0};
            if (dbias) stretch.add(out * me / all, out * (me + 1) / all, sums.data(), dbias);
            for (int64_t unit = units * me / all; unit < units * (me + 1) / all; ++unit) {
                const int64_t block = wide ? unit % blocks : unit / panels;
                const int64_t i = (wide ? unit / blocks : unit % panels) * PANEL;
                if (block < large)
                    stretch.add<ROWS>(block * ROWS, i, dweight);
                else
                    stretch.add<FEW>(large * ROWS + (block - large) * FEW, i, dweight);
            }
        }
    }
    return 0;
}
