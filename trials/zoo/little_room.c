// Limits of address space and data that leave no more than a checkpoint needs for a moment: six pages.
// zoo: rounds=2 static=yes
#include "zoo.h"
#include <sys/resource.h>

#define LEFT (6 * PAGE)

static struct rlimit space, data;

/* A number of /proc/self/statm, in bytes. */
static unsigned long now(int which)
{
	char text[128] = "", *at = text;
	unsigned long value = 0;
	int fd = SYS(open("/proc/self/statm", O_RDONLY | O_CLOEXEC));

	SYS(read(fd, text, sizeof text - 1));
	close(fd);
	for (int i = 0; i <= which; i++)
		value = strtoul(at, &at, 10);
	return value * PAGE;
}

static void prepare(int round)
{
	if (round > 1)
		return;
	/* The data of statm counts the stack, too. */
	data = (struct rlimit){ now(5) + LEFT, RLIM_INFINITY };
	space = (struct rlimit){ now(0) + LEFT, RLIM_INFINITY };
	SYS(setrlimit(RLIMIT_DATA, &data));
	SYS(setrlimit(RLIMIT_AS, &space));
}

static void check(int round)
{
	struct rlimit l;

	SYS(getrlimit(RLIMIT_AS, &l));
	EQ(l.rlim_cur, space.rlim_cur);
	EQ(now(0) + LEFT, space.rlim_cur);
	SYS(getrlimit(RLIMIT_DATA, &l));
	EQ(l.rlim_cur, data.rlim_cur);
	/* What was left is left, and no more. */
	CHECK(mmap(NULL, LEFT + PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, "more");
	void *at = mmap(NULL, LEFT, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED, "less");
	SYS(munmap(at, LEFT));
	(void)round;
}
