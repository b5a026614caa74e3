// Stacks: deep recursion held at the checkpoint, growth after it, a MAP_GROWSDOWN mapping that still grows.
// zoo: rounds=2 static=yes
#include "zoo.h"

static char *low;
static pthread_t thread;

/* Fills frames down to the bottom, waits there, and finds each frame as it was on the way back. */
__attribute__((noinline)) static long deep(int depth, int round)
{
	volatile char frame[4000];

	for (size_t i = 0; i < sizeof frame; i += 100)
		frame[i] = (char)(depth + i + round);
	if (depth == 0) {
		zoo_mark("bottom", round * 10 + (gettid() == getpid()));
		zoo_wait(round);
	} else {
		deep(depth - 1, round);
	}
	for (size_t i = 0; i < sizeof frame; i += 100)
		CHECK(frame[i] == (char)(depth + i + round), "frame %d", depth);
	return frame[0];
}

__attribute__((noinline)) static long deeper(int depth)
{
	volatile char frame[4000];

	for (size_t i = 0; i < sizeof frame; i += 1000)
		frame[i] = (char)depth;
	return depth > 0 ? deeper(depth - 1) + frame[1000] : frame[0];
}

static void *run(void *round)
{
	deep(150, (int)(long)round);
	return NULL;
}

static void prepare(int round)
{
	if (round == 1) {
		/* Room below a mapping that grows, too small for the stack of a thread to be put there. */
		low = mmap(NULL, 6UL << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		SYS(munmap(low + (1UL << 20), 5UL << 20));
		low = mmap(low + (6UL << 20) - 2 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
		CHECK(low != MAP_FAILED, "grows down");
		zoo_fill(low, PAGE, 8);
		low[-1] = 'g';
	}
	SYS(-pthread_create(&thread, NULL, run, (void *)(long)round));
	zoo_await("bottom", round * 10);
}

static void check(int round)
{
	SYS(-pthread_join(thread, NULL));
	EQ(low[-1], 'g');
	EQ(zoo_differs(low, PAGE, 8), -1);
	low[-1 - (long)PAGE * round] = 'h';
	EQ(low[-1 - (long)PAGE * round], 'h');
	/* The main stack grows beyond what it was at the checkpoint. */
	deeper(400 * round);
}
