// Refused: a namespace that the tree made.
// zoo: rounds=1 needs=root refused=namespace
#include "zoo.h"


static void prepare(int round)
{
	SYS(unshare(CLONE_NEWUTS));
	(void)round;
}

static void check(int round)
{
	char name[200];

	SYS(gethostname(name, sizeof name));
	(void)round;
}
