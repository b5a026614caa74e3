// A shared mapping of a file: two places, two processes, parts of the file, read-only, changed pages.
// zoo: rounds=3 static=yes
#include "zoo.h"

#define LEN (16 * PAGE)

static char *whole, *part, *view;
static int fd;
static pid_t child;

static void prepare(int round)
{
	if (round == 1) {
		fd = SYS(open(zoo_path("shared"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
		SYS(ftruncate(fd, LEN));
		whole = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		part = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 8 * PAGE);
		view = mmap(NULL, LEN, PROT_READ, MAP_SHARED, SYS(open(zoo_path("shared"), O_RDONLY | O_CLOEXEC)), 0);
		CHECK(whole != MAP_FAILED && part != MAP_FAILED && view != MAP_FAILED, "maps");
		child = SYS(fork());
		if (child == 0) {
			for (int r = 1; r <= zoo_rounds; r++) {
				zoo_wait(r);
				zoo_await("written", r);
				EQ(zoo_differs(whole + 12 * PAGE, PAGE, 500 + r), -1);
				zoo_fill(part + PAGE, PAGE, 900 + r);
				zoo_mark("answered", r);
			}
			_exit(3);
		}
	}
	zoo_fill(whole, 8 * PAGE, round);
	zoo_fill(part, PAGE, 70 + round);
}

static void check(int round)
{
	char page[PAGE];

	EQ(zoo_differs(whole, 8 * PAGE, round), -1);
	EQ(zoo_differs(whole + 8 * PAGE, PAGE, 70 + round), -1);
	EQ(zoo_differs(view, 8 * PAGE, round), -1);
	EQ(pread(fd, page, PAGE, 8 * PAGE), PAGE);
	EQ(zoo_differs(page, PAGE, 70 + round), -1);
	/* All of them are one object still. */
	zoo_fill(whole + 12 * PAGE, PAGE, 500 + round);
	zoo_mark("written", round);
	zoo_await("answered", round);
	EQ(zoo_differs(view + 9 * PAGE, PAGE, 900 + round), -1);
	EQ(pread(fd, page, PAGE, 12 * PAGE), PAGE);
	EQ(zoo_differs(page, PAGE, 500 + round), -1);
	if (round == zoo_rounds)
		zoo_reap(child, 3 << 8);
}
