// Refused: a ring of io_uring that a thread has registered, with its descriptor closed and nothing of it mapped.
// zoo: rounds=1 refused=late:io_uring
#include "zoo.h"
#include <linux/io_uring.h>

/* IORING_REGISTER_RING_FDS and IORING_ENTER_REGISTERED_RING, which older headers lack. */
#define REGISTER_RING 20
#define REGISTERED (1U << 4)

struct place { unsigned offset, resv; unsigned long long data; };

static long place;

static int enter(void)
{
	return syscall(SYS_io_uring_enter, place, 0, 0, REGISTERED, NULL, 0);
}

static void prepare(int round)
{
	struct io_uring_params p = { 0 };
	int ring = SYS(syscall(SYS_io_uring_setup, 4, &p));
	struct place wanted = { .offset = 9, .data = ring };

	EQ(SYS(syscall(SYS_io_uring_register, ring, REGISTER_RING, &wanted, 1)), 1);
	place = wanted.offset;
	SYS(close(ring));
	EQ(enter(), 0);
	(void)round;
}

static void check(int round)
{
	EQ(enter(), 0);
	(void)round;
}
