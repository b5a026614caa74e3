// File locks: flock, POSIX ranges, OFD locks; one shared by fork, and what others see of them.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/file.h>

static int whole, ranges, ofd, shared;
static pid_t child;

static struct flock range(int type, long start, long len)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
}

static int create(const char *name)
{
	return SYS(open(zoo_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
}

static void prepare(int round)
{
	if (round > 1)
		return;
	whole = create("flock");
	ranges = create("posix");
	ofd = create("ofd");
	shared = create("shared");
	SYS(flock(whole, LOCK_EX));
	SYS(flock(shared, LOCK_SH));
	struct flock a = range(F_WRLCK, 0, 100), b = range(F_RDLCK, 200, 0), c = range(F_WRLCK, 10, 10);
	SYS(fcntl(ranges, F_SETLK, &a));
	SYS(fcntl(ranges, F_SETLK, &b));
	SYS(fcntl(ofd, F_OFD_SETLK, &c));
	child = SYS(fork());
	if (child == 0) {
		/* Shares the description, and so the flock; has no part in the POSIX locks. */
		for (int r = 1; r <= zoo_rounds; r++) {
			zoo_wait(r);
			int other = create("posix");
			a = range(F_WRLCK, 50, 1);
			SYS(fcntl(other, F_GETLK, &a));
			EQ(a.l_type, F_WRLCK);
			EQ(a.l_pid, getppid());
			EQ(a.l_start, 0);
			EQ(a.l_len, 100);
			b = range(F_WRLCK, 1000, 1);
			SYS(fcntl(other, F_GETLK, &b));
			EQ(b.l_type, F_RDLCK);
			EQ(b.l_start, 200);
			b = range(F_WRLCK, 150, 10);
			SYS(fcntl(other, F_GETLK, &b));
			EQ(b.l_type, F_UNLCK);
			close(other);
		}
		_exit(4);
	}
}

static void check(int round)
{
	int again = create("flock"), again_shared = create("shared"), again_ofd = create("ofd");
	struct flock c = range(F_WRLCK, 15, 1);

	EQ(flock(again, LOCK_SH | LOCK_NB), -1);
	EQ(errno, EWOULDBLOCK);
	EQ(flock(again_shared, LOCK_EX | LOCK_NB), -1);
	SYS(flock(again_shared, LOCK_SH | LOCK_NB));
	SYS(fcntl(again_ofd, F_OFD_GETLK, &c));
	EQ(c.l_type, F_WRLCK);
	EQ(c.l_pid, -1);
	EQ(c.l_start, 10);
	EQ(c.l_len, 10);
	SYS(flock(whole, LOCK_EX | LOCK_NB));
	close(again);
	close(again_shared);
	close(again_ofd);
	if (round == zoo_rounds)
		zoo_reap(child, 4 << 8);
}
