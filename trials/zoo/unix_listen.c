// Listening UNIX sockets, by path and abstract, and bound datagram sockets with what is queued in them.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <sys/socket.h>
#include <sys/un.h>

static int by_path, abstract, dgram, sender;
static struct sockaddr_un path = { .sun_family = AF_UNIX }, name = { .sun_family = AF_UNIX }, box = { .sun_family = AF_UNIX };

static int use(struct sockaddr_un *address)
{
	int fd = SYS(socket(AF_UNIX, SOCK_STREAM, 0));

	SYS(connect(fd, (struct sockaddr *)address, sizeof *address));
	return fd;
}

static void prepare(int round)
{
	if (round == 1) {
		snprintf(path.sun_path, sizeof path.sun_path, "%.90s.sock", zoo_status);
		snprintf(box.sun_path, sizeof box.sun_path, "%.90s.box", zoo_status);
		snprintf(name.sun_path + 1, 100, "zoo-listen-%d", getpid());
		by_path = SYS(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
		abstract = SYS(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
		dgram = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
		sender = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
		SYS(bind(by_path, (struct sockaddr *)&path, sizeof path));
		SYS(bind(abstract, (struct sockaddr *)&name, sizeof name));
		SYS(bind(dgram, (struct sockaddr *)&box, sizeof box));
		SYS(listen(by_path, 7));
		SYS(listen(abstract, 3));
		SYS(connect(sender, (struct sockaddr *)&box, sizeof box));
	}
	EQ(write(sender, "letter", 6), 6);
	EQ(write(sender, "second", 6), 6);
}

static void check(int round)
{
	char text[100];
	int value;
	socklen_t len = sizeof value;

	EQ(accept(by_path, NULL, NULL), -1);
	EQ(errno, EAGAIN);
	struct sockaddr_un *all[] = { &path, &name };
	int listeners[] = { by_path, abstract };
	for (int i = 0; i < 2; i++) {
		int client = use(all[i]), server = SYS(accept(listeners[i], NULL, NULL));
		EQ(write(client, "hello", 5), 5);
		EQ(read(server, text, sizeof text), 5);
		SYS(close(client));
		SYS(close(server));
		SYS(getsockopt(listeners[i], SOL_SOCKET, SO_ACCEPTCONN, &value, &len));
		EQ(value, 1);
	}
	EQ(read(dgram, text, sizeof text), 6);
	CHECK(memcmp(text, "letter", 6) == 0, "first datagram");
	EQ(read(dgram, text, sizeof text), 6);
	EQ(write(sender, "again", 5), 5);
	EQ(read(dgram, text, sizeof text), 5);
	EQ(fcntl(abstract, F_GETFD), FD_CLOEXEC);
	(void)round;
}
