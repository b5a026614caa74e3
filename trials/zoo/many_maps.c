// Thirty thousand mappings.
// zoo: rounds=2
#include "zoo.h"

#define N 30000UL

static char *at;

static void prepare(int round)
{
	if (round == 1) {
		at = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(at != MAP_FAILED, "map");
		for (unsigned long i = 1; i < N; i += 2)
			SYS(mprotect(at + i * PAGE, PAGE, PROT_READ));
	}
	for (unsigned long i = 0; i < N; i += 2)
		*(unsigned long *)(at + i * PAGE) = i * round;
}

static void check(int round)
{
	for (unsigned long i = 0; i < N; i++)
		EQ(*(unsigned long *)(at + i * PAGE), i % 2 ? 0 : i * round);
}
