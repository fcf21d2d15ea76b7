// Reads a dropout mask: what eight neighbouring elements are multiplied by.
#pragma once

#include "simd.hpp"

namespace longhaul {

struct Mask {
    const uint8_t* bits;  // one an element; null: nothing is dropped
    float scale;

    // The bits may start anywhere in a byte, so two bytes are read: a mask ends with a spare one.
    f32x8 factors(int64_t element) const {
        if (!bits) return splat(1.0f);
        const uint8_t* from = bits + (element >> 3);
        const int32_t eight = (from[0] | from[1] << 8) >> (element & 7);
        const i32x8 dropped = (i32x8{1, 2, 4, 8, 16, 32, 64, 128} & eight) == 0;
        return (f32x8)(~dropped & (i32x8)splat(scale));
    }
};

}  // namespace longhaul
