// A small program: counts in a file that it holds open. `quiet FILE`.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static char block[1 << 20];

int main(int count, char **words) {
    int progress = count > 1 ? open(words[1], O_RDWR | O_CREAT, 0600) : -1;
    struct timespec pause = {0, 5000000};
    char line[32];
    for (unsigned i = 0; i < sizeof block; i++) block[i] = (char)(i * 7 >> 3);
    if (progress < 0) return 1;
    for (unsigned long turns = 1;; turns++) {
        int length = snprintf(line, sizeof line, "%016lu\n", turns);
        if (pwrite(progress, line, (size_t)length, 0) != length) return 1;
        nanosleep(&pause, NULL);
    }
}
