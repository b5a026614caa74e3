// Calls with a time limit, begun before the checkpoint: each ends as it would have, when it would have.
// zoo: rounds=2 static=yes volatile=/ musl=yes
#include "zoo.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>

#define LIMIT 1500L	/* how long each call may last */
#define BEFORE 900L	/* how much of it has passed at the checkpoint: a call begun anew shows as too long */

static int pipe_fd[2], poller, semaphores, pair[2], word;
static const struct timespec limit = { LIMIT / 1000, LIMIT % 1000 * 1000000 };
static struct timespec until;
static sigset_t rt, empty;

static long by_poll(void) { struct pollfd p = { pipe_fd[0], POLLIN, 0 }; return poll(&p, 1, LIMIT); }
static long by_poll_nothing(void) { return poll(NULL, 0, LIMIT); }
static long by_ppoll(void) { struct pollfd p = { pipe_fd[0], POLLIN, 0 }; return ppoll(&p, 1, &limit, &empty); }
static long by_nanosleep(void) { return nanosleep(&limit, NULL); }
static long by_clock_rel(void) { return clock_nanosleep(CLOCK_MONOTONIC, 0, &limit, NULL); }
static long by_clock_boot(void) { return clock_nanosleep(CLOCK_BOOTTIME, 0, &limit, NULL); }
static long by_clock_abs(void) { return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL); }
static long by_sigtimedwait(void) { return sigtimedwait(&rt, NULL, &limit); }
static long by_epoll(void) { struct epoll_event e; return epoll_wait(poller, &e, 1, LIMIT); }
static long by_epoll_mask(void) { struct epoll_event e; return epoll_pwait(poller, &e, 1, LIMIT, &empty); }

static long by_select(void)
{
	struct timeval t = { LIMIT / 1000, LIMIT % 1000 * 1000 };
	fd_set in;

	FD_ZERO(&in);
	FD_SET(pipe_fd[0], &in);
	return select(pipe_fd[0] + 1, &in, NULL, NULL, &t);
}

static long by_pselect(void)
{
	fd_set in;

	FD_ZERO(&in);
	FD_SET(pipe_fd[0], &in);
	return pselect(pipe_fd[0] + 1, &in, NULL, NULL, &limit, &empty);
}

static long by_futex(void) { return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &limit, NULL, 0); }

static long by_futex_bitset(void)
{
	return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &until, NULL, 0xff);
}

static long by_semtimedop(void)
{
	struct sembuf down = { 0, -1, 0 };

	return semtimedop(semaphores, &down, 1, &limit);
}

static long by_recv(void) { char c; return recv(pair[0], &c, 1, 0); }

static struct trial {
	const char *name;
	long (*call)(void);
	long result, error;		/* what must come */
	long got, got_error, took;
	pthread_t thread;
	int tid;
} trials[] = {
	{ .name = "poll", .call = by_poll }, { .name = "poll without descriptors", .call = by_poll_nothing },
	{ .name = "ppoll", .call = by_ppoll }, { .name = "select", .call = by_select }, { .name = "pselect", .call = by_pselect },
	{ .name = "nanosleep", .call = by_nanosleep }, { .name = "clock_nanosleep", .call = by_clock_rel },
	{ .name = "clock_nanosleep boot", .call = by_clock_boot }, { .name = "clock_nanosleep abs", .call = by_clock_abs },
	{ "sigtimedwait", by_sigtimedwait, -1, EAGAIN, 0, 0, 0, 0, 0 },
	{ .name = "epoll_wait", .call = by_epoll }, { .name = "epoll_pwait", .call = by_epoll_mask },
	{ "futex", by_futex, -1, ETIMEDOUT, 0, 0, 0, 0, 0 }, { "futex bitset", by_futex_bitset, -1, ETIMEDOUT, 0, 0, 0, 0, 0 },
	{ "semtimedop", by_semtimedop, -1, EAGAIN, 0, 0, 0, 0, 0 }, { "recv with SO_RCVTIMEO", by_recv, -1, EAGAIN, 0, 0, 0, 0, 0 },
};
#define COUNT (int)(sizeof trials / sizeof *trials)

/* Before all of them begin: the ends of some are points in time that count from here. */
static long long began;

static void *run(void *arg)
{
	struct trial *t = arg;

	__atomic_store_n(&t->tid, gettid(), __ATOMIC_RELEASE);
	errno = 0;
	t->got = t->call();
	t->got_error = t->got < 0 ? errno : 0;
	t->took = zoo_ms() - began;
	return NULL;
}

static void prepare(int round)
{
	if (round == 1) {
		struct timeval t = { LIMIT / 1000, LIMIT % 1000 * 1000 };

		SYS(pipe(pipe_fd));
		SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		SYS(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
		poller = SYS(epoll_create1(0));
		struct epoll_event e = { EPOLLIN, { 0 } };
		SYS(epoll_ctl(poller, EPOLL_CTL_ADD, pipe_fd[0], &e));
		semaphores = SYS(semget(IPC_PRIVATE, 1, 0600));
		sigemptyset(&rt);
		sigaddset(&rt, SIGRTMIN + 3);
		SYS(-pthread_sigmask(SIG_BLOCK, &rt, NULL));
	}
	began = zoo_ms();
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += LIMIT / 1000;
	until.tv_nsec += LIMIT % 1000 * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	for (int i = 0; i < COUNT; i++) {
		trials[i].tid = 0;
		SYS(-pthread_create(&trials[i].thread, NULL, run, &trials[i]));
	}
	zoo_nap(BEFORE);
}

static void check(int round)
{
	long most;

	for (int i = 0; i < COUNT; i++) {
		struct trial *t = &trials[i];

		SYS(-pthread_join(t->thread, NULL));
		CHECK(t->got == t->result && t->got_error == t->error, "%s gave %ld, errno %ld", t->name, t->got, t->got_error);
		CHECK(t->took >= LIMIT - 20, "%s took %ld ms", t->name, t->took);
		/* The kernel ends these on any stop without telling what remains: they are made again with their full time. */
		most = LIMIT + zoo_away(round) + 700;
		if (t->call == by_sigtimedwait || t->call == by_epoll || t->call == by_epoll_mask || t->call == by_semtimedop || t->call == by_recv)
			most += LIMIT;
		CHECK(t->took <= most, "%s took %ld ms, at most %ld are right", t->name, t->took, most);
	}
	if (round == zoo_rounds)
		SYS(semctl(semaphores, 0, IPC_RMID));
}
