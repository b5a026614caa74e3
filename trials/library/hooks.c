// Hooks, vetoes and critical sections: three threads move amounts between accounts in sections, hooks write down what they
// see; it crashes once.
#include <hdcr.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			printf("line %d: not %s\n", __LINE__, #what); \
			fflush(stdout); \
			_exit(1); \
		} \
	} while (0)

enum { THREADS = 3 };

/* Half of each is moved outside of any memory: into a pipe that nobody reads meanwhile. */
static atomic_long in_memory = 1000000;
static atomic_long in_flight;
static atomic_int ends;
static hdcr_section *section;

static char order[64];
static atomic_int vetoes, befores, afters, restores;
static atomic_long seen_in_flight;

static void *moves(void *unused)
{
	(void)unused;
	while (!ends) {
		hdcr_enter(section);
		in_memory -= 7;
		in_flight += 7;
		hdcr_enter(section);
		hdcr_leave();
		in_flight -= 7;
		in_memory += 7;
		hdcr_leave();
	}
	return NULL;
}

static int before(struct hdcr_event *event, void *data)
{
	CHECK(event->when == HDCR_BEFORE);
	if (vetoes > 0) {
		vetoes--;
		snprintf(event->text, event->room, "the ledger is open");
		return 42;
	}
	befores++;
	seen_in_flight += in_flight;
	strncat(order, data, 1);
	return 0;
}

static int after(struct hdcr_event *event, void *data)
{
	CHECK(event->when == HDCR_AFTER);
	strncat(order, data, 1);
	afters += event->captured;
	return 0;
}

static int restored(struct hdcr_event *event, void *data)
{
	(void)data;
	CHECK(event->when == HDCR_AFTER_RESTORE && event->report->count > 0);
	CHECK(hdcr_checkpoint(NULL, NULL) == HDCR_FAILED); /* not in a hook */
	CHECK(in_flight == 0 && in_memory == 1000000);
	restores++;
	return 0;
}

static void *asks(void *unused)
{
	(void)unused;
	struct hdcr_report report = HDCR_REPORT;
	CHECK(hdcr_checkpoint(NULL, &report) == HDCR_FAILED && strcmp(report.code, "vetoed") == 0);
	CHECK(strstr(report.message, "does not want this checkpoint: thread"));
	CHECK(strstr(report.message, "is in its section ledger"));
	return NULL;
}

int main(void)
{
	struct hdcr_report report = HDCR_REPORT;
	CHECK(hdcr_is_enabled());
	section = hdcr_section_new("ledger");
	CHECK(hdcr_on(HDCR_BEFORE, 1, before, "a") && hdcr_on(HDCR_BEFORE, 2, before, "b"));
	CHECK(hdcr_on(HDCR_AFTER, 1, after, "A") && hdcr_on(HDCR_AFTER, 2, after, "B"));
	CHECK(hdcr_on(HDCR_AFTER_RESTORE, 0, restored, NULL) && !hdcr_on(7, 0, before, NULL));
	pthread_t threads[THREADS];
	for (int i = 0; i < THREADS; i++) {
		CHECK(pthread_create(&threads[i], NULL, moves, NULL) == 0);
	}
	int branch = hdcr_checkpoint(NULL, &report);
	CHECK(branch == HDCR_CONTINUED || branch == HDCR_RESTORED);
	if (branch == HDCR_CONTINUED) {
		CHECK(strcmp(order, "abBA") == 0);
		kill(getpid(), SIGKILL);
	}
	CHECK(strcmp(order, "ab") == 0 && restores == 1 && befores == 2 && afters == 0);
	vetoes = 1;
	CHECK(hdcr_checkpoint(NULL, &report) == HDCR_FAILED && report.class_ == HDCR_CHANGED);
	CHECK(strcmp(report.code, "vetoed") == 0 && strstr(report.message, "the ledger is open (code 42)"));
	hdcr_enter(section);
	CHECK(hdcr_checkpoint(NULL, &report) == HDCR_FAILED && strcmp(report.code, "in-section") == 0);
	/* Held all the time: it is skipped, and told by whom. */
	CHECK(!hdcr_request_begin(NULL, NULL));
	pthread_t other;
	CHECK(pthread_create(&other, NULL, asks, NULL) == 0 && pthread_join(other, NULL) == 0);
	hdcr_leave();
	CHECK(hdcr_checkpoint(NULL, &report) == HDCR_CONTINUED);
	ends = 1;
	for (int i = 0; i < THREADS; i++) {
		CHECK(pthread_join(threads[i], NULL) == 0);
	}
	CHECK(seen_in_flight == 0 && in_memory == 1000000 && afters == 2);
	printf("done\n");
	return 0;
}
