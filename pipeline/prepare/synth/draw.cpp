// One slice of time of a synthetic log; reference.py says the same in numpy, to the last bit.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

using u128 = unsigned __int128;

struct User {  // USER of users.py
    uint64_t hash;
    double pace;
    uint32_t key, begin, length, done, last, due;
};

struct Column {  // COLUMN of process.py
    uint32_t below, own, other;
};

uint64_t scaled(uint64_t word, uint64_t size) { return uint64_t(u128(word) * size >> 64); }

// Running sums of weights to pick from, with a guide: between which two indices the search for an
// x begins and ends, by the upper byte of x.
struct Sums {
    const uint32_t* sums;
    uint32_t guide[257];

    Sums(const uint32_t* sums, int64_t size) : sums(sums) {
        for (uint64_t byte = 0; byte <= 256; ++byte) {
            const auto at = std::upper_bound(sums, sums + size, byte << 24);
            guide[byte] = uint32_t(std::min(at - sums, size - 1));
        }
    }

    // The first index whose running sum is above x, for x below the last of all.
    int64_t search(uint64_t x) const {
        int64_t low = guide[x >> 24], size = guide[(x >> 24) + 1] - low + 1;
        while (size > 1) {
            const int64_t half = size / 2;
            low += sums[low + half - 1] <= x ? half : 0;
            size -= half;
        }
        return low;
    }

    int64_t pick(int64_t size, uint64_t word) const { return search(scaled(word, sums[size - 1])); }
};

struct Process {
    uint64_t items;
    const Column* columns;
    const uint32_t* firsts;
    const uint16_t* topics;
    Sums topic_sums;
    int64_t topic_count;
    const uint32_t* steps;
    Sums rank_sums;
    int64_t ranks;
    Sums age_sums;
    int64_t memory;
    uint64_t markov_below, topical_below;
};

uint64_t bits(const User& user, uint64_t number, uint64_t use) {
    uint64_t v = user.hash + (3 * number + use) * 0x9E3779B97F4A7C15u;
    v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9u;
    v = (v ^ (v >> 27)) * 0x94D049BB133111EBu;
    return v ^ (v >> 31);
}

int64_t second(const User& user, uint64_t number, uint64_t word) {
    const double part = double(uint32_t(word)) * 0x1p-32;
    return user.begin + int64_t(number) + int64_t((double(number) + part) * user.pace);
}

// A user whose next event is being drawn, in two stages with the memory's latency between them:
// what is to be read is asked for a whole group of users before any of it is used.
struct Lane {
    User* user;
    uint16_t* recent;  // topics of the last events; slot: the place of the next one
    int64_t slot;
    int64_t at;  // place of the next event in the output
    uint64_t word;
    const Column* column;  // null where the item follows the last one
    uint32_t item, part, topic;
};

void ask(const Process& p, Lane& lane) {
    const User& user = *lane.user;
    lane.word = bits(user, user.done, 0);
    const uint64_t kind = user.done == 0 ? uint64_t(1) << 32 : lane.word >> 32;
    const uint64_t which = bits(user, user.done, 1);
    if (kind < p.markov_below) {
        const uint64_t item = uint64_t(user.last) + p.steps[p.rank_sums.pick(p.ranks, which)];
        lane.item = uint32_t(item < p.items ? item : item - p.items);
        lane.column = nullptr;
        __builtin_prefetch(p.topics + lane.item);
        return;
    }
    const uint64_t past = bits(user, user.done, 2);
    if (kind < p.topical_below) {
        const int64_t age = p.age_sums.pick(std::min<int64_t>(user.done, p.memory), past);
        const int64_t place = lane.slot - 1 - age;
        lane.topic = lane.recent[place < 0 ? place + p.memory : place];
    } else {
        lane.topic = uint32_t(p.topic_sums.pick(p.topic_count, past));
    }
    const uint32_t first = p.firsts[lane.topic];
    const u128 product = u128(which) * (p.firsts[lane.topic + 1] - first);
    lane.column = p.columns + first + uint64_t(product >> 64);
    lane.part = uint32_t(uint64_t(product) >> 32);
    __builtin_prefetch(lane.column);
}

void remember(const Process& p, Lane& lane) {
    if (lane.column) {
        lane.item = lane.part < lane.column->below ? lane.column->own : lane.column->other;
    } else {
        lane.topic = p.topics[lane.item];
    }
    lane.recent[lane.slot] = uint16_t(lane.topic);
    lane.slot = lane.slot + 1 == p.memory ? 0 : lane.slot + 1;
    lane.user->last = lane.item;
    ++lane.user->done;
    --lane.user->due;
}

// Runs part(0) to part(count - 1) on threads that sleep when they wait, as OpenMP's do not: another
// thread writes the slice before this one meanwhile.
template <class Part>
void share(int64_t count, int64_t threads, Part part) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t n; (n = next++) < count;) part(n);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < std::min(threads, count); ++t) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
}

constexpr int64_t BLOCK = 1024, LANES = 32;

}  // namespace

// Sets the number of events of each user that are due before a second; returns their sum.
extern "C" int64_t synth_count(User* users, int64_t count, int64_t end, int64_t threads) {
    std::atomic<int64_t> total{0};
    share((count + BLOCK - 1) / BLOCK, threads, [&](int64_t b) {
        int64_t sum = 0;
        for (int64_t u = b * BLOCK; u < std::min(count, (b + 1) * BLOCK); ++u) {
            User& user = users[u];
            user.due = 0;
            if (user.done == user.length || user.begin >= end) continue;
            // So many are over for certain; the few more are tried.
            const int64_t sure = int64_t(double(end - user.begin) / (user.pace + 1)) - 1;
            uint64_t until = std::min<int64_t>(user.length, std::max<int64_t>(user.done, sure));
            while (until < user.length && second(user, until, bits(user, until, 0)) < end) ++until;
            user.due = uint32_t(until - user.done);
            sum += user.due;
        }
        total += sum;
    });
    return total;
}

// The events that are due, in the order of (second, user).
extern "C" int64_t synth_draw(User* users, uint16_t* recent, int64_t count, int64_t items,
                              const Column* columns, const uint32_t* firsts,
                              const uint16_t* topics, const uint32_t* topic_sums,
                              int64_t topic_count, const uint32_t* steps,
                              const uint32_t* rank_sums, int64_t ranks, const uint32_t* age_sums,
                              int64_t memory, int64_t markov_below, int64_t topical_below,
                              int64_t start, int64_t end, int64_t events, int32_t* user_keys,
                              int32_t* item_keys, int64_t* times, int64_t threads) {
    // Kept from slice to slice: to get as much memory from the system again takes longer.
    thread_local std::vector<uint32_t> seconds;
    thread_local std::vector<uint64_t> pairs, sorted;
    const Process p{uint64_t(items),
                    columns,
                    firsts,
                    topics,
                    Sums(topic_sums, topic_count),
                    topic_count,
                    steps,
                    Sums(rank_sums, ranks),
                    ranks,
                    Sums(age_sums, memory),
                    memory,
                    uint64_t(markov_below),
                    uint64_t(topical_below)};
    if (events > int64_t(seconds.size())) {
        seconds.resize(events);
        pairs.resize(events);
        sorted.resize(events);
    }
    uint32_t* const at_second = seconds.data();
    uint64_t *const drawn = pairs.data(), *const ordered = sorted.data();
    const int64_t blocks = (count + BLOCK - 1) / BLOCK;
    std::vector<int64_t> offsets(blocks + 1, 0);
    for (int64_t b = 0; b < blocks; ++b) {
        offsets[b + 1] = offsets[b];
        for (int64_t u = b * BLOCK; u < std::min(count, (b + 1) * BLOCK); ++u)
            offsets[b + 1] += users[u].due;
    }
    share(blocks, threads, [&](int64_t b) {
        int64_t at = offsets[b], lanes = 0;
        Lane lane[LANES];
        User *next = users + b * BLOCK, *last = users + std::min(count, (b + 1) * BLOCK);
        while (true) {
            for (; lanes < LANES && next < last; ++next) {
                if (next->due == 0) continue;
                Lane& free = lane[lanes++];
                free.user = next;
                free.recent = recent + (next - users) * memory;
                free.slot = next->done % memory;
                free.at = at;
                at += next->due;
            }
            if (lanes == 0) break;
            for (int64_t n = 0; n < lanes; ++n) ask(p, lane[n]);
            for (int64_t n = 0; n < lanes; ++n) {
                Lane& own = lane[n];
                const User& user = *own.user;
                at_second[own.at] = uint32_t(second(user, user.done, own.word) - start);
                remember(p, own);
                drawn[own.at++] = uint64_t(user.key) << 32 | (own.item + 1);
            }
            for (int64_t n = lanes - 1; n >= 0; --n)
                if (lane[n].user->due == 0) lane[n] = lane[--lanes];
        }
    });

    // A stable counting sort by second: every thread counts, then moves, its part of the events.
    const int64_t span = end - start;
    threads = std::min(threads, 1 + events / span);
    std::vector<std::vector<uint32_t>> places(threads, std::vector<uint32_t>(span, 0));
    share(threads, threads, [&](int64_t t) {
        for (int64_t i = events * t / threads; i < events * (t + 1) / threads; ++i)
            ++places[t][at_second[i]];
    });
    uint32_t place = 0;
    for (int64_t s = 0; s < span; ++s) {
        const uint32_t first = place;
        for (int64_t t = 0; t < threads; ++t) {
            const uint32_t own = places[t][s];
            places[t][s] = place;
            place += own;
        }
        for (uint32_t i = first; i < place; ++i) times[i] = start + s;
    }
    share(threads, threads, [&](int64_t t) {
        for (int64_t i = events * t / threads; i < events * (t + 1) / threads; ++i)
            ordered[places[t][at_second[i]]++] = drawn[i];
    });
    share(threads, threads, [&](int64_t t) {
        for (int64_t i = events * t / threads; i < events * (t + 1) / threads; ++i) {
            user_keys[i] = int32_t(ordered[i] >> 32);
            item_keys[i] = int32_t(uint32_t(ordered[i]));
        }
    });
    return 0;
}
