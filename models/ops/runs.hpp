// How kernels that walk tokens in order share out a packed batch: runs of whole segments, which do
// not depend on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

namespace longhaul {

constexpr int64_t RUN = 256;

struct Range {
    int64_t begin, end;
};

// Runs of whole segments of at least RUN tokens each, but for the last.
inline std::vector<Range> runs_of_segments(const uint8_t* reset, int64_t tokens) {
    std::vector<Range> runs;
    int64_t begin = 0;
    for (int64_t t = 1; t < tokens; ++t) {
        if (reset[t] && t - begin >= RUN) {
            runs.push_back({begin, t});
            begin = t;
        }
    }
    if (begin < tokens) runs.push_back({begin, tokens});
    return runs;
}

}  // namespace longhaul
