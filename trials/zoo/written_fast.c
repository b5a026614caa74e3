// Memory that is written faster than anybody can copy it: all of it is as it was at one moment, and no child was seen.
// zoo: rounds=3 static=yes volatile=/ covers=anon_memory,thp
#include "zoo.h"

#define BIG (2UL << 20)
#define PLAIN (24UL << 20)
#define THP (8UL << 20)
#define PAGES ((PLAIN + THP) / PAGE)

static char *plain, *thp;
static volatile int pause_wanted, paused;
static pthread_t writer;
/* Pages before the one at hand hold this turn, those behind it the one before. */
static volatile size_t turn, at_hand;

static volatile size_t *word(size_t page)
{
	char *at = page < PLAIN / PAGE ? plain + page * PAGE : thp + page * PAGE - PLAIN;

	return (volatile size_t *)(void *)(at + page % 512 * sizeof(size_t));
}

static void *writes(void *unused)
{
	for (turn = 1;; turn++)
		for (at_hand = 0; at_hand < PAGES; at_hand++) {
			while (pause_wanted) {
				paused = pause_wanted;
				zoo_nap(1);
			}
			paused = 0;
			*word(at_hand) = turn;
		}
	return unused;
}

static void childless(void)
{
	EQ(waitpid(-1, NULL, WNOHANG), -1);
	EQ(errno, ECHILD);
}

static char *map(size_t len)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED, "mmap");
	return p;
}

static void prepare(int round)
{
	if (round == 1) {
		plain = map(PLAIN);
		thp = map(THP + BIG);
		thp = (char *)(((uintptr_t)thp + BIG - 1) & ~(BIG - 1));
		SYS(madvise(thp, THP, MADV_HUGEPAGE));
		EQ(pthread_create(&writer, NULL, writes, NULL), 0);
		while (turn < 2)
			zoo_nap(1);
	}
	childless();
	pause_wanted = 0;
}

static void check(int round)
{
	childless();
	pause_wanted = round;
	while (paused != round)
		zoo_nap(1);
	for (size_t page = 0; page < PAGES; page++) {
		size_t wanted = turn - (page >= at_hand);

		if (*word(page) != wanted && !(page == at_hand && *word(page) == turn))
			FAIL("page %zu holds turn %zu, not %zu; page %zu is at hand", page, *word(page), wanted, at_hand);
	}
}
