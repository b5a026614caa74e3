// The program file is removed while it runs, and another file lies at its path.
// zoo: rounds=3 static=yes
#include "zoo.h"

static struct stat before;
static pid_t child;

static void prepare(int round)
{
	char path[480] = "";

	if (round > 1)
		return;
	SYS(stat("/proc/self/exe", &before));
	SYS(readlink("/proc/self/exe", path, sizeof path - 1));
	SYS(unlink(path));
	zoo_write(path, "#!/bin/false\n");
	child = SYS(fork());
	if (child == 0) {
		for (int r = 1; r <= zoo_rounds; r++)
			zoo_wait(r);
		_exit(12);
	}
}

static void check(int round)
{
	char start[4], link[480] = "";
	int fd = SYS(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
	struct stat now;

	/* Still the program: its size, its first bytes. */
	SYS(fstat(fd, &now));
	EQ(now.st_size, before.st_size);
	EQ(read(fd, start, 4), 4);
	CHECK(memcmp(start, "\177ELF", 4) == 0, "exe is not the program");
	SYS(close(fd));
	SYS(readlink("/proc/self/exe", link, sizeof link - 1));
	CHECK(strstr(link, "/guest"), "exe is %s", link);
	if (round == zoo_rounds)
		zoo_reap(child, 12 << 8);
}
