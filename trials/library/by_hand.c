// Looks now and then whether it was restored; by hand it was, and has no keeper any more.
#include <hdcr.h>
#include <stdio.h>
#include <time.h>

int main(void)
{
	struct hdcr_report report = HDCR_REPORT;
	const struct timespec pause = { 0, 10000000 };
	if (!hdcr_is_enabled()) {
		return 1;
	}
	fprintf(stderr, "ready\n");
	while (!hdcr_restored(&report)) {
		nanosleep(&pause, NULL);
	}
	printf("restored %d %s %s\n", (int)report.count, report.image, report.reason);
	printf("%s\n", hdcr_is_enabled() ? "kept" : "alone");
	printf("%d %s\n", hdcr_checkpoint(NULL, &report), report.code);
	return 0;
}
