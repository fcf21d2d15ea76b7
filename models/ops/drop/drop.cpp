// y = x * mask / (1 - p); the same kernel takes the gradient back.

#include <algorithm>

#include "masks/mask.hpp"

using namespace longhaul;

namespace {

constexpr int64_t CHUNK = 8192;  // elements a work item

template <typename T>
void apply(const void* x_, void* y_, int64_t count, Mask mask, int threads) {
    const T* x = (const T*)x_;
    T* y = (T*)y_;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t begin = 0; begin < count; begin += CHUNK)
        for (int64_t i = begin; i < std::min(count, begin + CHUNK); i += 8)
            store(y + i, load(x + i, count - i) * mask.factors(i), count - i);
}

}  // namespace

extern "C" int64_t drop_apply(int64_t dtype, const void* x, void* y, int64_t count,
                              const uint8_t* mask, double scale, int64_t threads) {
    auto run = dtype ? apply<bf16> : apply<float>;
    run(x, y, count, {mask, float(scale)}, int(threads));
    return 0;
}
