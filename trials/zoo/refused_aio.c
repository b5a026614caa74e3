// Refused: a context of asynchronous I/O.
// zoo: rounds=1 refused=aio
#include "zoo.h"
#include <linux/aio_abi.h>

static aio_context_t context;

static void prepare(int round)
{
	SYS(syscall(SYS_io_setup, 4, &context));
	(void)round;
}

static void check(int round)
{
	SYS(syscall(SYS_io_destroy, context));
	(void)round;
}
