/* What every guest of the zoo shares: the protocol with the runner and the checks.
 *
 * guest STATUS ROUNDS
 *   A guest defines prepare(round) and check(round). For each round it prepares its state, writes STATUS
 *   ("ready N"), looks every 10 ms whether STATUS.go.N exists, then checks that all is as it was and goes
 *   on to use it. The verdict is STATUS.result: "pass" or "fail: why"; the first verdict stands.
 *   STATUS.go.N holds how many milliseconds the guest was away, for those that measure time.
 * A line "// zoo: key=value ..." in a guest speaks to the runner, see trials/src/guest.rs.
 */
#ifndef ZOO_H
#define ZOO_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static char zoo_status[400];
static int zoo_rounds = 1;

static void prepare(int round);
static void check(int round);

/* Without stdio: some guests call it from odd places. O_EXCL: the first verdict stands. */
static void zoo_verdict(const char *text)
{
	char tmp[480], path[480];

	snprintf(path, sizeof path, "%s.result", zoo_status);
	snprintf(tmp, sizeof tmp, "%s.verdict.%d", zoo_status, (int)syscall(SYS_gettid));
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		_exit(3);
	close(fd);
	if (link(tmp, path) != 0 && errno != EEXIST)
		_exit(3);
	unlink(tmp);
}

__attribute__((noreturn, format(printf, 3, 4)))
static void zoo_fail(const char *file, int line, const char *fmt, ...)
{
	char text[1024];
	int error = errno;
	int n = snprintf(text, sizeof text, "fail: %s:%d: ", file, line);
	va_list ap;

	va_start(ap, fmt);
	n += vsnprintf(text + n, sizeof text - n, fmt, ap);
	va_end(ap);
	if (n < (int)sizeof text)
		snprintf(text + n, sizeof text - n, " (errno %d, pid %d)\n", error, getpid());
	zoo_verdict(text);
	/* Where a verdict stands already, it is said at least. */
	if (write(2, text, strlen(text)) < 0)
		_exit(1);
	_exit(1);
}

#define FAIL(...) zoo_fail(__FILE_NAME__, __LINE__, __VA_ARGS__)
#define CHECK(cond, ...) do { if (!(cond)) zoo_untrue(__FILE_NAME__, __LINE__, #cond, __VA_ARGS__); } while (0)
#define SYS(call) ({ errno = 0; long zoo_r_ = (long)(call); if (zoo_r_ < 0) FAIL("%s failed: %s", #call, strerror(errno)); zoo_r_; })
#define EQ(a, b) do { long long zoo_a_ = (long long)(a), zoo_b_ = (long long)(b); \
	if (zoo_a_ != zoo_b_) FAIL("%s is %lld (0x%llx), not %lld (0x%llx)", #a, zoo_a_, zoo_a_, zoo_b_, zoo_b_); } while (0)

__attribute__((noreturn, format(printf, 4, 5), unused))
static void zoo_untrue(const char *file, int line, const char *claim, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	zoo_fail(file, line, "not true: %s: %s", claim, text);
}

static void zoo_nap(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	while (nanosleep(&t, &t) != 0)
		if (errno != EINTR)
			FAIL("nanosleep");
}

__attribute__((unused)) static long long zoo_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void zoo_write(const char *path, const char *text)
{
	char tmp[480];

	snprintf(tmp, sizeof tmp, "%s.new.%d", path, (int)syscall(SYS_gettid));
	int fd = SYS(open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
	SYS(write(fd, text, strlen(text)));
	close(fd);
	SYS(rename(tmp, path));
}

static void zoo_await_path(const char *path, long timeout_ms)
{
	for (long waited = 0; access(path, F_OK) != 0; waited += 10) {
		if (waited > timeout_ms)
			FAIL("waited too long for %s", path);
		zoo_nap(10);
	}
}

/* fork(3) that returns when the child has come back from it, too: glibc 2.41 and later block all signals meanwhile, which
 * a look from outside would take for the child's own state. */
__attribute__((unused)) static pid_t zoo_fork(void)
{
	int ends[2];
	char none;

	if (pipe2(ends, O_CLOEXEC) != 0)
		return fork();
	pid_t pid = fork();
	int error = errno;
	/* The end of the file is the sign for the parent: the child's last close. */
	if (pid == 0)
		close(ends[0]);
	close(ends[1]);
	if (pid == 0)
		return 0;
	while (pid > 0 && read(ends[0], &none, 1) < 0 && errno == EINTR)
		;
	close(ends[0]);
	errno = error;
	return pid;
}
#define fork zoo_fork

/* Two processes of one guest meet through marks: files, so that no descriptor is added to the state. */
__attribute__((unused)) static void zoo_mark(const char *name, int n)
{
	char path[480];

	snprintf(path, sizeof path, "%s.mark.%s.%d", zoo_status, name, n);
	zoo_write(path, "");
}

__attribute__((unused)) static void zoo_await(const char *name, int n)
{
	char path[480];

	snprintf(path, sizeof path, "%s.mark.%s.%d", zoo_status, name, n);
	zoo_await_path(path, 60000);
}

/* A path of the guest's own beside its status file. */
__attribute__((unused)) static const char *zoo_path(const char *name)
{
	static __thread char path[480];

	snprintf(path, sizeof path, "%s.%s", zoo_status, name);
	return path;
}

/* Any process or thread of a guest may wait for the trigger of a round. */
static void zoo_wait(int round)
{
	char path[480];

	snprintf(path, sizeof path, "%s.go.%d", zoo_status, round);
	zoo_await_path(path, 600000);
}

static void zoo_sync(int round)
{
	char text[32];

	snprintf(text, sizeof text, "ready %d\n", round);
	zoo_write(zoo_status, text);
	zoo_wait(round);
}

/* How long the guest was away in this round, as the runner measured it. */
__attribute__((unused)) static long zoo_away(int round)
{
	char path[480], text[32] = "";

	snprintf(path, sizeof path, "%s.go.%d", zoo_status, round);
	int fd = SYS(open(path, O_RDONLY | O_CLOEXEC));
	SYS(read(fd, text, sizeof text - 1));
	close(fd);
	return atol(text);
}

/* The letter of a task's state in /proc, '?' when it is gone. */
__attribute__((unused)) static char zoo_state(int tid)
{
	char path[64], text[512] = "";

	snprintf(path, sizeof path, "/proc/%d/stat", tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return '?';
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	const char *end = n > 0 ? strrchr(text, ')') : NULL;
	return end ? end[2] : '?';
}

__attribute__((unused)) static void zoo_await_state(int tid, char wanted)
{
	for (int i = 0; zoo_state(tid) != wanted; i++) {
		if (i > 6000)
			FAIL("task %d is %c, not %c", tid, zoo_state(tid), wanted);
		zoo_nap(10);
	}
}

/* Waits for a child that must end with this wait status. */
__attribute__((unused)) static void zoo_reap(pid_t pid, int wanted)
{
	int status;

	EQ(SYS(waitpid(pid, &status, 0)), pid);
	if (status != wanted)
		FAIL("child %d ended with status 0x%x, not 0x%x", pid, status, wanted);
}

/* Content that depends on place and seed, so that a swapped or stale page shows. */
__attribute__((unused)) static void zoo_fill(void *at, size_t len, uint64_t seed)
{
	uint64_t *p = at;

	for (size_t i = 0; i < len / 8; i++)
		p[i] = (i + 1) * 0x9e3779b97f4a7c15ULL ^ seed;
}

__attribute__((unused)) static long zoo_differs(const void *at, size_t len, uint64_t seed)
{
	const uint64_t *p = at;

	for (size_t i = 0; i < len / 8; i++)
		if (p[i] != ((i + 1) * 0x9e3779b97f4a7c15ULL ^ seed))
			return (long)i * 8;
	return -1;
}

static void zoo_start(int argc, char **argv)
{
	if (argc < 2 || strlen(argv[1]) >= sizeof zoo_status) {
		fprintf(stderr, "usage: %s STATUS [ROUNDS]\n", argv[0]);
		exit(2);
	}
	strcpy(zoo_status, argv[1]);
	if (argc > 2)
		zoo_rounds = atoi(argv[2]);
#ifndef ZOO_KEEP_SESSION
	setsid();
#endif
}

#ifndef ZOO_OWN_MAIN
int main(int argc, char **argv)
{
	zoo_start(argc, argv);
	for (int round = 1; round <= zoo_rounds; round++) {
		prepare(round);
		zoo_sync(round);
		check(round);
	}
	zoo_verdict("pass\n");
	return 0;
}
#endif
#endif
