// Memory that parents and children share since their forks: written by one, dropped, unmapped, moved; it stays shared.
// zoo: rounds=3 static=yes
#include "zoo.h"

#define HEAP (24UL << 20)
#define BLOCK (1UL << 20)
#define CHILDREN 4

static char *heap;
static struct { pid_t pid; int grandchild; } *who;

/* What a page of the heap holds: of the parent, or written by a process in a round. */
static void put(size_t page, int by, int round)
{
	for (size_t i = 0; i < PAGE; i += 8)
		*(uint64_t *)(heap + page * PAGE + i) = page * 1000003 + by * 4096 + round * 17 + i;
}

static void holds(size_t page, int by, int round)
{
	for (size_t i = 0; i < PAGE; i += 8)
		EQ(*(uint64_t *)(heap + page * PAGE + i), page * 1000003 + by * 4096 + round * 17 + i);
}

static size_t own_page(int me, int round)
{
	return 256 * (size_t)me + 10 * (size_t)round;
}

/* Blocks 20 and 21 are dropped and unmapped by some, 22 is moved. */
static void change(int me)
{
	if (me == 1)
		SYS(madvise(heap + 20 * BLOCK, BLOCK / 2, MADV_DONTNEED));
	if (me == 2)
		SYS(munmap(heap + 21 * BLOCK, BLOCK));
	if (me == 3)
		CHECK(mremap(heap + 22 * BLOCK, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, heap + HEAP + BLOCK) ==
		      heap + HEAP + BLOCK, "mremap");
}

static int mapped(char *at)
{
	unsigned char vec;

	return mincore(at, PAGE, &vec) == 0;
}

static void look(int me, int round)
{
	for (size_t page = 0; page < HEAP / PAGE; page++) {
		size_t block = page / 256;
		char *at = heap + page * PAGE;
		int mine = 0;

		for (int r = 1; r <= round; r++)
			if (page == own_page(me, r)) {
				holds(page, me, r);
				mine = 1;
			}
		if (mine)
			continue;
		if (me == 1 && block == 20 && page % 256 < 128)
			EQ(*(uint64_t *)at, 0);
		else if (me == 2 && block == 21)
			EQ(mapped(at), 0);
		else if (me == 3 && block == 22)
			EQ(mapped(at), 0);
		else if (page % 64 == 63)
			EQ(*(uint64_t *)at, 0);
		else
			holds(page, 0, 0);
	}
	if (me == 3)
		EQ(*(uint64_t *)(heap + HEAP + BLOCK), 22UL * 256 * 1000003);
}

static void live(int me)
{
	for (int round = 1; round <= zoo_rounds; round++) {
		put(own_page(me, round), me, round);
		zoo_mark("up", me + 10 * round);
		zoo_wait(round);
		look(me, round);
		zoo_mark("ok", me + 10 * round);
		zoo_await("next", round);
	}
	_exit(0);
}

/* The last child has a child of its own, born after a change. */
static void child(int me)
{
	change(me);
	if (me == CHILDREN && SYS(fork()) == 0) {
		who[CHILDREN].pid = getpid();
		live(CHILDREN + 1);
	}
	who[me - 1].pid = getpid();
	live(me);
}

/* KiB of memory, shared pages counted once. */
static long proportion(pid_t pid)
{
	char path[64], line[256];
	long kib = -1;

	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
	FILE *file = fopen(path, "re");
	CHECK(file, "open %s", path);
	while (fgets(line, sizeof line, file))
		if (sscanf(line, "Pss: %ld", &kib) == 1)
			break;
	fclose(file);
	CHECK(kib >= 0, "no Pss");
	return kib;
}

static void prepare(int round)
{
	if (round == 1) {
		who = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		/* Behind the heap there is room for what is moved. */
		heap = mmap(NULL, HEAP + 4 * BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(heap != MAP_FAILED, "map");
		SYS(mprotect(heap, HEAP, PROT_READ | PROT_WRITE));
		for (size_t page = 0; page < HEAP / PAGE; page++)
			if (page % 64 != 63)
				put(page, 0, 0);
		for (int me = 1; me <= CHILDREN; me++)
			if (SYS(fork()) == 0)
				child(me);
	} else {
		zoo_mark("next", round - 1);
	}
	for (int me = 1; me <= CHILDREN + 1; me++)
		zoo_await("up", me + 10 * round);
}

static void check(int round)
{
	long kib = proportion(getpid());

	look(0, 0);
	for (int me = 1; me <= CHILDREN + 1; me++) {
		zoo_await("ok", me + 10 * round);
		kib += proportion(who[me - 1].pid);
	}
	/* Six times the heap if nothing were shared. Who may not see where memory lies cannot know what is. */
	CHECK(geteuid() != 0 || kib < (long)(2 * HEAP / 1024), "%ld KiB in all", kib);
}
