// Refused: a task that is filtered by seccomp.
// zoo: rounds=1 refused=seccomp
#include "zoo.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

static void prepare(int round)
{
	struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog program = { 1, code };

	SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	(void)round;
}

static void check(int round)
{
	EQ(prctl(PR_GET_SECCOMP), 2);
	(void)round;
}
