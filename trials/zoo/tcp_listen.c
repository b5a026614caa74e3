// Listening TCP sockets, IPv4 and IPv6: address, options, backlog; a port that has connections in TIME_WAIT.
// zoo: rounds=3 static=yes covers=inet,options
#include "zoo.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static int four, six, unbound;
static struct sockaddr_in at4 = { .sin_family = AF_INET };
static struct sockaddr_in6 at6 = { .sin6_family = AF_INET6 };

static void greet(int listener, void *address, socklen_t len, int domain)
{
	char text[8];
	int client = SYS(socket(domain, SOCK_STREAM, 0));

	SYS(connect(client, address, len));
	int server = SYS(accept(listener, NULL, NULL));
	EQ(write(client, "hi", 2), 2);
	EQ(read(server, text, sizeof text), 2);
	/* The server closes first: its port is left in TIME_WAIT. */
	SYS(shutdown(server, SHUT_WR));
	EQ(read(client, text, sizeof text), 0);
	SYS(close(client));
	SYS(close(server));
}

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

static void prepare(int round)
{
	socklen_t len4 = sizeof at4, len6 = sizeof at6;

	if (round > 1)
		return;
	at4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	at6.sin6_addr = in6addr_loopback;
	four = SYS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
	six = SYS(socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0));
	set(four, SOL_SOCKET, SO_REUSEADDR, 1);
	set(four, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(four, IPPROTO_TCP, TCP_NODELAY, 1);
	set(four, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0);
	set(four, IPPROTO_TCP, TCP_KEEPIDLE, 333);
	set(six, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	set(six, SOL_SOCKET, SO_RCVBUF, 100000);
	SYS(bind(four, (struct sockaddr *)&at4, sizeof at4));
	SYS(bind(six, (struct sockaddr *)&at6, sizeof at6));
	SYS(listen(four, 17));
	SYS(listen(six, 5));
	SYS(getsockname(four, (struct sockaddr *)&at4, &len4));
	SYS(getsockname(six, (struct sockaddr *)&at6, &len6));
	unbound = SYS(socket(AF_INET, SOCK_STREAM, 0));
	set(unbound, IPPROTO_TCP, TCP_NODELAY, 1);
	greet(four, &at4, sizeof at4, AF_INET);
}

static void check(int round)
{
	struct tcp_info info;
	socklen_t len = sizeof info;
	struct sockaddr_in now;
	socklen_t now_len = sizeof now;

	greet(four, &at4, sizeof at4, AF_INET);
	SYS(getsockname(four, (struct sockaddr *)&now, &now_len));
	EQ(now.sin_port, at4.sin_port);
	SYS(getsockopt(four, IPPROTO_TCP, TCP_INFO, &info, &len));
	EQ(info.tcpi_state, TCP_LISTEN);
	EQ(info.tcpi_sacked, 17);	/* the backlog, where a listener shows it */
	EQ(get(four, SOL_SOCKET, SO_REUSEADDR), 1);
	EQ(get(four, SOL_SOCKET, SO_KEEPALIVE), 1);
	EQ(get(four, IPPROTO_TCP, TCP_NODELAY), 1);
	EQ(get(four, IPPROTO_TCP, TCP_KEEPIDLE), 333);
	EQ(get(unbound, IPPROTO_TCP, TCP_NODELAY), 1);
	EQ(get(six, IPPROTO_IPV6, IPV6_V6ONLY), 1);
	EQ(get(six, SOL_SOCKET, SO_RCVBUF), 200000);
	EQ(accept(six, NULL, NULL), -1);
	EQ(errno, EAGAIN);
	int client = SYS(socket(AF_INET6, SOCK_STREAM, 0));
	SYS(connect(client, (struct sockaddr *)&at6, sizeof at6));
	int server = SYS(accept(six, NULL, NULL));
	SYS(close(server));
	SYS(close(client));
	EQ(fcntl(four, F_GETFD), FD_CLOEXEC);
	(void)round;
}
