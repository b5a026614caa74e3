// A descriptor of a child, alone and in an epoll instance, and a netlink socket in a group.
// zoo: rounds=3 static=yes covers=netlink
#include "zoo.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static int fd, instance, netlink;
static pid_t child;

static void prepare(int round)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = 7 };
	struct sockaddr_nl address = { .nl_family = AF_NETLINK };
	int group = RTNLGRP_LINK;

	child = SYS(fork());
	if (child == 0) {
		pause();
		_exit(1);
	}
	fd = SYS(syscall(SYS_pidfd_open, child, 0));
	instance = SYS(epoll_create1(EPOLL_CLOEXEC));
	SYS(epoll_ctl(instance, EPOLL_CTL_ADD, fd, &event));
	netlink = SYS(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
	SYS(bind(netlink, (struct sockaddr *)&address, sizeof address));
	SYS(setsockopt(netlink, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group));
	(void)round;
}

static void check(int round)
{
	struct epoll_event event;
	unsigned int groups = 0;
	socklen_t len = sizeof groups;
	siginfo_t info;

	EQ(epoll_wait(instance, &event, 1, 0), 0);
	SYS(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0));
	EQ(epoll_wait(instance, &event, 1, 5000), 1);
	EQ(event.data.u64, 7);
	SYS(waitid(P_PIDFD, fd, &info, WEXITED));
	EQ(info.si_pid, child);
	EQ(info.si_status, SIGTERM);
	SYS(getsockopt(netlink, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, &groups, &len));
	EQ(groups, 1);
	SYS(close(fd));
	SYS(close(instance));
	SYS(close(netlink));
	(void)round;
}
