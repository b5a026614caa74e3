// Refused: a task whose system calls are dispatched to itself.
// zoo: rounds=1 refused=dispatch
#include "zoo.h"
#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static volatile char selector;

static void prepare(int round)
{
	/* All calls are allowed while the selector is 0. */
	SYS(prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &selector));
	(void)round;
}

static void check(int round)
{
	EQ(selector, 0);
	(void)round;
}
