/* Heat that spreads over a plate, step by step, with a journal of what is left of it.
 *
 *     gcc solver.c -lhdcr -o solver && hdcr run -- ./solver RESULT
 *
 * It runs without HDCR just as well. With it: a checkpoint after each fifty steps, a section in which the plate and the journal
 * are brought to the same state, a hook that writes out what is buffered, and one that says what happened. */
#include <hdcr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SIDE = 200, STEPS = 600 };

static double plate[SIDE][SIDE], next[SIDE][SIDE];

static int write_out(struct hdcr_event *event, void *journal)
{
	if (fflush(journal) == 0)
		return 0;
	snprintf(event->text, event->room, "the journal cannot be written");
	return 1;
}

static int tell(struct hdcr_event *event, void *data)
{
	(void)data;
	const struct hdcr_report *life = event->report;
	fprintf(stderr, "life %d, from %s (%s)\n", (int)life->count, life->image, life->reason);
	return 0;
}

static double step_once(int step)
{
	double sum = 0;
	for (int row = 1; row < SIDE - 1; row++) {
		for (int column = 1; column < SIDE - 1; column++) {
			double around = plate[row - 1][column] + plate[row + 1][column] + plate[row][column - 1] +
			                plate[row][column + 1];
			double heat = (row * 31 + column * 17) % SIDE == step % SIDE;
			next[row][column] = plate[row][column] * 0.5 + around * 0.125 + heat;
			sum += next[row][column];
		}
	}
	return sum;
}

int main(int count, char **words)
{
	FILE *journal = fopen("journal", "w+");
	if (!journal)
		return 1;
	hdcr_on(HDCR_BEFORE, 0, write_out, journal);
	hdcr_on(HDCR_AFTER_RESTORE, 0, tell, NULL);
	hdcr_section *section = hdcr_section_new("journal");
	const struct timespec pause = { 0, 4000000 };
	for (int step = 1; step <= STEPS; step++) {
		double sum = step_once(step);
		hdcr_enter(section);
		memcpy(plate, next, sizeof(plate));
		fprintf(journal, "%d %.12f\n", step, sum);
		hdcr_leave();
		nanosleep(&pause, NULL);
		if (step % 50 == 0) {
			printf("step %d\n", step);
			fflush(stdout);
			struct hdcr_report report = HDCR_REPORT;
			if (hdcr_is_enabled() && hdcr_checkpoint(NULL, &report) == HDCR_FAILED)
				fprintf(stderr, "no checkpoint: %s\n", report.message);
		}
	}
	rewind(journal);
	unsigned long digest = 7;
	for (int c; (c = getc(journal)) != EOF;)
		digest = digest * 31 + (unsigned char)c;
	const unsigned char *bytes = (const unsigned char *)plate;
	for (size_t at = 0; at < sizeof(plate); at++)
		digest = digest * 31 + bytes[at];
	FILE *result = fopen(count > 1 ? words[1] : "result", "w");
	if (!result)
		return 1;
	fprintf(result, "%016lx\n", digest);
	return fclose(result);
}
