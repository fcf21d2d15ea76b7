// Experts that average a segment's prefix by running softmax, read by each token: forward and
// backward.
//
// Work is cut into runs of whole segments times heads, which does not depend on the number of
// threads. An item walks its tokens in order with the experts of its head in fp32; the backward
// pass walks them forward once more, keeping a few numbers a token and expert, then backward.
//
// The log-normaliser of an expert is z = highest + log(total). The shares of the state before and
// of a token in the state after it are then at most one whatever the scores, and nothing is lost
// near 1e4, where an fp32 z has no digits left for what one more token adds.
//
// The averages move by K_t = kept_t K_{t-1} + taken_t k_t, and V likewise. With G_t what token t
// asks of them (G^K_t = dlogit_t q_t / sqrt(e) and G^V_t = weight_t do_t) and, within a segment,
//     R_t = G_t + kept_{t+1} R_{t+1}    and so r_t from the scalars G^K_t K_t + G^V_t V_t,
// an expert's part of dk_t is taken_t R^K_t, of dv_t taken_t R^V_t, and as a score's share of an
// average pulls it from where it is to its row, dscore_t = taken_t (R^K_t k_t + R^V_t v_t - r_t).

#include <cmath>
#include <vector>

#include "runs.hpp"
#include "simd.hpp"

using namespace longhaul;

namespace {

typedef std::vector<float> Floats;

int64_t in_vectors(int64_t count) { return (count + 7) / 8 * 8; }

struct Sizes {
    int64_t tokens, heads, experts, width;

    int64_t row(int64_t t, int64_t head) const { return (t * heads + head) * width; }
    int64_t scores(int64_t t, int64_t head) const { return (t * heads + head) * experts; }
    int64_t lanes() const { return in_vectors(width); }  // of a row, filled up with zeros
    int64_t slots() const { return in_vectors(experts); }
};

template <typename T>
struct Inputs {
    const float* scores;
    const T *q, *k, *v;
    const float *z, *keys, *values;  // the state before the first token
    const uint8_t* reset;
};

template <typename T>
struct Gradients {
    float* scores;
    T *q, *k, *v;
    float *z, *keys, *values;
};

template <typename T>
void widen_row(const T* row, Floats& to, int64_t width, float factor = 1.0f) {
    for (int64_t c = 0; c < width; c += 8) store(&to[c], load(row + c, width - c) * factor);
}

template <typename T>
void narrow_row(const Floats& row, T* to, int64_t width, float factor = 1.0f) {
    for (int64_t c = 0; c < width; c += 8) store(to + c, load(&row[c]) * factor, width - c);
}

// The rows of one token and head in fp32; q comes divided by sqrt(e).
struct Rows {
    Floats q, k, v;

    explicit Rows(Sizes n) : q(n.lanes()), k(n.lanes()), v(n.lanes()) {}

    template <typename T>
    void load_from(const Inputs<T>& in, int64_t at, int64_t width) {
        widen_row(in.q + at, q, width, 1.0f / std::sqrt(float(width)));
        widen_row(in.k + at, k, width);
        widen_row(in.v + at, v, width);
    }
};

// Moves each average by its share of the distance to a row; products with a reader of them.
void blend_and_read(Floats& averages, const Floats& row, const float* shares,
                    const Floats& reader, float* products, int64_t count) {
    const int64_t lanes = row.size();
    for (int64_t j = 0; j < count; ++j) {
        float* average = &averages[j * lanes];
        f32x8 product = splat(0.0f);
        for (int64_t c = 0; c < lanes; c += 8) {
            const f32x8 old = load(average + c), now = old + (load(&row[c]) - old) * shares[j];
            store(average + c, now);
            product += now * load(&reader[c]);
        }
        products[j] = sum(product);
    }
}

// The same, but the averages are added up, each with its weight.
void blend_and_sum(Floats& averages, const Floats& row, const float* shares,
                   const float* weights, Floats& sums, int64_t count) {
    const int64_t lanes = row.size();
    for (int64_t c = 0; c < lanes; c += 8) {
        f32x8 total = splat(0.0f);
        for (int64_t j = 0; j < count; ++j) {
            float* average = &averages[j * lanes + c];
            const f32x8 old = load(average), now = old + (load(&row[c]) - old) * shares[j];
            store(average, now);
            total += now * weights[j];
        }
        store(&sums[c], total);
    }
}

// softmax of the first `count`; what fills up the last vector becomes next to nothing.
void softmax(const Floats& logits, float* weights, int64_t count) {
    float highest = logits[0];
    for (int64_t j = 1; j < count; ++j) highest = highest < logits[j] ? logits[j] : highest;
    const int64_t slots = in_vectors(count);
    for (int64_t j = 0; j < slots; ++j) weights[j] = j < count ? logits[j] - highest : -INFINITY;
    f32x8 total = splat(0.0f);
    for (int64_t j = 0; j < slots; j += 8) {
        const f32x8 weight = exp_negative(load(weights + j));
        store(weights + j, weight);
        total += weight;
    }
    const float scale = 1.0f / sum(total);
    for (int64_t j = 0; j < slots; j += 8) store(weights + j, load(weights + j) * scale);
}

// The experts of one head.
struct Experts {
    Floats highest, total, keys, values;

    explicit Experts(Sizes n)
        : highest(n.slots(), -INFINITY), total(n.slots()), keys(n.experts * n.lanes()),
          values(n.experts * n.lanes()) {}

    void clear() {
        highest.assign(highest.size(), -INFINITY);
        for (Floats* part : {&total, &keys, &values}) part->assign(part->size(), 0.0f);
    }

    template <typename T>
    void begin_from(const Inputs<T>& in, Sizes n, int64_t head) {
        for (int64_t j = 0; j < n.experts; ++j) {
            const int64_t expert = head * n.experts + j;
            highest[j] = in.z[expert];
            total[j] = in.z[expert] == -INFINITY ? 0.0f : 1.0f;
            for (int64_t c = 0; c < n.width; ++c) {
                keys[j * n.lanes() + c] = in.keys[expert * n.width + c];
                values[j * n.lanes() + c] = in.values[expert * n.width + c];
            }
        }
    }

    // Takes a token's scores in: the shares of the state before and of the token in that after.
    void weigh(const float* scores, Sizes n, float* kept, float* taken) {
        for (int64_t j = 0; j < n.experts; j += 8) {
            const f32x8 score = load(scores + j, n.experts - j), before = load(&highest[j]);
            const f32x8 rise = score - before;
            const f32x8 smaller = exp_negative(rise > 0.0f ? -rise : rise);
            const f32x8 old = load(&total[j]) * (rise > 0.0f ? smaller : splat(1.0f));
            const f32x8 now = rise > 0.0f ? splat(1.0f) : smaller;
            store(&highest[j], maximum(before, score));
            store(&total[j], old + now);
            store(kept + j, old / (old + now));
            store(taken + j, now / (old + now));
        }
    }
};

template <typename T>
void forward(const Inputs<T>& in, T* read, Sizes n, Range run, int64_t head) {
    Rows rows(n);
    Floats kept(n.slots()), taken(n.slots()), logits(n.slots()), weights(n.slots());
    Floats sums(n.lanes());
    Experts experts(n);
    if (run.begin == 0) experts.begin_from(in, n, head);
    for (int64_t t = run.begin; t < run.end; ++t) {
        const int64_t at = n.row(t, head);
        if (in.reset[t]) experts.clear();
        rows.load_from(in, at, n.width);
        experts.weigh(in.scores + n.scores(t, head), n, kept.data(), taken.data());
        blend_and_read(experts.keys, rows.k, taken.data(), rows.q, logits.data(), n.experts);
        softmax(logits, weights.data(), n.experts);
        blend_and_sum(experts.values, rows.v, taken.data(), weights.data(), sums, n.experts);
        narrow_row(sums, read + at, n.width);
    }
}

// What the backward walk needs of the forward one, for a token and all experts.
struct Step {
    float *kept, *taken, *weights, *dlogits, *pull;

    static constexpr int64_t PARTS = 5;

    Step(Floats& all, int64_t index, int64_t slots) {
        float* part = &all[index * PARTS * slots];
        for (float** of : {&kept, &taken, &weights, &dlogits, &pull}) {
            *of = part;
            part += slots;
        }
    }
};

// Walks forward: dq, and the steps. pull is the product of what a token asks of an expert's
// averages with these averages.
template <typename T>
void backward_reads(const Inputs<T>& in, const T* dread, const Gradients<T>& out, Sizes n,
                    Range run, int64_t head, Floats& steps) {
    const float scale = 1.0f / std::sqrt(float(n.width));
    Rows rows(n);
    Floats upstream(n.lanes()), dq(n.lanes()), logits(n.slots()), dweights(n.slots());
    Experts experts(n);
    if (run.begin == 0) experts.begin_from(in, n, head);
    for (int64_t t = run.begin; t < run.end; ++t) {
        const int64_t at = n.row(t, head);
        const Step step(steps, t - run.begin, n.slots());
        if (in.reset[t]) experts.clear();
        rows.load_from(in, at, n.width);
        widen_row(dread + at, upstream, n.width);
        experts.weigh(in.scores + n.scores(t, head), n, step.kept, step.taken);
        blend_and_read(experts.keys, rows.k, step.taken, rows.q, logits.data(), n.experts);
        blend_and_read(experts.values, rows.v, step.taken, upstream, dweights.data(), n.experts);
        softmax(logits, step.weights, n.experts);
        f32x8 products = splat(0.0f);
        for (int64_t j = 0; j < n.experts; j += 8)
            products += load(step.weights + j) * load(&dweights[j]);
        const float mean = sum(products);
        for (int64_t j = 0; j < n.experts; j += 8) {
            const f32x8 weight = load(step.weights + j), dweight = load(&dweights[j]);
            const f32x8 dlogit = weight * (dweight - mean);
            store(step.dlogits + j, dlogit);
            store(step.pull + j, dlogit * load(&logits[j]) + weight * dweight);
        }
        for (int64_t c = 0; c < n.lanes(); c += 8) {
            f32x8 total = splat(0.0f);
            for (int64_t j = 0; j < n.experts; ++j)
                total += load(&experts.keys[j * n.lanes() + c]) * step.dlogits[j];
            store(&dq[c], total);
        }
        narrow_row(dq, out.q + at, n.width, scale);
    }
}

// What the tokens from some moment on ask of the experts' averages at it, each weighted by the
// share that the moment's state has in its own; `pull` is that of both averages along themselves.
struct Asked {
    Floats keys, values, pull;

    explicit Asked(Sizes n)
        : keys(n.experts * n.lanes()), values(n.experts * n.lanes()), pull(n.experts) {}

    void clear() {
        for (Floats* part : {&keys, &values, &pull}) part->assign(part->size(), 0.0f);
    }

    // Adds what a token asks, takes its own gradients, and goes back over its share.
    void step_back(const Step& step, const Rows& rows, const Floats& upstream, float* dscores,
                   Floats& dk, Floats& dv) {
        const int64_t lanes = rows.k.size(), experts = pull.size();
        dk.assign(lanes, 0.0f);
        dv.assign(lanes, 0.0f);
        for (int64_t j = 0; j < experts; ++j) {
            const float taken = step.taken[j], kept = step.kept[j];
            f32x8 along = splat(0.0f);
            for (int64_t c = 0; c < lanes; c += 8) {
                const int64_t at = j * lanes + c;
                const f32x8 key = load(&keys[at]) + load(&rows.q[c]) * step.dlogits[j];
                const f32x8 value = load(&values[at]) + load(&upstream[c]) * step.weights[j];
                along += key * load(&rows.k[c]) + value * load(&rows.v[c]);
                store(&dk[c], load(&dk[c]) + key * taken);
                store(&dv[c], load(&dv[c]) + value * taken);
                store(&keys[at], key * kept);
                store(&values[at], value * kept);
            }
            const float all = pull[j] + step.pull[j];
            dscores[j] = taken * (sum(along) - all);
            pull[j] = all * kept;
        }
    }

    // What is left before the first token is the initial state's gradient.
    template <typename T>
    void give_to_initial(const Inputs<T>& in, const Gradients<T>& out, Sizes n, int64_t head) {
        for (int64_t j = 0; j < n.experts; ++j) {
            const int64_t expert = head * n.experts + j;
            float along = 0.0f;
            for (int64_t c = 0; c < n.width; ++c) {
                const int64_t at = expert * n.width + c;
                out.keys[at] = keys[j * n.lanes() + c];
                out.values[at] = values[j * n.lanes() + c];
                along += out.keys[at] * in.keys[at] + out.values[at] * in.values[at];
            }
            out.z[expert] = along - pull[j];
        }
    }
};

template <typename T>
void backward(const Inputs<T>& in, const T* dread, const Gradients<T>& out, Sizes n, Range run,
              int64_t head) {
    Floats steps((run.end - run.begin) * Step::PARTS * n.slots());
    backward_reads(in, dread, out, n, run, head, steps);
    Rows rows(n);
    Floats upstream(n.lanes()), dk(n.lanes()), dv(n.lanes());
    Asked asked(n);
    for (int64_t t = run.end - 1; t >= run.begin; --t) {
        const int64_t at = n.row(t, head);
        rows.load_from(in, at, n.width);
        widen_row(dread + at, upstream, n.width);
        asked.step_back(Step(steps, t - run.begin, n.slots()), rows, upstream,
                        out.scores + n.scores(t, head), dk, dv);
        narrow_row(dk, out.k + at, n.width);
        narrow_row(dv, out.v + at, n.width);
        if (in.reset[t]) asked.clear();
    }
    if (run.begin == 0) asked.give_to_initial(in, out, n, head);
}

template <typename Item>
void for_all_items(const uint8_t* reset, Sizes n, int threads, Item item) {
    const std::vector<Range> runs = runs_of_segments(reset, n.tokens);
    const int64_t items = runs.size() * n.heads;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < items; ++i) item(runs[i / n.heads], i % n.heads);
}

template <typename T>
void forward_all(const float* scores, const void* q, const void* k, const void* v, const float* z,
                 const float* keys, const float* values, const uint8_t* reset, void* read, Sizes n,
                 int threads) {
    const Inputs<T> in{scores, (const T*)q, (const T*)k, (const T*)v, z, keys, values, reset};
    for_all_items(reset, n, threads,
                  [&](Range run, int64_t head) { forward(in, (T*)read, n, run, head); });
}

template <typename T>
void backward_all(const float* scores, const void* q, const void* k, const void* v, const float* z,
                  const float* keys, const float* values, const uint8_t* reset, const void* dread,
                  float* dscores, void* dq, void* dk, void* dv, float* dz, float* dkeys,
                  float* dvalues, Sizes n, int threads) {
    const Inputs<T> in{scores, (const T*)q, (const T*)k, (const T*)v, z, keys, values, reset};
    const Gradients<T> out{dscores, (T*)dq, (T*)dk, (T*)dv, dz, dkeys, dvalues};
    for_all_items(reset, n, threads, [&](Range run, int64_t head) {
        backward(in, (const T*)dread, out, n, run, head);
    });
}

}  // namespace

extern "C" {

int64_t experts_forward(int64_t dtype, const float* scores, const void* q, const void* k,
                        const void* v, const float* z, const float* keys, const float* values,
                        const uint8_t* reset, void* read, int64_t tokens, int64_t heads,
                        int64_t experts, int64_t width, int64_t threads) {
    auto run = dtype ? forward_all<bf16> : forward_all<float>;
    const Sizes n{tokens, heads, experts, width};
    run(scores, q, k, v, z, keys, values, reset, read, n, int(threads));
    return 0;
}

int64_t experts_backward(int64_t dtype, const float* scores, const void* q, const void* k,
                         const void* v, const float* z, const float* keys, const float* values,
                         const uint8_t* reset, const void* dread, float* dscores, void* dq,
                         void* dk, void* dv, float* dz, float* dkeys, float* dvalues,
                         int64_t tokens, int64_t heads, int64_t experts, int64_t width,
                         int64_t threads) {
    auto run = dtype ? backward_all<bf16> : backward_all<float>;
    const Sizes n{tokens, heads, experts, width};
    run(scores, q, k, v, z, keys, values, reset, dread, dscores, dq, dk, dv, dz, dkeys, dvalues, n,
        int(threads));
    return 0;
}
}
