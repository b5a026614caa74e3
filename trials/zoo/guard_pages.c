// Guard regions (MADV_GUARD_INSTALL): a touch is a SIGSEGV, what lies beside them stays, removing one gives zeros.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <setjmp.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#define PAGES 64

static char *at, *file;
static sigjmp_buf back;

static void on_fault(int signal)
{
	siglongjmp(back, signal);
}

/* Pages 3 and 4, 20, the last one, and every one from 40 to 49. */
static int guarded(int page)
{
	return page == 3 || page == 4 || page == 20 || page == PAGES - 1 || (page >= 40 && page < 50);
}

static void guard_all(char *memory)
{
	for (int i = 0; i < PAGES; i++)
		if (guarded(i) && madvise(memory + i * PAGE, PAGE, MADV_GUARD_INSTALL) != 0)
			exit(77);
}

static int faults(const volatile char *where)
{
	if (sigsetjmp(back, 1) != 0)
		return 1;
	(void)*where;
	return 0;
}

static void prepare(int round)
{
	if (round == 1) {
		at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(at != MAP_FAILED, "mmap");
		int fd = SYS(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
		file = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
		CHECK(file != MAP_FAILED, "mmap");
		close(fd);
		guard_all(at);
		/* Of a file since Linux 6.15. */
		if (madvise(file, PAGE, MADV_GUARD_INSTALL) != 0)
			file = NULL;
		signal(SIGSEGV, on_fault);
	}
	for (int i = 0; i < PAGES; i++)
		if (!guarded(i) && i % 2)
			zoo_fill(at + i * PAGE, PAGE, round * 100 + i);
}

static void check(int round)
{
	for (int i = 0; i < PAGES; i++) {
		EQ(faults(at + i * PAGE), guarded(i));
		if (!guarded(i) && i % 2)
			EQ(zoo_differs(at + i * PAGE, PAGE, round * 100 + i), -1);
	}
	if (file) {
		EQ(faults(file), 1);
		EQ(faults(file + PAGE), 0);
	}
	if (round == zoo_rounds) {
		SYS(madvise(at + 3 * PAGE, PAGE, MADV_GUARD_REMOVE));
		EQ(at[3 * PAGE], 0);
		EQ(faults(at + 4 * PAGE), 1);
	}
}
