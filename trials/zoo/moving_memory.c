// A program that maps, moves and unmaps memory all the time: each of its calls works as if nobody copied it meanwhile.
// zoo: rounds=4 volatile=/ covers=anon_memory
#include "zoo.h"

#define LARGE (24UL << 20)
#define LEAST 64
#define MOST 1063

static volatile int pause_wanted, paused;
static pthread_t mover;
static char *large;
static unsigned long moved;
static uint64_t state = 88172645463325252ULL;

static uint64_t next(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static char *map(size_t len)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED, "mmap");
	return p;
}

static void *moves(void *unused)
{
	char *slots[3] = {0};
	size_t pages[3] = {0};

	for (unsigned n = 1;; n++) {
		unsigned slot = n % 3;

		while (pause_wanted) {
			paused = pause_wanted;
			zoo_nap(1);
		}
		paused = 0;
		if (slots[slot])
			SYS(munmap(slots[slot], pages[slot] * PAGE));
		size_t len = LEAST + next(MOST - LEAST), grown = LEAST + next(MOST - LEAST);
		char *p = map(len * PAGE);
		for (size_t i = 0; i < len; i++)
			zoo_fill(p + i * PAGE, 64, n + i);
		p = mremap(p, len * PAGE, grown * PAGE, MREMAP_MAYMOVE);
		CHECK(p != MAP_FAILED, "mremap of a mapping of its own");
		for (size_t i = 0; i < (len < grown ? len : grown); i++)
			CHECK(zoo_differs(p + i * PAGE, 64, n + i) < 0, "moved memory");
		slots[slot] = p;
		pages[slot] = grown;
		moved++;
	}
	return unused;
}

static void prepare(int round)
{
	if (round == 1) {
		large = map(LARGE);
		zoo_fill(large, LARGE, 5);
		EQ(pthread_create(&mover, NULL, moves, NULL), 0);
	}
	pause_wanted = 0;
}

static void check(int round)
{
	unsigned long before = moved;

	for (int i = 0; moved < before + 50; i++) {
		CHECK(i < 6000, "it does not go on");
		zoo_nap(10);
	}
	pause_wanted = round;
	while (paused != round)
		zoo_nap(1);
	CHECK(zoo_differs(large, LARGE, 5) < 0, "large memory");
}
