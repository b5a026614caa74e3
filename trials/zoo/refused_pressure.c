// Refused: a pressure trigger, which the kernel does not show and a new opening of the file would not have.
// zoo: rounds=1 refused=pressure-trigger needs=root
#include "zoo.h"

static int file;

static void prepare(int round)
{
	file = open("/proc/pressure/memory", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (file < 0)
		exit(77);
	SYS(write(file, "some 500000 2000000", 20));
	(void)round;
}

static void check(int round)
{
	SYS(fcntl(file, F_GETFD));
	(void)round;
}
