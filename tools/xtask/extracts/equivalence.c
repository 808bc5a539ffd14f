// SPDX-License-Identifier: GPL-2.0
/*
 * Does thp_get_unmapped_area_vmaflags() behave with the series as it did without
 * it?  old.h and new.h hold its source, and that of what it calls, cut out of the
 * two trees by `cargo xtask test --only thp`.  The search for an unmapped area is
 * a stub that returns anything; both sides must make the same searches with the
 * same arguments, and return the same.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE (1UL << PAGE_SHIFT)
#define PMD_ORDER 9
#define PMD_SIZE (PAGE_SIZE << PMD_ORDER)
#define IS_ENABLED(option) option
#define CONFIG_64BIT 1
#define IS_ERR_VALUE(x) ((x) >= (unsigned long)-4095)
#define ENOMEM 12
#define ERANGE 34
#define MMF_TOPDOWN 0
#define round_up(x, y) ((((x) - 1) | ((__typeof__(x))((y) - 1))) + 1)
#define check_add_overflow(a, b, d) __builtin_add_overflow(a, b, d)

/*
 * All searches of a top-down address space come from the top here: where they do
 * not, the series means to differ.
 */
#define MAP_32BIT 0
static struct mm_struct {
	unsigned long mmap_base;
} mm = { .mmap_base = -1UL };
static struct {
	struct mm_struct *mm;
} *current = &(typeof(*current)){ .mm = &mm };

typedef unsigned long vma_flags_t;
struct file;

#define mm_flags_test(flag, mm) ((void)(mm), state.topdown)
#define in_compat_syscall() (state.compat)

/* What the stub returns is a function of the round and of the call's number. */
static struct {
	uint64_t seed;
	int calls;
	bool topdown, compat;
	unsigned long args[2][6];
} state;

static uint64_t next(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static unsigned long mm_get_unmapped_area_vmaflags(struct file *file,
		unsigned long addr, unsigned long len, unsigned long pgoff,
		unsigned long flags, vma_flags_t vma_flags)
{
	uint64_t seed = state.seed + state.calls, r = next(&seed);

	if (state.calls >= 2)
		abort();
	state.args[state.calls][0] = addr;
	state.args[state.calls][1] = len;
	state.args[state.calls][2] = pgoff;
	state.args[state.calls][3] = flags;
	state.args[state.calls][4] = vma_flags;
	state.args[state.calls++][5] = (unsigned long)file;

	/* Page 0 is never found: a search starts above it. */
	switch (r % 8) {
	case 0:
		return -ENOMEM;
	case 1:
		return addr ?: PAGE_SIZE;
	case 2:
		return PMD_SIZE + ((r >> 17) & ~(PMD_SIZE - 1));
	default:
		return PAGE_SIZE + ((r >> 17) & ~(PAGE_SIZE - 1));
	}
}

#define thp_get_unmapped_area_vmaflags old_get_unmapped_area
#include "old.h"
#undef thp_get_unmapped_area_vmaflags
#define thp_get_unmapped_area_vmaflags new_get_unmapped_area
#include "new.h"

int main(int argc, char **argv)
{
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 1000, aligned = 0;
	uint64_t seed = 1;

	for (unsigned long i = 0; i < rounds; i++) {
		/* All magnitudes alike, up to what a loff_t can hold */
		unsigned long len = next(&seed) >> (17 + next(&seed) % 47);
		unsigned long pgoff = next(&seed) >> (14 + next(&seed) % 50);
		unsigned long addr = next(&seed) % 2 ? next(&seed) >> 17 & -PAGE_SIZE : 0;
		unsigned long flags = next(&seed), vma_flags = next(&seed);
		struct file *file = (struct file *)next(&seed);
		unsigned long ret[2], args[2][6] = {};
		int calls = 0;

		if (next(&seed) % 4)
			len &= -PAGE_SIZE;
		if (next(&seed) % 2)
			pgoff &= -1UL << next(&seed) % 12;
		if (((__uint128_t)pgoff << PAGE_SHIFT) + len + PMD_SIZE > INT64_MAX)
			continue;

		state.seed = next(&seed);
		state.topdown = next(&seed) % 2;
		state.compat = next(&seed) % 16 == 0;

		for (int side = 0; side < 2; side++) {
			state.calls = 0;
			ret[side] = (side ? new_get_unmapped_area : old_get_unmapped_area)
				(file, addr, len, pgoff, flags, vma_flags);
			if (side && (calls != state.calls || ret[0] != ret[1]))
				goto differs;
			for (int c = 0; c < state.calls; c++) {
				for (int a = 0; a < 6; a++) {
					if (side && args[c][a] != state.args[c][a])
						goto differs;
					args[c][a] = state.args[c][a];
				}
			}
			calls = state.calls;
		}
		aligned += calls == 1 && args[0][1] != len;
		continue;
differs:
		printf("addr %#lx len %#lx pgoff %#lx: %#lx before, %#lx with the series\n",
		       addr, len, pgoff, ret[0], ret[1]);
		return 1;
	}

	printf("%lu mappings, %lu of them aligned: no difference\n", rounds, aligned);
	return aligned ? 0 : 1;
}
