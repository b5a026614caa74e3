/* Counts, and after each million asks for a checkpoint. Killed, it goes on from the last one; without HDCR it counts just so.
 *
 *     cc count.c $(pkg-config --cflags --libs hdcr) -o count
 *     hdcr run -- ./count
 */
#include <hdcr.h>
#include <stdio.h>

int main(void)
{
	volatile long number = 0;
	while (number < 5000000) {
		number++;
		if (number % 1000000 != 0)
			continue;
		struct hdcr_report report = HDCR_REPORT;
		switch (hdcr_checkpoint(NULL, &report)) {
		case HDCR_CONTINUED:
			fprintf(stderr, "%ld is safe: %s\n", number, report.image);
			break;
		case HDCR_RESTORED:
			fprintf(stderr, "back at %ld, from %s\n", number, report.image);
			break;
		default:
			if (hdcr_is_enabled())
				fprintf(stderr, "no checkpoint: %s\n", report.message);
		}
	}
	printf("counted to %ld\n", number);
	return 0;
}
