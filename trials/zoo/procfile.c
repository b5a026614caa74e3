// procfile: open files of /proc and /sys: of the process itself, of its child, and of the whole machine.
// zoo: rounds=2 static=yes
#include "zoo.h"
#include <fcntl.h>

static int self, child_comm, meminfo, sys;
static pid_t child;

static void prepare(int round)
{
	if (round != 1)
		return;
	child = SYS(fork());
	if (child == 0)
		for (;;)
			pause();
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/comm", child);
	self = SYS(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
	child_comm = SYS(open(path, O_RDONLY));
	meminfo = SYS(open("/proc/meminfo", O_RDONLY));
	sys = SYS(open("/sys/devices/system/cpu/online", O_RDONLY));
}

static int holds(int fd, const char *word)
{
	static char text[8192];
	ssize_t got = SYS(pread(fd, text, sizeof text - 1, 0));

	text[got] = 0;
	return strstr(text, word) != NULL;
}

static void check(int round)
{
	char pid[32];

	(void)round;
	snprintf(pid, sizeof pid, "Pid:\t%d\n", getpid());
	CHECK(holds(self, pid), "its own status is another's");
	CHECK(holds(child_comm, "guest"), "comm of the child");
	CHECK(holds(meminfo, "MemTotal"), "meminfo");
	CHECK(holds(sys, "0"), "processors");
	CHECK(fcntl(self, F_GETFD) == FD_CLOEXEC, "close-on-exec");
	if (round == zoo_rounds)
		kill(child, SIGKILL);
}
