// UNIX socket pairs: stream, datagram, seqpacket, with bytes queued, half shut down, options, one end in a child.
// zoo: rounds=3 static=yes covers=socket
#include "zoo.h"
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

static int stream[2], dgram[2], seq[2], half[2], child_end[2], gone[2], last[2];
static char block[30000], back[30000];
static pid_t child;

static void echo(void)
{
	char c;

	close(child_end[0]);
	zoo_mark("echo", 0);
	for (int round = 1; round <= zoo_rounds; round++) {
		zoo_wait(round);
		EQ(read(child_end[1], &c, 1), 1);
		EQ(c, 'a' + round);
		EQ(write(child_end[1], "z", 1), 1);
	}
	_exit(5);
}

static void open_all(void)
{
	int on = 1, size = 200000;

	SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream));
	SYS(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, dgram));
	SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, seq));
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, child_end));
	SYS(setsockopt(stream[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
	SYS(setsockopt(stream[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
	EQ(write(half[0], "before the end", 14), 14);
	SYS(shutdown(half[0], SHUT_WR));
	child = SYS(fork());
	if (child == 0)
		echo();
	close(child_end[1]);
	zoo_await("echo", 0);
}

static void prepare(int round)
{
	char c = 'a' + round;

	if (round == 1)
		open_all();
	zoo_fill(block, sizeof block, round);
	EQ(write(stream[1], block, 10000), 10000);
	EQ(write(stream[1], block + 10000, 20000), 20000);
	EQ(write(dgram[0], "one", 3), 3);
	EQ(write(dgram[0], "", 0), 0);
	EQ(write(dgram[0], block, 5000), 5000);
	EQ(write(seq[0], "packet 1", 8), 8);
	EQ(write(seq[0], "", 0), 0);
	EQ(write(seq[0], "2", 1), 1);
	EQ(write(seq[0], "", 0), 0);
	EQ(write(seq[0], "", 0), 0);
	EQ(write(seq[1], "other way", 9), 9);
	EQ(write(child_end[0], &c, 1), 1);
	SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, gone));
	EQ(write(gone[1], "bye", 3), 3);
	SYS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, last));
	EQ(write(last[1], "", 0), 0);
	EQ(write(last[1], "last", 4), 4);
	SYS(close(last[1]));
	SYS(close(gone[1]));
}

static void check(int round)
{
	int value, queued;
	socklen_t len = sizeof value;
	struct sockaddr_un name;
	socklen_t name_len = sizeof name;

	SYS(ioctl(stream[0], FIONREAD, &queued));
	EQ(queued, sizeof block);
	for (long got = 0; got < (long)sizeof back; )
		got += SYS(read(stream[0], back + got, sizeof back - got));
	CHECK(memcmp(block, back, sizeof back) == 0, "bytes of the stream");
	EQ(read(dgram[1], back, sizeof back), 3);
	EQ(read(dgram[1], back, sizeof back), 0);
	EQ(read(dgram[1], back, sizeof back), 5000);
	CHECK(memcmp(block, back, 5000) == 0, "bytes of the datagram");
	EQ(read(dgram[1], back, 1), -1);
	EQ(errno, EAGAIN);
	EQ(read(seq[1], back, 100), 8);
	EQ(read(seq[1], back, 100), 0);
	EQ(read(seq[1], back, 100), 1);
	EQ(back[0], '2');
	EQ(recv(seq[1], back, 100, MSG_DONTWAIT), 0);
	EQ(recv(seq[1], back, 100, MSG_DONTWAIT), 0);
	EQ(recv(seq[1], back, 100, MSG_DONTWAIT), -1);
	EQ(errno, EAGAIN);
	EQ(read(last[0], back, 100), 0);
	EQ(read(last[0], back, 100), 4);
	EQ(read(last[0], back, 100), 0);
	SYS(close(last[0]));
	EQ(read(seq[0], back, 100), 9);
	if (round == 1) {
		EQ(read(half[1], back, 100), 14);
		CHECK(memcmp(back, "before the end", 14) == 0, "half");
	}
	EQ(read(half[1], back, 100), 0);
	EQ(write(half[1], "still", 5), 5);
	EQ(read(half[0], back, 100), 5);
	EQ(send(half[0], "x", 1, MSG_NOSIGNAL), -1);
	EQ(errno, EPIPE);
	EQ(read(child_end[0], back, 1), 1);
	EQ(back[0], 'z');
	EQ(read(gone[0], back, 100), 3);
	EQ(read(gone[0], back, 100), 0);
	SYS(close(gone[0]));
	SYS(getsockopt(stream[0], SOL_SOCKET, SO_PASSCRED, &value, &len));
	EQ(value, 1);
	SYS(getsockopt(stream[1], SOL_SOCKET, SO_SNDBUF, &value, &len));
	EQ(value, 400000);
	SYS(getsockopt(seq[0], SOL_SOCKET, SO_TYPE, &value, &len));
	EQ(value, SOCK_SEQPACKET);
	EQ(fcntl(stream[0], F_GETFD), FD_CLOEXEC);
	EQ(fcntl(dgram[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	SYS(getpeername(stream[0], (struct sockaddr *)&name, &name_len));
	EQ(name_len, 2);
	if (round == zoo_rounds)
		zoo_reap(child, 5 << 8);
}
