// Refused: a limit of the address space that leaves nothing for the little that a checkpoint maps for a moment.
// zoo: rounds=1 refused=no-room
#include "zoo.h"
#include <sys/resource.h>

static rlim_t limit;

static unsigned long address_space(void)
{
	char text[64] = "";
	int fd = SYS(open("/proc/self/statm", O_RDONLY | O_CLOEXEC));

	SYS(read(fd, text, sizeof text - 1));
	close(fd);
	return strtoul(text, NULL, 10) * PAGE;
}

static void prepare(int round)
{
	limit = address_space() + 2 * PAGE;
	struct rlimit l = { limit, RLIM_INFINITY };

	SYS(setrlimit(RLIMIT_AS, &l));
	(void)round;
}

static void check(int round)
{
	EQ(address_space() + 2 * PAGE, limit);
	(void)round;
}
