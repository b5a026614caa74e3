// Shared anonymous memory that is mapped longer than it is, by mremap(2), and the same with its end mapped before.
// zoo: rounds=2
#include "zoo.h"
#include <setjmp.h>

#define OWN (3 * PAGE)
#define MAPPED (700 * PAGE)

static char *area, *other;
static pid_t child;
static volatile sig_atomic_t signals;
static sigjmp_buf back;

static void on_bus(int signal)
{
	signals++;
	siglongjmp(back, signal);
}

static void must_end_at(char *at, size_t offset)
{
	signals = 0;
	if (sigsetjmp(back, 1) == 0)
		at[offset] = 1;
	EQ(signals, 1);
}

static void prepare(int round)
{
	if (round > 1)
		return;
	signal(SIGBUS, on_bus);
	area = mmap(NULL, OWN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(area != MAP_FAILED, "map");
	zoo_fill(area, OWN, 1);
	other = mremap(area + PAGE, 0, 2 * PAGE, MREMAP_MAYMOVE);
	area = mremap(area, OWN, MAPPED, MREMAP_MAYMOVE);
	CHECK(area != MAP_FAILED && other != MAP_FAILED, "longer");
	child = SYS(fork());
	if (child == 0) {
		for (int r = 1; r <= zoo_rounds; r++)
			zoo_wait(r);
		EQ(zoo_differs(area, OWN, 2), -1);
		_exit(6);
	}
}

static void check(int round)
{
	EQ(zoo_differs(area, OWN, round), -1);
	CHECK(memcmp(other, area + PAGE, 2 * PAGE) == 0, "the other mapping");
	must_end_at(area, OWN);
	must_end_at(area, MAPPED - 1);
	if (round == 1)
		zoo_fill(area, OWN, 2);
	else
		zoo_reap(child, 6 << 8);
}
