// Transparent huge pages: filled, partly filled, split in the middle.
// zoo: rounds=2 static=yes
#include "zoo.h"

#define HUGE (2UL << 20)

static char *full, *sparse, *split;

static char *aligned(size_t len)
{
	char *p = mmap(NULL, len + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED, "map");
	p = (char *)(((uintptr_t)p + HUGE - 1) & ~(HUGE - 1));
	SYS(madvise(p, len, MADV_HUGEPAGE));
	return p;
}

static void prepare(int round)
{
	if (round == 1) {
		full = aligned(16 * HUGE);
		sparse = aligned(16 * HUGE);
		split = aligned(2 * HUGE);
	}
	zoo_fill(full, 16 * HUGE, round);
	for (int i = 0; i < 16; i += 3)
		zoo_fill(sparse + i * HUGE + 40 * PAGE, PAGE, round + i);
	zoo_fill(split, 2 * HUGE, round);
	SYS(mprotect(split + 100 * PAGE, PAGE, PROT_READ));
	SYS(madvise(split + 200 * PAGE, 10 * PAGE, MADV_DONTNEED));
}

static void check(int round)
{
	EQ(zoo_differs(full, 16 * HUGE, round), -1);
	for (int i = 0; i < 16; i++) {
		if (i % 3 == 0)
			EQ(zoo_differs(sparse + i * HUGE + 40 * PAGE, PAGE, round + i), -1);
		EQ(sparse[i * HUGE + 50 * PAGE], 0);
	}
	EQ(zoo_differs(split, 200 * PAGE, round), -1);
	EQ(split[205 * PAGE], 0);
	SYS(mprotect(split + 100 * PAGE, PAGE, PROT_READ | PROT_WRITE));
}
