// Pending signals: of the process and of a thread, with their siginfo, in order.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"

static sigset_t blocked;
static pthread_t other;
static pid_t child, other_tid;
static pthread_barrier_t met;

/* Takes one signal, compares what came with it. */
static void take(int sig, int code, int value)
{
	siginfo_t info;
	sigset_t one;
	struct timespec now = { 0, 0 };

	sigemptyset(&one);
	sigaddset(&one, sig);
	/* Not by libc, which turns SI_TKILL into SI_USER. */
	int got = syscall(SYS_rt_sigtimedwait, &one, &info, &now, 8);
	CHECK(got == sig, "signal %d is not pending", sig);
	EQ(info.si_code, code);
	if (code == SI_QUEUE)
		EQ(info.si_value.sival_int, value);
	if (code == SI_QUEUE || code == SI_USER || code == SI_TKILL) {
		EQ(info.si_pid, getpid());
		EQ(info.si_uid, getuid());
	}
	if (code == CLD_EXITED) {
		EQ(info.si_pid, child);
		EQ(info.si_status, value);
	}
}

static void nothing_left(int sig)
{
	sigset_t now;

	SYS(sigpending(&now));
	EQ(sigismember(&now, sig), 0);
}

static void send(int sig, int value)
{
	SYS(sigqueue(getpid(), sig, (union sigval){ .sival_int = value }));
}

static void *run(void *unused)
{
	other_tid = gettid();
	pthread_barrier_wait(&met);
	for (int round = 1; round <= zoo_rounds; round++) {
		pthread_barrier_wait(&met);
		zoo_wait(round);
		take(SIGUSR2, SI_TKILL, 0);
		take(SIGRTMIN + 5, SI_TKILL, 0);
		nothing_left(SIGUSR2);
		pthread_barrier_wait(&met);
	}
	return unused;
}

static void prepare(int round)
{
	if (round == 1) {
		sigfillset(&blocked);
		SYS(-pthread_sigmask(SIG_SETMASK, &blocked, NULL));
		SYS(-pthread_barrier_init(&met, NULL, 2));
		SYS(-pthread_create(&other, NULL, run, NULL));
		pthread_barrier_wait(&met);
	}
	/* To the process: a plain one twice is one, a realtime one is a queue. */
	SYS(kill(getpid(), SIGUSR1));
	SYS(kill(getpid(), SIGUSR1));
	SYS(kill(getpid(), SIGTERM));
	for (int i = 0; i < 20; i++)
		send(SIGRTMAX - 1, round * 100 + i);
	send(SIGRTMIN + 1, 7);
	send(SIGHUP, 55);
	SYS(syscall(SYS_tgkill, getpid(), other_tid, SIGUSR2));
	SYS(syscall(SYS_tgkill, getpid(), other_tid, SIGRTMIN + 5));
	SYS(syscall(SYS_tgkill, getpid(), gettid(), SIGUSR2));
	child = SYS(fork());
	if (child == 0)
		_exit(round);
	zoo_await_state(child, 'Z');
	pthread_barrier_wait(&met);
}

static void check(int round)
{
	int status;

	take(SIGCHLD, CLD_EXITED, round);
	EQ(waitpid(child, &status, 0), child);
	take(SIGUSR1, SI_USER, 0);
	nothing_left(SIGUSR1);
	take(SIGTERM, SI_USER, 0);
	for (int i = 0; i < 20; i++)
		take(SIGRTMAX - 1, SI_QUEUE, round * 100 + i);
	nothing_left(SIGRTMAX - 1);
	take(SIGRTMIN + 1, SI_QUEUE, 7);
	take(SIGHUP, SI_QUEUE, 55);
	take(SIGUSR2, SI_TKILL, 0);
	nothing_left(SIGUSR2);
	pthread_barrier_wait(&met);
	if (round == zoo_rounds)
		SYS(-pthread_join(other, NULL));
}
