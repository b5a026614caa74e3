// Shared anonymous memory between parent, child and a second place in the parent; a process-shared mutex in it.
// zoo: rounds=3 static=yes
#include "zoo.h"

#define LEN (64 * PAGE)

struct board { pthread_mutex_t lock; pthread_barrier_t met; int turn; };

static struct board *board;
static char *area, *tail, *lonely;
static pid_t child;

static void play(void)
{
	for (int round = 1; round <= zoo_rounds; round++) {
		zoo_wait(round);
		EQ(zoo_differs(area, LEN / 2, round), -1);
		zoo_fill(area + LEN / 2, LEN / 2, round + 50);
		SYS(-pthread_mutex_lock(&board->lock));
		board->turn += 1;
		SYS(-pthread_mutex_unlock(&board->lock));
		pthread_barrier_wait(&board->met);
		pthread_barrier_wait(&board->met);
	}
	_exit(4);
}

static void prepare(int round)
{
	if (round == 1) {
		pthread_mutexattr_t mutex;
		pthread_barrierattr_t barrier;

		board = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		area = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		/* The same object again: mremap of size 0 gives a second mapping of the last pages. */
		tail = mremap(area + LEN / 2, 0, LEN / 2, MREMAP_MAYMOVE);
		lonely = mmap(NULL, 1L << 30, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		CHECK(board != MAP_FAILED && area != MAP_FAILED && tail != MAP_FAILED && lonely != MAP_FAILED, "maps");
		pthread_mutexattr_init(&mutex);
		pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
		pthread_mutex_init(&board->lock, &mutex);
		pthread_barrierattr_init(&barrier);
		pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED);
		pthread_barrier_init(&board->met, &barrier, 2);
		child = SYS(fork());
		if (child == 0)
			play();
	}
	zoo_fill(area, LEN / 2, round);
	zoo_fill(lonely + round * (64L << 20), PAGE, round);
	/* A page the child's image would miss if only the mapper's own pages were looked at. */
	SYS(madvise(area, LEN / 2, MADV_DONTNEED));
}

static void check(int round)
{
	pthread_barrier_wait(&board->met);
	EQ(board->turn, round);
	EQ(zoo_differs(area + LEN / 2, LEN / 2, round + 50), -1);
	EQ(zoo_differs(tail, LEN / 2, round + 50), -1);
	tail[0] ^= 1;
	CHECK(tail[0] == area[LEN / 2], "two places, one object");
	for (int i = 1; i <= round; i++)
		EQ(zoo_differs(lonely + i * (64L << 20), PAGE, i), -1);
	EQ(lonely[5], 0);
	pthread_barrier_wait(&board->met);
	if (round == zoo_rounds)
		zoo_reap(child, 4 << 8);
}
