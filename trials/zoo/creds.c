// Credentials: uids, gids, groups, capabilities, securebits, no_new_privs, dumpable; another user in a child.
// zoo: rounds=3 static=yes needs=root
#include "zoo.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>

struct caps { struct __user_cap_data_struct set[2]; };

static struct caps caps(void)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct caps c;

	SYS(syscall(SYS_capget, &head, c.set));
	return c;
}

static struct look {
	uid_t ruid, euid, suid; gid_t rgid, egid, sgid; int n; gid_t groups[8]; struct caps caps;
	int fsuid, fsgid, securebits, no_new_privs, dumpable, bounding, ambient;
} before;

static struct look look(void)
{
	struct look l;

	memset(&l, 0, sizeof l);
	SYS(getresuid(&l.ruid, &l.euid, &l.suid));
	SYS(getresgid(&l.rgid, &l.egid, &l.sgid));
	l.n = SYS(getgroups(8, l.groups));
	l.caps = caps();
	l.fsuid = syscall(SYS_setfsuid, -1);
	l.fsgid = syscall(SYS_setfsgid, -1);
	l.securebits = SYS(prctl(PR_GET_SECUREBITS));
	l.no_new_privs = SYS(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	l.dumpable = SYS(prctl(PR_GET_DUMPABLE));
	for (int c = 0; c < 41; c++) {
		l.bounding += prctl(PR_CAPBSET_READ, c) == 1 ? c * c + 1 : 0;
		l.ambient += prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, c, 0, 0) == 1 ? c * c + 1 : 0;
	}
	return l;
}

static void become(int who)
{
	gid_t groups[] = { 4, 1234567, 24 };

	if (who == 0) {
		/* An ordinary user, fully. */
		SYS(setgroups(3, groups));
		SYS(setresgid(65534, 65534, 65534));
		SYS(setresuid(65534, 65534, 65534));
		SYS(prctl(PR_SET_DUMPABLE, 1));
	} else if (who == 1) {
		/* A server that gave up most but not all: ids apart, some capabilities, locked securebits. */
		struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
		struct caps c;

		memset(&c, 0, sizeof c);
		SYS(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME));
		SYS(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP | SECBIT_NOROOT));
		SYS(setgroups(1, groups));
		SYS(setresgid(10, 20, 30));
		SYS(setresuid(11, 22, 33));
		c.set[0].permitted = 1u << CAP_NET_BIND_SERVICE | 1u << CAP_SETUID | 1u << CAP_KILL;
		c.set[0].effective = 1u << CAP_NET_BIND_SERVICE;
		c.set[0].inheritable = 1u << CAP_NET_BIND_SERVICE;
		SYS(syscall(SYS_capset, &head, c.set));
		SYS(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
		SYS(prctl(PR_SET_DUMPABLE, 0));
	} else {
		syscall(SYS_setfsgid, 77);
		SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		SYS(prctl(PR_SET_DUMPABLE, 0));
	}
}

static void live(int who)
{
	become(who);
	before = look();
	zoo_mark("up", who);
	for (int round = 1; round <= zoo_rounds; round++) {
		zoo_wait(round);
		struct look now = look();
		const int *a = (const int *)&before, *b = (const int *)&now;
		for (size_t i = 0; i < sizeof now / sizeof *a; i++)
			CHECK(a[i] == b[i], "user %d, word %zu: %d, not %d", who, i, b[i], a[i]);
	}
	_exit(60 + who);
}

static pid_t child[3];

static void prepare(int round)
{
	if (round > 1)
		return;
	SYS(chmod(".", 0777));
	for (int i = 0; i < 3; i++) {
		child[i] = SYS(fork());
		if (child[i] == 0)
			live(i);
		zoo_await("up", i);
	}
}

static void check(int round)
{
	for (int i = 0; i < 3 && round == zoo_rounds; i++)
		zoo_reap(child[i], (60 + i) << 8);
}
