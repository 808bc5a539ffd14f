// SPDX-License-Identifier: GPL-2.0-only
/*
 * What vfio_pci_mmap_placement_test checks in a 32-bit task: the mmap() of a BAR
 * gets the default placement, aligned to nothing but a page.
 *
 * The test starts this program, with the device open, and says where the BAR is.
 * Built with nolibc, so that no 32-bit libc is needed.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../kselftest.h"

#define PAGE_SIZE	4096UL
#define LEAF_SIZE	(2UL << 20)

/* The offset in pages: that of a region in a VFIO device needs more than 32 bits. */
static void *map(unsigned long addr, unsigned long len, int prot, int flags, int fd,
		 unsigned long pgoff)
{
	return (void *)__nolibc_syscall6(__NR_mmap2, addr, len, prot, flags, fd, pgoff);
}

static bool failed(const void *vaddr)
{
	return (unsigned long)vaddr >= -4095UL;
}

static void *reserve(unsigned long addr, unsigned long len, int prot, int flags)
{
	return map(addr, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

/* Maps everything there is; returns the start of a large part of it. */
static unsigned long fill_addresses(void)
{
	unsigned long start = 0;

	for (unsigned long size = 1UL << 31; size >= PAGE_SIZE; size /= 2) {
		for (;;) {
			void *vaddr = reserve(0, size, PROT_NONE, 0);

			if (failed(vaddr))
				break;
			if (!start)
				start = (unsigned long)vaddr;
		}
	}

	return start;
}

/* Is the BAR placed at the end of a hole, as by a search from the top? */
static bool placed_in_hole(unsigned long hole, unsigned long size, int fd,
			   unsigned long pgoff, unsigned long len)
{
	char *below = (char *)hole - PAGE_SIZE, *above = (char *)hole + size;
	unsigned long want = hole + size - len;
	void *vaddr;
	bool ok;

	reserve((unsigned long)below, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_FIXED);
	reserve((unsigned long)above, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_FIXED);
	*below = 1;
	*above = 2;
	munmap((void *)hole, size);

	vaddr = map(0, len, PROT_READ, MAP_SHARED, fd, pgoff);
	ok = vaddr == (void *)want && *below == 1 && *above == 2;
	if (!ok)
		printf("# %lx bytes in a hole at %lx of %lx bytes: %p, not %lx\n", len, hole,
		       size, vaddr, want);
	reserve((unsigned long)below, size + 2 * PAGE_SIZE, PROT_NONE, MAP_FIXED);

	return ok;
}

/* --helper compat FD INDEX LENGTH OFFSET PHYSICAL */
int main(int argc, char *argv[])
{
	unsigned long hole, len, pgoff;
	unsigned long long bar_len;
	bool ok = true;
	int fd;

	if (argc != 8)
		return KSFT_SKIP;
	fd = atoi(argv[3]);
	bar_len = strtoull(argv[5], NULL, 0);
	pgoff = strtoull(argv[6], NULL, 0) >> 12;
	len = bar_len < 16 * LEAF_SIZE ? bar_len : 16 * LEAF_SIZE;

	hole = fill_addresses();
	/* Neither the start nor the end of the mapping is where a leaf would be. */
	hole = ((hole + LEAF_SIZE) & -LEAF_SIZE) + PAGE_SIZE;
	ok &= placed_in_hole(hole, len, fd, pgoff, len);
	ok &= placed_in_hole(hole, len + PAGE_SIZE, fd, pgoff, len);
	ok &= placed_in_hole(hole, len + LEAF_SIZE, fd, pgoff, len);
	ok &= placed_in_hole(hole, len + 3 * LEAF_SIZE, fd, pgoff, len);

	return ok ? KSFT_PASS : KSFT_FAIL;
}
