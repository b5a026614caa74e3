// A connection between two processes that both send and receive all the time, in pieces of any size.
// zoo: rounds=3 covers=tcp,line
#include "zoo.h"
#include <netinet/in.h>
#include <sys/socket.h>

static int fd;
static pid_t child;
static volatile unsigned long received;
static volatile int ends;

static unsigned char byte_at(unsigned long n)
{
	return n * 2654435761UL >> 13;
}

static void *sender(void *unused)
{
	static unsigned char piece[200000];
	unsigned int dice = getpid();

	for (unsigned long sent = 0; ; ) {
		size_t len = 1 + rand_r(&dice) % sizeof piece;

		for (size_t i = 0; i < len; i++)
			piece[i] = byte_at(sent + i);
		ssize_t n = send(fd, piece, len, MSG_NOSIGNAL);
		if (n < 0 && ends)
			return unused;
		sent += SYS(n);
		if (rand_r(&dice) % 64 == 0)
			zoo_nap(rand_r(&dice) % 20);
	}
}

static void *receiver(void *unused)
{
	static unsigned char piece[300000];
	unsigned int dice = getpid() + 1;

	for (;;) {
		ssize_t n = recv(fd, piece, 1 + rand_r(&dice) % sizeof piece, 0);

		if (n <= 0 && ends)
			return unused;
		CHECK(n > 0, "the stream ends at byte %lu", received);
		for (ssize_t i = 0; i < n; i++)
			if (piece[i] != byte_at(received + i))
				FAIL("byte %lu is wrong", received + i);
		received += n;
		if (rand_r(&dice) % 16 == 0)
			zoo_nap(rand_r(&dice) % 60);
	}
}

/* Returns when both directions flow: a thread that is only being made has signals blocked. */
static void start(pthread_t *threads)
{
	EQ(pthread_create(&threads[0], NULL, sender, NULL), 0);
	EQ(pthread_create(&threads[1], NULL, receiver, NULL), 0);
	for (int i = 0; received < 1 << 20; i++) {
		CHECK(i < 6000, "only %lu bytes have come", received);
		zoo_nap(10);
	}
}

static void prepare(int round)
{
	static pthread_t threads[2];
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof at;

	if (round > 1)
		return;
	int listener = SYS(socket(AF_INET, SOCK_STREAM, 0)), on = 1;
	SYS(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
	SYS(bind(listener, (struct sockaddr *)&at, sizeof at));
	SYS(listen(listener, 1));
	SYS(getsockname(listener, (struct sockaddr *)&at, &len));
	child = SYS(fork());
	if (child == 0) {
		close(listener);
		fd = SYS(socket(AF_INET, SOCK_STREAM, 0));
		SYS(connect(fd, (struct sockaddr *)&at, sizeof at));
		ends = 1;
		start(threads);
		zoo_mark("flows", 0);
		pthread_join(threads[1], NULL);
		_exit(5);
	}
	fd = SYS(accept(listener, NULL, NULL));
	start(threads);
	zoo_await("flows", 0);
}

static void check(int round)
{
	unsigned long before = received;

	for (int i = 0; received < before + (4 << 20); i++) {
		CHECK(i < 6000, "only %lu bytes have come since", received - before);
		zoo_nap(10);
	}
	if (round == zoo_rounds) {
		ends = 1;
		SYS(shutdown(fd, SHUT_RDWR));
		zoo_reap(child, 5 << 8);
	}
}
