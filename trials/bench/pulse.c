// Tells the gaps of the tree that it is part of: it is stopped and let go with all others.
#define _GNU_SOURCE
#include "ticks.h"

int main(void) {
    struct ticks ticks = {0};
    struct timespec pause = {0, 100000};
    for (;;) {
        tick(&ticks);
        nanosleep(&pause, 0);
    }
}
