// A vfork whose child has not yet executed: parent and child share memory, the parent sleeps in the kernel.
// zoo: rounds=1 static=yes volatile=/
// The child ends its vfork some 0.3 s after the guest is ready, so a checkpoint meets it and must wait for it.
#include "zoo.h"

static volatile int shared;
static pthread_t thread;

static void *run(void *unused)
{
	pid_t pid = vfork();

	if (pid == 0) {
		shared = 1;
		struct timespec t = { 0, 300000000 };
		nanosleep(&t, NULL);
		shared = 2;
		execl("/bin/sh", "sh", "-c", "exit 23", NULL);
		_exit(1);
	}
	SYS(pid);
	zoo_reap(pid, 23 << 8);
	return unused;
}

static void prepare(int round)
{
	SYS(-pthread_create(&thread, NULL, run, NULL));
	while (shared == 0)
		zoo_nap(1);
	(void)round;
}

static void check(int round)
{
	SYS(-pthread_join(thread, NULL));
	EQ(shared, 2);
	(void)round;
}
