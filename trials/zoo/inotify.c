// inotify: watches with their numbers and masks, a removed one between them, and that events come.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/inotify.h>

static int fd, on_dir, on_file;

static void prepare(int round)
{
	if (round > 1)
		return;
	fd = SYS(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	SYS(mkdir(zoo_path("watched"), 0755));
	SYS(close(SYS(open(zoo_path("file"), O_CREAT | O_WRONLY, 0600))));
	int gone = SYS(inotify_add_watch(fd, ".", IN_ATTRIB));
	on_dir = SYS(inotify_add_watch(fd, zoo_path("watched"), IN_CREATE | IN_DELETE));
	SYS(inotify_rm_watch(fd, gone));
	on_file = SYS(inotify_add_watch(fd, zoo_path("file"), IN_ATTRIB));
	EQ(on_file, 3);
	char text[4096];
	SYS(read(fd, text, sizeof text));	/* IN_IGNORED of the removed one */
}

static const struct inotify_event *next(char *text)
{
	ssize_t n = read(fd, text, 4096);

	CHECK(n > 0, "no event");
	EQ(n, (ssize_t)(sizeof(struct inotify_event) + ((struct inotify_event *)text)->len));
	return (const struct inotify_event *)text;
}

static void check(int round)
{
	char text[4096] __attribute__((aligned(8))), name[520];
	const struct inotify_event *e;

	EQ(read(fd, text, sizeof text), -1);
	EQ(errno, EAGAIN);
	snprintf(name, sizeof name, "%s/new%d", zoo_path("watched"), round);
	SYS(close(SYS(open(name, O_CREAT | O_WRONLY, 0600))));
	e = next(text);
	EQ(e->wd, on_dir);
	EQ(e->mask, IN_CREATE);
	SYS(chmod(zoo_path("file"), 0600 + round));
	e = next(text);
	EQ(e->wd, on_file);
	EQ(e->mask, IN_ATTRIB);
	EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
	/* A new watch takes a number that is free. */
	int more = SYS(inotify_add_watch(fd, "/", IN_ATTRIB));
	CHECK(more != on_dir && more != on_file, "number %d is taken", more);
	SYS(inotify_rm_watch(fd, more));
	SYS(read(fd, text, sizeof text));
}
