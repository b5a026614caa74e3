// Refused: a directory whose changes are told by a signal (F_NOTIFY): which changes is not to be seen.
// zoo: rounds=1 refused=directory-notify
#include "zoo.h"

static void prepare(int round)
{
	(void)round;
	SYS(mkdir(zoo_path("watched"), 0755));
	int fd = SYS(open(zoo_path("watched"), O_RDONLY | O_DIRECTORY));
	signal(SIGIO, SIG_IGN);
	SYS(fcntl(fd, F_NOTIFY, DN_CREATE | DN_MULTISHOT));
}

static void check(int round)
{
	(void)round;
	SYS(rmdir(zoo_path("watched")));
}
