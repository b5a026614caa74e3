// A parent that sleeps uninterruptibly, as its vfork child never comes to an end: `vforker`. The child counts on a board.
#define _GNU_SOURCE
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct lane { volatile uint64_t turns; char rest[56]; };
struct board { uint64_t magic, lanes; volatile uint64_t errors; char text[104]; struct lane lane[4]; };

int main(void) {
    struct board *board = mmap((void *)0x6f0000000000ull, sizeof *board, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    struct timespec pause = {0, 1000000};
    board->lanes = 1;
    if (vfork() == 0) {
        board->magic = 0x6864637266617565ull;
        for (;;) {
            nanosleep(&pause, NULL);
            board->lane[0].turns++;
        }
    }
    return 0;
}
