// Refused: a descriptor of io_uring.
// zoo: rounds=1 refused=io_uring covers=opaque
#include "zoo.h"
#include <linux/io_uring.h>

static int ring;

static void prepare(int round)
{
	struct io_uring_params p = { 0 };

	ring = SYS(syscall(SYS_io_uring_setup, 4, &p));
	(void)round;
}

static void check(int round)
{
	SYS(fcntl(ring, F_GETFD));
	(void)round;
}
