// Refused: a perf event.
// zoo: rounds=1 refused=perf
#include "zoo.h"
#include <linux/perf_event.h>

static int fd;

static void prepare(int round)
{
	struct perf_event_attr a = { .type = PERF_TYPE_SOFTWARE, .size = sizeof a, .config = PERF_COUNT_SW_TASK_CLOCK };

	fd = syscall(SYS_perf_event_open, &a, 0, -1, -1, 0);
	if (fd < 0)
		exit(77);
	(void)round;
}

static void check(int round)
{
	SYS(fcntl(fd, F_GETFD));
	(void)round;
}
