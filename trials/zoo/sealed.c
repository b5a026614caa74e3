// Sealed mappings (mseal): they cannot be unmapped, moved or changed, and hold what they held.
// zoo: rounds=3 static=yes
#include "zoo.h"

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

static char *data, *code;

static void prepare(int round)
{
	if (round == 1) {
		data = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		code = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(data != MAP_FAILED && code != MAP_FAILED, "mmap");
		zoo_fill(code, 2 * PAGE, 9);
		SYS(mprotect(code, 2 * PAGE, PROT_READ));
		if (syscall(SYS_mseal, data, 4 * PAGE, 0) != 0 || syscall(SYS_mseal, code, 2 * PAGE, 0) != 0)
			exit(77);
	}
	zoo_fill(data, 4 * PAGE, round);
}

static void check(int round)
{
	EQ(zoo_differs(data, 4 * PAGE, round), -1);
	EQ(zoo_differs(code, 2 * PAGE, 9), -1);
	EQ(munmap(data, 4 * PAGE), -1);
	EQ(errno, EPERM);
	EQ(mprotect(code, PAGE, PROT_READ | PROT_WRITE), -1);
	EQ(errno, EPERM);
	EQ(madvise(code, PAGE, MADV_DONTNEED), -1);
	EQ(errno, EPERM);
}
