// Locked memory: mlock, MLOCK_ONFAULT, and mlockall for what comes.
// zoo: rounds=3 static=yes
#include "zoo.h"

static char *locked, *on_fault;

static long locked_kb(void)
{
	char line[256];
	long kb = -1;
	FILE *f = fopen("/proc/self/status", "re");

	CHECK(f, "status");
	while (kb < 0 && fgets(line, sizeof line, f))
		sscanf(line, "VmLck: %ld", &kb);
	fclose(f);
	return kb;
}

static long before;

static void prepare(int round)
{
	if (round == 1) {
		locked = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		on_fault = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		SYS(mlock(locked, 8 * PAGE));
		SYS(mlock2(on_fault, 64 * PAGE, MLOCK_ONFAULT));
		SYS(mlockall(MCL_FUTURE | MCL_ONFAULT));
	}
	zoo_fill(locked, 16 * PAGE, round);
	zoo_fill(on_fault + 5 * PAGE, PAGE, round);
	locked_kb();
	before = locked_kb();
}

static void check(int round)
{
	unsigned char there[64];
	int n = 0;

	EQ(locked_kb(), before);
	EQ(zoo_differs(locked, 16 * PAGE, round), -1);
	EQ(zoo_differs(on_fault + 5 * PAGE, PAGE, round), -1);
	SYS(mincore(on_fault, 64 * PAGE, there));
	for (int i = 0; i < 64; i++)
		n += there[i] & 1;
	CHECK(n < 64, "a lock on fault brought in every page");
	/* What is mapped from now on is locked: the flag of the address space is there. */
	char *late = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(late != MAP_FAILED, "late");
	EQ(locked_kb(), before + 16);
	SYS(munmap(late, 4 * PAGE));
}
