// signalfd in epoll: it wakes for signals after a restore, nested, under a number of the past, and one whose number another file has.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>

static int outer, inner, plain, past, reused, event;

static int watched(int poller, int signo, uint64_t data)
{
	sigset_t set;
	struct epoll_event e = { EPOLLIN, { .u64 = data } };
	int fd;

	sigemptyset(&set);
	sigaddset(&set, signo);
	SYS(-pthread_sigmask(SIG_BLOCK, &set, NULL));
	fd = SYS(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
	SYS(epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e));
	return fd;
}

static void prepare(int round)
{
	if (round > 1)
		return;
	outer = SYS(epoll_create1(EPOLL_CLOEXEC));
	inner = SYS(epoll_create1(0));
	plain = watched(outer, SIGUSR1, 1);
	watched(inner, SIGUSR2, 2);
	struct epoll_event e = { EPOLLIN, { .u64 = 5 } };
	SYS(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &e));
	/* Its number is free again. */
	int first = watched(outer, SIGRTMIN + 3, 3);
	past = SYS(fcntl(first, F_DUPFD_CLOEXEC, 100));
	SYS(close(first));
	/* Its number leads elsewhere. */
	first = watched(outer, SIGRTMIN + 4, 4);
	reused = SYS(fcntl(first, F_DUPFD, 120));
	event = SYS(eventfd(7, EFD_NONBLOCK | EFD_CLOEXEC));
	SYS(dup3(event, first, O_CLOEXEC));
	SYS(close(event));
	event = first;
}

/* Sends a signal to itself, and is told of it by the instance that sleeps. */
static void told(int poller, int signo, uint64_t data)
{
	struct epoll_event e;
	siginfo_t info;
	sigset_t set;

	EQ(epoll_wait(poller, &e, 1, 0), 0);
	SYS(kill(getpid(), signo));
	EQ(epoll_wait(poller, &e, 1, 10000), 1);
	EQ(e.data.u64, data);
	sigemptyset(&set);
	sigaddset(&set, signo);
	EQ(sigwaitinfo(&set, &info), signo);
}

static void check(int round)
{
	struct signalfd_siginfo info;
	eventfd_t value;

	(void)round;
	told(outer, SIGUSR1, 1);
	told(inner, SIGUSR2, 2);
	told(outer, SIGUSR2, 5);
	told(outer, SIGRTMIN + 3, 3);
	told(outer, SIGRTMIN + 4, 4);
	EQ(read(plain, &info, sizeof info), -1);
	EQ(read(past, &info, sizeof info), -1);
	EQ(read(reused, &info, sizeof info), -1);
	EQ(fcntl(past, F_GETFD), FD_CLOEXEC);
	EQ(fcntl(reused, F_GETFD), 0);
	EQ(fcntl(event, F_GETFD), FD_CLOEXEC);
	SYS(eventfd_read(event, &value));
	EQ(value, 7);
	SYS(eventfd_write(event, 7));
}
