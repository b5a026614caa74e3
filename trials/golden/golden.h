/* What the programs of golden images share. Each prepares its state in the folder in which it was started, says "ready",
 * waits for the file "go" and judges itself: exit status 0 and "pass" in the file "result", or 1 and what is wrong.
 * Images of these programs stay for ever, so a program that has one is never changed: a new one is added beside it.
 * Built by musl-gcc, statically, so that program and image are small; see docs/format.md, section 10. */
#ifndef GOLDEN_H
#define GOLDEN_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void tell(const char *file, const char *text)
{
	int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd) != 0)
		_exit(3);
}

#define MUST(what)                                                                               \
	do {                                                                                     \
		if (!(what)) {                                                                   \
			char text_[300];                                                         \
			snprintf(text_, sizeof text_, "line %d: %s (errno %d)", __LINE__, #what, errno); \
			tell("result", text_);                                                   \
			_exit(1);                                                                \
		}                                                                                \
	} while (0)

/* A word that is its own place. */
static uint64_t mark(uint64_t seed, uint64_t at)
{
	uint64_t x = (seed << 32 | at) * 0x9e3779b97f4a7c15u;
	return x ^ x >> 29;
}

static void fill(void *at, size_t bytes, uint64_t seed)
{
	for (size_t i = 0; i < bytes / 8; i++)
		((uint64_t *)at)[i] = mark(seed, i);
}

static int filled(const void *at, size_t bytes, uint64_t seed)
{
	for (size_t i = 0; i < bytes / 8; i++)
		if (((const uint64_t *)at)[i] != mark(seed, i))
			return 0;
	return 1;
}

static void until_go(void)
{
	tell("ready", "ready\n");
	while (access("go", F_OK) != 0)
		poll(NULL, 0, 5);
}
#endif
