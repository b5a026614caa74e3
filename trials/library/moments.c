/* Works without a break, and says every while that a moment is good, until a checkpoint has been taken after its word. */
#define _GNU_SOURCE
#include <hdcr.h>
#include <stdio.h>
#include <time.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static volatile int taken;

static int after(struct hdcr_event *event, void *data)
{
	(void)data;
	taken |= event->captured;
	return 0;
}

int main(void)
{
	if (!hdcr_is_enabled() || !hdcr_on(HDCR_AFTER, 0, after, NULL))
		return 1;
	double end = now() + 50;
	while (!taken && now() < end) {
		struct timespec pause = {0, 50000000};
		nanosleep(&pause, NULL);
		hdcr_good_moment();
	}
	puts(taken ? "done" : "no checkpoint");
	return !taken;
}
