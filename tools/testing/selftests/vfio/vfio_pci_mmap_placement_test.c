// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where the kernel places the mmap() of a BAR, for which the contract is:
 *
 *  - Of the leaf sizes of the page table, take the largest of which the mapping
 *    holds one whole block that is naturally aligned in physical memory. The
 *    virtual and the physical address are congruent modulo that size, so that
 *    touching the mapping takes the smallest possible number of faults. If there
 *    is no room for that, take the next smaller leaf.
 *  - Nothing is wasted: of the addresses that are congruent it is the first that
 *    the search meets, the highest in a top-down address space. A mapping without
 *    a whole block gets the default placement.
 *  - So does one whose addresses have 32 bits.
 *  - A hint that is free wins, aligned or not; one that is taken does no harm.
 *  - MAP_FIXED is never moved, neither by mmap() nor by mremap().
 *  - What cannot be mapped fails with the same error as with any placement.
 *
 * The expected values below come from this contract, the BAR addresses from
 * sysfs. Addresses are compared with those that are expected where nothing but a
 * hole of the test's making is free, and the contents of what is next to it are
 * looked at afterwards: the kernel unmaps what it places a mapping over.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <linux/align.h>
#include <linux/compiler.h>
#include <linux/limits.h>
#include <linux/mman.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

#define NR_RANDOM 2000

/*
 * How many programs are run to see how random an address is: enough to see that
 * it is. To measure how much, give more in this variable, in a quiet moment.
 */
#define NR_PROGRAMS 500
#define NR_PROGRAMS_VARIABLE "VFIO_SELFTESTS_PROGRAMS"

/* What main() runs in place of the tests, in a program with other addresses */
#define HELPER "--helper"

/* The page size, and the leaf sizes above it, ascending */
static u64 leaves[MAX_LEAF_SIZES];
static int nr_leaves;
static u64 page_size;

static const char *device_bdf;

struct bar {
	int index;
	u64 len;	/* What can be mapped, in whole pages */
	u64 offset;	/* In the device file */
	u64 phys;
};

/* How many blocks of size @leaf, naturally aligned, lie in [start, start + len)? */
static u64 nr_blocks(u64 start, u64 len, u64 leaf)
{
	u64 first = (start + leaf - 1) / leaf;
	u64 last = (start + len) / leaf;

	return last > first ? last - first : 0;
}

/* The leaf size modulo which virtual and physical address must be congruent */
static u64 expected_leaf(u64 phys, u64 len)
{
	for (int i = nr_leaves - 1; i > 0; i--) {
		if (nr_blocks(phys, len, leaves[i]))
			return leaves[i];
	}

	return page_size;
}

/*
 * The smallest number of leaves that map [phys, phys + len): every block that
 * is naturally aligned takes one, if no larger one takes it.
 */
static u64 min_faults(u64 phys, u64 len)
{
	u64 faults = 0, covered = 0;

	for (int i = nr_leaves - 1; i >= 0; i--) {
		u64 bytes = nr_blocks(phys, len, leaves[i]) * leaves[i];

		faults += (bytes - covered) / leaves[i];
		covered = bytes;
	}

	return faults;
}

static double ms_since(const struct timespec *start)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);

	return (now.tv_sec - start->tv_sec) * 1e3 +
	       (now.tv_nsec - start->tv_nsec) / 1e6;
}

/* Read one word of every page and return the number of faults that it took */
static u64 touch(void *vaddr, u64 len)
{
	struct rusage before, after;

	/* The first call pays for the faults of the libc code itself. */
	VFIO_ASSERT_EQ(getrusage(RUSAGE_SELF, &after), 0);
	VFIO_ASSERT_EQ(getrusage(RUSAGE_SELF, &before), 0);

	for (u64 i = 0; i < len; i += page_size)
		(void)READ_ONCE(*(u32 *)(vaddr + i));

	VFIO_ASSERT_EQ(getrusage(RUSAGE_SELF, &after), 0);

	return (after.ru_minflt - before.ru_minflt) +
	       (after.ru_majflt - before.ru_majflt);
}

static void *bar_mmap(int fd, const struct bar *bar, void *hint, u64 offset,
		      u64 len, int flags)
{
	return mmap(hint, len, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd,
		    bar->offset + offset);
}

static void *anon_mmap(void *hint, u64 len, int prot, int flags)
{
	return mmap(hint, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
		    flags, -1, 0);
}

/*
 * An address space in which everything is mapped, PROT_NONE, and one of these
 * mappings is large enough to make holes in it.
 */
struct full_space {
	u64 start;	/* Congruent with everything modulo the largest leaf */
	u64 len;
	bool bottom_up;	/* How a hole in it is searched */
};

/* @above: holes are to be above this address. Needs memory for nothing later. */
static struct full_space fill_addresses(u64 above, bool bottom_up)
{
	struct full_space space = { .bottom_up = bottom_up };
	u64 align = leaves[nr_leaves - 1];

	for (u64 size = 1ULL << 46; size >= page_size; size /= 2) {
		for (;;) {
			void *vaddr = anon_mmap(NULL, size, PROT_NONE, 0);

			if (vaddr == MAP_FAILED)
				break;
			if ((u64)vaddr < above || size <= space.len)
				continue;
			space.start = ALIGN((u64)vaddr + 1, align);
			space.len = (u64)vaddr + size - space.start;
		}
	}

	return space;
}

static void fill(u64 start, u64 len)
{
	VFIO_ASSERT_EQ(anon_mmap((void *)start, len, PROT_NONE, MAP_FIXED), (void *)start);
}

/* A page with contents */
static void neighbour_map(u64 addr)
{
	VFIO_ASSERT_EQ(anon_mmap((void *)addr, page_size, PROT_READ | PROT_WRITE, MAP_FIXED),
		       (void *)addr);
	memset((void *)addr, 0x5a, page_size);
}

static bool neighbour_intact(u64 addr)
{
	const u8 *bytes = (u8 *)addr;

	for (u64 i = 0; i < page_size; i++) {
		if (bytes[i] != 0x5a)
			return false;
	}

	return true;
}

/*
 * The first address at which [start, start + size) has room for @len bytes and
 * which is congruent with @phys modulo @leaf, or 0.
 */
static u64 first_congruent(u64 start, u64 size, bool bottom_up, u64 phys, u64 len, u64 leaf)
{
	u64 addr;

	if (size < len)
		return 0;
	if (bottom_up)
		addr = start + (phys - start) % leaf;
	else
		addr = start + size - len - (start + size - len - phys) % leaf;

	return addr >= start && addr + len <= start + size ? addr : 0;
}

/*
 * Is @addr where the contract has a mapping go, if [start, start + size) is all
 * that is free? 0 stands for nowhere.
 */
static bool is_expected(u64 addr, u64 start, u64 size, bool bottom_up, u64 phys, u64 len)
{
	for (int i = nr_leaves - 1; i >= 0; i--) {
		u64 want;

		/* Anything is a multiple of one byte: the default placement. */
		if (i && !nr_blocks(phys, len, leaves[i]))
			continue;
		want = first_congruent(start, size, bottom_up, phys, len,
				       i ? leaves[i] : page_size);
		if (want && want == addr)
			return true;
		/*
		 * The kernel searches for a block more than the mapping needs. Where
		 * there is less, it may find no room although there is some.
		 */
		if (want && (!i || size >= len + leaves[i]))
			return false;
	}

	return !addr;
}

/*
 * Makes a hole of @size bytes, @skew bytes away from any alignment, and maps a
 * part of the BAR there. Is it where it should be?
 */
static bool placed_in_hole(const struct full_space *space, int fd, const struct bar *bar,
			   u64 offset, u64 len, u64 skew, u64 size)
{
	u64 phys = bar->phys + offset, start = space->start + page_size + skew;
	void *vaddr;
	u64 addr;
	bool ok;

	VFIO_ASSERT_LE(start + size + page_size, space->start + space->len);
	neighbour_map(start - page_size);
	neighbour_map(start + size);
	VFIO_ASSERT_EQ(munmap((void *)start, size), 0);

	vaddr = bar_mmap(fd, bar, NULL, offset, len, 0);
	addr = vaddr == MAP_FAILED ? 0 : (u64)vaddr;
	ok = is_expected(addr, start, size, space->bottom_up, phys, len) &&
	     (addr || errno == ENOMEM) &&
	     neighbour_intact(start - page_size) && neighbour_intact(start + size);
	if (!ok)
		printf("# BAR%d offset %#lx length %#lx in a hole at %#lx of %#lx: %#lx\n",
		       bar->index, offset, len, start, size, addr);
	if (addr)
		VFIO_ASSERT_EQ(munmap(vaddr, len), 0);
	fill(start - page_size, size + 2 * page_size);

	return ok;
}

/*
 * Holes from too small to large enough for any leaf, at the borders where one
 * becomes the other; the first addresses in it are congruent, or only the last
 * are, or none.
 */
static bool placed_in_holes(const struct full_space *space, int fd, const struct bar *bar,
			    u64 offset, u64 len)
{
	u64 largest = leaves[nr_leaves - 1], phys = bar->phys + offset;

	if (!placed_in_hole(space, fd, bar, offset, len, 0, len))
		return false;
	if (len > page_size &&
	    !placed_in_hole(space, fd, bar, offset, len, 0, len - page_size))
		return false;

	for (int i = 0; i < nr_leaves; i++) {
		/* The start of the hole is congruent, or just not. */
		u64 congruent = (phys - page_size) % leaves[i];
		const u64 skews[] = {
			congruent,
			congruent + page_size,
			congruent + leaves[i] - page_size,
			leaves[i] / 2,
		};
		const u64 room[] = {
			page_size,
			leaves[i] - page_size,
			leaves[i],
			leaves[i] + page_size,
			leaves[i] + 2 * largest,
		};

		/* That is all one for a page. */
		for (int j = 0; j < (i ? ARRAY_SIZE(skews) : 1); j++) {
			for (int k = 0; k < ARRAY_SIZE(room); k++) {
				if (!placed_in_hole(space, fd, bar, offset, len,
						    skews[j] % largest, len + room[k]))
					return false;
			}
		}
	}

	return true;
}

/*
 * Offset and length, 0 for the length meaning all that follows. What does not
 * fit into a BAR is passed over for it.
 */
static const struct {
	u64 offset;
	u64 len;
} table[] = {
	/* Whole blocks, one or many, from the start and not */
	{ 0, SZ_4K },
	{ 0, SZ_2M },
	{ 0, SZ_1G },
	{ 0, SZ_2G },
	{ SZ_1G, SZ_1G },
	{ SZ_2M, SZ_2M },
	{ SZ_4M, SZ_4M },
	/* Too short for a block, or no block inside */
	{ 0, SZ_2M - SZ_4K },
	{ SZ_4K, SZ_4K },
	{ SZ_4K, SZ_2M },
	{ SZ_1M, SZ_2M },
	{ SZ_4K, 2 * SZ_2M - SZ_8K },
	/* One block, with a head, a tail, or both */
	{ SZ_4K, 2 * SZ_2M - SZ_4K },
	{ 0, SZ_2M + SZ_4K },
	{ SZ_2M - SZ_4K, SZ_2M + SZ_4K },
	{ SZ_2M - SZ_4K, SZ_2M + SZ_8K },
	/* The rest after an MSI-X table: congruent with its odd start */
	{ SZ_4K, 0 },
	{ SZ_8K, 0 },
	{ SZ_2M + SZ_4K, 0 },
	{ SZ_2M + SZ_4K, SZ_4M },
	/* A 1 GiB BAR without its first 2 MiB holds blocks of 2 MiB only */
	{ SZ_2M, SZ_1G - SZ_2M },
	{ SZ_2M, SZ_1G },
	{ SZ_512M, SZ_1G },
	{ SZ_512M, SZ_1G + SZ_512M },
	{ SZ_1G - SZ_4K, SZ_1G + SZ_4K },
	{ 3 * SZ_2M, 0 },
	{ SZ_2G, 0 },
};

static bool table_fits(int i, const struct bar *bar, u64 *len)
{
	if (table[i].offset >= bar->len)
		return false;
	*len = table[i].len ?: bar->len - table[i].offset;
	if (!IS_ALIGNED(table[i].offset | *len, page_size))
		return false;

	return *len <= bar->len - table[i].offset;
}

static bool table_placed(const struct full_space *space, int fd, const struct bar *bar)
{
	u64 len;

	for (int i = 0; i < ARRAY_SIZE(table); i++) {
		if (table_fits(i, bar, &len) &&
		    !placed_in_holes(space, fd, bar, table[i].offset, len))
			return false;
	}

	return true;
}

/* A random number below @max, with all magnitudes alike */
static u64 random_pages(u64 max)
{
	u64 mask = ~0ULL >> (random() % 64);
	u64 r = ((u64)random() << 31 ^ random()) & mask;

	return r % max;
}

/* A random part of the BAR in a random hole */
static bool random_placed(const struct full_space *space, int fd, const struct bar *bar)
{
	u64 nr_pages = bar->len / page_size, largest = leaves[nr_leaves - 1] / page_size;
	u64 offset = random_pages(nr_pages), len, skew, size;

	/* Half of them from or to a boundary, where mistakes are */
	if (random() % 2)
		offset &= ~0ULL << random() % 20;
	len = 1 + random_pages(nr_pages - offset);
	if (random() % 4 == 0)
		len = nr_pages - offset;
	skew = random_pages(largest);
	size = len + random_pages(2 * largest);

	return placed_in_hole(space, fd, bar, offset * page_size, len * page_size,
			      skew * page_size, size * page_size);
}

FIXTURE(vfio_pci_mmap_placement_test) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct bar bars[PCI_STD_NUM_BARS];
	int nr_bars;
	struct bar *largest;
};

FIXTURE_VARIANT(vfio_pci_mmap_placement_test) {
	const char *iommu_mode;
	bool same_hook;		/* Has been tested by the variant before */
};

/* Both interfaces that hand out a device file: the group and the cdev. */
FIXTURE_VARIANT_ADD(vfio_pci_mmap_placement_test, vfio_type1v2_iommu) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_VARIANT_ADD(vfio_pci_mmap_placement_test, iommufd) {
	.iommu_mode = MODE_IOMMUFD,
	.same_hook = true,
};

FIXTURE_SETUP(vfio_pci_mmap_placement_test)
{
	self->iommu = iommu_init(variant->iommu_mode);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);

	for (int i = 0; i < PCI_STD_NUM_BARS; i++) {
		const struct vfio_region_info *info = &self->device->bars[i].info;
		struct bar *bar = &self->bars[self->nr_bars];

		if (!(info->flags & VFIO_REGION_INFO_FLAG_MMAP))
			continue;

		bar->index = i;
		bar->len = ALIGN(info->size, page_size);
		bar->offset = info->offset;
		bar->phys = sysfs_bar_start_get(device_bdf, i);

		if (!self->largest || bar->len > self->largest->len)
			self->largest = bar;
		self->nr_bars++;
	}

	if (!self->nr_bars)
		SKIP(return, "No BAR of %s can be mapped", device_bdf);
	if (nr_leaves == 1)
		SKIP(return, "The kernel has no leaf larger than a page");

	/*
	 * libvfio has mapped the BARs at aligned addresses, and below these the
	 * default placement would be aligned by accident.
	 */
	ASSERT_NE(mmap(NULL, self->largest->len + page_size, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), MAP_FAILED);
}

FIXTURE_TEARDOWN(vfio_pci_mmap_placement_test)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

/* Map without a hint and unmap: is the address what the contract demands? */
static bool placed_well(int fd, const struct bar *bar, u64 offset, u64 len)
{
	u64 phys = bar->phys + offset;
	u64 leaf = expected_leaf(phys, len);
	void *vaddr = bar_mmap(fd, bar, NULL, offset, len, 0);
	bool ok;

	VFIO_ASSERT_NE(vaddr, MAP_FAILED, "BAR%d offset %#lx length %#lx\n",
		       bar->index, offset, len);
	ok = (u64)vaddr % leaf == phys % leaf;
	if (!ok)
		printf("# BAR%d offset %#lx length %#lx: %p %% %#lx is not %#lx\n",
		       bar->index, offset, len, vaddr, leaf,
		       (phys % leaf));

	VFIO_ASSERT_EQ(munmap(vaddr, len), 0);

	return ok;
}

/*
 * Reserve @len bytes plus one page on either side, at an odd address: neither
 * inside nor right below it would a BAR be aligned by accident.
 */
static void *reserve_misaligned(u64 len)
{
	return mmap_reserve(len + 2 * page_size, leaves[nr_leaves - 1], page_size);
}

static void unreserve(void *reserved, u64 len)
{
	VFIO_ASSERT_EQ(munmap(reserved, len + 2 * page_size), 0);
}

TEST_F(vfio_pci_mmap_placement_test, whole_bar)
{
	for (int i = 0; i < self->nr_bars; i++)
		EXPECT_TRUE(placed_well(self->device->fd, &self->bars[i], 0,
					self->bars[i].len));
}

/* Placement has no memory: unmapped and mapped again, the promise still holds. */
TEST_F(vfio_pci_mmap_placement_test, remap)
{
	const struct bar *bar = self->largest;
	u64 half = bar->len / 2;

	for (int i = 0; i < 16; i++) {
		void *vaddr = bar_mmap(self->device->fd, bar, NULL, 0, bar->len, 0);

		ASSERT_NE(vaddr, MAP_FAILED);
		ASSERT_TRUE(placed_well(self->device->fd, bar, 0, bar->len));
		ASSERT_TRUE(half < page_size ||
			    placed_well(self->device->fd, bar, half, half));
		ASSERT_EQ(munmap(vaddr, bar->len), 0);
	}
}

static bool is_mapped(void *vaddr)
{
	return !msync(vaddr, page_size, MS_ASYNC);
}

/* mremap() to a fixed address obeys it, as it does without the hook. */
TEST_F(vfio_pci_mmap_placement_test, mremap_fixed)
{
	const struct bar *bar = self->largest;
	u64 len = min_t(u64, bar->len, SZ_4M);
	void *reserved = reserve_misaligned(len);
	void *vaddr = bar_mmap(self->device->fd, bar, NULL, 0, len, 0);

	ASSERT_NE(vaddr, MAP_FAILED);
	vaddr = mremap(vaddr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
		       reserved + page_size);
	EXPECT_EQ(vaddr, reserved + page_size);
	touch(vaddr, len);
	unreserve(reserved, len);
}

/*
 * So does an mremap() of several mappings, of which each is placed by itself;
 * madvise() makes them from one. What it refuses, it refuses all the same.
 */
TEST_F(vfio_pci_mmap_placement_test, mremap_several)
{
	const int move = MREMAP_MAYMOVE | MREMAP_FIXED;
	const struct bar *bar = self->largest;
	u64 first = min_t(u64, ALIGN_DOWN(bar->len / 2, page_size), SZ_4M);
	void *reserved = reserve_misaligned(bar->len);
	void *target = reserved + page_size, *vaddr;

	if (!first)
		SKIP(return, "No BAR has two pages");

	vaddr = bar_mmap(self->device->fd, bar, NULL, 0, bar->len, 0);
	ASSERT_NE(vaddr, MAP_FAILED);
	ASSERT_EQ(madvise(vaddr, first, MADV_DONTFORK), 0);

	EXPECT_EQ(mremap(vaddr, bar->len, bar->len, move | MREMAP_DONTUNMAP, target),
		  MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(mremap(vaddr, bar->len, bar->len + page_size, MREMAP_MAYMOVE),
		  MAP_FAILED);
	EXPECT_EQ(errno, EFAULT);

	/* All of it, to an address that no leaf fits, and back */
	ASSERT_EQ(mremap(vaddr, bar->len, bar->len, move, target), target);
	EXPECT_FALSE(is_mapped(vaddr));
	EXPECT_FALSE(is_mapped(vaddr + bar->len - page_size));
	touch(target, min_t(u64, bar->len, 2 * first));
	ASSERT_EQ(mremap(target, bar->len, bar->len, move, vaddr), vaddr);
	EXPECT_FALSE(is_mapped(target));
	EXPECT_FALSE(is_mapped(target + bar->len - page_size));

	/* A page on either side of the border */
	target += first;
	ASSERT_EQ(mremap(vaddr + first - page_size, 2 * page_size, 2 * page_size, move,
			 target), target);
	EXPECT_FALSE(is_mapped(vaddr + first - page_size));
	EXPECT_FALSE(is_mapped(vaddr + first));
	touch(target, 2 * page_size);

	ASSERT_EQ(munmap(vaddr, bar->len), 0);
	ASSERT_EQ(munmap(reserved, bar->len + 2 * page_size), 0);
}

TEST_F(vfio_pci_mmap_placement_test, table)
{
	struct full_space space = fill_addresses(0, false);

	for (int i = 0; i < self->nr_bars; i++)
		EXPECT_TRUE(table_placed(&space, self->device->fd, &self->bars[i]));
}

TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, random, 120)
{
	struct full_space space = fill_addresses(0, false);
	unsigned int seed = time(NULL);

	TH_LOG("Seed %u", seed);
	srandom(seed);
	for (int i = 0; i < NR_RANDOM; i++) {
		ASSERT_TRUE(random_placed(&space, self->device->fd,
					  &self->bars[i % self->nr_bars]));
	}
}

/* Runs a program with the BAR; what it prints goes to @out, if that is a file. */
static pid_t program_start(const char *path, int fd, const struct bar *bar,
			   const char *what, int out)
{
	char args[5][32];
	pid_t pid;

	snprintf_assert(args[0], sizeof(args[0]), "%d", fd);
	snprintf_assert(args[1], sizeof(args[1]), "%d", bar->index);
	snprintf_assert(args[2], sizeof(args[2]), "%#lx", bar->len);
	snprintf_assert(args[3], sizeof(args[3]), "%#lx", bar->offset);
	snprintf_assert(args[4], sizeof(args[4]), "%#lx", bar->phys);

	fflush(stdout);
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (pid)
		return pid;

	if (out >= 0)
		dup2(out, STDOUT_FILENO);
	fcntl(fd, F_SETFD, 0);
	execl(path, path, HELPER, what, args[0], args[1], args[2], args[3], args[4], NULL);
	_exit(errno == ENOEXEC ? KSFT_SKIP : KSFT_FAIL);
}

static int program_end(pid_t pid)
{
	int status;

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : KSFT_FAIL;
}

/* The layout of a process whose addresses are searched from the bottom */
TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, legacy_layout, 120)
{
	int old = personality(~0UL), ret;

	if (variant->same_hook)
		SKIP(return, "The same as with the other interface");

	ASSERT_NE(personality(old | ADDR_COMPAT_LAYOUT), -1);
	ret = program_end(program_start("/proc/self/exe", self->device->fd, self->largest,
					"legacy", -1));
	ASSERT_NE(personality(old), -1);
	if (ret == KSFT_SKIP)
		SKIP(return, "The architecture has no legacy layout");
	EXPECT_EQ(ret, 0);
}

/*
 * What a search from the top finds no room for is searched from the bottom, up
 * to the stack. If that may become large, there is room.
 */
TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, below_the_stack, 120)
{
	struct rlimit old, new;

	if (variant->same_hook)
		SKIP(return, "The same as with the other interface");

	ASSERT_EQ(getrlimit(RLIMIT_STACK, &old), 0);
	new = old;
	new.rlim_cur = 1ULL << 40;
	if (new.rlim_cur > new.rlim_max)
		SKIP(return, "The limit of the stack is too small");
	ASSERT_EQ(setrlimit(RLIMIT_STACK, &new), 0);
	EXPECT_EQ(program_end(program_start("/proc/self/exe", self->device->fd, self->largest,
					    "stack", -1)), 0);
	ASSERT_EQ(setrlimit(RLIMIT_STACK, &old), 0);
}

/* A 32-bit program, built if the compiler can, gets the default placement. */
TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, compat_task, 120)
{
	static const char suffix[] = "_32";
	char path[PATH_MAX];
	int len, ret;

	if (variant->same_hook)
		SKIP(return, "The same as with the other interface");

	len = readlink("/proc/self/exe", path, sizeof(path));
	ASSERT_TRUE(len > strlen("_test") && len < sizeof(path));
	/* In place of _test */
	memcpy(path + len - strlen("_test"), suffix, sizeof(suffix));
	if (access(path, X_OK))
		SKIP(return, "There is no %s", path);

	for (int i = 0; i < self->nr_bars; i++) {
		ret = program_end(program_start(path, self->device->fd, &self->bars[i],
						"compat", -1));
		if (ret == KSFT_SKIP)
			SKIP(return, "The kernel runs no 32-bit programs");
		EXPECT_EQ(ret, 0);
	}
}

static int compare(const void *a, const void *b)
{
	return *(u64 *)a < *(u64 *)b ? -1 : *(u64 *)a > *(u64 *)b;
}

/*
 * The address still depends on chance, by as many bits as the alignment leaves.
 * Counts what is seen of it in programs that map the BAR and nothing else.
 */
TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, chance, 900)
{
	const char *variable = getenv(NR_PROGRAMS_VARIABLE);
	int nr = variable ? atoi(variable) : NR_PROGRAMS, bits = 0, distinct = 1;
	u64 *addr, changed = 0, pairs = 0, same = 1;
	int fds[2];

	if (variant->same_hook)
		SKIP(return, "The same as with the other interface");

	if (personality(~0UL) & ADDR_NO_RANDOMIZE)
		SKIP(return, "Addresses do not depend on chance");

	ASSERT_EQ(pipe(fds), 0);
	addr = calloc_assert(nr, sizeof(*addr));
	for (int i = 0; i < nr; i++) {
		ASSERT_EQ(program_end(program_start("/proc/self/exe", self->device->fd,
						    self->largest, "address", fds[1])), 0);
		ASSERT_EQ(read(fds[0], &addr[i], sizeof(*addr)), sizeof(*addr));
	}

	qsort(addr, nr, sizeof(*addr), compare);
	for (int i = 1; i < nr; i++) {
		changed |= addr[i] ^ addr[0];
		distinct += addr[i] != addr[i - 1];
		same = addr[i] == addr[i - 1] ? same + 1 : 1;
		/* With each of those before that are the same */
		pairs += same - 1;
	}
	for (u64 rest = changed; rest; rest &= rest - 1)
		bits++;

	TH_LOG("BAR%d, %lu bytes: %d programs map it at %d addresses",
	       self->largest->index, self->largest->len, nr, distinct);
	TH_LOG("%d bits of them differ (%#lx), %lu of %lu pairs are of the same",
	       bits, changed, pairs, (u64)nr * (nr - 1) / 2);
	EXPECT_GT(distinct, 1);
	free(addr);
}

/* Also where the hole is of exactly the right length. */
TEST_F(vfio_pci_mmap_placement_test, hint_free)
{
	for (int i = 0; i < self->nr_bars; i++) {
		const struct bar *bar = &self->bars[i];
		void *reserved = reserve_misaligned(bar->len);
		void *hint = reserved + page_size;

		ASSERT_EQ(munmap(hint, bar->len), 0);
		EXPECT_EQ(bar_mmap(self->device->fd, bar, hint, 0, bar->len, 0), hint);
		unreserve(reserved, bar->len);
	}
}

TEST_F(vfio_pci_mmap_placement_test, hint_taken)
{
	for (int i = 0; i < self->nr_bars; i++) {
		const struct bar *bar = &self->bars[i];
		u64 leaf = expected_leaf(bar->phys, bar->len);
		void *reserved = reserve_misaligned(bar->len);
		void *vaddr;

		neighbour_map((u64)reserved + page_size);
		/* All of it, or all but the last page */
		for (int j = 0; j < 2; j++) {
			vaddr = bar_mmap(self->device->fd, bar, reserved + page_size, 0,
					 bar->len, 0);
			ASSERT_NE(vaddr, MAP_FAILED);
			EXPECT_TRUE(vaddr + bar->len <= reserved ||
				    vaddr >= reserved + bar->len + page_size);
			EXPECT_EQ((u64)vaddr % leaf, bar->phys % leaf);
			ASSERT_EQ(munmap(vaddr, bar->len), 0);
			EXPECT_TRUE(neighbour_intact((u64)reserved + page_size));

			if (bar->len == page_size)
				break;
			ASSERT_EQ(munmap(reserved + bar->len, page_size), 0);
		}
		unreserve(reserved, bar->len);
	}
}

/*
 * A hint beyond the addresses that programs of old expect asks for those, too:
 * there are more of them where the page table has five levels.
 */
TEST_F(vfio_pci_mmap_placement_test, hint_high)
{
	const struct bar *bar = self->largest;
	u64 leaf = expected_leaf(bar->phys, bar->len), limit = 1ULL << 47;
	void *hint = (void *)(2 * limit + page_size), *vaddr;
	bool high;

	vaddr = anon_mmap(hint, page_size, PROT_NONE, 0);
	ASSERT_NE(vaddr, MAP_FAILED);
	high = vaddr == hint;
	ASSERT_EQ(munmap(vaddr, page_size), 0);

	vaddr = bar_mmap(self->device->fd, bar, hint, 0, bar->len, 0);
	ASSERT_NE(vaddr, MAP_FAILED);
	if (!high) {
		EXPECT_LE((u64)vaddr + bar->len, limit);
		EXPECT_EQ((u64)vaddr % leaf, bar->phys % leaf);
		ASSERT_EQ(munmap(vaddr, bar->len), 0);
		SKIP(return, "There are no addresses beyond");
	}
	EXPECT_EQ(vaddr, hint);

	/* And now that it is taken */
	vaddr = bar_mmap(self->device->fd, bar, hint, 0, bar->len, 0);
	ASSERT_NE(vaddr, MAP_FAILED);
	EXPECT_GE((u64)vaddr, limit);
	EXPECT_TRUE(vaddr + bar->len <= hint || vaddr >= hint + bar->len);
	EXPECT_EQ((u64)vaddr % leaf, bar->phys % leaf);
	ASSERT_EQ(munmap(vaddr, bar->len), 0);
	ASSERT_EQ(munmap(hint, bar->len), 0);
}

TEST_F(vfio_pci_mmap_placement_test, map_fixed)
{
	for (int i = 0; i < self->nr_bars; i++) {
		const struct bar *bar = &self->bars[i];
		void *reserved = reserve_misaligned(bar->len);
		void *fixed = reserved + page_size;

		EXPECT_EQ(bar_mmap(self->device->fd, bar, fixed, 0, bar->len, MAP_FIXED),
			  fixed);
		EXPECT_EQ(bar_mmap(self->device->fd, bar, fixed + 1, 0, bar->len, MAP_FIXED),
			  MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		unreserve(reserved, bar->len);
	}
}

TEST_F(vfio_pci_mmap_placement_test, map_fixed_noreplace)
{
	for (int i = 0; i < self->nr_bars; i++) {
		const struct bar *bar = &self->bars[i];
		void *reserved = reserve_misaligned(bar->len);
		void *fixed = reserved + page_size;

		EXPECT_EQ(bar_mmap(self->device->fd, bar, fixed, 0, bar->len,
				   MAP_FIXED_NOREPLACE), MAP_FAILED);
		EXPECT_EQ(errno, EEXIST);

		ASSERT_EQ(munmap(fixed, bar->len), 0);
		EXPECT_EQ(bar_mmap(self->device->fd, bar, fixed, 0, bar->len,
				   MAP_FIXED_NOREPLACE), fixed);
		unreserve(reserved, bar->len);
	}
}

/*
 * MAP_32BIT leaves about 1 GiB of addresses, too few to waste a leaf: it gets the
 * default placement. That is searched from the bottom.
 */
TEST_F(vfio_pci_mmap_placement_test, map_32bit)
{
#ifdef MAP_32BIT
	u64 hole = 0;

	/* The search starts anywhere in the first 32 MiB above 1 GiB. */
	ASSERT_EQ(anon_mmap((void *)SZ_1G, SZ_64M, PROT_NONE, MAP_FIXED_NOREPLACE),
		  (void *)SZ_1G);
	for (u64 size = SZ_1G; size >= page_size; size /= 2) {
		for (;;) {
			void *vaddr = anon_mmap(NULL, size, PROT_NONE, MAP_32BIT);

			if (vaddr == MAP_FAILED)
				break;
			/* Far from congruent with any block of the BAR */
			if (!hole && size >= SZ_128M)
				hole = ALIGN((u64)vaddr + 1, leaves[1]) + page_size;
		}
	}
	ASSERT_NE(hole, 0);

	for (int i = 0; i < self->nr_bars; i++) {
		const struct bar *bar = &self->bars[i];
		u64 len = min_t(u64, bar->len, SZ_32M);
		const u64 sizes[] = { len, len + page_size, len + leaves[1], len + SZ_64M };
		void *vaddr;

		for (int j = 0; j < ARRAY_SIZE(sizes); j++) {
			u64 size = sizes[j];

			neighbour_map(hole - page_size);
			neighbour_map(hole + size);
			ASSERT_EQ(munmap((void *)hole, size), 0);
			EXPECT_EQ(bar_mmap(self->device->fd, bar, NULL, 0, len, MAP_32BIT),
				  (void *)hole);
			EXPECT_TRUE(neighbour_intact(hole - page_size));
			EXPECT_TRUE(neighbour_intact(hole + size));
			fill(hole - page_size, size + 2 * page_size);
		}

		/* Too small by a page, and beyond all holes */
		if (len > page_size) {
			ASSERT_EQ(munmap((void *)hole, len - page_size), 0);
			EXPECT_EQ(bar_mmap(self->device->fd, bar, NULL, 0, len, MAP_32BIT),
				  MAP_FAILED);
			EXPECT_EQ(errno, ENOMEM);
			fill(hole, len - page_size);
		}
		if (bar->len >= SZ_2G) {
			vaddr = bar_mmap(self->device->fd, bar, NULL, 0, bar->len, MAP_32BIT);
			EXPECT_EQ(vaddr, MAP_FAILED);
			EXPECT_EQ(errno, ENOMEM);
		}
	}
#else
	SKIP(return, "The architecture has no MAP_32BIT");
#endif
}

static void expect_error(struct __test_metadata *_metadata, int fd, u64 offset,
			 u64 len, int flags, int error)
{
	void *vaddr = mmap(NULL, len, PROT_READ, flags, fd, offset);

	EXPECT_EQ(vaddr, MAP_FAILED) {
		TH_LOG("Offset %#lx, length %#lx", offset, len);
	}
	EXPECT_EQ(errno, error);
}

/* What can never be mapped, at an address where something else is mapped */
static void expect_taken(struct __test_metadata *_metadata, int fd, u64 offset)
{
	void *taken = anon_mmap(NULL, page_size, PROT_NONE, 0);

	ASSERT_NE(taken, MAP_FAILED);
	neighbour_map((u64)taken);
	EXPECT_EQ(mmap(taken, page_size, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, fd,
		       offset), MAP_FAILED);
	EXPECT_EQ(errno, EEXIST);
	EXPECT_TRUE(neighbour_intact((u64)taken));

	EXPECT_EQ(mmap(taken, page_size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, offset),
		  MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	ASSERT_EQ(munmap(taken, page_size), 0);
}

TEST_F(vfio_pci_mmap_placement_test, not_a_bar)
{
	struct vfio_region_info info = { .argsz = sizeof(info) };
	u32 nr_regions = self->device->info.num_regions;
	u64 end;

	for (u32 i = 0; i < nr_regions; i++) {
		info.index = i;
		/* VFIO may refuse the index of what the device does not have. */
		if (ioctl(self->device->fd, VFIO_DEVICE_GET_REGION_INFO, &info) ||
		    (info.flags & VFIO_REGION_INFO_FLAG_MMAP))
			continue;
		expect_error(_metadata, self->device->fd, info.offset, page_size,
			     MAP_SHARED, EINVAL);
		expect_error(_metadata, self->device->fd, info.offset, SZ_4M,
			     MAP_SHARED, EINVAL);
		/* What mm finds wrong comes first. */
		expect_taken(_metadata, self->device->fd, info.offset);
	}

	/* Beyond the last region, and as far as an offset goes */
	end = self->device->bars[1].info.offset * nr_regions;
	expect_error(_metadata, self->device->fd, end, SZ_4M, MAP_SHARED, EINVAL);
	expect_error(_metadata, self->device->fd, LLONG_MAX - SZ_4M + 1, SZ_2M,
		     MAP_SHARED, EINVAL);
	expect_error(_metadata, self->device->fd, -page_size, SZ_4M, MAP_SHARED,
		     EOVERFLOW);
}

TEST_F(vfio_pci_mmap_placement_test, past_the_end)
{
	for (int i = 0; i < self->nr_bars; i++) {
		const struct bar *bar = &self->bars[i];

		expect_error(_metadata, self->device->fd, bar->offset + bar->len,
			     page_size, MAP_SHARED, EINVAL);
		expect_error(_metadata, self->device->fd, bar->offset + bar->len,
			     bar->len, MAP_SHARED, EINVAL);
		expect_error(_metadata, self->device->fd, bar->offset,
			     bar->len + page_size, MAP_SHARED, EINVAL);
		expect_error(_metadata, self->device->fd, bar->offset + bar->len - page_size,
			     2 * page_size, MAP_SHARED, EINVAL);
		expect_error(_metadata, self->device->fd, bar->offset, 1ULL << 62,
			     MAP_SHARED, ENOMEM);
	}
}

TEST_F(vfio_pci_mmap_placement_test, private)
{
	expect_error(_metadata, self->device->fd, self->largest->offset,
		     self->largest->len, MAP_PRIVATE, EINVAL);
}

/* As many faults as there are leaves in the best mapping, and none again. */
TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, faults, 300)
{
	for (int i = 0; i < self->nr_bars; i++) {
		const struct bar *bar = &self->bars[i];
		void *vaddr;
		u64 len;

		vaddr = bar_mmap(self->device->fd, bar, NULL, 0, bar->len, 0);
		ASSERT_NE(vaddr, MAP_FAILED);
		ASSERT_EQ(touch(vaddr, bar->len), min_faults(bar->phys, bar->len));
		EXPECT_EQ(touch(vaddr, min_t(u64, bar->len, SZ_64M)), 0);
		ASSERT_EQ(munmap(vaddr, bar->len), 0);

		for (int j = 0; j < ARRAY_SIZE(table); j++) {
			/* The rest of a large BAR has been touched above. */
			if (!table_fits(j, bar, &len) || len > SZ_2G)
				continue;
			vaddr = bar_mmap(self->device->fd, bar, NULL, table[j].offset, len, 0);
			ASSERT_NE(vaddr, MAP_FAILED);
			ASSERT_EQ(touch(vaddr, len),
				  min_faults(bar->phys + table[j].offset, len)) {
				TH_LOG("BAR%d offset %#lx length %#lx",
				       bar->index, table[j].offset,
				       len);
			}
			ASSERT_EQ(munmap(vaddr, len), 0);
		}
	}
}

static u64 iova_of(struct iommu *iommu, u64 len)
{
	struct iova_allocator *iova_allocator = iova_allocator_init(iommu);
	u64 iova = iova_allocator_alloc(iova_allocator, len);

	iova_allocator_cleanup(iova_allocator);
	return iova;
}

/*
 * What it is for: the cost of the BAR for DMA and for the CPU, next to that of a
 * mapping at an address which allows nothing but single pages. Figures to look
 * at, save for the faults: those of a clock depend on what else the machine does.
 */
TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, cost, 300)
{
	static const char * const what[] = { "placed by the kernel", "single pages" };
	const struct bar *bar = self->largest;
	u64 len = min_t(u64, bar->len, SZ_4G);
	void *vaddr;

	if (strcmp(variant->iommu_mode, MODE_VFIO_TYPE1V2_IOMMU))
		SKIP(return, "iommufd does not map BARs through their mmap()");

	/* What is behind the BAR of an emulated device may be made at the first touch. */
	vaddr = bar_mmap(self->device->fd, bar, NULL, 0, len, 0);
	ASSERT_NE(vaddr, MAP_FAILED);
	touch(vaddr, len);
	ASSERT_EQ(munmap(vaddr, len), 0);

	for (int i = 0; i < 2; i++) {
		void *hint = i ? reserve_misaligned(len) + page_size : NULL;
		struct dma_region region = { .size = len };
		double map_ms[2], unmap_ms[2];
		struct timespec start;
		u64 faults;

		region.vaddr = bar_mmap(self->device->fd, bar, hint, 0, len,
					i ? MAP_FIXED : 0);
		ASSERT_NE(region.vaddr, MAP_FAILED);
		region.iova = iova_of(self->iommu, len);

		/* The first time makes the page tables, of the CPU and of the IOMMU. */
		for (int j = 0; j < 2; j++) {
			clock_gettime(CLOCK_MONOTONIC, &start);
			iommu_map(self->iommu, &region);
			map_ms[j] = ms_since(&start);
			clock_gettime(CLOCK_MONOTONIC, &start);
			iommu_unmap(self->iommu, &region);
			unmap_ms[j] = ms_since(&start);
		}
		TH_LOG("BAR%d, %lu bytes, %s: MAP_DMA in %.3f ms, again in %.3f ms",
		       bar->index, len, what[i], map_ms[0], map_ms[1]);
		TH_LOG("BAR%d, %lu bytes, %s: UNMAP_DMA in %.3f ms, again in %.3f ms",
		       bar->index, len, what[i], unmap_ms[0], unmap_ms[1]);

		/* Again for the CPU, from no leaf at all */
		ASSERT_EQ(bar_mmap(self->device->fd, bar, region.vaddr, 0, len,
				   MAP_FIXED), region.vaddr);
		clock_gettime(CLOCK_MONOTONIC, &start);
		faults = touch(region.vaddr, len);
		TH_LOG("BAR%d, %lu bytes, %s: %lu faults in %.2f ms",
		       bar->index, len, what[i], faults, ms_since(&start));
		EXPECT_EQ(faults, i ? len / page_size : min_faults(bar->phys, len));
		ASSERT_EQ(munmap(region.vaddr, len), 0);
	}
}

/* The cost of the placement itself: alone, with a hint in vain, and in a crowd */
TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, mmap_cost, 120)
{
	static const char * const what[] = { "no hint", "a hint that is taken",
					     "no hint, 5000 mappings above" };
	const struct bar *bar = self->largest;
	const int rounds = 1000, crowd = 5000;
	struct timespec start;
	void *hint = NULL;

	if (variant->same_hook)
		SKIP(return, "The same as with the other interface");

	for (int i = 0; i < ARRAY_SIZE(what); i++) {
		if (i == 1)
			hint = bar_mmap(self->device->fd, bar, NULL, 0, bar->len, 0);
		ASSERT_NE(hint, MAP_FAILED);
		/* Each with a hole of a page below it */
		for (int j = 0; i == 2 && j < crowd; j++) {
			char *vaddr = anon_mmap(NULL, 2 * page_size, PROT_NONE, 0);

			ASSERT_NE((void *)vaddr, MAP_FAILED);
			ASSERT_EQ(munmap(vaddr, page_size), 0);
			ASSERT_EQ(mprotect(vaddr + page_size, page_size,
					   j % 2 ? PROT_READ : PROT_NONE), 0);
		}

		clock_gettime(CLOCK_MONOTONIC, &start);
		for (int j = 0; j < rounds; j++) {
			void *vaddr = bar_mmap(self->device->fd, bar, i == 1 ? hint : NULL, 0,
					       bar->len, 0);

			ASSERT_NE(vaddr, MAP_FAILED);
			ASSERT_EQ(munmap(vaddr, bar->len), 0);
		}
		TH_LOG("BAR%d, %lu bytes, %s: mmap() and munmap() in %.0f ns",
		       bar->index, bar->len, what[i], ms_since(&start) * 1e6 / rounds);
	}
}

/*
 * Before the device is bound to an iommufd there is no access to it: mmap()
 * fails in the driver, after everything that mm may find wrong. Where the kernel
 * would have placed the mapping cannot be seen.
 */
TEST(before_access)
{
	const char *path = vfio_pci_get_cdev_path(device_bdf);
	int fd = open(path, O_RDWR), read_only = open(path, O_RDONLY);

	ASSERT_GE(fd, 0);
	ASSERT_GE(read_only, 0);
	expect_error(_metadata, fd, 0, page_size, MAP_SHARED, EINVAL);
	expect_error(_metadata, fd, 0, SZ_1G, MAP_SHARED, EINVAL);
	expect_error(_metadata, fd, 0, page_size, MAP_PRIVATE, EINVAL);
	expect_error(_metadata, fd, 0, 1ULL << 62, MAP_SHARED, ENOMEM);
	expect_error(_metadata, fd, -page_size, page_size, MAP_SHARED, EOVERFLOW);
	expect_taken(_metadata, fd, 0);

	EXPECT_EQ(mmap(NULL, page_size, PROT_WRITE, MAP_SHARED, read_only, 0), MAP_FAILED);
	EXPECT_EQ(errno, EACCES);
	expect_error(_metadata, read_only, 0, page_size, MAP_SHARED, EINVAL);

	close(read_only);
	close(fd);
	free((void *)path);
}

/* In a program of its own: mmap() has never been called in it. */
static int helper(char *argv[])
{
	struct bar bar = {
		.index = atoi(argv[2]),
		.len = strtoull(argv[3], NULL, 0),
		.offset = strtoull(argv[4], NULL, 0),
		.phys = strtoull(argv[5], NULL, 0),
	};
	struct full_space space;
	int fd = atoi(argv[1]);
	void *first, *second;
	u64 addr;

	if (!strcmp(argv[0], "address")) {
		addr = (u64)bar_mmap(fd, &bar, NULL, 0, bar.len, 0);
		return write(STDOUT_FILENO, &addr, sizeof(addr)) != sizeof(addr);
	}

	first = anon_mmap(NULL, page_size, PROT_NONE, 0);
	second = anon_mmap(NULL, page_size, PROT_NONE, 0);
	if (!strcmp(argv[0], "legacy")) {
		if (second < first)
			return KSFT_SKIP;
		space = fill_addresses(0, true);
	} else {
		space = fill_addresses((u64)first, true);
	}

	if (!table_placed(&space, fd, &bar))
		return KSFT_FAIL;
	for (int i = 0; i < NR_RANDOM; i++) {
		if (!random_placed(&space, fd, &bar))
			return KSFT_FAIL;
	}

	return 0;
}

int main(int argc, char *argv[])
{
	nr_leaves = leaf_sizes_get(leaves);
	page_size = leaves[0];
	if (argc == 8 && !strcmp(argv[1], HELPER))
		return helper(argv + 2);

	device_bdf = vfio_selftests_get_bdf(&argc, argv);

	return test_harness_run(argc, argv);
}
