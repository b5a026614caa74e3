// Interval timers REAL, VIRTUAL and PROF: value, interval, and that they go on.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"
#include <sys/time.h>

static volatile sig_atomic_t alarms, virtuals, profs;

static void count(int sig)
{
	if (sig == SIGALRM)
		alarms++;
	else if (sig == SIGVTALRM)
		virtuals++;
	else
		profs++;
}

static void arm(int which, long ms, long every)
{
	struct itimerval t = { { every / 1000, every % 1000 * 1000 }, { ms / 1000, ms % 1000 * 1000 } };

	SYS(setitimer(which, &t, NULL));
}

static long left(int which, long *every)
{
	struct itimerval t;

	SYS(getitimer(which, &t));
	*every = t.it_interval.tv_sec * 1000 + t.it_interval.tv_usec / 1000;
	return t.it_value.tv_sec * 1000 + t.it_value.tv_usec / 1000;
}

static void prepare(int round)
{
	struct sigaction a = { .sa_handler = count, .sa_flags = SA_RESTART };

	SYS(sigaction(SIGALRM, &a, NULL));
	SYS(sigaction(SIGVTALRM, &a, NULL));
	SYS(sigaction(SIGPROF, &a, NULL));
	alarms = virtuals = profs = 0;
	arm(ITIMER_REAL, 600, round == 2 ? 400 : 0);
	arm(ITIMER_VIRTUAL, 3600000, 60);
	arm(ITIMER_PROF, 1800000, 2000);
}

static void check(int round)
{
	long every, rest = left(ITIMER_REAL, &every);

	CHECK(rest <= 600 && every == (round == 2 ? 400 : 0), "real: %ld ms, every %ld", rest, every);
	rest = left(ITIMER_VIRTUAL, &every);
	CHECK(rest <= 3600010 && rest > 3500000 && every == 60, "virtual: %ld ms, every %ld", rest, every);
	rest = left(ITIMER_PROF, &every);
	CHECK(rest <= 1800010 && rest > 1700000 && every == 2000, "prof: %ld ms, every %ld", rest, every);
	for (int i = 0; alarms < (round == 2 ? 2 : 1); i++) {
		CHECK(i < 1000, "no alarm");
		zoo_nap(10);
	}
	arm(ITIMER_REAL, 0, 0);
	/* The others run on processor time. */
	arm(ITIMER_VIRTUAL, 20, 0);
	arm(ITIMER_PROF, 20, 0);
	long long began = zoo_ms();
	while (virtuals == 0 || profs == 0)
		CHECK(zoo_ms() - began < 20000, "no virtual or prof alarm");
	EQ(profs, 1);
}
