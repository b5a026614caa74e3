// A tree: `family PROCESSES MIB`. One heap, filled before the forks; every child has a page of its own.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ticks.h"

int main(int count, char **words) {
    if (count < 3) return 2;
    int processes = atoi(words[1]);
    size_t bytes = strtoul(words[2], 0, 0) << 20;
    char *heap = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (heap == MAP_FAILED) return 1;
    uint64_t seed = 88172645463325252u;
    for (size_t i = 0; i < bytes / 8; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        ((uint64_t *)(void *)heap)[i] = seed;
    }
    for (int i = 1; i < processes; i++) {
        pid_t child = fork();
        if (child < 0) return 1;
        if (child == 0) {
            memcpy(heap + (size_t)i * 4096 % bytes, &i, sizeof i);
            for (;;) pause();
        }
    }
    struct ticks ticks = {0};
    struct timespec pause = {0, 100000};
    for (;;) {
        tick(&ticks);
        nanosleep(&pause, 0);
    }
}
