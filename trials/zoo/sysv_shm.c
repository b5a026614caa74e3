// System V shared memory: with and without key, marked for removal, locked, read only, in parts, moved, over a fork, not attached.
// zoo: rounds=3 static=yes needs=root
#include "zoo.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define LEN (16 * PAGE)
#define LARGE (1L << 28)

struct seen { int key, mode, cpid, lpid; long size, nattch; unsigned uid, gid; };

static int named, marked, alone, locked, large;
static key_t key;
static char *all, *reads, *parts, *moved, *mark, *wide, *keeps;
static pid_t child;

/* A line of the kernel's own list: what other programs see. */
static int look(int id, struct seen *seen)
{
	char line[400];
	FILE *file = fopen("/proc/sysvipc/shm", "r");
	int found = 0, number;

	CHECK(file != NULL, "sysvipc");
	while (!found && fgets(line, sizeof line, file))
		found = sscanf(line, "%d %d %o %ld %d %d %ld %u %u", &seen->key, &number, (unsigned *)&seen->mode, &seen->size,
			&seen->cpid, &seen->lpid, &seen->nattch, &seen->uid, &seen->gid) == 9 && number == id;
	fclose(file);
	return found;
}

static void expect(int id, int key, int mode, long size, long nattch, unsigned uid)
{
	struct seen seen;

	CHECK(look(id, &seen), "segment %d is gone", id);
	EQ(seen.key, key);
	EQ(seen.mode, mode);
	EQ(seen.size, size);
	EQ(seen.nattch, nattch);
	EQ(seen.uid, uid);
	EQ(seen.gid, uid ? 1234 : 0);
}

/* The permissions of the mapping at an address, and how long it is. */
static void expect_map(char *at, size_t len, const char *perms, const char *name)
{
	char line[400], found[8];
	unsigned long start, end;
	FILE *file = fopen("/proc/self/maps", "r");

	while (fgets(line, sizeof line, file)) {
		if (sscanf(line, "%lx-%lx %7s", &start, &end, found) == 3 && start == (unsigned long)at) {
			EQ(end - start, len);
			CHECK(strcmp(found, perms) == 0, "%s, not %s", found, perms);
			CHECK(strstr(line, name) != NULL, "%s", line);
			fclose(file);
			return;
		}
	}
	FAIL("nothing is mapped at %p", (void *)at);
}

static char *attach(int id, int flags)
{
	char *at = shmat(id, NULL, flags);

	CHECK(at != (char *)-1, "shmat %d", id);
	return at;
}

static void play(void)
{
	for (int round = 1; round <= zoo_rounds; round++) {
		zoo_wait(round);
		EQ(zoo_differs(all, LEN / 2, round), -1);
		zoo_fill(all + LEN / 2, LEN / 2, round + 50);
		zoo_fill(mark, PAGE, round + 60);
		zoo_mark("child", round);
	}
	zoo_await("parent", zoo_rounds);
	_exit(4);
}

static void make(void)
{
	struct shmid_ds ds;

	key = 0x5a000000 | getpid();
	named = SYS(shmget(key, LEN - 100, IPC_CREAT | IPC_EXCL | 0640));
	marked = SYS(shmget(key + 0x100000, 2 * PAGE, IPC_CREAT | IPC_EXCL | 0600));
	alone = SYS(shmget(IPC_PRIVATE, 3 * PAGE, 0604));
	locked = SYS(shmget(IPC_PRIVATE, PAGE, 0600));
	large = SYS(shmget(IPC_PRIVATE, LARGE, 0600 | SHM_NORESERVE));
	all = attach(named, 0);
	reads = attach(named, SHM_RDONLY);
	mark = attach(marked, 0);
	SYS(shmctl(marked, IPC_RMID, NULL));
	/* One attachment in five parts: a hole, one that cannot be read, and two neighbours that are alike. */
	parts = attach(named, 0);
	SYS(munmap(parts + 4 * PAGE, 2 * PAGE));
	SYS(mprotect(parts + 8 * PAGE, PAGE, PROT_NONE));
	SYS(mprotect(parts + 12 * PAGE, 2 * PAGE, PROT_READ));
	SYS(mprotect(parts + 12 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE));
	/* The tail of another one, elsewhere, and a page of its own in the hole. */
	moved = attach(named, 0);
	SYS(munmap(moved, 8 * PAGE));
	keeps = mmap(moved, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	char *free = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	moved = mremap(moved + 8 * PAGE, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, free);
	CHECK(keeps != MAP_FAILED && moved == free, "moved");
	wide = attach(large, 0);
	SYS(shmctl(locked, SHM_LOCK, NULL));
	SYS(shmctl(alone, IPC_STAT, &ds));
	ds.shm_perm.uid = ds.shm_perm.gid = 1234;
	SYS(shmctl(alone, IPC_SET, &ds));
	child = SYS(fork());
	if (child == 0)
		play();
}

static void prepare(int round)
{
	if (round == 1)
		make();
	zoo_fill(all, LEN / 2, round);
	zoo_fill(wide + round * (32L << 20), PAGE, round);
	zoo_fill(keeps, PAGE, round + 70);
	char *at = attach(alone, 0);
	zoo_fill(at, 3 * PAGE, round + 80);
	SYS(shmdt(at));
	at = attach(locked, 0);
	zoo_fill(at, PAGE, round + 90);
	SYS(shmdt(at));
}

static void check_parts(int round)
{
	char name[16];

	snprintf(name, sizeof name, "/SYSV%08x", key);
	expect_map(all, LEN, "rw-s", name);
	expect_map(reads, LEN, "r--s", name);
	expect_map(parts, 4 * PAGE, "rw-s", name);
	expect_map(parts + 6 * PAGE, 2 * PAGE, "rw-s", name);
	expect_map(parts + 8 * PAGE, PAGE, "---s", name);
	expect_map(parts + 9 * PAGE, 3 * PAGE, "rw-s", name);
	expect_map(parts + 12 * PAGE, 2 * PAGE, "rw-s", name);
	expect_map(parts + 14 * PAGE, 2 * PAGE, "rw-s", name);
	expect_map(moved, 8 * PAGE, "rw-s", name);
	snprintf(name, sizeof name, "/SYSV%08x", key + 0x100000);
	expect_map(mark, 2 * PAGE, "rw-s", name);
	EQ(zoo_differs(moved, 8 * PAGE, round + 50), -1);
	EQ(mprotect(reads, PAGE, PROT_READ | PROT_WRITE), -1);
	EQ(errno, EACCES);
	EQ(zoo_differs(keeps, PAGE, round + 70), -1);
	parts[13 * PAGE] ^= 1;
	CHECK(parts[13 * PAGE] == all[13 * PAGE] && reads[13 * PAGE] == all[13 * PAGE], "one object");
	parts[13 * PAGE] ^= 1;
}

static void check(int round)
{
	struct seen seen;

	zoo_await("child", round);
	expect(named, key, 0640, LEN - 100, 18, 0);
	expect(marked, 0, 0600 | SHM_DEST, 2 * PAGE, 2, 0);
	expect(alone, 0, 0604, 3 * PAGE, 0, 1234);
	expect(locked, 0, 0600 | SHM_LOCKED, PAGE, 0, 0);
	expect(large, 0, 0600, LARGE, 2, 0);
	CHECK(look(alone, &seen) && seen.lpid == getpid(), "last used by %d", seen.lpid);
	EQ(shmget(key, LEN - 100, 0), named);
	check_parts(round);
	EQ(zoo_differs(mark, PAGE, round + 60), -1);
	for (int i = 1; i <= round; i++)
		EQ(zoo_differs(wide + i * (32L << 20), PAGE, i), -1);
	char *at = attach(alone, 0);
	EQ(zoo_differs(at, 3 * PAGE, round + 80), -1);
	zoo_fill(at, 3 * PAGE, 1);
	SYS(shmdt(at));
	at = attach(locked, 0);
	EQ(zoo_differs(at, PAGE, round + 90), -1);
	SYS(shmdt(at));
	if (round < zoo_rounds)
		return;
	/* All parts of one attachment go at once. */
	SYS(shmdt(parts));
	expect(named, key, 0640, LEN - 100, 12, 0);
	EQ(shmdt(parts), -1);
	int ids[] = { named, alone, locked, large };
	for (int i = 0; i < 4; i++)
		SYS(shmctl(ids[i], IPC_RMID, NULL));
	zoo_mark("parent", round);
	zoo_reap(child, 4 << 8);
	SYS(shmdt(mark));
	CHECK(!look(marked, &seen), "the last one lets a marked segment go");
}
