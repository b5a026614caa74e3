/* Pairs of TCP sockets for guests of the zoo: made, filled, looked at. */
#ifndef TCP_PAIRS_H
#define TCP_PAIRS_H
#include "zoo.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

struct pair {
	int listener, client, server;
	struct sockaddr_in6 at, client_name, server_name;
};

static char block[1 << 20], seen[1 << 20];

static void set(int fd, int level, int option, int value)
{
	SYS(setsockopt(fd, level, option, &value, sizeof value));
}

static int get(int fd, int level, int option)
{
	int value = 0;
	socklen_t len = sizeof value;

	SYS(getsockopt(fd, level, option, &value, &len));
	return value;
}

static void names(struct pair *p, struct sockaddr_in6 *client, struct sockaddr_in6 *server)
{
	socklen_t len = sizeof *client;

	memset(client, 0, sizeof *client);
	memset(server, 0, sizeof *server);
	SYS(getsockname(p->client, (struct sockaddr *)client, &len));
	len = sizeof *server;
	SYS(getsockname(p->server, (struct sockaddr *)server, &len));
}

/* Both in one family of the listener; `domain` is the client's. */
static void connect_to(struct pair *p, int domain)
{
	socklen_t len = sizeof p->at;
	struct sockaddr_in6 at = p->at;

	if (domain == AF_INET && at.sin6_family == AF_INET6) {
		struct sockaddr_in *four_at = (struct sockaddr_in *)&at;
		in_port_t port = at.sin6_port;

		memset(&at, 0, sizeof at);
		four_at->sin_family = AF_INET;
		four_at->sin_port = port;
		four_at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		len = sizeof *four_at;
	} else if (domain == AF_INET) {
		len = sizeof(struct sockaddr_in);
	}
	p->client = SYS(socket(domain, SOCK_STREAM | SOCK_CLOEXEC, 0));
	SYS(connect(p->client, (struct sockaddr *)&at, len));
	p->server = SYS(accept(p->listener, NULL, NULL));
	names(p, &p->client_name, &p->server_name);
}

static void open_pair(struct pair *p, int domain, int client_domain, int any)
{
	socklen_t len = sizeof p->at;
	struct sockaddr_in *four_at = (struct sockaddr_in *)&p->at;

	p->listener = SYS(socket(domain, SOCK_STREAM, 0));
	/* As servers do, which lets an ordinary user bind its port again at once. */
	set(p->listener, SOL_SOCKET, SO_REUSEADDR, 1);
	memset(&p->at, 0, sizeof p->at);
	p->at.sin6_family = domain;
	if (domain == AF_INET)
		four_at->sin_addr.s_addr = htonl(any ? INADDR_ANY : INADDR_LOOPBACK);
	else
		p->at.sin6_addr = any ? in6addr_any : in6addr_loopback;
	SYS(bind(p->listener, (struct sockaddr *)&p->at, domain == AF_INET ? sizeof *four_at : sizeof p->at));
	SYS(listen(p->listener, 100));
	SYS(getsockname(p->listener, (struct sockaddr *)&p->at, &len));
	if (domain == AF_INET)
		four_at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	connect_to(p, client_domain);
}

static long stuff(int fd, long most, uint64_t seed)
{
	long sent = 0;
	ssize_t n;

	zoo_fill(block, sizeof block, seed);
	while (sent < most) {
		long at = sent % (long)sizeof block;
		n = send(fd, block + at, sizeof block - at, MSG_DONTWAIT);
		if (n < 0) {
			EQ(errno, EAGAIN);
			break;
		}
		sent += n;
	}
	return sent;
}

static void drain(int fd, long wanted, uint64_t seed)
{
	zoo_fill(block, sizeof block, seed);
	for (long got = 0; got < wanted; ) {
		long at = got % (long)sizeof block, room = sizeof block - at;
		ssize_t n = SYS(recv(fd, seen, room < wanted - got ? room : wanted - got, 0));

		CHECK(n > 0, "the stream ends after %ld of %ld bytes", got, wanted);
		CHECK(memcmp(seen, block + at, n) == 0, "bytes from %ld on", got);
		got += n;
	}
}
#endif
