// A process in the session and group of its starter, both outside the tree, with a child.
// zoo: rounds=3 static=yes session=outside
#define ZOO_KEEP_SESSION
#include "zoo.h"

static pid_t child;

static void prepare(int round)
{
	if (round > 1)
		return;
	child = SYS(fork());
	if (child == 0) {
		for (int r = 1; r <= zoo_rounds; r++) {
			zoo_wait(r);
			EQ(getpgrp(), getpgid(getppid()));
			EQ(getsid(0), getsid(getppid()));
		}
		_exit(5);
	}
}

static void check(int round)
{
	CHECK(getsid(0) != getpid(), "a session of its own");
	if (round == zoo_rounds)
		zoo_reap(child, 5 << 8);
}
