// Memory under work: `memhog MIB [DIRTY_MIB_PER_S] [THREADS] [thp]`. Half noise, a quarter repeated text, a quarter zero
// pages touched once; pages are written at the given rate, at random places. It spins, so that it sees every gap.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ticks.h"

static uint64_t seed = 88172645463325252u;

static uint64_t noise(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static void *idle(void *none) {
    for (;;) pause();
    return none;
}

static void fill(char *page, size_t number) {
    switch (number & 3) {
    case 0:
    case 1:
        for (int k = 0; k < 512; k++) ((uint64_t *)(void *)page)[k] = noise();
        break;
    case 2:
        for (int k = 0; k < 4096; k += 32) memcpy(page + k, "the quick brown fox jumps over t", 32);
        break;
    default:
        page[0] = 0;
    }
}

int main(int count, char **words) {
    size_t mib = count > 1 ? strtoul(words[1], 0, 0) : 64, rate = count > 2 ? strtoul(words[2], 0, 0) : 0;
    int threads = count > 3 ? atoi(words[3]) : 1, huge = count > 4 && !strcmp(words[4], "thp");
    size_t bytes = mib << 20, pages = bytes >> 12;
    // Two huge pages more, so that there is a whole number of them.
    char *all = mmap(0, bytes + (2u << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return 1;
    char *memory = (char *)(((uintptr_t)all + (2u << 20) - 1) & ~(uintptr_t)((2u << 20) - 1));
    madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    for (size_t i = 0; i < pages; i++) fill(memory + (i << 12), i);
    for (int i = 1; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, idle, 0)) return 1;
    }
    struct ticks ticks = {0};
    uint64_t start = now_us(), last = start, owed = 0;
    for (;;) {
        tick(&ticks);
        uint64_t now = now_us();
        // What was missed in a gap is not made up for.
        if (now - last < 100000) owed += (now - last) * (rate << 8);
        last = now;
        for (; owed >= 1000000; owed -= 1000000) ((uint64_t *)(void *)(memory + ((noise() % pages) << 12)))[1] = seed;
    }
}
