// A seccomp filter.
// zoo: refused=seccomp-filter
#include "zoo.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

static void prepare(int round)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { 1, &allow };

	(void)round;
	SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void check(int round)
{
	(void)round;
}
