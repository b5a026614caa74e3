/* One process: memory of each kind, files, signals, timers, attributes. */
#include "golden.h"
#include <fenv.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#define PAGE 4096

static volatile sig_atomic_t caught;
static volatile uintptr_t handled_on;

static void handle(int signal)
{
	char here;
	caught = signal;
	handled_on = (uintptr_t)&here;
}

static char alternate[16384];
static uint64_t data[512] = { 1 }, zeros[4096];

int main(void)
{
	char text[64] = "";
	struct stat st;

	/* Memory. */
	char *anonymous = mmap(NULL, 6 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(anonymous != MAP_FAILED);
	fill(anonymous, PAGE, 1);
	fill(anonymous + 3 * PAGE, 2 * PAGE, 2);
	MUST(mprotect(anonymous + 3 * PAGE, PAGE, PROT_NONE) == 0);
	int file = open("mapped", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	MUST(file >= 0 && ftruncate(file, 3 * PAGE) == 0);
	char *shared = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	MUST(shared != MAP_FAILED);
	fill(shared, 3 * PAGE, 3);
	char *private = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	MUST(private != MAP_FAILED);
	fill(private + PAGE, PAGE, 4);
	char *whole = mmap((void *)0x7e0000000000, 1ul << 40, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	MUST(whole != MAP_FAILED);
	MUST(mprotect(whole + (1ul << 39), PAGE, PROT_READ | PROT_WRITE) == 0);
	fill(whole + (1ul << 39), PAGE, 5);
	char *wiped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(wiped != MAP_FAILED && madvise(wiped, PAGE, MADV_WIPEONFORK) == 0);
	fill(wiped, PAGE, 6);
	fill(data, sizeof data, 7);
	int memory = memfd_create("golden", MFD_ALLOW_SEALING);
	MUST(memory >= 0 && write(memory, "in a memfd", 10) == 10);
	MUST(fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK) == 0);

	/* Files. */
	int log = open("log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	MUST(log >= 0 && write(log, "one\ntwo\n", 8) == 8);
	int there = open("there", O_RDWR | O_CREAT | O_TRUNC, 0604);
	MUST(there >= 0 && write(there, "0123456789", 10) == 10 && lseek(there, 4, SEEK_SET) == 4);
	int same = dup(there);
	int gone = open("gone", O_RDWR | O_CREAT | O_TRUNC, 0600);
	MUST(gone >= 0 && unlink("gone") == 0 && pwrite(gone, "far away", 8, 5 * PAGE) == 8);
	int ends[2];
	MUST(same >= 0 && pipe2(ends, O_NONBLOCK) == 0 && write(ends[1], "in the pipe", 11) == 11);
	int null = open("/dev/null", O_RDWR), directory = open(".", O_RDONLY | O_DIRECTORY);
	MUST(null >= 0 && directory >= 0);
	int event = eventfd(41, EFD_NONBLOCK), set = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event wanted = { .events = EPOLLIN, .data.u64 = 0x1234567890 }, got;
	MUST(event >= 0 && set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, event, &wanted) == 0);
	int expired = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	struct itimerspec soon = { .it_value = { 0, 1 } }, late = { .it_value = { 3600, 0 }, .it_interval = { 7, 8 } }, left;
	MUST(expired >= 0 && timerfd_settime(expired, 0, &soon, NULL) == 0);
	MUST(poll(&(struct pollfd){ expired, POLLIN, 0 }, 1, -1) == 1);
	int timer = timerfd_create(CLOCK_BOOTTIME, 0);
	MUST(timer >= 0 && timerfd_settime(timer, 0, &late, NULL) == 0);

	/* Signals and timers. */
	stack_t stack = { .ss_sp = alternate, .ss_size = sizeof alternate };
	struct sigaction action = { .sa_handler = handle, .sa_flags = SA_ONSTACK | SA_RESTART }, now;
	sigset_t blocked;
	MUST(sigaltstack(&stack, NULL) == 0 && sigaction(SIGUSR1, &action, NULL) == 0);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN + 3);
	MUST(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
	MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 77 }) == 0);
	MUST(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 78 }) == 0);
	struct itimerval real = { .it_value = { 3600, 0 }, .it_interval = { 9, 0 } }, read_back;
	MUST(setitimer(ITIMER_REAL, &real, NULL) == 0);
	timer_t posix;
	struct sigevent none = { .sigev_notify = SIGEV_NONE };
	MUST(timer_create(CLOCK_MONOTONIC, &none, &posix) == 0 && timer_settime(posix, 0, &late, NULL) == 0);

	/* Attributes. */
	struct rlimit limit = { 200, 300 };
	MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0 && prctl(PR_SET_NAME, "golden one") == 0);
	MUST(prctl(PR_SET_TIMERSLACK, 123456) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0);
	MUST(fesetround(FE_UPWARD) == 0);
	umask(027);
	pid_t pid = getpid(), session = getsid(0);
	struct timespec before, after;
	MUST(clock_gettime(CLOCK_MONOTONIC, &before) == 0);

	until_go();

	MUST(getpid() == pid && getsid(0) == session && session == pid);
	MUST(clock_gettime(CLOCK_MONOTONIC, &after) == 0);
	MUST(after.tv_sec > before.tv_sec || (after.tv_sec == before.tv_sec && after.tv_nsec > before.tv_nsec));
	MUST(filled(anonymous, PAGE, 1));
	MUST(mprotect(anonymous + 3 * PAGE, PAGE, PROT_READ) == 0 && filled(anonymous + 3 * PAGE, 2 * PAGE, 2));
	for (int i = PAGE; i < 3 * PAGE; i++)
		MUST(anonymous[i] == 0);
	MUST(filled(shared, 3 * PAGE, 3) && filled(private + PAGE, PAGE, 4));
	shared[0] ^= 1;
	MUST(private[0] == shared[0]);
	shared[0] ^= 1;
	MUST(filled(whole + (1ul << 39), PAGE, 5) && filled(wiped, PAGE, 6) && filled(data, sizeof data, 7));
	for (size_t i = 0; i < sizeof zeros / 8; i++)
		MUST(zeros[i] == 0);
	pid_t child = fork();
	if (child == 0)
		_exit(wiped[0] == 0 && wiped[PAGE - 1] == 0 ? 0 : 9);
	int status;
	MUST(child > 0 && waitpid(child, &status, 0) == child && status == 0);
	MUST(pread(memory, text, 20, 0) == 10 && memcmp(text, "in a memfd", 10) == 0);
	MUST(fcntl(memory, F_GET_SEALS) == F_SEAL_SHRINK && lseek(memory, 0, SEEK_CUR) == 10);

	MUST(write(log, "three\n", 6) == 6 && stat("log", &st) == 0 && st.st_size == 14 && (st.st_mode & 0777) == 0600);
	MUST(fcntl(log, F_GETFD) == FD_CLOEXEC && fcntl(there, F_GETFD) == 0);
	MUST(read(same, text, 3) == 3 && memcmp(text, "456", 3) == 0 && lseek(there, 0, SEEK_CUR) == 7);
	MUST(pread(gone, text, 20, 5 * PAGE) == 8 && memcmp(text, "far away", 8) == 0);
	MUST(fstat(gone, &st) == 0 && st.st_nlink == 0 && access("gone", F_OK) != 0);
	MUST(read(ends[0], text, 64) == 11 && memcmp(text, "in the pipe", 11) == 0);
	MUST(read(ends[0], text, 64) < 0 && errno == EAGAIN);
	MUST(write(null, "x", 1) == 1 && fstatat(directory, "log", &st, 0) == 0);
	uint64_t count;
	MUST(epoll_wait(set, &got, 1, 0) == 1 && got.data.u64 == 0x1234567890);
	MUST(read(event, &count, 8) == 8 && count == 41 && epoll_wait(set, &got, 1, 0) == 0);
	MUST(read(expired, &count, 8) == 8 && count == 1 && read(expired, &count, 8) < 0);
	MUST(timerfd_gettime(timer, &left) == 0 && left.it_value.tv_sec > 3000 && left.it_value.tv_sec <= 3600);
	MUST(left.it_interval.tv_sec == 7 && left.it_interval.tv_nsec == 8);

	MUST(raise(SIGUSR1) == 0 && caught == SIGUSR1);
	MUST(handled_on - (uintptr_t)alternate < sizeof alternate);
	MUST(sigaction(SIGUSR1, NULL, &now) == 0 && (now.sa_flags & SA_RESTART) && now.sa_handler == handle);
	siginfo_t info;
	for (int value = 77; value <= 78; value++) {
		MUST(sigtimedwait(&blocked, &info, &(struct timespec){ 0 }) == SIGRTMIN + 3);
		MUST(info.si_code == SI_QUEUE && info.si_value.sival_int == value && info.si_pid == pid);
	}
	MUST(sigtimedwait(&blocked, &info, &(struct timespec){ 0 }) < 0);
	MUST(getitimer(ITIMER_REAL, &read_back) == 0 && read_back.it_interval.tv_sec == 9);
	MUST(read_back.it_value.tv_sec > 3000 && read_back.it_value.tv_sec <= 3600);
	MUST(timer_gettime(posix, &left) == 0 && left.it_value.tv_sec > 3000 && left.it_value.tv_sec <= 3600);

	MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 200 && limit.rlim_max == 300);
	MUST(prctl(PR_GET_NAME, text) == 0 && strcmp(text, "golden one") == 0);
	MUST(prctl(PR_GET_TIMERSLACK) == 123456 && fegetround() == FE_UPWARD);
	MUST(umask(0) == 027);
	tell("result", "pass");
	return 0;
}
