// Socket options of listeners, of UNIX and UDP sockets, and of fresh ones: each is set to another value than a new socket has.
// zoo: rounds=3 static=yes covers=options
#include "zoo.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

enum { TCP4, TCP6, FRESH, UDP4, UDP6, UNIX_LISTENER, UNIX_STREAM, UNIX_DGRAM, UNIX_SEQ, COUNT };

/* On which sockets an option is set: bits of these. */
#define ON(socket) (1 << (socket))
#define IN4 (ON(TCP4) | ON(FRESH) | ON(UDP4))
#define IN6 (ON(TCP6) | ON(UDP6))
#define TCPS (ON(TCP4) | ON(TCP6) | ON(FRESH))
#define UDPS (ON(UDP4) | ON(UDP6))
#define UNIXES (ON(UNIX_LISTENER) | ON(UNIX_STREAM) | ON(UNIX_DGRAM) | ON(UNIX_SEQ))
#define ALL (IN4 | IN6 | UNIXES)

static const struct option {
	int on, level, name, value;
	const char *text;
} options[] = {
	{ IN4 | IN6, SOL_SOCKET, SO_REUSEADDR, 1, NULL },
	{ IN4 | IN6, SOL_SOCKET, SO_REUSEPORT, 1, NULL },
	{ IN4 | IN6, SOL_SOCKET, SO_DONTROUTE, 1, NULL },
	{ UDPS, SOL_SOCKET, SO_BROADCAST, 1, NULL },
	{ TCPS, SOL_SOCKET, SO_KEEPALIVE, 1, NULL },
	{ TCPS, SOL_SOCKET, SO_OOBINLINE, 1, NULL },
	{ UDPS, SOL_SOCKET, SO_NO_CHECK, 1, NULL },
	{ ALL, SOL_SOCKET, SO_PRIORITY, 3, NULL },
	{ ALL, SOL_SOCKET, SO_RCVLOWAT, 7, NULL },
	{ ALL, SOL_SOCKET, SO_TIMESTAMPNS, 1, NULL },
	{ IN4 | IN6, SOL_SOCKET, SO_RXQ_OVFL, 1, NULL },
	{ IN4 | IN6, SOL_SOCKET, SO_MARK, 0x77, NULL },
	{ TCPS, SOL_SOCKET, SO_ZEROCOPY, 1, NULL },
	{ IN4 | IN6, SOL_SOCKET, SO_BINDTODEVICE, 0, "lo" },
	{ UNIXES, SOL_SOCKET, SO_PASSCRED, 1, NULL },
	{ UNIXES, SOL_SOCKET, 76 /* SO_PASSPIDFD */, 1, NULL },
	{ UNIXES, SOL_SOCKET, 83 /* SO_PASSRIGHTS */, 0, NULL },
	{ UNIXES & ~ON(UNIX_LISTENER), SOL_SOCKET, SO_PEEK_OFF, 0, NULL },
	{ ALL & ~ON(TCP6), SOL_SOCKET, SO_RCVBUF, 77000, NULL },
	{ ALL & ~ON(TCP4), SOL_SOCKET, SO_SNDBUF, 66000, NULL },
	{ TCPS, IPPROTO_TCP, TCP_NODELAY, 1, NULL },
	{ TCPS, IPPROTO_TCP, TCP_CORK, 1, NULL },
	{ TCPS, IPPROTO_TCP, TCP_MAXSEG, 1000, NULL },
	{ TCPS, IPPROTO_TCP, TCP_KEEPIDLE, 77, NULL },
	{ TCPS, IPPROTO_TCP, TCP_KEEPINTVL, 7, NULL },
	{ TCPS, IPPROTO_TCP, TCP_KEEPCNT, 3, NULL },
	{ TCPS, IPPROTO_TCP, TCP_SYNCNT, 4, NULL },
	{ TCPS, IPPROTO_TCP, TCP_LINGER2, 9, NULL },
	{ TCPS, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3, NULL },
	{ TCPS, IPPROTO_TCP, TCP_QUICKACK, 0, NULL },
	{ TCPS, IPPROTO_TCP, TCP_CONGESTION, 0, "reno" },
	{ TCPS, IPPROTO_TCP, TCP_USER_TIMEOUT, 7777, NULL },
	{ ON(TCP4) | ON(TCP6), IPPROTO_TCP, TCP_FASTOPEN, 5, NULL },
	{ TCPS, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 5555, NULL },
	{ IN4, IPPROTO_IP, IP_TOS, 0x10, NULL },
	{ IN4, IPPROTO_IP, IP_TTL, 33, NULL },
	{ IN4, IPPROTO_IP, IP_PKTINFO, 1, NULL },
	{ IN4, IPPROTO_IP, IP_RECVTTL, 1, NULL },
	{ IN4, IPPROTO_IP, IP_RECVTOS, 1, NULL },
	{ IN4, IPPROTO_IP, IP_RECVERR, 1, NULL },
	{ IN4, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT, NULL },
	{ IN4, IPPROTO_IP, IP_FREEBIND, 1, NULL },
	{ IN4, IPPROTO_IP, IP_TRANSPARENT, 1, NULL },
	{ IN4, IPPROTO_IP, IP_MINTTL, 5, NULL },
	{ IN4, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1, NULL },
	{ ON(UDP4), IPPROTO_IP, IP_MULTICAST_TTL, 9, NULL },
	{ ON(UDP4), IPPROTO_IP, IP_MULTICAST_LOOP, 0, NULL },
	{ IN6, IPPROTO_IPV6, IPV6_V6ONLY, 1, NULL },
	{ IN6, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44, NULL },
	{ IN6, IPPROTO_IPV6, IPV6_TCLASS, 0x20, NULL },
	{ IN6, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1, NULL },
	{ IN6, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1, NULL },
	{ IN6, IPPROTO_IPV6, IPV6_RECVERR, 1, NULL },
	{ IN6, IPPROTO_IPV6, IPV6_DONTFRAG, 1, NULL },
	{ IN6, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT, NULL },
	{ ON(UDP6), IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 8, NULL },
};
enum { OPTIONS = sizeof options / sizeof *options, LONGEST = 32 };

/* What each socket says of each option once it is set, and of those that are no numbers; length -1: it does not have it. */
static struct said { int length; unsigned char bytes[LONGEST]; } said[COUNT][OPTIONS + 3];
static int sockets[COUNT], plain[COUNT], peers[3];

static int fresh(int which)
{
	static const int domains[COUNT] = { AF_INET, AF_INET6, AF_INET, AF_INET, AF_INET6, AF_UNIX, AF_UNIX, AF_UNIX, AF_UNIX };
	static const int kinds[COUNT] = { SOCK_STREAM, SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM, SOCK_DGRAM, SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };

	return SYS(socket(domains[which], kinds[which], 0));
}

static struct said look(int fd, int level, int name)
{
	struct said now = { 0 };
	socklen_t length = sizeof now.bytes;

	now.length = getsockopt(fd, level, name, now.bytes, &length) == 0 ? (int)length : -1;
	return now;
}

/* The n-th thing to be looked at. */
static struct said look_at(int which, int fd, int n)
{
	static const int others[] = { SO_LINGER, SO_RCVTIMEO, SO_SNDTIMEO };

	if (n >= OPTIONS)
		return look(fd, SOL_SOCKET, others[n - OPTIONS]);
	return options[n].on & ON(which) ? look(fd, options[n].level, options[n].name) : (struct said){ .length = -1 };
}

/* Sets all that this user and this kernel allow; how many of them a new socket has not got. */
static int set_all(int which, int fd)
{
	struct linger linger = { 1, 5 };
	struct timeval in = { 7, 500000 }, out = { 8, 250000 };
	int others = 0;

	for (int n = 0; n < OPTIONS; n++) {
		const struct option *o = &options[n];

		if (o->on & ON(which))
			(void)!setsockopt(fd, o->level, o->name, o->text ? (const void *)o->text : &o->value, o->text ? strlen(o->text) : sizeof o->value);
	}
	SYS(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
	SYS(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &in, sizeof in));
	SYS(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &out, sizeof out));
	int new = fresh(which);
	for (int n = 0; n < OPTIONS + 3; n++) {
		struct said now = look_at(which, fd, n), then = look_at(which, new, n);
		others += memcmp(&now, &then, sizeof now) != 0;
	}
	close(new);
	return others;
}

static void prepare(int round)
{
	struct sockaddr_in at4 = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	struct sockaddr_in6 at6 = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback };
	struct sockaddr_un at = { .sun_family = AF_UNIX };

	if (round > 1)
		return;
	snprintf(at.sun_path, sizeof at.sun_path, "%.90s.sock", zoo_status);
	for (int i = 0; i < COUNT; i++) {
		if (i >= UNIX_STREAM) {
			int ends[2];
			SYS(socketpair(AF_UNIX, i == UNIX_STREAM ? SOCK_STREAM : i == UNIX_DGRAM ? SOCK_DGRAM : SOCK_SEQPACKET, 0, ends));
			sockets[i] = ends[0];
			peers[i - UNIX_STREAM] = ends[1];
		} else {
			sockets[i] = fresh(i);
		}
		int others = set_all(i, sockets[i]);
		CHECK(others >= (i < UNIX_LISTENER ? 12 : 5), "socket %d has %d options that are none of a new one", i, others);
		if (i == TCP4 || i == UDP4)
			SYS(bind(sockets[i], (struct sockaddr *)&at4, sizeof at4));
		if (i == TCP6 || i == UDP6)
			SYS(bind(sockets[i], (struct sockaddr *)&at6, sizeof at6));
		if (i == UNIX_LISTENER)
			SYS(bind(sockets[i], (struct sockaddr *)&at, sizeof at));
		if (i == TCP4 || i == TCP6 || i == UNIX_LISTENER)
			SYS(listen(sockets[i], 3));
		for (int n = 0; n < OPTIONS + 3; n++)
			said[i][n] = look_at(i, sockets[i], n);
		/* Beside it one as it was born: it stays so. */
		plain[i] = fresh(i);
	}
}

static void check(int round)
{
	for (int i = 0; i < COUNT; i++) {
		int new = fresh(i);
		for (int n = 0; n < OPTIONS + 3; n++) {
			struct said now = look_at(i, sockets[i], n), born = look_at(i, new, n), still = look_at(i, plain[i], n);
			CHECK(memcmp(&now, &said[i][n], sizeof now) == 0, "socket %d, option %d: now %d of %d bytes, not %d of %d", i,
			      n < OPTIONS ? options[n].name : n, *(int *)now.bytes, now.length, *(int *)said[i][n].bytes, said[i][n].length);
			CHECK(memcmp(&born, &still, sizeof born) == 0, "plain socket %d, option %d: now %d, not %d", i,
			      n < OPTIONS ? options[n].name : n, *(int *)still.bytes, *(int *)born.bytes);
		}
		close(new);
	}
	(void)round;
}
