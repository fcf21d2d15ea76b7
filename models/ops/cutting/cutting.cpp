// Events of segments, widened to what an embedding takes. One thread: the stream has its own, and
// the memory is the limit.

#include <cstdint>

extern "C" int64_t cut_segments(const uint32_t* const* events, const int64_t* array,
                                const int64_t* begin, const int64_t* length, const uint8_t* bos,
                                int64_t segments, int64_t* items, int64_t* targets, int64_t) {
    for (int64_t s = 0; s < segments; ++s) {
        const int64_t n = length[s];
        if (n <= 0) continue;
        const uint32_t* from = events[array[s]] + begin[s];
        items[0] = bos[s] ? 0 : from[-1];
        for (int64_t i = 0; i < n; ++i) targets[i] = from[i];
        for (int64_t i = 1; i < n; ++i) items[i] = from[i - 1];
        items += n;
        targets += n;
    }
    return 0;
}
