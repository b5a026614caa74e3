// Actions of all 64 signals: default, ignored, handlers, masks, flags.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"

/* The kernel's own struct: libc hides the restorer and refuses signals 32 and 33. */
struct action { void *handler; unsigned long flags; void *restorer; unsigned long mask; };

static struct action before[65];
static volatile int hits;

static void plain(int sig) { hits += sig; }
static void full(int sig, siginfo_t *info, void *frame) { hits += frame && info->si_signo == sig ? sig : -1000; }
__attribute__((naked)) static void restorer(void) { __asm__("mov $15, %eax; syscall"); }

static void prepare(int round)
{
	for (int s = 1; s <= 64; s++) {
		unsigned long kind = (s + round) % 5;
		struct action a = { 0 };

		a.handler = kind == 0 ? (void *)SIG_DFL : kind == 1 ? (void *)SIG_IGN : kind == 2 ? (void *)plain : (void *)full;
		a.flags = 0x04000000 | (kind >= 3 ? SA_SIGINFO : 0) | (s % 2 ? SA_RESTART : 0) | (s % 3 ? SA_ONSTACK : 0)
			| (s % 7 ? 0 : SA_NODEFER) | (s == SIGCHLD ? SA_NOCLDSTOP | SA_NOCLDWAIT : 0);
		a.restorer = (void *)restorer;
		a.mask = 0x9e3779b97f4a7c15UL * s * round;
		if (s != SIGKILL && s != SIGSTOP)
			SYS(syscall(SYS_rt_sigaction, s, &a, NULL, 8));
		SYS(syscall(SYS_rt_sigaction, s, NULL, &before[s], 8));
	}
}

static void check(int round)
{
	struct action now;

	for (int s = 1; s <= 64; s++) {
		SYS(syscall(SYS_rt_sigaction, s, NULL, &now, 8));
		CHECK(memcmp(&now, &before[s], sizeof now) == 0, "signal %d: handler %p flags %lx restorer %p mask %lx", s,
		      now.handler, now.flags, now.restorer, now.mask);
	}
	for (int s = 1; s <= 64; s++) {
		if (before[s].handler != (void *)plain && before[s].handler != (void *)full)
			continue;
		hits = 0;
		SYS(syscall(SYS_tgkill, getpid(), gettid(), s));
		EQ(hits, s);
	}
	(void)round;
}
