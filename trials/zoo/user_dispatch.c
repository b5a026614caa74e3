// Syscall user dispatch, as Wine uses it: the stub's calls would be handed to the program.
// zoo: refused=late:dispatch
#include "zoo.h"

static volatile char selector; /* SYSCALL_DISPATCH_FILTER_ALLOW */

static void prepare(int round)
{
	(void)round;
	SYS(prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &selector));
}

static void check(int round)
{
	(void)round;
}
