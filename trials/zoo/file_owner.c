// Who is told of open files (F_SETOWN_EX, F_SETSIG, O_ASYNC): a thread, the process, its group, a child; nobody is told twice.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <netinet/in.h>
#include <sys/socket.h>

enum { THREAD, PROCESS, GROUP, CHILD, LISTENER, COUNT };

/* What is owned, and where one writes to it. */
static int owned[COUNT], other[COUNT];
static int number[COUNT];
static struct f_owner_ex owner[COUNT];
static pid_t tid, child;
static pthread_t thread;
static volatile int heard, stop;
static volatile int heard_fd;

static sigset_t all(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGIO);
	for (int i = 0; i < COUNT; i++)
		sigaddset(&set, SIGRTMIN + i);
	return set;
}

/* The next of these signals, 0 when there is none. */
static int next(int which, long ms, siginfo_t *info)
{
	struct timespec limit = { ms / 1000, ms % 1000 * 1000000 };
	sigset_t set = all();

	if (which) {
		sigemptyset(&set);
		sigaddset(&set, which);
	}
	int got = sigtimedwait(&set, info, &limit);
	return got > 0 ? got : 0;
}

static void *listen_on(void *unused)
{
	siginfo_t info;

	tid = (pid_t)syscall(SYS_gettid);
	while (!stop) {
		if (!next(SIGRTMIN + THREAD, 20, &info))
			continue;
		heard_fd = info.si_fd;
		heard++;
	}
	return unused;
}

static void child_lives(void)
{
	siginfo_t info;

	zoo_mark("child", 0);
	for (int round = 1; round <= zoo_rounds; round++) {
		zoo_await("written", round);
		EQ(next(0, 10000, &info), SIGRTMIN + CHILD);
		EQ(info.si_fd, owned[CHILD]);
		EQ(next(0, 0, &info), 0);
		zoo_mark("told", round);
	}
	_exit(9);
}

static void own(int i, int type, pid_t pid, int signal_number)
{
	owner[i] = (struct f_owner_ex){ .type = type, .pid = pid };
	number[i] = signal_number;
	SYS(fcntl(owned[i], F_SETOWN_EX, &owner[i]));
	SYS(fcntl(owned[i], F_SETSIG, signal_number));
	SYS(fcntl(owned[i], F_SETFL, fcntl(owned[i], F_GETFL) | O_ASYNC | O_NONBLOCK));
}

static void begin(void)
{
	sigset_t set = all();
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	int on = 1;

	SYS(-pthread_sigmask(SIG_BLOCK, &set, NULL));
	for (int i = 0; i < LISTENER; i++) {
		int ends[2];

		SYS(i == GROUP ? pipe(ends) : socketpair(AF_UNIX, i == PROCESS ? SOCK_DGRAM : SOCK_STREAM, 0, ends));
		owned[i] = ends[0];
		other[i] = ends[1];
	}
	owned[LISTENER] = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(setsockopt(owned[LISTENER], SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
	SYS(bind(owned[LISTENER], (struct sockaddr *)&at, sizeof at));
	SYS(listen(owned[LISTENER], 4));
	child = SYS(fork());
	if (child == 0)
		child_lives();
	zoo_await("child", 0);
	SYS(-pthread_create(&thread, NULL, listen_on, NULL));
	while (!tid)
		zoo_nap(1);
	own(THREAD, F_OWNER_TID, tid, SIGRTMIN + THREAD);
	own(PROCESS, F_OWNER_PID, getpid(), SIGRTMIN + PROCESS);
	/* The child is in the group as well: it is not told of a pipe that it has no reading end of, but by SIGIO. */
	own(GROUP, F_OWNER_PGRP, getpid(), 0);
	own(CHILD, F_OWNER_PID, child, SIGRTMIN + CHILD);
	own(LISTENER, F_OWNER_PID, getpid(), SIGRTMIN + LISTENER);
}

static void prepare(int round)
{
	char c = 'q';

	if (round > 1)
		return;
	begin();
	/* What waits already has been told of, and is not told of again. */
	EQ(write(other[PROCESS], &c, 1), 1);
	siginfo_t info;
	EQ(next(0, 5000, &info), SIGRTMIN + PROCESS);
}

static void check(int round)
{
	siginfo_t info;
	char c = 'a' + round;
	struct sockaddr_in at;
	socklen_t len = sizeof at;

	for (int i = 0; i < COUNT; i++) {
		struct f_owner_ex now;
		SYS(fcntl(owned[i], F_GETOWN_EX, &now));
		CHECK(now.type == owner[i].type && now.pid == owner[i].pid, "file %d: owner %d of type %d", i, now.pid, now.type);
		EQ(fcntl(owned[i], F_GETSIG), number[i]);
		CHECK(fcntl(owned[i], F_GETFL) & O_ASYNC, "file %d", i);
		EQ(fcntl(other[i] ? other[i] : owned[i], F_GETSIG), other[i] ? 0 : number[i]);
	}
	EQ(next(0, 0, &info), 0);
	EQ(heard, round - 1);
	EQ(write(other[THREAD], &c, 1), 1);
	for (int i = 0; heard < round; i++) {
		CHECK(i < 10000, "the thread is not told");
		zoo_nap(1);
	}
	EQ(heard_fd, owned[THREAD]);
	EQ(write(other[PROCESS], &c, 1), 1);
	EQ(next(0, 10000, &info), SIGRTMIN + PROCESS);
	EQ(info.si_fd, owned[PROCESS]);
	EQ(info.si_code, POLL_IN);
	EQ(write(other[CHILD], &c, 1), 1);
	zoo_mark("written", round);
	zoo_await("told", round);
	SYS(getsockname(owned[LISTENER], (struct sockaddr *)&at, &len));
	int client = SYS(socket(AF_INET, SOCK_STREAM, 0));
	SYS(connect(client, (struct sockaddr *)&at, sizeof at));
	EQ(next(0, 10000, &info), SIGRTMIN + LISTENER);
	EQ(info.si_fd, owned[LISTENER]);
	int server = SYS(accept(owned[LISTENER], NULL, NULL));
	SYS(close(client));
	SYS(close(server));
	while (next(SIGRTMIN + LISTENER, 0, &info))
		;
	EQ(next(0, 0, &info), 0);
	if (round == zoo_rounds) {
		EQ(write(other[GROUP], &c, 1), 1);
		EQ(next(0, 10000, &info), SIGIO);
		stop = 1;
		SYS(-pthread_join(thread, NULL));
		zoo_reap(child, 9 << 8);
	}
}
