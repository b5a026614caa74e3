// memfd: contents, name, seals, offset, mapped and not, holes, shared with a child, only mapped (descriptor closed).
// zoo: rounds=3 static=yes
#include "zoo.h"

static int sealed, grown, plain;
static char *mapped, *orphan;
static pid_t child;

static void open_all(void)
{
	char page[PAGE];

	sealed = SYS(memfd_create("sealed one", MFD_ALLOW_SEALING | MFD_CLOEXEC));
	zoo_fill(page, PAGE, 3);
	EQ(write(sealed, page, PAGE), PAGE);
	SYS(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
	grown = SYS(memfd_create("grown", 0));
	SYS(ftruncate(grown, 1L << 30));
	plain = SYS(memfd_create("plain", MFD_ALLOW_SEALING));
	SYS(ftruncate(plain, 8 * PAGE));
	mapped = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, plain, 0);
	int fd = SYS(memfd_create("orphan", 0));
	SYS(ftruncate(fd, 4 * PAGE));
	orphan = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	SYS(close(fd));
	CHECK(mapped != MAP_FAILED && orphan != MAP_FAILED, "maps");
	child = SYS(fork());
	if (child == 0) {
		for (int r = 1; r <= zoo_rounds; r++) {
			zoo_wait(r);
			EQ(zoo_differs(mapped, PAGE, r), -1);
			EQ(zoo_differs(orphan, PAGE, 30 + r), -1);
			zoo_fill(mapped + PAGE, PAGE, 60 + r);
			zoo_mark("child", r);
		}
		_exit(2);
	}
}

static void prepare(int round)
{
	if (round == 1)
		open_all();
	char page[PAGE];
	zoo_fill(page, PAGE, round);
	EQ(pwrite(grown, page, PAGE, 512L << 20), PAGE);
	SYS(lseek(grown, 12345, SEEK_SET));
	zoo_fill(mapped, PAGE, round);
	zoo_fill(orphan, PAGE, 30 + round);
	SYS(lseek(sealed, 10 * round, SEEK_SET));
}

static void check(int round)
{
	char page[PAGE], link[64] = "";
	struct stat st;

	zoo_await("child", round);
	EQ(zoo_differs(mapped + PAGE, PAGE, 60 + round), -1);
	EQ(pread(plain, page, PAGE, PAGE), PAGE);
	EQ(zoo_differs(page, PAGE, 60 + round), -1);
	EQ(fcntl(sealed, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
	EQ(fcntl(plain, F_GET_SEALS), 0);
	EQ(fcntl(grown, F_GET_SEALS), F_SEAL_SEAL);
	EQ(write(sealed, "x", 1), -1);
	EQ(errno, EPERM);
	EQ(pread(sealed, page, PAGE, 0), PAGE);
	EQ(zoo_differs(page, PAGE, 3), -1);
	EQ(lseek(sealed, 0, SEEK_CUR), 10 * round);
	EQ(lseek(grown, 0, SEEK_CUR), 12345);
	EQ(pread(grown, page, PAGE, 512L << 20), PAGE);
	EQ(zoo_differs(page, PAGE, round), -1);
	SYS(fstat(grown, &st));
	EQ(st.st_size, 1L << 30);
	CHECK(st.st_blocks < 1000, "holes were filled");
	snprintf(page, sizeof page, "/proc/self/fd/%d", sealed);
	SYS(readlink(page, link, sizeof link - 1));
	CHECK(strcmp(link, "/memfd:sealed one (deleted)") == 0, "%s", link);
	EQ(fcntl(sealed, F_GETFD), FD_CLOEXEC);
	if (round == zoo_rounds)
		zoo_reap(child, 2 << 8);
}
