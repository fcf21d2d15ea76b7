// The k best of n * n slots, whose scores are sums of two halves' scores.

#include <cstdint>
#include <vector>

namespace {

// The best so far, in order: the higher score, of equal ones the lower place.
class Best {
public:
    explicit Best(int64_t most) : scores(most), places(most) {}

    void clear() { count = 0; }

    void offer(float score, int64_t place) {
        const int64_t most = scores.size();
        if (count == most && !before(score, place, most - 1)) return;
        int64_t at = count < most ? count++ : most - 1;
        for (; at > 0 && before(score, place, at - 1); --at) {
            scores[at] = scores[at - 1];
            places[at] = places[at - 1];
        }
        scores[at] = score;
        places[at] = place;
    }

    std::vector<float> scores;
    std::vector<int64_t> places;

private:
    int64_t count = 0;

    bool before(float score, int64_t place, int64_t other) const {
        return score > scores[other] || (score == scores[other] && place < places[other]);
    }
};

}  // namespace

extern "C" {

// halves: [queries, 2, n]; slots: [queries, k], k <= n.
int64_t product_keys_select(const float* halves, int64_t* slots, int64_t queries, int64_t n,
                            int64_t k, int64_t threads) {
#pragma omp parallel num_threads(int(threads))
    {
        Best first(k), second(k), both(k);
#pragma omp for schedule(static)
        for (int64_t query = 0; query < queries; ++query) {
            const float* scores = halves + query * 2 * n;
            first.clear();
            second.clear();
            both.clear();
            for (int64_t i = 0; i < n; ++i) {
                first.offer(scores[i], i);
                second.offer(scores[n + i], i);
            }
            // The pair of ranks (a, b) comes after all other pairs of ranks up to a and up to b.
            for (int64_t a = 0; a < k; ++a)
                for (int64_t b = 0; (a + 1) * (b + 1) <= k; ++b)
                    both.offer(first.scores[a] + second.scores[b],
                               first.places[a] * n + second.places[b]);
            for (int64_t rank = 0; rank < k; ++rank) slots[query * k + rank] = both.places[rank];
        }
    }
    return 0;
}
}
