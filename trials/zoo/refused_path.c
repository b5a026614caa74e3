// Refused: an O_PATH descriptor of a pipe, which is no end of it and has no name to be opened by.
// zoo: rounds=1 refused=path-gone
#include "zoo.h"

static void prepare(int round)
{
	char door[64];
	int ends[2];

	(void)round;
	SYS(pipe(ends));
	snprintf(door, sizeof door, "/proc/self/fd/%d", ends[0]);
	SYS(open(door, O_PATH));
}

static void check(int round)
{
	(void)round;
}
