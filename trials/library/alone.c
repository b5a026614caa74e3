// Every call of the library where there is no HDCR, by four threads at once and by a child: each returns at once, and writes
// no further than it was given room for. With a word it does wrong, for who says that he would see that: `race` and `short`.
#include <hdcr.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			printf("line %d: not %s\n", __LINE__, #what); \
			fflush(stdout); \
			_exit(1); \
		} \
	} while (0)

enum { THREADS = 4, ROUNDS = 20, SIZE = 1 << 16 };

static hdcr_section *outer, *inner;

static int hook(struct hdcr_event *event, void *data)
{
	(void)event;
	(void)data;
	return 0;
}

static void is_refused(int branch, const struct hdcr_report *report, const char *code)
{
	CHECK(branch == HDCR_FAILED && report->class_ == HDCR_REFUSED && strcmp(report->code, code) == 0);
	CHECK(report->size == sizeof(*report) && report->message[0]);
}

/* A report of a program that knows nothing but its size and the count. */
static void is_written_no_further(void)
{
	size_t *small = malloc(2 * sizeof(*small));
	CHECK(small);
	small[0] = 2 * sizeof(*small);
	small[1] = 77;
	CHECK(hdcr_checkpoint(NULL, (struct hdcr_report *)small) == HDCR_FAILED);
	CHECK(small[0] == 2 * sizeof(*small) && small[1] == 0);
	free(small);
}

static void asks(void)
{
	struct hdcr_options options = HDCR_OPTIONS;
	struct hdcr_report report = HDCR_REPORT;
	char name[8];
	CHECK(!hdcr_is_enabled() && hdcr_job(name, sizeof(name)) == -1 && hdcr_job(NULL, 0) == -1);
	CHECK(hdcr_restart_count() == 0 && hdcr_restored(&report) == 0 && hdcr_restored(NULL) == 0);
	hdcr_good_moment();
	options.timeout_ms = 1000;
	is_refused(hdcr_checkpoint(&options, &report), &report, "no-keeper");
	is_refused(hdcr_rollback(3, &report), &report, "no-keeper");
	CHECK(hdcr_checkpoint(NULL, NULL) == HDCR_FAILED && hdcr_rollback(0, NULL) == HDCR_FAILED);
	CHECK(hdcr_request_begin(&options, &report) == NULL && strcmp(report.code, "no-keeper") == 0);
	CHECK(hdcr_request_begin(NULL, NULL) == NULL && hdcr_request_fd(NULL) == -1);
	CHECK(hdcr_request_wait(NULL, -1, &report) == HDCR_FAILED);
	hdcr_request_free(NULL);
	is_written_no_further();
}

static void leaves_out(void)
{
	struct hdcr_report report = HDCR_REPORT;
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	memset(memory, 1, SIZE);
	is_refused(hdcr_exclude(memory, SIZE, &report), &report, "no-keeper");
	is_refused(hdcr_secret(memory, SIZE, &report), &report, "no-keeper");
	is_refused(hdcr_exclude(memory + 1, 1, &report), &report, "no-page");
	CHECK(hdcr_include(memory, SIZE, &report) == 0);
	CHECK(memory[SIZE - 1] == 1 && munmap(memory, SIZE) == 0);
}

static void *lives(void *unused)
{
	(void)unused;
	struct hdcr_report report = HDCR_REPORT;
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t hooks[3];
		for (int when = HDCR_BEFORE; when <= HDCR_AFTER_RESTORE; when++)
			CHECK((hooks[when - 1] = hdcr_on(when, round, hook, NULL)) != 0);
		CHECK(hdcr_on(9, 0, hook, NULL) == 0 && hdcr_on(HDCR_BEFORE, 0, NULL, NULL) == 0);
		hdcr_enter(outer);
		CHECK(hdcr_try_enter(inner) == 1);
		is_refused(hdcr_checkpoint(NULL, &report), &report, "in-section");
		hdcr_leave();
		hdcr_leave();
		asks();
		for (int when = 0; when < 3; when++)
			hdcr_off(hooks[when]);
	}
	leaves_out();
	return NULL;
}

static int shared;

static void *races(void *unused)
{
	shared++;
	return unused;
}

static void race(void)
{
	pthread_t other;
	CHECK(pthread_create(&other, NULL, races, NULL) == 0);
	races(NULL);
	CHECK(pthread_join(other, NULL) == 0);
}

/* A report that says that it is longer than the memory it lies in. */
static void lie(void)
{
	size_t length = 4096;
	char *memory = calloc(1, length);
	CHECK(memory);
	char *volatile at = memory + length - sizeof(struct hdcr_report) + 8;
	((struct hdcr_report *)at)->size = sizeof(struct hdcr_report);
	hdcr_checkpoint(NULL, (struct hdcr_report *)at);
	_exit(0);
}

int main(int count, char **words)
{
	if (count > 1 && strcmp(words[1], "short") == 0)
		lie();
	if (count > 1)
		race();
	pthread_t threads[THREADS];
	outer = hdcr_section_new("outer");
	inner = hdcr_section_new("inner");
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, lives, NULL) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		lives(NULL);
		/* To a child, what only its parent's threads knew is lost: whoever looks for leaks shall not find that. */
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	puts("alone");
	return 0;
}
