// Robust and PI mutexes held at the checkpoint, in memory of the process and in a shared file.
// zoo: rounds=3 static=yes musl=yes
// A kill at the checkpoint must not mark them as left by a dead owner where others, or the restored one, see it.
#include "zoo.h"

struct locks { pthread_mutex_t robust, pi, robust_pi, plain; };

static struct locks own, *in_file;
static pthread_t waiter;
static volatile int got;

static void make(pthread_mutex_t *m, int robust, int pi)
{
	pthread_mutexattr_t a;

	SYS(-pthread_mutexattr_init(&a));
	SYS(-pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED));
	SYS(-pthread_mutexattr_settype(&a, PTHREAD_MUTEX_ERRORCHECK));
	if (robust)
		SYS(-pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST));
	if (pi)
		SYS(-pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT));
	SYS(-pthread_mutex_init(m, &a));
}

static void make_all(struct locks *l)
{
	make(&l->robust, 1, 0);
	make(&l->pi, 0, 1);
	make(&l->robust_pi, 1, 1);
	make(&l->plain, 0, 0);
}

static void lock_all(struct locks *l)
{
	SYS(-pthread_mutex_lock(&l->robust));
	SYS(-pthread_mutex_lock(&l->pi));
	SYS(-pthread_mutex_lock(&l->robust_pi));
	SYS(-pthread_mutex_lock(&l->plain));
}

static void *want(void *unused)
{
	/* Waits in the kernel for a PI mutex, behind its owner. */
	SYS(-pthread_mutex_lock(&own.robust_pi));
	got++;
	SYS(-pthread_mutex_unlock(&own.robust_pi));
	return unused;
}

static void prepare(int round)
{
	if (round == 1) {
		int fd = SYS(open(zoo_path("locks"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
		SYS(ftruncate(fd, PAGE));
		in_file = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		CHECK(in_file != MAP_FAILED, "map");
		make_all(&own);
		make_all(in_file);
	}
	lock_all(&own);
	lock_all(in_file);
	SYS(-pthread_create(&waiter, NULL, want, NULL));
	zoo_nap(20);
}

static void release(struct locks *l)
{
	pthread_mutex_t *all[] = { &l->robust, &l->pi, &l->robust_pi, &l->plain };

	for (int i = 0; i < 4; i++) {
		/* Held, and by us: an error-checking mutex tells. */
		int held = pthread_mutex_trylock(all[i]);
		CHECK(held == EBUSY || held == EDEADLK, "mutex %d: %s", i, strerror(held));
		SYS(-pthread_mutex_unlock(all[i]));
	}
}

static void check(int round)
{
	EQ(got, round - 1);
	release(&own);
	SYS(-pthread_join(waiter, NULL));
	EQ(got, round);
	release(in_file);
}
