// Memory of every kind that changes in every way while it is copied: each word is checked against a model.
// zoo: rounds=4 static=yes volatile=/ covers=anon_memory,thp,private_file,shared_anon,memfd
#include "zoo.h"

#define BIG (2UL << 20)
#define ANON (20UL << 20)
#define MOVED (6UL << 20)
#define THP (8UL << 20)
#define FILE_LEN (4UL << 20)
#define SHARED (1UL << 20)
#define FILE_SEED 7

/* What a page holds: 0 zeros (or the file's own), else a seed. */
static uint32_t anon_model[ANON / PAGE], moved_model[MOVED / PAGE], thp_model[THP / PAGE], file_model[FILE_LEN / PAGE];
static uint32_t shared_model[SHARED / PAGE], memfd_model[SHARED / PAGE];
static char *anon, *moved, *thp, *file, *shared, *shadow, *places[2];
static int where, memfd, source;
static volatile int pause_wanted, paused;
static pthread_t changer;
static uint64_t state = 88172645463325252ULL;
static uint32_t seed;

static uint64_t next(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static void put(char *base, uint32_t *model, size_t page)
{
	model[page] = ++seed;
	zoo_fill(base + page * PAGE, PAGE, seed);
}

/* A run of pages in a region of so many; whole tables now and then. */
static size_t some(size_t pages, size_t *first)
{
	size_t len = next(4) ? 1 + next(20) : BIG / PAGE;

	if (len > pages)
		len = pages;
	*first = next(pages - len + 1);
	if (len == BIG / PAGE)
		*first -= *first % (BIG / PAGE);
	return len;
}

static void discard(char *base, uint32_t *model, size_t pages)
{
	size_t first, len = some(pages, &first);

	SYS(madvise(base + first * PAGE, len * PAGE, MADV_DONTNEED));
	memset(model + first, 0, len * sizeof *model);
}

/* A child's writes to shared memory, which this process's page table knows nothing of. */
static void by_child(void)
{
	size_t page = next(SHARED / PAGE);

	shared_model[page] = ++seed;
	pid_t child = SYS(fork());
	if (child == 0) {
		zoo_fill(shared + page * PAGE, PAGE, seed);
		anon[0] ^= 1; /* its own copy */
		_exit(0);
	}
	zoo_reap(child, 0);
}

/* Parts of a mapping that may for a while be read only, or not even that, while others are written. */
static void forbid(char *base, size_t pages)
{
	size_t first, len = some(pages, &first);

	SYS(mprotect(base + first * PAGE, len * PAGE, next(2) ? PROT_READ : PROT_NONE));
	for (int i = 0; i < 30; i++)
		put(moved, moved_model, next(MOVED / PAGE));
	if (next(16) == 0)
		zoo_nap(1);
	SYS(mprotect(base + first * PAGE, len * PAGE, PROT_READ | PROT_WRITE));
}

/* Parts that differ by an advice, until they grow together again. */
static void advise(char *base, size_t pages)
{
	size_t first, len = some(pages, &first);

	SYS(madvise(base + first * PAGE, len * PAGE, next(3) ? MADV_NORMAL : MADV_RANDOM));
}

static void part(void)
{
	char *bases[] = { anon, thp, file };
	size_t pages[] = { ANON / PAGE, THP / PAGE, FILE_LEN / PAGE }, which = next(3);

	if (next(2))
		forbid(bases[which], pages[which]);
	else
		advise(bases[which], pages[which]);
}

static void change(void)
{
	size_t page, len;
	char text[PAGE];

	switch (next(23)) {
	case 0:
		discard(anon, anon_model, ANON / PAGE);
		break;
	case 1:
		discard(thp, thp_model, THP / PAGE);
		break;
	case 2:
		discard(file, file_model, FILE_LEN / PAGE);
		break;
	case 3: /* moved, leaving a hole where it was */
		if (next(4))
			break;
		/* One mapping only: the kernel does not move several of which some are followed and others not. */
		CHECK(mremap(moved, MOVED, MOVED, MREMAP_MAYMOVE | MREMAP_FIXED, places[!where]) == places[!where], "mremap");
		where = !where;
		moved = places[where];
		break;
	case 4: /* a new mapping in the place of a part of an old one */
		len = some(ANON / PAGE, &page);
		CHECK(mmap(anon + page * PAGE, len * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
		      == anon + page * PAGE, "mmap");
		memset(anon_model + page, 0, len * sizeof *anon_model);
		break;
	case 5: /* by write(2): nothing of it shows in a page table */
		page = next(SHARED / PAGE);
		memfd_model[page] = ++seed;
		zoo_fill(text, PAGE, seed);
		EQ(pwrite(memfd, text, PAGE, page * PAGE), PAGE);
		break;
	case 6:
		page = next(SHARED / PAGE);
		SYS(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE));
		memfd_model[page] = 0;
		break;
	case 7:
		page = next(SHARED / PAGE);
		SYS(madvise(shared + page * PAGE, PAGE, MADV_REMOVE));
		shared_model[page] = 0;
		break;
	case 8:
		if (next(8) == 0)
			by_child();
		break;
	case 9: /* by read(2) */
		page = next(ANON / PAGE);
		EQ(pread(source, anon + page * PAGE, PAGE, 0), PAGE);
		anon_model[page] = FILE_SEED;
		break;
	case 10: /* a whole table of pages, filled again at once */
		len = some(THP / PAGE, &page);
		for (size_t i = 0; i < len; i++)
			put(thp, thp_model, page + i);
		break;
	case 11:
		put(shadow, memfd_model, next(SHARED / PAGE));
		break;
	case 12:
		put(shared, shared_model, next(SHARED / PAGE));
		break;
	case 13:
	case 14:
		put(file, file_model, next(FILE_LEN / PAGE));
		break;
	case 16:
		discard(moved, moved_model, MOVED / PAGE);
		break;
	case 17:
	case 18:
		put(moved, moved_model, next(MOVED / PAGE));
		break;
	case 15:
		put(thp, thp_model, next(THP / PAGE));
		break;
	case 22:
		part();
		break;
	default:
		put(anon, anon_model, next(ANON / PAGE));
	}
}

static void *changes(void *unused)
{
	for (unsigned n = 1;; n++) {
		while (pause_wanted) {
			paused = pause_wanted;
			zoo_nap(1);
		}
		paused = 0;
		change();
		if (n % 512 == 0)
			zoo_nap(1);
	}
	return unused;
}

static void look(const char *name, const char *base, const uint32_t *model, size_t len, uint32_t empty)
{
	static const char zeros[PAGE];
	static char own[PAGE];

	for (size_t i = 0; i < len / PAGE; i++) {
		const char *page = base + i * PAGE;
		const char *wanted = zeros;

		if (model[i] || empty) {
			zoo_fill(own, PAGE, model[i] ? model[i] : empty);
			wanted = own;
		}
		if (memcmp(page, wanted, PAGE) != 0)
			FAIL("page %zu of %s is not as it was: %d, starts %llx", i, name, model[i], *(unsigned long long *)page);
	}
}

static char *map(size_t len, int flags, int fd)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	CHECK(p != MAP_FAILED, "mmap");
	return p;
}

static void begin(void)
{
	char text[PAGE];

	for (int i = 0; i < 2; i++) {
		char *p = map(MOVED + 2 * BIG, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		places[i] = (char *)(((uintptr_t)p + BIG) & ~(BIG - 1));
		SYS(mprotect(places[i] + MOVED, PAGE, PROT_NONE)); /* no neighbour to grow together with */
	}
	moved = places[0];
	anon = map(ANON, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	thp = map(THP + BIG, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	thp = (char *)(((uintptr_t)thp + BIG - 1) & ~(BIG - 1));
	SYS(madvise(thp, THP, MADV_HUGEPAGE));
	source = SYS(open(zoo_path("file"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	zoo_fill(text, PAGE, FILE_SEED);
	for (size_t i = 0; i < FILE_LEN / PAGE; i++)
		EQ(pwrite(source, text, PAGE, i * PAGE), PAGE);
	file = map(FILE_LEN, MAP_PRIVATE, source);
	shared = map(SHARED, MAP_SHARED | MAP_ANONYMOUS, -1);
	memfd = SYS(memfd_create("changing", MFD_CLOEXEC));
	SYS(ftruncate(memfd, SHARED));
	shadow = map(SHARED, MAP_SHARED, memfd);
	for (size_t i = 0; i < ANON / PAGE; i++)
		put(anon, anon_model, i);
	for (size_t i = 0; i < MOVED / PAGE; i++)
		put(moved, moved_model, i);
	for (size_t i = 0; i < THP / PAGE; i++)
		put(thp, thp_model, i);
	for (size_t i = 0; i < FILE_LEN / PAGE; i += 2)
		put(file, file_model, i);
	EQ(pthread_create(&changer, NULL, changes, NULL), 0);
}

static void prepare(int round)
{
	if (round == 1)
		begin();
	pause_wanted = 0;
}

static void check(int round)
{
	pause_wanted = round;
	while (paused != round)
		zoo_nap(1);
	look("anonymous memory", anon, anon_model, ANON, 0);
	look("moved memory", moved, moved_model, MOVED, 0);
	look("huge pages", thp, thp_model, THP, 0);
	look("a private file", file, file_model, FILE_LEN, FILE_SEED);
	look("shared memory", shared, shared_model, SHARED, 0);
	look("a memfd", shadow, memfd_model, SHARED, 0);
}
