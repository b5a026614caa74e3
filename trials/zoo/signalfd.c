// signalfd: its mask, signals that wait for it, flags.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/signalfd.h>

static int fd, other;
static sigset_t mask, narrow;

static void prepare(int round)
{
	if (round == 1) {
		sigemptyset(&mask);
		sigemptyset(&narrow);
		sigaddset(&mask, SIGUSR1);
		sigaddset(&mask, SIGRTMIN + 7);
		sigaddset(&narrow, SIGUSR2);
		sigset_t both = mask;
		sigaddset(&both, SIGUSR2);
		SYS(-pthread_sigmask(SIG_BLOCK, &both, NULL));
		fd = SYS(signalfd(-1, &mask, SFD_NONBLOCK));
		other = SYS(signalfd(-1, &narrow, SFD_CLOEXEC));
	}
	SYS(kill(getpid(), SIGUSR1));
	SYS(sigqueue(getpid(), SIGRTMIN + 7, (union sigval){ .sival_int = round }));
	SYS(kill(getpid(), SIGUSR2));
}

static void check(int round)
{
	struct signalfd_siginfo info[4];

	EQ(read(fd, info, sizeof info), 2 * sizeof *info);
	EQ(info[0].ssi_signo, SIGUSR1);
	EQ(info[0].ssi_pid, getpid());
	EQ(info[1].ssi_signo, SIGRTMIN + 7);
	EQ(info[1].ssi_int, round);
	EQ(read(fd, info, sizeof info), -1);
	EQ(errno, EAGAIN);
	EQ(read(other, info, sizeof info), sizeof *info);
	EQ(info[0].ssi_signo, SIGUSR2);
	EQ(fcntl(other, F_GETFD), FD_CLOEXEC);
	EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}
