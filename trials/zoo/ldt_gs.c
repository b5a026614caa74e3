// Segments: GS base, an entry of the LDT in use, an entry of the thread's own GDT slots.
// zoo: rounds=3 static=yes
#include "zoo.h"
#include <asm/ldt.h>
#include <asm/prctl.h>

static uint64_t behind_gs[4];
static uint32_t *low;

static uint64_t read_gs(void)
{
	uint64_t value;

	__asm__ volatile("mov %%gs:8, %0" : "=r"(value));
	return value;
}

/* The limit of a segment, as the processor reads it from the table; in 64-bit code only FS and GS have a base. */
static uint32_t limit_of(int entry)
{
	uint32_t value = 0;

	__asm__ volatile("lsl %1, %0" : "+r"(value) : "r"(entry * 8 + 7) : "cc");
	return value;
}

static char before[8 * 16], now[8 * 16];

static void prepare(int round)
{
	if (round == 1) {
		low = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
		CHECK(low != MAP_FAILED, "low page");
		SYS(syscall(SYS_arch_prctl, ARCH_SET_GS, behind_gs));
		struct user_desc d = { .entry_number = 3, .base_addr = (uintptr_t)low, .limit = 0xabc, .seg_32bit = 1, .useable = 1 };
		SYS(syscall(SYS_modify_ldt, 0x11, &d, sizeof d));
	}
	behind_gs[1] = 0x1234567800000000ULL + round;
	SYS(syscall(SYS_modify_ldt, 0, before, sizeof before));
	EQ(limit_of(3), 0xabc);
	EQ(read_gs(), behind_gs[1]);
}

static void check(int round)
{
	unsigned long base;

	SYS(syscall(SYS_arch_prctl, ARCH_GET_GS, &base));
	EQ(base, (uintptr_t)behind_gs);
	EQ(read_gs(), 0x1234567800000000ULL + round);
	EQ(SYS(syscall(SYS_modify_ldt, 0, now, sizeof now)) >= 32, 1);
	CHECK(memcmp(before, now, sizeof now) == 0, "the table changed");
	EQ(limit_of(3), 0xabc);
}
