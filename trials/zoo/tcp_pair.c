// TCP connections with both ends in the tree: bytes waiting in both directions, full queues, halves that are shut down,
// closed peers, IPv4, IPv6 and IPv4 in IPv6, options, epoll, an end in a child, one end in two processes.
// zoo: rounds=3 static=yes covers=tcp,tcp_restore,line,inet
#include "tcp_pairs.h"
#include <sys/epoll.h>

#define MANY 60

static struct pair four, six, mixed, full, child_pair, many[MANY];
static struct pair half, closed, left, both_shut;
static int epoll_fd, spare;
static long forth, back;
static pid_t child;

/* Both directions work, and nothing else is in them. */
static void talk(struct pair *p, int round)
{
	char c = 'a' + round, got = 0;

	EQ(recv(p->server, &got, 1, MSG_DONTWAIT), -1);
	EQ(errno, EAGAIN);
	EQ(recv(p->client, &got, 1, MSG_DONTWAIT), -1);
	EQ(write(p->client, &c, 1), 1);
	EQ(read(p->server, &got, 1), 1);
	EQ(got, c);
	EQ(write(p->server, &c, 1), 1);
	EQ(read(p->client, &got, 1), 1);
	EQ(got, c);
}

static void same_names(struct pair *p)
{
	struct sockaddr_in6 client, server, peer;
	socklen_t len = sizeof peer;

	names(p, &client, &server);
	CHECK(memcmp(&client, &p->client_name, sizeof client) == 0, "name of the client");
	CHECK(memcmp(&server, &p->server_name, sizeof server) == 0, "name of the server");
	SYS(getpeername(p->server, (struct sockaddr *)&peer, &len));
	EQ(peer.sin6_port, client.sin6_port);
}

static void echo(void)
{
	char c;

	close(child_pair.client);
	close(child_pair.listener);
	zoo_mark("echo", 0);
	for (int round = 1; round <= zoo_rounds; round++) {
		zoo_wait(round);
		EQ(read(child_pair.server, &c, 1), 1);
		EQ(c, 'a' + round);
		EQ(write(child_pair.server, "z", 1), 1);
		/* The other end of this one is in both processes. */
		EQ(write(six.client, "y", 1), 1);
	}
	_exit(5);
}

static void open_all(void)
{
	open_pair(&four, AF_INET, AF_INET, 0);
	open_pair(&six, AF_INET6, AF_INET6, 0);
	open_pair(&mixed, AF_INET6, AF_INET, 1);
	open_pair(&full, AF_INET, AF_INET, 1);
	open_pair(&child_pair, AF_INET, AF_INET, 0);
	set(four.client, IPPROTO_TCP, TCP_NODELAY, 1);
	set(four.client, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(four.client, IPPROTO_TCP, TCP_KEEPIDLE, 321);
	set(four.server, SOL_SOCKET, SO_RCVBUF, 40000);
	set(four.server, IPPROTO_TCP, TCP_USER_TIMEOUT, 12345);
	set(mixed.server, IPPROTO_TCP, TCP_CORK, 1);
	for (int i = 0; i < MANY; i++) {
		many[i] = four;
		connect_to(&many[i], AF_INET);
	}
	epoll_fd = SYS(epoll_create1(0));
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 77 };
	SYS(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, six.server, &event));
	spare = SYS(dup(four.server));
	child = SYS(fork());
	if (child == 0)
		echo();
	close(child_pair.server);
	zoo_await("echo", 0);
}

static void prepare(int round)
{
	char c = 'a' + round;

	if (round == 1)
		open_all();
	forth = stuff(full.client, 1L << 40, round);
	back = stuff(full.server, 300000, round + 100);
	EQ(write(four.client, "to the server", 13), 13);
	EQ(write(four.server, "to the client", 13), 13);
	EQ(write(mixed.server, "corked", 6), 6);
	EQ(write(child_pair.client, &c, 1), 1);
	for (int i = 0; i < MANY; i++)
		EQ(write(many[i].client, &i, sizeof i), sizeof i);
	half = full;
	connect_to(&half, AF_INET);
	EQ(write(half.client, "before the end", 14), 14);
	SYS(shutdown(half.client, SHUT_WR));
	closed = full;
	connect_to(&closed, AF_INET);
	EQ(write(closed.server, "bye", 3), 3);
	SYS(close(closed.server));
	/* What waits to be sent when its end is closed. */
	left = full;
	connect_to(&left, AF_INET);
	left.server_name.sin6_port = 0;
	left.at.sin6_flowinfo = stuff(left.server, 1L << 30, 7);
	SYS(close(left.server));
	both_shut = full;
	connect_to(&both_shut, AF_INET);
	EQ(write(both_shut.client, "last words", 10), 10);
	SYS(shutdown(both_shut.client, SHUT_WR));
	SYS(shutdown(both_shut.server, SHUT_WR));
}

static void check_ended(void)
{
	EQ(read(half.server, seen, 100), 14);
	CHECK(memcmp(seen, "before the end", 14) == 0, "half");
	EQ(read(half.server, seen, 100), 0);
	EQ(write(half.server, "still", 5), 5);
	EQ(recv(half.client, seen, 5, MSG_WAITALL), 5);
	EQ(send(half.client, "x", 1, MSG_NOSIGNAL), -1);
	EQ(errno, EPIPE);
	SYS(close(half.server));
	EQ(read(half.client, seen, 100), 0);
	SYS(close(half.client));
	EQ(recv(closed.client, seen, 100, MSG_WAITALL), 3);
	EQ(read(closed.client, seen, 100), 0);
	SYS(close(closed.client));
	drain(left.client, left.at.sin6_flowinfo, 7);
	EQ(read(left.client, seen, 100), 0);
	SYS(close(left.client));
	EQ(read(both_shut.client, seen, 100), 0);
	EQ(read(both_shut.server, seen, 100), 10);
	EQ(read(both_shut.server, seen, 100), 0);
	EQ(send(both_shut.server, "x", 1, MSG_NOSIGNAL), -1);
	EQ(errno, EPIPE);
	SYS(close(both_shut.client));
	SYS(close(both_shut.server));
}

static void check(int round)
{
	struct epoll_event event;
	int n;

	drain(full.server, forth, round);
	drain(full.client, back, round + 100);
	EQ(read(spare, seen, 100), 13);
	CHECK(memcmp(seen, "to the server", 13) == 0, "to the server");
	EQ(read(four.client, seen, 100), 13);
	EQ(recv(mixed.client, seen, 6, MSG_WAITALL), 6);
	EQ(get(mixed.server, IPPROTO_TCP, TCP_CORK), 1);
	EQ(read(child_pair.client, seen, 1), 1);
	EQ(seen[0], 'z');
	EQ(SYS(epoll_wait(epoll_fd, &event, 1, 60000)), 1);
	EQ(event.data.u64, 77);
	EQ(read(six.server, seen, 100), 1);
	EQ(seen[0], 'y');
	EQ(epoll_wait(epoll_fd, &event, 1, 0), 0);
	for (int i = 0; i < MANY; i++) {
		EQ(read(many[i].server, &n, sizeof n), sizeof n);
		EQ(n, i);
		same_names(&many[i]);
		talk(&many[i], round);
	}
	set(mixed.server, IPPROTO_TCP, TCP_CORK, 0);
	talk(&four, round);
	talk(&six, round);
	talk(&mixed, round);
	talk(&full, round);
	set(mixed.server, IPPROTO_TCP, TCP_CORK, 1);
	same_names(&four);
	same_names(&six);
	same_names(&mixed);
	same_names(&full);
	EQ(get(four.client, IPPROTO_TCP, TCP_NODELAY), 1);
	EQ(get(four.client, SOL_SOCKET, SO_KEEPALIVE), 1);
	EQ(get(four.client, IPPROTO_TCP, TCP_KEEPIDLE), 321);
	EQ(get(four.server, SOL_SOCKET, SO_RCVBUF), 80000);
	EQ(get(four.server, IPPROTO_TCP, TCP_USER_TIMEOUT), 12345);
	EQ(get(four.server, SOL_SOCKET, SO_REUSEADDR), 1);
	EQ(get(four.client, SOL_SOCKET, SO_REUSEADDR), 0);
	EQ(get(full.server, IPPROTO_TCP, TCP_NODELAY), 0);
	EQ(fcntl(four.client, F_GETFD), FD_CLOEXEC);
	EQ(fcntl(four.client, F_GETFL) & O_NONBLOCK, 0);
	check_ended();
	/* The listening sockets take new clients. */
	half = mixed;
	connect_to(&half, AF_INET6);
	talk(&half, round);
	SYS(close(half.client));
	SYS(close(half.server));
	if (round == zoo_rounds)
		zoo_reap(child, 5 << 8);
}
