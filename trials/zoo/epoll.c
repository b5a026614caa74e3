// epoll: data values, level, edge and one-shot members, nesting, a member whose number is closed.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int outer, inner, level, edge, untaken, once, closed, closed_twin, empty;

static void add(int poller, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = { events, { .u64 = data } };

	SYS(epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e));
}

/* What is ready now, by the low byte of its data, as a set of bits. */
static unsigned ready(int poller)
{
	struct epoll_event e[16];
	unsigned set = 0;
	int n = SYS(epoll_wait(poller, e, 16, 0));

	for (int i = 0; i < n; i++) {
		EQ(e[i].data.u64 >> 8, 0xabcdef01234567ULL);
		set |= 1u << (e[i].data.u64 & 0xff);
	}
	return set;
}

#define DATA(n) (0xabcdef0123456700ULL | (n))

static void prepare(int round)
{
	if (round == 1) {
		outer = SYS(epoll_create1(EPOLL_CLOEXEC));
		inner = SYS(epoll_create1(0));
		empty = SYS(epoll_create1(0));
		level = SYS(eventfd(0, EFD_NONBLOCK));
		edge = SYS(eventfd(0, EFD_NONBLOCK));
		once = SYS(eventfd(0, EFD_NONBLOCK));
		closed = SYS(eventfd(0, EFD_NONBLOCK));
		add(outer, level, EPOLLIN, DATA(1));
		add(outer, edge, EPOLLIN | EPOLLET, DATA(2));
		untaken = SYS(eventfd(0, EFD_NONBLOCK));
		add(outer, untaken, EPOLLIN | EPOLLET, DATA(6));
		add(outer, once, EPOLLIN | EPOLLONESHOT, DATA(3));
		add(outer, inner, EPOLLIN, DATA(4));
		add(inner, closed, EPOLLIN | EPOLLRDHUP, DATA(5));
		/* The number is gone, the file lives on by its twin: still a member, under a number of the past. */
		closed_twin = SYS(dup(closed));
		SYS(close(closed));
	}
	SYS(eventfd_write(edge, 1));
	EQ(ready(outer) & 4, 4);
	SYS(eventfd_write(untaken, 1));
	SYS(eventfd_write(once, 1));
	SYS(eventfd_write(level, round));
}

static void check(int round)
{
	eventfd_t value;
	unsigned set = ready(outer);

	/* Level; the one shot only the first time; an edge that was not taken must come, one that was may come again:
	 * epoll(7) allows that, and nothing shows whether it was. */
	EQ(set & ~4u, (round == 1 ? 2 | 8 : 2) | 64);
	EQ(ready(inner), 0);
	EQ(ready(empty), 0);
	EQ(ready(outer), 2);
	SYS(eventfd_read(level, &value));
	EQ(value, round);
	SYS(eventfd_read(edge, &value));
	EQ(value, 1);
	SYS(eventfd_write(edge, 5));
	EQ(ready(outer), 4);
	SYS(eventfd_write(closed_twin, 1));
	EQ(ready(inner), 32);
	EQ(ready(outer), 16);
	SYS(eventfd_read(closed_twin, &value));
	EQ(ready(outer), 0);
	SYS(eventfd_read(edge, &value));
	SYS(eventfd_read(once, &value));
	SYS(eventfd_read(untaken, &value));
}
