// timerfd: armed, periodic with unread expiries, disarmed, absolute, cancel on set, clocks.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/timerfd.h>

static int once, periodic, idle, absolute, cancel, boot;
static long long began;

static void arm(int fd, long ms, long every, int flags)
{
	struct itimerspec t = { { every / 1000, every % 1000 * 1000000 }, { ms / 1000, ms % 1000 * 1000000 } };

	if (flags & TFD_TIMER_ABSTIME) {
		struct timespec now;
		clock_gettime(fd == cancel ? CLOCK_REALTIME : CLOCK_MONOTONIC, &now);
		t.it_value.tv_sec += now.tv_sec + (t.it_value.tv_nsec + now.tv_nsec) / 1000000000;
		t.it_value.tv_nsec = (t.it_value.tv_nsec + now.tv_nsec) % 1000000000;
	}
	SYS(timerfd_settime(fd, flags, &t, NULL));
}

static long left(int fd, long *every)
{
	struct itimerspec t;

	SYS(timerfd_gettime(fd, &t));
	*every = t.it_interval.tv_sec * 1000 + t.it_interval.tv_nsec / 1000000;
	return t.it_value.tv_sec * 1000 + t.it_value.tv_nsec / 1000000;
}

static void prepare(int round)
{
	if (round == 1) {
		once = SYS(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
		periodic = SYS(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
		idle = SYS(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
		absolute = SYS(timerfd_create(CLOCK_MONOTONIC, 0));
		cancel = SYS(timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK));
		boot = SYS(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK));
		arm(cancel, 3600000, 0, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
		arm(boot, 7200000, 5000, 0);
	}
	began = zoo_ms();
	arm(once, 700, 0, 0);
	arm(periodic, 30, 30, 0);
	arm(absolute, 800, 0, TFD_TIMER_ABSTIME);
	zoo_nap(200);
}

static void check(int round)
{
	uint64_t ticks;
	long every, rest = left(once, &every);

	EQ(every, 0);
	CHECK(rest <= 500, "one shot has %ld ms left", rest);
	/* At least what had expired at the checkpoint; at most what fits into the time since. */
	EQ(read(periodic, &ticks, sizeof ticks), sizeof ticks);
	CHECK(ticks >= 6 && ticks <= (uint64_t)(zoo_ms() - began) / 30 + 1, "%lu ticks", ticks);
	CHECK(left(periodic, &every) <= 30 && every == 30, "period %ld", every);
	EQ(read(idle, &ticks, sizeof ticks), -1);
	EQ(errno, EAGAIN);
	EQ(left(idle, &every), 0);
	EQ(read(cancel, &ticks, sizeof ticks), -1);
	EQ(errno, EAGAIN);
	rest = left(cancel, &every);
	CHECK(rest > 3500000 && rest <= 3600000, "cancel timer has %ld ms left", rest);
	rest = left(boot, &every);
	CHECK(rest > 7100000 && rest <= 7200000 && every == 5000, "boot timer has %ld ms left", rest);
	EQ(read(once, &ticks, sizeof ticks), sizeof ticks);
	EQ(ticks, 1);
	CHECK(zoo_ms() - began >= 690, "one shot came after %lld ms", zoo_ms() - began);
	EQ(read(absolute, &ticks, sizeof ticks), sizeof ticks);
	EQ(ticks, 1);
	CHECK(zoo_ms() - began >= 790, "absolute came after %lld ms", zoo_ms() - began);
	EQ(fcntl(once, F_GETFD), FD_CLOEXEC);
	EQ(fcntl(periodic, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	(void)round;
}
