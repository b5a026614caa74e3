// A handler that is running on an alternate stack, with its own mask, and a call that it interrupted.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"

static char stack[65536] __attribute__((aligned(16)));
static volatile int set_up, inside, left, now;
static pthread_t thread;
static int pipe_fd[2];

static void handler(int sig, siginfo_t *info, void *frame)
{
	volatile char local[2000];
	stack_t alt;
	sigset_t mask;

	memset((char *)local, now, sizeof local);
	CHECK((char *)local >= stack && (char *)local < stack + sizeof stack, "not on the alternate stack");
	inside = now;
	zoo_wait(now);
	for (size_t i = 0; i < sizeof local; i++)
		EQ(local[i], now);
	SYS(sigaltstack(NULL, &alt));
	EQ(alt.ss_flags & SS_ONSTACK, SS_ONSTACK);
	SYS(-pthread_sigmask(SIG_SETMASK, NULL, &mask));
	EQ(sigismember(&mask, sig), 1);
	EQ(sigismember(&mask, SIGUSR1), 1);
	EQ(sigismember(&mask, SIGTERM), 0);
	EQ(info->si_signo, sig);
	CHECK(frame, "frame");
	left = now;
}

static void *run(void *unused)
{
	stack_t alt = { .ss_sp = stack, .ss_size = sizeof stack };
	sigset_t mask;
	char c = 0;

	SYS(sigaltstack(&alt, NULL));
	set_up = now;
	/* Interrupted by the handler, restarted behind it. */
	EQ(read(pipe_fd[0], &c, 1), 1);
	EQ(c, 'a' + now);
	EQ(left, now);
	SYS(-pthread_sigmask(SIG_SETMASK, NULL, &mask));
	EQ(sigismember(&mask, SIGUSR1), 0);
	SYS(sigaltstack(NULL, &alt));
	EQ(alt.ss_flags, 0);
	return unused;
}

static void prepare(int round)
{
	struct sigaction a = { .sa_sigaction = handler, .sa_flags = SA_ONSTACK | SA_SIGINFO | SA_RESTART };

	sigaddset(&a.sa_mask, SIGUSR1);
	SYS(sigaction(SIGUSR2, &a, NULL));
	if (round == 1)
		SYS(pipe(pipe_fd));
	now = round;
	SYS(-pthread_create(&thread, NULL, run, NULL));
	while (set_up != round)
		zoo_nap(1);
	while (inside != round) {
		pthread_kill(thread, SIGUSR2);
		for (int i = 0; i < 100 && inside != round; i++)
			zoo_nap(1);
	}
}

static void check(int round)
{
	char c = 'a' + round;

	for (int i = 0; left != round; i++) {
		CHECK(i < 5000, "the handler did not return");
		zoo_nap(1);
	}
	EQ(write(pipe_fd[1], &c, 1), 1);
	SYS(-pthread_join(thread, NULL));
}
