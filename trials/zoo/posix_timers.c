// POSIX timers: every way to notify, their ids, values, intervals, overruns, one disarmed, one of processor time.
// zoo: rounds=3 static=yes volatile=SigPnd,ShdPnd musl=yes
#include "zoo.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static timer_t by_signal, by_thread, silent, idle, fast, cpu, absolute;
static sigset_t blocked;

static timer_t make(clockid_t clock, int notify, int sig, int value)
{
	struct sigevent e = { .sigev_notify = notify, .sigev_signo = sig, .sigev_value.sival_int = value };
	int id;

	e.sigev_notify_thread_id = gettid();
	/* The kernel's own call: libc's ids are its own business. */
	SYS(syscall(SYS_timer_create, clock, &e, &id));
	return (timer_t)(long)id;
}

static void arm(timer_t id, long ms, long every, int flags)
{
	struct itimerspec t = { { every / 1000, every % 1000 * 1000000 }, { ms / 1000, ms % 1000 * 1000000 } };

	if (flags & TIMER_ABSTIME) {
		struct timespec now;
		clock_gettime(CLOCK_REALTIME, &now);
		t.it_value.tv_sec += now.tv_sec;
	}
	SYS(syscall(SYS_timer_settime, (int)(long)id, flags, &t, NULL));
}

static long left(timer_t id, long *every)
{
	struct itimerspec t;

	SYS(syscall(SYS_timer_gettime, (int)(long)id, &t));
	*every = t.it_interval.tv_sec * 1000 + t.it_interval.tv_nsec / 1000000;
	return t.it_value.tv_sec * 1000 + t.it_value.tv_nsec / 1000000;
}

static siginfo_t take(int sig)
{
	siginfo_t info;
	sigset_t one;
	struct timespec most = { 10, 0 };

	sigemptyset(&one);
	sigaddset(&one, sig);
	CHECK(sigtimedwait(&one, &info, &most) == sig, "signal %d did not come", sig);
	EQ(info.si_code, SI_TIMER);
	return info;
}

static void prepare(int round)
{
	if (round == 1) {
		sigfillset(&blocked);
		SYS(-pthread_sigmask(SIG_SETMASK, &blocked, NULL));
		timer_t hole = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);
		by_signal = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 4711);
		SYS(syscall(SYS_timer_delete, (int)(long)hole));
		by_thread = make(CLOCK_REALTIME, SIGEV_SIGNAL | SIGEV_THREAD_ID, SIGRTMIN + 2, 12);
		silent = make(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0);
		idle = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 0);
		fast = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 4, 99);
		cpu = make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 5, 0);
		absolute = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 6, 0);
		arm(cpu, 3600000, 0, 0);
		arm(absolute, 3600000, 0, TIMER_ABSTIME);
	}
	arm(by_signal, 600, 0, 0);
	arm(by_thread, 500, 10000, 0);
	arm(silent, 900000, 1234, 0);
	arm(fast, 20, 20, 0);
	zoo_nap(150);
}

static void check(int round)
{
	long every, rest = left(silent, &every);

	CHECK(rest <= 900000 && rest > 800000 && every == 1234, "silent: %ld ms, every %ld", rest, every);
	EQ(left(idle, &every), 0);
	rest = left(cpu, &every);
	CHECK(rest <= 3600000 && rest > 3500000, "processor time: %ld ms", rest);
	rest = left(absolute, &every);
	CHECK(rest <= 3600000 && rest > 3500000, "absolute: %ld ms", rest);
	/* How many expiries the pending signal had missed before a checkpoint is not to be seen: they are counted anew. */
	zoo_nap(150);
	siginfo_t info = take(SIGRTMIN + 4);
	EQ(info.si_value.sival_int, 99);
	EQ(info.si_timerid, (int)(long)fast);
	/* The expiries that found the signal pending already. */
	CHECK(info.si_overrun >= 4, "overrun %d", info.si_overrun);
	arm(fast, 0, 0, 0);
	info = take(SIGRTMIN + 1);
	EQ(info.si_value.sival_int, 4711);
	EQ(info.si_timerid, (int)(long)by_signal);
	info = take(SIGRTMIN + 2);
	EQ(info.si_value.sival_int, 12);
	rest = left(by_thread, &every);
	CHECK(rest <= 10000 && every == 10000, "thread: %ld ms, every %ld", rest, every);
	while (sigtimedwait(&blocked, &info, &(struct timespec){ 0, 0 }) > 0)
		;
	(void)round;
}
