// The heap by brk: its contents, its end, and that it grows from there.
// zoo: rounds=3 static=yes
#include "zoo.h"

static char *heap, *end;
static char *blocks[200];

static void prepare(int round)
{
	if (round == 1) {
		heap = sbrk(0);
		CHECK(sbrk(40 * PAGE + 123) == heap, "sbrk");
	}
	zoo_fill(heap, 40 * PAGE, round);
	for (int i = 0; i < 200; i++) {
		blocks[i] = malloc(1000 + i * 10);
		CHECK(blocks[i], "malloc");
		memset(blocks[i], i, 1000 + i * 10);
	}
	end = sbrk(0);
}

static void check(int round)
{
	CHECK(sbrk(0) == end, "the end of the heap moved");
	EQ(zoo_differs(heap, 40 * PAGE, round), -1);
	for (int i = 0; i < 200; i++) {
		for (int j = 0; j < 1000 + i * 10; j++)
			EQ((unsigned char)blocks[i][j], i);
	}
	CHECK(sbrk(10 * PAGE) == end, "growth");
	end[10 * PAGE - 1] = 1;
	CHECK(sbrk(-(long)(10 * PAGE)) == end + 10 * PAGE, "shrinking");
	for (int i = 0; i < 200; i++)
		free(blocks[i]);
}
