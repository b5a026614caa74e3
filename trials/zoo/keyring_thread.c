// A keyring of a thread that is not the first of its process.
// zoo: refused=late:keyring
#include "zoo.h"

static void *hold(void *unused)
{
	/* KEYCTL_GET_KEYRING_ID of KEY_SPEC_THREAD_KEYRING, made when there is none. */
	SYS(syscall(SYS_keyctl, 0, -1, 1));
	zoo_mark("held", 0);
	for (;;)
		zoo_nap(1000);
	return unused;
}

static void prepare(int round)
{
	pthread_t thread;

	(void)round;
	SYS(-pthread_create(&thread, NULL, hold, NULL));
	zoo_await("held", 0);
}

static void check(int round)
{
	(void)round;
}
