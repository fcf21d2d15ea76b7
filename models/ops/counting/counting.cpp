// Rows of scores against thresholds: counts, and whether all are finite. fp32.

#include <cfloat>
#include <cmath>
#include <cstdint>

extern "C" int64_t count_reaching(const float* x, int64_t width, const int64_t* rows,
                                  const float* goals, int64_t count, int64_t* above,
                                  int64_t* reached, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(int(threads))
    for (int64_t j = 0; j < count; ++j) {
        const float* row = x + rows[j] * width;
        const float goal = goals[j];
        int32_t greater = 0, at_least = 0;
        for (int64_t i = 0; i < width; ++i) {
            greater += row[i] > goal;
            at_least += row[i] >= goal;
        }
        above[j] = greater;
        reached[j] = at_least;
    }
    return 0;
}

extern "C" int64_t add_health(const float* x, int64_t count, int64_t width, float* health,
                              int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(int(threads))
    for (int64_t j = 0; j < count; ++j) {
        const float* row = x + j * width;
        int32_t finite = 0;
        for (int64_t i = 0; i < width; ++i) finite += std::fabs(row[i]) <= FLT_MAX;
        if (finite < width) health[j] = NAN;
    }
    return 0;
}
