// Working directory (also a deleted one, one per child), root directory, umask.
// zoo: rounds=3 static=yes needs=root
#include "zoo.h"

enum { PLAIN, DELETED, CHROOT, COUNT };

static pid_t child[COUNT];
static char top[400];

static void settle(int who)
{
	SYS(umask(who == PLAIN ? 027 : who == DELETED ? 0 : 0177));
	if (who == PLAIN) {
		SYS(mkdir(zoo_path("dir"), 0755));
		SYS(chdir(zoo_path("dir")));
	} else if (who == DELETED) {
		SYS(mkdir(zoo_path("deleted"), 0700));
		SYS(chdir(zoo_path("deleted")));
		SYS(rmdir(zoo_path("deleted")));
	} else {
		/* The status file lies in the directory that becomes the root. */
		SYS(chroot(top));
		SYS(chdir("/"));
		memmove(zoo_status, zoo_status + strlen(top), strlen(zoo_status + strlen(top)) + 1);
	}
}

static void look(int who)
{
	char path[512];

	EQ(umask(0), who == PLAIN ? 027 : who == DELETED ? 0 : 0177);
	umask(who == PLAIN ? 027 : who == DELETED ? 0 : 0177);
	if (who == DELETED) {
		CHECK(getcwd(path, sizeof path) == NULL && errno == ENOENT, "deleted: %s", path);
		EQ(open("x", O_CREAT | O_RDWR, 0600), -1);
		EQ(errno, ENOENT);
	} else {
		CHECK(getcwd(path, sizeof path) != NULL, "cwd");
		CHECK(strcmp(path, who == CHROOT ? "/" : zoo_path("dir")) == 0, "cwd is %s", path);
	}
	if (who == CHROOT) {
		EQ(access("/etc/passwd", F_OK), -1);
		SYS(access(zoo_status, F_OK));
	} else {
		SYS(access("/etc/passwd", F_OK));
	}
}

static void prepare(int round)
{
	if (round > 1)
		return;
	strcpy(top, zoo_status);
	*strrchr(top, '/') = 0;
	for (int i = 0; i < COUNT; i++) {
		child[i] = SYS(fork());
		if (child[i] == 0) {
			settle(i);
			zoo_mark("up", i);
			for (int r = 1; r <= zoo_rounds; r++) {
				zoo_wait(r);
				look(i);
			}
			_exit(70 + i);
		}
		zoo_await("up", i);
	}
}

static void check(int round)
{
	for (int i = 0; i < COUNT && round == zoo_rounds; i++)
		zoo_reap(child[i], (70 + i) << 8);
}
