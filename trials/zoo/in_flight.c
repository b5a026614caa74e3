// Descriptors on their way in a socket, clients that wait to be accepted, senders' names, a peer that reset.
// zoo: rounds=3 static=yes covers=unix,unix_restore,queue,name
#include "zoo.h"
#include <sys/socket.h>
#include <sys/un.h>

static int carrier[2], dgram[2], listener, client, receiver, sender, lone;

static struct sockaddr_un named(const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	snprintf(address.sun_path, sizeof address.sun_path, "%s", zoo_path(name));
	return address;
}

static int bound(int kind, const char *name)
{
	struct sockaddr_un address = named(name);
	int fd = SYS(socket(AF_UNIX, kind, 0));

	SYS(bind(fd, (struct sockaddr *)&address, sizeof address));
	return fd;
}

static void pass(int through, const int *fds, size_t size)
{
	char room[CMSG_SPACE(16)] __attribute__((aligned(8))) = { 0 };
	struct iovec iov = { "fds", 3 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = CMSG_SPACE(size) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(size);
	memcpy(CMSG_DATA(head), fds, size);
	EQ(sendmsg(through, &message, 0), 3);
}

static void take(int through, int *fds, size_t size)
{
	char room[CMSG_SPACE(16)] __attribute__((aligned(8))), text[8];
	struct iovec iov = { text, sizeof text };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };

	EQ(recvmsg(through, &message, 0), 3);
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	CHECK(head != NULL && head->cmsg_len == CMSG_LEN(size), "descriptors are missing");
	memcpy(fds, CMSG_DATA(head), size);
}

static void prepare(int round)
{
	int ends[2], pair[2];
	struct sockaddr_un address = named("listener"), to = named("receiver");

	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, carrier));
	SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, dgram));
	SYS(pipe(ends));
	EQ(write(ends[1], "in the pipe", 11), 11);
	SYS(close(ends[1]));
	EQ(write(dgram[0], "to a passenger", 14), 14);
	/* A pipe, a socket whose peer stays, and the carrier itself: nobody else holds the first two. */
	int fds[3] = { ends[0], dgram[1], carrier[0] };
	pass(carrier[0], fds, sizeof fds);
	SYS(close(ends[0]));
	SYS(close(dgram[1]));

	listener = bound(SOCK_STREAM, "listener");
	SYS(listen(listener, 4));
	client = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
	SYS(connect(client, (struct sockaddr *)&address, sizeof address));

	receiver = bound(SOCK_DGRAM, "receiver");
	sender = bound(SOCK_DGRAM, "sender");
	SYS(connect(sender, (struct sockaddr *)&to, sizeof to));
	EQ(write(sender, "first", 5), 5);
	int passing = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
	EQ(sendto(passing, "second", 6, 0, (struct sockaddr *)&to, sizeof to), 6);
	SYS(close(passing));

	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	EQ(write(pair[0], "unread", 6), 6);
	EQ(write(pair[1], "left", 4), 4);
	SYS(close(pair[1]));
	lone = pair[0];
	(void)round;
}

static void check(int round)
{
	int fds[3];
	char text[64];
	struct sockaddr_un from;
	socklen_t len = sizeof from;

	take(carrier[1], fds, sizeof fds);
	EQ(read(fds[0], text, sizeof text), 11);
	EQ(read(fds[0], text, sizeof text), 0);
	EQ(read(fds[1], text, sizeof text), 14);
	EQ(write(fds[1], "back", 4), 4);
	EQ(read(dgram[0], text, sizeof text), 4);
	EQ(write(fds[2], "self", 4), 4);
	EQ(read(carrier[1], text, sizeof text), 4);

	EQ(write(client, "knock", 5), 5);
	int accepted = SYS(accept(listener, NULL, NULL));
	EQ(read(accepted, text, sizeof text), 5);

	EQ(recvfrom(receiver, text, sizeof text, 0, (struct sockaddr *)&from, &len), 5);
	CHECK(strcmp(from.sun_path, named("sender").sun_path) == 0, "the sender was %s", from.sun_path);
	EQ(read(receiver, text, sizeof text), 6);
	EQ(write(sender, "third", 5), 5);
	EQ(read(receiver, text, sizeof text), 5);

	EQ(read(lone, text, sizeof text), 4);
	EQ(read(lone, text, sizeof text), -1);
	EQ(errno, ECONNRESET);

	int all[] = { fds[0], fds[1], fds[2], carrier[0], carrier[1], dgram[0], client, accepted, listener, receiver, sender, lone };
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		SYS(close(all[i]));
	SYS(unlink(named("listener").sun_path));
	SYS(unlink(named("receiver").sun_path));
	SYS(unlink(named("sender").sun_path));
	(void)round;
}

