// Personality: of this process and another one of a child.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/personality.h>

static pid_t child;

static void prepare(int round)
{
	if (round > 1)
		return;
	SYS(personality(ADDR_NO_RANDOMIZE | UNAME26));
	child = SYS(fork());
	if (child == 0) {
		SYS(personality(READ_IMPLIES_EXEC | MMAP_PAGE_ZERO));
		zoo_mark("up", 0);
		for (int r = 1; r <= zoo_rounds; r++) {
			zoo_wait(r);
			EQ(personality(0xffffffff), READ_IMPLIES_EXEC | MMAP_PAGE_ZERO);
		}
		_exit(8);
	}
	zoo_await("up", 0);
}

static void check(int round)
{
	EQ(personality(0xffffffff), ADDR_NO_RANDOMIZE | UNAME26);
	if (round == zoo_rounds)
		zoo_reap(child, 8 << 8);
}
