// Fifteen hundred threads.
// zoo: rounds=2 musl=yes
#include "zoo.h"

#define N 1500

static pthread_t thread[N];
static int tid[N];
static __thread int mine;
static volatile int up, through;

static void *run(void *arg)
{
	int i = (int)(long)arg;

	mine = i * 3;
	tid[i] = gettid();
	__atomic_add_fetch(&up, 1, __ATOMIC_RELAXED);
	for (int round = 1; round <= zoo_rounds; round++) {
		/* Looks seldom: so many lookers would be all the load of the machine. */
		char path[480];
		snprintf(path, sizeof path, "%s.go.%d", zoo_status, round);
		while (access(path, F_OK) != 0)
			zoo_nap(200);
		EQ(mine, i * 3);
		EQ(gettid(), tid[i]);
		__atomic_add_fetch(&through, 1, __ATOMIC_RELAXED);
		while (through < round * N)
			zoo_nap(20);
	}
	return arg;
}

static void prepare(int round)
{
	pthread_attr_t a;

	if (round > 1)
		return;
	SYS(-pthread_attr_init(&a));
	SYS(-pthread_attr_setstacksize(&a, 65536));
	for (long i = 0; i < N; i++)
		SYS(-pthread_create(&thread[i], &a, run, (void *)i));
	while (up < N)
		zoo_nap(5);
}

static void check(int round)
{
	while (through < round * N)
		zoo_nap(5);
	for (long i = 0; i < N && round == zoo_rounds; i++)
		SYS(-pthread_join(thread[i], NULL));
}
