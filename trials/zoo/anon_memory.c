// Anonymous memory: contents, holes, protections, sparse and huge reservations, code made at run time.
// zoo: rounds=3 static=yes musl=yes
#include "zoo.h"

#define BIG (8UL << 20)
#define TIB (1UL << 40)

static char *big, *holes, *sparse, *hidden, *readonly, *zeroes;
static int (*code)(void);
static char bss[3 * PAGE], data[PAGE] = "initialised";
static const char *const relro[] = { data, bss, bss + PAGE };

static void *map(size_t len, int prot, int flags)
{
	void *p = mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
	CHECK(p != MAP_FAILED, "%zu bytes", len);
	return p;
}

static void write_code(int value)
{
	/* mov eax, value; ret */
	unsigned char text[] = { 0xb8, value, 0, 0, 0, 0xc3 };

	SYS(mprotect((void *)code, PAGE, PROT_READ | PROT_WRITE));
	memcpy((void *)code, text, sizeof text);
	SYS(mprotect((void *)code, PAGE, PROT_READ | PROT_EXEC));
}

static void prepare(int round)
{
	if (round == 1) {
		big = map(BIG, PROT_READ | PROT_WRITE, 0);
		holes = map(64 * PAGE, PROT_READ | PROT_WRITE, 0);
		sparse = map(TIB, PROT_READ | PROT_WRITE, MAP_NORESERVE);
		hidden = map(4 * PAGE, PROT_READ | PROT_WRITE, 0);
		readonly = map(4 * PAGE, PROT_READ | PROT_WRITE, 0);
		zeroes = map(64 * PAGE, PROT_READ | PROT_WRITE, 0);
		code = map(PAGE, PROT_READ | PROT_WRITE, 0);
		SYS(munmap(holes + 60 * PAGE, 2 * PAGE));
	}
	zoo_fill(big, BIG, round);
	for (int i = 0; i < 60; i++) {
		SYS(mprotect(holes + i * PAGE, PAGE, PROT_READ | PROT_WRITE));
		zoo_fill(holes + i * PAGE, PAGE, round + i);
		SYS(mprotect(holes + i * PAGE, PAGE, i % 2 ? PROT_NONE : i % 4 ? PROT_READ : PROT_READ | PROT_WRITE));
	}
	for (unsigned long i = 0; i < 16; i++)
		zoo_fill(sparse + i * (TIB / 16) + i * PAGE, PAGE, round * 100 + i);
	SYS(mprotect(hidden, 4 * PAGE, PROT_READ | PROT_WRITE));
	zoo_fill(hidden, 4 * PAGE, round);
	SYS(mprotect(hidden, 4 * PAGE, PROT_NONE));
	SYS(mprotect(readonly, 4 * PAGE, PROT_READ | PROT_WRITE));
	zoo_fill(readonly, 4 * PAGE, round);
	SYS(mprotect(readonly, 4 * PAGE, PROT_READ));
	/* One page read only, one written with zeroes, one changed and made zero again. */
	CHECK(zeroes[0] == 0, "fresh page");
	memset(zeroes + PAGE, 0, PAGE);
	zeroes[2 * PAGE] = 1;
	zeroes[2 * PAGE] = 0;
	zoo_fill(zeroes + 9 * PAGE, PAGE, round);
	zoo_fill(bss, sizeof bss, round);
	write_code(40 + round);
}

static void check(int round)
{
	EQ(zoo_differs(big, BIG, round), -1);
	for (int i = 0; i < 60; i++) {
		SYS(mprotect(holes + i * PAGE, PAGE, PROT_READ));
		EQ(zoo_differs(holes + i * PAGE, PAGE, round + i), -1);
	}
	for (unsigned long i = 0; i < 16; i++) {
		EQ(zoo_differs(sparse + i * (TIB / 16) + i * PAGE, PAGE, round * 100 + i), -1);
		EQ(sparse[i * (TIB / 16) + (i + 1) * PAGE], 0);
	}
	SYS(mprotect(hidden, 4 * PAGE, PROT_READ));
	EQ(zoo_differs(hidden, 4 * PAGE, round), -1);
	EQ(zoo_differs(readonly, 4 * PAGE, round), -1);
	for (size_t i = 0; i < 64 * PAGE; i++)
		if (zeroes[i] != 0 && i / PAGE != 9)
			FAIL("zero page %zu has a byte", i / PAGE);
	EQ(zoo_differs(zeroes + 9 * PAGE, PAGE, round), -1);
	EQ(zoo_differs(bss, sizeof bss, round), -1);
	CHECK(strcmp(data, "initialised") == 0, "data");
	CHECK(relro[0] == data && relro[2] == bss + PAGE, "relro");
	EQ(code(), 40 + round);
	errno = 0;
	EQ(msync(holes + 60 * PAGE, PAGE, MS_ASYNC), -1);
	EQ(errno, ENOMEM);
}
