// eventfd: count, semaphore mode, status flags, the largest count.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/eventfd.h>

static int counter, semaphore, most;

static void prepare(int round)
{
	if (round == 1) {
		counter = SYS(eventfd(0, EFD_CLOEXEC));
		semaphore = SYS(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
		most = SYS(eventfd(0, EFD_NONBLOCK));
	}
	SYS(eventfd_write(counter, 1000 + round));
	SYS(eventfd_write(most, 0xfffffffffffffffeULL));
}

static void check(int round)
{
	eventfd_t value;

	SYS(eventfd_read(counter, &value));
	EQ(value, 1000 + round);
	SYS(eventfd_read(semaphore, &value));
	EQ(value, 1);
	if (round == 4) {
		EQ(eventfd_read(semaphore, &value), -1);
		EQ(errno, EAGAIN);
	}
	EQ(eventfd_write(most, 1), -1);
	EQ(errno, EAGAIN);
	SYS(eventfd_read(most, &value));
	EQ(value, 0xfffffffffffffffeULL);
	EQ(fcntl(counter, F_GETFD), FD_CLOEXEC);
	EQ(fcntl(counter, F_GETFL) & O_NONBLOCK, 0);
	EQ(fcntl(semaphore, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}
