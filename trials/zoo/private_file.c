// A private mapping of a file: changed pages, untouched pages, discarded pages, the file shorter than the mapping.
// zoo: rounds=3 static=yes
#include "zoo.h"

#define LEN (32 * PAGE)

static char *at, *deleted, *tail;

static char *map_new(const char *name, int keep)
{
	int fd = SYS(open(zoo_path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
	static char page[LEN];

	zoo_fill(page, LEN, 7);
	EQ(write(fd, page, LEN), LEN);
	char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(p != MAP_FAILED, "map of %s", name);
	if (!keep)
		SYS(unlink(zoo_path(name)));
	SYS(close(fd));
	return p;
}

static int original(const char *page, size_t nth)
{
	const uint64_t *p = (const uint64_t *)page;

	for (size_t i = 0; i < PAGE / 8; i++)
		if (p[i] != ((nth * PAGE / 8 + i + 1) * 0x9e3779b97f4a7c15ULL ^ 7))
			return 0;
	return 1;
}

static void prepare(int round)
{
	if (round == 1) {
		at = map_new("mapped", 1);
		deleted = map_new("gone", 0);
		/* Half of the mapping lies behind the end of its file. */
		int fd = SYS(open(zoo_path("short"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
		SYS(ftruncate(fd, 2 * PAGE + 100));
		tail = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
		SYS(close(fd));
	}
	zoo_fill(at + 3 * PAGE, PAGE, 100 + round);
	zoo_fill(deleted + 5 * PAGE, PAGE, 200 + round);
	tail[2 * PAGE + 50] = round;
	/* Changed and discarded: the file's own content shows again. */
	zoo_fill(at + 9 * PAGE, PAGE, 1);
	SYS(madvise(at + 9 * PAGE, PAGE, MADV_DONTNEED));
	if (round == 1) {
		zoo_fill(at + 20 * PAGE, PAGE, 300);
		SYS(mprotect(at + 20 * PAGE, PAGE, PROT_READ));
		zoo_fill(at + 22 * PAGE, PAGE, 400);
		SYS(mprotect(at + 22 * PAGE, PAGE, PROT_NONE));
	}
}

static void check(int round)
{
	for (size_t i = 0; i < 32; i++) {
		if (i != 3 && i != 20 && i != 22)
			CHECK(original(at + i * PAGE, i), "page %zu of the file", i);
		if (i != 5)
			CHECK(original(deleted + i * PAGE, i), "page %zu of the deleted file", i);
	}
	EQ(zoo_differs(at + 3 * PAGE, PAGE, 100 + round), -1);
	EQ(zoo_differs(deleted + 5 * PAGE, PAGE, 200 + round), -1);
	EQ(zoo_differs(at + 20 * PAGE, PAGE, 300), -1);
	SYS(mprotect(at + 22 * PAGE, PAGE, PROT_READ));
	EQ(zoo_differs(at + 22 * PAGE, PAGE, 400), -1);
	SYS(mprotect(at + 22 * PAGE, PAGE, PROT_NONE));
	EQ(tail[2 * PAGE + 50], round);
	EQ(tail[2 * PAGE + 51], 0);
	/* The file itself never saw the changes. */
	char page[PAGE];
	int fd = SYS(open(zoo_path("mapped"), O_RDONLY | O_CLOEXEC));
	EQ(pread(fd, page, PAGE, 3 * PAGE), PAGE);
	CHECK(original(page, 3), "the file was written");
	SYS(close(fd));
}
