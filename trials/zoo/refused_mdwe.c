// Refused: a task that may not map writable code (PR_SET_MDWE), where nothing can be injected.
// zoo: rounds=1 refused=late:writable
#include "zoo.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif

static void prepare(int round)
{
	if (prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0)
		exit(77);
	(void)round;
}

static void check(int round)
{
	EQ(prctl(PR_GET_MDWE, 0, 0, 0, 0), 1);
	(void)round;
}
