// Refused: a landlock domain, which nothing shows.
// zoo: rounds=1 refused=landlock
#include "zoo.h"
#include <linux/landlock.h>

static void prepare(int round)
{
	struct landlock_ruleset_attr a = { .handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_SOCK };
	int fd = syscall(SYS_landlock_create_ruleset, &a, sizeof a, 0);

	/* A kernel without landlock has nothing to refuse: the runner is told by this exit status. */
	if (fd < 0)
		exit(77);
	SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	SYS(syscall(SYS_landlock_restrict_self, fd, 0));
	SYS(close(fd));
	(void)round;
}

static void check(int round)
{
	CHECK(zoo_rounds == 1, "rounds");
	(void)round;
}
