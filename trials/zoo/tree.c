// A tree: children and grandchildren, an adopted orphan, zombies, groups and sessions whose leader is gone.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"

/* Three who live through all rounds: a grandchild whose parent died, one in a group whose leader died, one in a
 * session whose leader died. All are adopted by the root, a subreaper. */
static struct { pid_t pid, ppid, pgid, sid; } *who;
static pid_t coded, signalled, killed_group;
enum { CHILD, GRANDCHILD, ORPHAN, IN_DEAD_GROUP, IN_DEAD_SESSION, LEADER, COUNT };

static void live(int me)
{
	for (int round = 1; round <= zoo_rounds; round++) {
		who[me].pid = getpid();
		who[me].ppid = getppid();
		who[me].pgid = getpgrp();
		who[me].sid = getsid(0);
		zoo_mark("up", me + 10 * round);
		zoo_wait(round);
		EQ(who[me].pid, getpid());
		EQ(who[me].ppid, getppid());
		EQ(who[me].pgid, getpgrp());
		EQ(who[me].sid, getsid(0));
		zoo_mark("ok", me + 10 * round);
		zoo_await("next", round);
	}
}

static void orphan_of_a_dead_leader(int me, int session)
{
	pid_t leader = SYS(fork());

	if (leader == 0) {
		SYS(session ? setsid() : setpgid(0, 0));
		pid_t mother = getpid();
		if (SYS(fork()) == 0) {
			while (getppid() == mother)
				zoo_nap(1);
			live(me);
			_exit(30 + me);
		}
		_exit(0);
	}
	zoo_reap(leader, 0);
}

static void make_tree(void)
{
	who = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	SYS(prctl(PR_SET_CHILD_SUBREAPER, 1));
	if (SYS(fork()) == 0) {
		pid_t grandchild = SYS(fork());
		live(grandchild == 0 ? GRANDCHILD : CHILD);
		if (grandchild != 0)
			zoo_reap(grandchild, (30 + GRANDCHILD) << 8);
		_exit(30 + (grandchild == 0 ? GRANDCHILD : CHILD));
	}
	if (SYS(fork()) == 0) {
		SYS(setsid());
		live(LEADER);
		_exit(30 + LEADER);
	}
	pid_t mother = SYS(fork());
	if (mother == 0) {
		mother = getpid();
		if (SYS(fork()) == 0) {
			while (getppid() == mother)
				zoo_nap(1);
			live(ORPHAN);
			_exit(30 + ORPHAN);
		}
		_exit(0);
	}
	zoo_reap(mother, 0);
	orphan_of_a_dead_leader(IN_DEAD_GROUP, 0);
	orphan_of_a_dead_leader(IN_DEAD_SESSION, 1);
}

static pid_t zombie(int code, int sig)
{
	pid_t pid = SYS(fork());

	if (pid == 0) {
		if (sig) {
			setpgid(0, 0);
			raise(sig);
		}
		_exit(code);
	}
	zoo_await_state(pid, 'Z');
	return pid;
}

static void prepare(int round)
{
	if (round == 1)
		make_tree();
	else
		zoo_mark("next", round - 1);
	coded = zombie(40 + round, 0);
	signalled = zombie(0, SIGTERM);
	killed_group = zombie(0, SIGKILL);
	for (int i = 0; i < COUNT; i++)
		zoo_await("up", i + 10 * round);
}

static void check(int round)
{
	for (int i = 0; i < COUNT; i++)
		zoo_await("ok", i + 10 * round);
	EQ(who[GRANDCHILD].ppid, who[CHILD].pid);
	EQ(who[CHILD].ppid, getpid());
	EQ(who[ORPHAN].ppid, getpid());
	EQ(who[IN_DEAD_GROUP].ppid, getpid());
	CHECK(who[IN_DEAD_GROUP].pgid != getpgrp() && who[IN_DEAD_GROUP].sid == getsid(0), "dead group");
	CHECK(who[IN_DEAD_SESSION].sid != getsid(0), "dead session");
	EQ(who[LEADER].sid, who[LEADER].pid);
	zoo_reap(coded, (40 + round) << 8);
	zoo_reap(signalled, SIGTERM);
	zoo_reap(killed_group, SIGKILL);
	if (round < zoo_rounds)
		return;
	zoo_mark("next", round);
	int status, ends = 0;
	while (waitpid(-1, &status, 0) > 0) {
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) >= 30, "0x%x", status);
		ends++;
	}
	EQ(ends, COUNT - 1);
}
