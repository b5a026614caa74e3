// procfile: open files of /proc and /sys: of the process itself, of its child, and of the whole machine.
// zoo: rounds=2 static=yes
#include "zoo.h"
#include <dirent.h>
#include <fcntl.h>

static int self, child_comm, meminfo, sys, memory, home, pressure;
static DIR *descriptors;
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
	memory = SYS(open("/proc/self/mem", O_RDWR | O_CLOEXEC));
	home = SYS(open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	descriptors = opendir("/proc/self/fd");
	CHECK(descriptors != NULL, "opendir");
	/* Not every kernel has it. */
	pressure = open("/proc/pressure/cpu", O_RDONLY | O_CLOEXEC);
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

	snprintf(pid, sizeof pid, "Pid:\t%d\n", getpid());
	CHECK(holds(self, pid), "its own status is another's");
	CHECK(holds(child_comm, "guest"), "comm of the child");
	CHECK(holds(meminfo, "MemTotal"), "meminfo");
	CHECK(holds(sys, "0"), "processors");
	CHECK(pressure < 0 || holds(pressure, "some"), "pressure");
	int seen = 0, value = 77;
	SYS(pwrite(memory, &round, sizeof round, (off_t)(uintptr_t)&value));
	EQ(value, round);
	rewinddir(descriptors);
	for (struct dirent *one; (one = readdir(descriptors)) != NULL; )
		seen += atoi(one->d_name) == dirfd(descriptors);
	EQ(seen, 1);
	EQ(faccessat(home, "status", R_OK, 0), 0);
	close(SYS(openat(home, "comm", O_RDONLY)));
	CHECK(fcntl(self, F_GETFD) == FD_CLOEXEC, "close-on-exec");
	if (round == zoo_rounds)
		kill(child, SIGKILL);
}
