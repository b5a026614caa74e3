// Refused: a current directory that is one of a process, which is not there yet when the restored one needs it.
// zoo: rounds=1 refused=proc-directory
#include "zoo.h"

static void prepare(int round)
{
	SYS(chdir("/proc/self/fdinfo"));
	(void)round;
}

static void check(int round)
{
	char path[64];

	CHECK(getcwd(path, sizeof path) != NULL, "cwd");
	CHECK(strncmp(path, "/proc/", 6) == 0, "%s", path);
	(void)round;
}
