// A child that waits in a call of the 32-bit table (int 0x80), whose number means another call in the 64-bit one.
// zoo: rounds=1 refused=late:0x80
#include "zoo.h"
#include <signal.h>

static pid_t child;

static void heard(int signal)
{
	(void)signal;
}

static void prepare(int round)
{
	struct sigaction action = { .sa_handler = heard };

	(void)round;
	SYS(sigaction(SIGUSR1, &action, NULL));
	child = SYS(fork());
	if (child == 0) {
		int result;

		/* pause(2) */
		__asm__ volatile("int $0x80" : "=a"(result) : "a"(29) : "memory", "r8", "r9", "r10", "r11");
		_exit(result == -EINTR ? 7 : 1);
	}
	zoo_await_state(child, 'S');
}

static void check(int round)
{
	(void)round;
	SYS(kill(child, SIGUSR1));
	zoo_reap(child, 7 << 8);
}
