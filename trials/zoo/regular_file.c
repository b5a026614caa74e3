// Regular files: offsets, append, O_TMPFILE, deleted while open, holes, sharing by dup and fork, directories, devices.
// zoo: rounds=3 static=yes covers=regfile,device,directory,pathfd
#include "zoo.h"
#include <dirent.h>
#include <sys/sysmacros.h>

static int plain, twin, append, again, tmpfile_fd, gone, holed, dir, dev_null, dev_zero, dev_random, path_only, linked;
static pid_t child;

static void follow(void)
{
	for (int round = 1; round <= zoo_rounds; round++) {
		zoo_await("moved", round);
		/* The offset of a description shared by fork moves in both. */
		EQ(lseek(plain, 0, SEEK_CUR), 1000 * round + 7);
		zoo_mark("followed", round);
	}
	_exit(9);
}

static void open_all(void)
{
	plain = SYS(open(zoo_path("plain"), O_RDWR | O_CREAT, 0640));
	twin = SYS(dup(plain));
	append = SYS(open(zoo_path("append"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
	again = SYS(open(zoo_path("append"), O_RDONLY | O_NOATIME));
	tmpfile_fd = SYS(open(".", O_TMPFILE | O_RDWR, 0600));
	gone = SYS(open(zoo_path("gone"), O_RDWR | O_CREAT, 0600));
	SYS(unlink(zoo_path("gone")));
	linked = SYS(open(zoo_path("link1"), O_RDWR | O_CREAT, 0600));
	char second[480];
	strcpy(second, zoo_path("link2"));
	SYS(link(zoo_path("link1"), second));
	SYS(unlink(zoo_path("link1")));
	holed = SYS(open(zoo_path("holed"), O_RDWR | O_CREAT, 0600));
	SYS(unlink(zoo_path("holed")));
	SYS(ftruncate(holed, 1L << 30));
	dir = SYS(open(".", O_RDONLY | O_DIRECTORY));
	dev_null = SYS(open("/dev/null", O_WRONLY));
	dev_zero = SYS(open("/dev/zero", O_RDONLY));
	dev_random = SYS(open("/dev/urandom", O_RDONLY | O_NONBLOCK));
	path_only = SYS(open("/etc/passwd", O_PATH));
	/* A high number, and one that has holes below it. */
	SYS(dup2(plain, 700));
}

static void prepare(int round)
{
	char page[PAGE];

	if (round == 1) {
		open_all();
		child = SYS(fork());
		if (child == 0)
			follow();
	}
	zoo_fill(page, sizeof page, round);
	EQ(pwrite(plain, page, sizeof page, 0), PAGE);
	EQ(pwrite(tmpfile_fd, page, sizeof page, 0), PAGE);
	EQ(pwrite(gone, page, sizeof page, 0), PAGE);
	EQ(pwrite(holed, page, sizeof page, 100L << 20), PAGE);
	EQ(write(append, "line\n", 5), 5);
	SYS(lseek(plain, 1000 * round, SEEK_SET));
	SYS(lseek(tmpfile_fd, 123, SEEK_SET));
	SYS(lseek(gone, 77 + round, SEEK_SET));
	SYS(lseek(holed, (100L << 20) + 5, SEEK_SET));
}

static void check(int round)
{
	char page[PAGE];
	struct stat a, b;

	EQ(lseek(twin, 0, SEEK_CUR), 1000 * round);
	EQ(lseek(700, 0, SEEK_CUR), 1000 * round);
	SYS(lseek(twin, 7, SEEK_CUR));
	zoo_mark("moved", round);
	zoo_await("followed", round);
	EQ(lseek(tmpfile_fd, 0, SEEK_CUR), 123);
	EQ(lseek(gone, 0, SEEK_CUR), 77 + round);
	int unnamed[] = { plain, tmpfile_fd, gone };
	for (int i = 0; i < 3; i++) {
		EQ(pread(unnamed[i], page, PAGE, 0), PAGE);
		EQ(zoo_differs(page, PAGE, round), -1);
	}
	EQ(lseek(holed, 0, SEEK_CUR), (100L << 20) + 5);
	EQ(lseek(holed, 0, SEEK_DATA), 100L << 20);
	EQ(lseek(holed, 100L << 20, SEEK_HOLE), (100L << 20) + PAGE);
	EQ(lseek(holed, 0, SEEK_END), 1L << 30);
	SYS(fstat(holed, &a));
	CHECK(a.st_blocks < 1000, "holes were filled: %ld blocks", (long)a.st_blocks);
	EQ(a.st_nlink, 0);
	SYS(fstat(append, &a));
	EQ(a.st_size, 5 * round);
	EQ(lseek(again, 0, SEEK_CUR), 5 * (round - 1));
	EQ(read(again, page, 100), 5);
	EQ(read(again, page, 100), 0);
	EQ(fcntl(append, F_GETFL) & (O_APPEND | O_ACCMODE), O_APPEND | O_WRONLY);
	EQ(fcntl(append, F_GETFD), FD_CLOEXEC);
	EQ(fcntl(again, F_GETFL) & O_NOATIME, O_NOATIME);
	SYS(fstat(linked, &a));
	SYS(stat(zoo_path("link2"), &b));
	CHECK(a.st_ino == b.st_ino && a.st_nlink == 1, "a file renamed by link and unlink");
	DIR *listing = fdopendir(dup(dir));
	CHECK(listing && readdir(listing), "directory");
	closedir(listing);
	lseek(dir, 0, SEEK_SET);
	EQ(write(dev_null, page, 10), 10);
	EQ(read(dev_zero, page, 10), 10);
	EQ(page[3], 0);
	EQ(read(dev_random, page, 10), 10);
	SYS(fstat(dev_null, &a));
	EQ(a.st_rdev, makedev(1, 3));
	EQ(fcntl(path_only, F_GETFL) & O_PATH, O_PATH);
	if (round == zoo_rounds)
		zoo_reap(child, 9 << 8);
}
