// What every program under measure tells: "tick N max_gap_us G ended_us T turns U" once a second, G being the longest time
// in which it got nothing done, T when that ended, on the monotonic clock, U how often it has come by.
#include <stdint.h>
#include <stdio.h>
#include <time.h>

struct ticks {
    uint64_t begun, last, gap, ended, count, turns;
};

static inline uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

// To be called all the time; true once a second, when a line was written.
static inline int tick(struct ticks *t) {
    uint64_t now = now_us();
    t->turns++;
    if (t->begun == 0) t->begun = t->last = now;
    if (now - t->last >= t->gap) {
        t->gap = now - t->last;
        t->ended = now;
    }
    t->last = now;
    if (now - t->begun < 1000000) return 0;
    printf("tick %llu max_gap_us %llu ended_us %llu turns %llu\n", (unsigned long long)++t->count,
           (unsigned long long)t->gap, (unsigned long long)t->ended, (unsigned long long)t->turns);
    fflush(stdout);
    t->begun = t->last = now_us();
    t->gap = t->turns = 0;
    return 1;
}
