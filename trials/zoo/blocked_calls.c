// Calls without a time limit, begun before the checkpoint: they go on waiting and get what comes later.
// zoo: rounds=3 static=yes volatile=/ musl=yes
#include "zoo.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/un.h>

static int readable[2], full[2], polled[2], poller, listener, watcher, locked, locker, semaphores, queue, word;
static struct sockaddr_un address = { .sun_family = AF_UNIX };
static char block[65536], junk[65536];
static sigset_t rt;

static long by_read(void) { char c = 0; return read(readable[0], &c, 1) == 1 ? c : -1; }
static long by_write(void) { return write(full[1], block, 7); }
static long by_epoll(void) { struct epoll_event e; return epoll_wait(poller, &e, 1, -1) == 1 ? (long)e.data.u64 : -1; }
static long by_poll(void) { struct pollfd p = { polled[0], POLLIN, 0 }; return poll(&p, 1, -1); }
static long by_accept(void) { int fd = accept(listener, NULL, NULL); return fd < 0 ? -1 : close(fd); }
static long by_futex(void) { return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0); }
static long by_semop(void) { struct sembuf down = { 0, -1, 0 }; return semop(semaphores, &down, 1); }
static long by_sigwaitinfo(void) { return sigwaitinfo(&rt, NULL); }
static long by_flock(void) { return flock(locker, LOCK_EX); }
static long by_inotify(void) { char text[4096]; return read(watcher, text, sizeof text) > 0 ? 0 : -1; }

static long by_msgrcv(void)
{
	struct { long type; char text[8]; } m;

	return msgrcv(queue, &m, 8, 0, 0) == 3 ? m.type : -1;
}

static struct trial { const char *name; long (*call)(void); long result; long got; pthread_t thread; int tid; } trials[] = {
	{ "read", by_read, 'r', 0, 0, 0 }, { "write", by_write, 7, 0, 0, 0 }, { "epoll_wait", by_epoll, 0x1234567890, 0, 0, 0 },
	{ "poll", by_poll, 1, 0, 0, 0 }, { "accept", by_accept, 0, 0, 0, 0 }, { "futex", by_futex, 0, 0, 0, 0 },
	{ "semop", by_semop, 0, 0, 0, 0 }, { "sigwaitinfo", by_sigwaitinfo, 0, 0, 0, 0 }, { "flock", by_flock, 0, 0, 0, 0 },
	{ "read of inotify", by_inotify, 0, 0, 0, 0 }, { "msgrcv", by_msgrcv, 5, 0, 0, 0 },
};
#define COUNT (int)(sizeof trials / sizeof *trials)

static void *run(void *arg)
{
	struct trial *t = arg;

	__atomic_store_n(&t->tid, gettid(), __ATOMIC_RELEASE);
	errno = 0;
	t->got = t->call();
	if (t->got != t->result)
		FAIL("%s gave %ld, not %ld", t->name, t->got, t->result);
	return NULL;
}

static void open_all(void)
{
	SYS(pipe(readable));
	SYS(pipe(full));
	SYS(pipe(polled));
	poller = SYS(epoll_create1(EPOLL_CLOEXEC));
	struct epoll_event e = { EPOLLIN, { .u64 = 0x1234567890 } };
	SYS(epoll_ctl(poller, EPOLL_CTL_ADD, polled[0], &e));
	listener = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
	snprintf(address.sun_path + 1, 100, "zoo-%d", getpid());
	SYS(bind(listener, (struct sockaddr *)&address, sizeof address));
	SYS(listen(listener, 5));
	semaphores = SYS(semget(IPC_PRIVATE, 1, 0600));
	queue = SYS(msgget(IPC_PRIVATE, 0600));
	locked = SYS(open(zoo_path("lock"), O_RDWR | O_CREAT, 0600));
	locker = SYS(open(zoo_path("lock"), O_RDWR));
	watcher = SYS(inotify_init());
	SYS(inotify_add_watch(watcher, zoo_path("lock"), IN_ATTRIB));
	sigemptyset(&rt);
	sigaddset(&rt, SIGRTMIN + 4);
	SYS(-pthread_sigmask(SIG_BLOCK, &rt, NULL));
	for (int i = 0; i < COUNT; i++)
		if (trials[i].call == by_sigwaitinfo)
			trials[i].result = SIGRTMIN + 4;
}

static void prepare(int round)
{
	if (round == 1)
		open_all();
	word = 0;
	EQ(write(full[1], block, sizeof block), sizeof block);
	SYS(flock(locked, LOCK_EX));
	for (int i = 0; i < COUNT; i++) {
		trials[i].tid = 0;
		SYS(-pthread_create(&trials[i].thread, NULL, run, &trials[i]));
		while (__atomic_load_n(&trials[i].tid, __ATOMIC_ACQUIRE) == 0)
			zoo_nap(1);
		zoo_await_state(trials[i].tid, 'S');
	}
}

static void check(int round)
{
	struct { long type; char text[8]; } m = { 5, "abc" };
	struct sembuf up = { 0, 1, 0 };
	int client = SYS(socket(AF_UNIX, SOCK_STREAM, 0));

	EQ(write(readable[1], "r", 1), 1);
	for (long got = 0; got < (long)sizeof block; )
		got += SYS(read(full[0], junk, sizeof block - got));
	EQ(write(polled[1], "p", 1), 1);
	SYS(connect(client, (struct sockaddr *)&address, sizeof address));
	word = 1;
	/* Woken until one was there: the wait may not have begun anew yet. */
	for (int i = 0; syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) == 0 && i < 100; i++) {
		char state = zoo_state(trials[5].tid);
		if (state == '?' || state == 'Z')
			break;
		zoo_nap(1);
	}
	SYS(semop(semaphores, &up, 1));
	SYS(kill(getpid(), SIGRTMIN + 4));
	SYS(flock(locked, LOCK_UN));
	SYS(fchmod(locked, 0640 + round));
	SYS(msgsnd(queue, &m, 3, 0));
	for (int i = 0; i < COUNT; i++)
		SYS(-pthread_join(trials[i].thread, NULL));
	SYS(flock(locker, LOCK_UN));
	EQ(read(polled[0], junk, 10), 1);
	EQ(read(full[0], junk, 10), 7);
	SYS(close(client));
	if (round == zoo_rounds) {
		SYS(semctl(semaphores, 0, IPC_RMID));
		SYS(msgctl(queue, IPC_RMID, NULL));
	}
}
