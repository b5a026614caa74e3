// A thread that has left the namespace of its starter.
// zoo: refused=namespace needs=root
#include "zoo.h"

static pthread_barrier_t met;

static void *leave(void *unused)
{
	SYS(unshare(CLONE_NEWUTS));
	pthread_barrier_wait(&met);
	zoo_wait(1);
	return unused;
}

static void prepare(int round)
{
	pthread_t thread;

	(void)round;
	SYS(-pthread_barrier_init(&met, NULL, 2));
	SYS(-pthread_create(&thread, NULL, leave, NULL));
	pthread_barrier_wait(&met);
}

static void check(int round)
{
	(void)round;
}
