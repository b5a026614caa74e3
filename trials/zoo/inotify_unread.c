// inotify with events that nobody has read: they are there, or a queue overflow says that some are lost.
// zoo: rounds=2 static=yes
#include "zoo.h"
#include <sys/inotify.h>

static int fd;

static void prepare(int round)
{
	char name[520];

	if (round == 1) {
		fd = SYS(inotify_init1(IN_NONBLOCK));
		SYS(mkdir(zoo_path("watched"), 0755));
		SYS(inotify_add_watch(fd, zoo_path("watched"), IN_CREATE));
	}
	for (int i = 0; i < 3; i++) {
		snprintf(name, sizeof name, "%s/%d.%d", zoo_path("watched"), round, i);
		SYS(close(SYS(open(name, O_CREAT | O_WRONLY, 0600))));
	}
}

static void check(int round)
{
	char text[4096] __attribute__((aligned(8)));
	ssize_t n = read(fd, text, sizeof text);
	int events = 0;

	CHECK(n > 0, "unread events are gone");
	for (char *at = text; at < text + n; at += sizeof(struct inotify_event) + ((struct inotify_event *)at)->len) {
		const struct inotify_event *e = (const struct inotify_event *)at;
		if (e->mask & IN_Q_OVERFLOW)
			return;
		events += e->mask == IN_CREATE;
	}
	EQ(events, 3);
	(void)round;
}
