// Every branch of a checkpoint, in three lives: it crashes in the first, goes back in the second, ends in the third.
#include <hdcr.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

_Static_assert(sizeof(struct hdcr_report) == 1472 && sizeof(struct hdcr_options) == 16, "as the library has them");
_Static_assert(sizeof(struct hdcr_event) == 40, "as the library has it");

#define CHECK(what) \
	do { \
		if (!(what)) { \
			printf("line %d: not %s\n", __LINE__, #what); \
			exit(1); \
		} \
	} while (0)

static void *asks(void *image)
{
	struct hdcr_report report = HDCR_REPORT;
	CHECK(hdcr_checkpoint(NULL, &report) == HDCR_CONTINUED);
	memcpy(image, report.image, sizeof(report.image));
	return NULL;
}

static void threads_ask(void)
{
	enum { THREADS = 4 };
	static char images[THREADS][320];
	pthread_t threads[THREADS];
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, asks, images[i]) == 0);
	for (int i = 0; i < THREADS; i++) {
		CHECK(pthread_join(threads[i], NULL) == 0);
		CHECK(strchr(images[i], '@'));
	}
}

static void child_asks(void)
{
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		struct hdcr_report report = HDCR_REPORT;
		CHECK(hdcr_is_enabled());
		CHECK(hdcr_checkpoint(NULL, &report) == HDCR_CONTINUED);
		exit(0);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void asks_and_polls(void)
{
	struct hdcr_report report = HDCR_REPORT;
	struct hdcr_options options = HDCR_OPTIONS;
	options.timeout_ms = 5000;
	hdcr_request *request = hdcr_request_begin(&options, &report);
	CHECK(request);
	struct pollfd polled = { hdcr_request_fd(request), POLLIN, 0 };
	CHECK(poll(&polled, 1, 30000) == 1);
	CHECK(hdcr_request_wait(request, 0, &report) == HDCR_CONTINUED);
	hdcr_request_free(request);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	char job[64];
	struct hdcr_report report = HDCR_REPORT;
	if (!hdcr_is_enabled()) {
		CHECK(hdcr_job(job, sizeof(job)) == -1 && hdcr_restart_count() == 0);
		CHECK(hdcr_checkpoint(NULL, &report) == HDCR_FAILED);
		CHECK(report.class_ == HDCR_REFUSED && strcmp(report.code, "no-keeper") == 0);
		CHECK(hdcr_rollback(0, &report) == HDCR_FAILED && !hdcr_request_begin(NULL, NULL));
		printf("alone\n");
		return 0;
	}
	CHECK(hdcr_job(job, sizeof(job)) == (ssize_t)strlen(getenv("HDCR_JOB")));
	CHECK(strcmp(job, getenv("HDCR_JOB")) == 0 && hdcr_job(NULL, 0) > 0);
	CHECK(hdcr_restart_count() == 0 && !hdcr_restored(&report));
	CHECK(hdcr_rollback(0, &report) == HDCR_FAILED && strcmp(report.code, "no-such-checkpoint") == 0);

	int branch = hdcr_checkpoint(NULL, &report);
	printf("branch %d %s %s\n", branch, report.image, report.reason);
	if (branch == HDCR_CONTINUED) {
		kill(getpid(), SIGKILL);
	}
	CHECK(branch == HDCR_RESTORED);
	CHECK(hdcr_is_enabled() && hdcr_restart_count() == report.count);
	struct hdcr_report again = HDCR_REPORT;
	CHECK(hdcr_restored(&again) && strcmp(again.image, report.image) == 0);
	if (report.count == 1) {
		CHECK(strcmp(report.reason, "crash") == 0);
		asks_and_polls();
		CHECK(hdcr_rollback(999, &again) == HDCR_FAILED && again.class_ == HDCR_REFUSED);
		hdcr_rollback(1, NULL);
		CHECK(!"after a roll-back");
	}
	CHECK(report.count == 2 && strcmp(report.reason, "rollback") == 0);
	threads_ask();
	child_asks();
	printf("done\n");
	return 0;
}
