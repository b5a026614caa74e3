// Calls that wait under a mask of their own (sigsuspend, ppoll, pselect, epoll_pwait): the thread's mask comes back.
// zoo: rounds=2 static=yes musl=yes
// zoo: volatile=SigBlk
#include "zoo.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>

static int poller;
static sigset_t waiting;
static __thread volatile int hit;

static void handler(int sig) { hit = sig; }

static long by_sigsuspend(void) { return sigsuspend(&waiting); }
static long by_ppoll(void) { return ppoll(NULL, 0, NULL, &waiting); }
static long by_pselect(void) { return pselect(0, NULL, NULL, NULL, NULL, &waiting); }
static long by_epoll(void) { struct epoll_event e; return epoll_pwait(poller, &e, 1, -1, &waiting); }

static long (*const calls[])(void) = { by_sigsuspend, by_ppoll, by_pselect, by_epoll };
#define COUNT (int)(sizeof calls / sizeof *calls)

static pthread_t thread[COUNT];
static volatile int tid[COUNT];

static void *run(void *arg)
{
	long i = (long)arg;
	sigset_t mask;

	tid[i] = gettid();
	EQ(calls[i](), -1);
	CHECK(errno == EINTR, "call %ld", i);
	CHECK(hit == SIGUSR1, "call %ld was ended by %d", i, hit);
	SYS(-pthread_sigmask(SIG_SETMASK, NULL, &mask));
	EQ(sigismember(&mask, SIGUSR1), 1);
	EQ(sigismember(&mask, SIGTERM), 1);
	EQ(sigismember(&mask, SIGUSR2), 0);
	return NULL;
}

static void prepare(int round)
{
	struct sigaction a = { .sa_handler = handler };
	sigset_t mask;

	if (round == 1) {
		poller = SYS(epoll_create1(0));
		SYS(sigaction(SIGUSR1, &a, NULL));
		sigemptyset(&mask);
		sigaddset(&mask, SIGUSR1);
		sigaddset(&mask, SIGTERM);
		SYS(-pthread_sigmask(SIG_SETMASK, &mask, NULL));
		sigemptyset(&waiting);
		sigaddset(&waiting, SIGTERM);
		sigaddset(&waiting, SIGUSR2);
	}
	for (long i = 0; i < COUNT; i++) {
		tid[i] = 0;
		SYS(-pthread_create(&thread[i], NULL, run, (void *)i));
		while (tid[i] == 0)
			zoo_nap(1);
		zoo_await_state(tid[i], 'S');
	}
}

static void check(int round)
{
	for (int i = 0; i < COUNT; i++) {
		SYS(-pthread_kill(thread[i], SIGUSR1));
		SYS(-pthread_join(thread[i], NULL));
	}
	(void)round;
}
