// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where the kernel places the mmap() of a BAR, for which the contract is:
 *
 *  - Of the leaf sizes of the page table, take the largest of which the mapping
 *    holds one whole block that is naturally aligned in physical memory. The
 *    virtual and the physical address are congruent modulo that size, so that
 *    touching the mapping takes the smallest possible number of faults.
 *  - A hint that is free wins, aligned or not; one that is taken does no harm.
 *  - MAP_FIXED is never moved.
 *  - What cannot be mapped fails with the same error as with any placement.
 *
 * The expected values below come from this contract, the BAR addresses from
 * sysfs.
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
#include <sys/resource.h>

#include <linux/align.h>
#include <linux/compiler.h>
#include <linux/limits.h>
#include <linux/mman.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

#define NR_RANDOM 10000

/* The page size, and the leaf sizes above it, ascending */
#define MAX_LEAVES 3
static u64 leaves[MAX_LEAVES];
static int nr_leaves;
static u64 page_size;

static const char *device_bdf;

struct bar {
	int index;
	u64 len;	/* What can be mapped, in whole pages */
	u64 offset;	/* In the device file */
	u64 phys;
};

static void leaves_init(void)
{
	static const char path[] =
		"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
	u64 pmd_size;
	int ret;
	FILE *f;

	page_size = getpagesize();
	leaves[nr_leaves++] = page_size;

	f = fopen(path, "r");
	if (!f)
		return;
	ret = fscanf(f, "%lu", &pmd_size);
	VFIO_ASSERT_EQ(ret, 1);
	fclose(f);

	leaves[nr_leaves++] = pmd_size;
#ifdef __x86_64__
	/* The only one of our architectures that maps pfns with a PUD leaf */
	leaves[nr_leaves++] = pmd_size * (page_size / sizeof(u64));
#endif
}

static u64 bar_phys(const char *bdf, int index)
{
	char path[PATH_MAX];
	u64 start = 0;
	int ret;
	FILE *f;

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/resource",
			bdf);
	f = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(f, "Failed to open %s\n", path);

	for (int i = 0; i <= index; i++) {
		ret = fscanf(f, "%lx %*x %*x", &start);
		VFIO_ASSERT_EQ(ret, 1);
	}

	fclose(f);
	return start;
}

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

FIXTURE(vfio_pci_mmap_placement_test) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct bar bars[PCI_STD_NUM_BARS];
	int nr_bars;
	struct bar *largest;
};

FIXTURE_VARIANT(vfio_pci_mmap_placement_test) {
	const char *iommu_mode;
};

/* Both interfaces that hand out a device file: the group and the cdev. */
FIXTURE_VARIANT_ADD(vfio_pci_mmap_placement_test, vfio_type1v2_iommu) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_VARIANT_ADD(vfio_pci_mmap_placement_test, iommufd) {
	.iommu_mode = MODE_IOMMUFD,
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
		bar->phys = bar_phys(device_bdf, i);

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

static void *bar_mmap(int fd, const struct bar *bar, void *hint, u64 offset,
		      u64 len, int flags)
{
	return mmap(hint, len, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd,
		    bar->offset + offset);
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
		EXPECT_TRUE(placed_well(self->device->fd, bar, 0, bar->len));
		EXPECT_TRUE(half < page_size ||
			    placed_well(self->device->fd, bar, half, half));
		ASSERT_EQ(munmap(vaddr, bar->len), 0);
	}
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

TEST_F(vfio_pci_mmap_placement_test, table)
{
	u64 len;

	for (int i = 0; i < self->nr_bars; i++) {
		for (int j = 0; j < ARRAY_SIZE(table); j++) {
			if (!table_fits(j, &self->bars[i], &len))
				continue;
			EXPECT_TRUE(placed_well(self->device->fd, &self->bars[i],
						table[j].offset, len));
		}
	}
}

/* A random number below @max, with all magnitudes alike */
static u64 random_pages(u64 max)
{
	u64 mask = ~0ULL >> (random() % 64);
	u64 r = ((u64)random() << 31 ^ random()) & mask;

	return r % max;
}

TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, random, 120)
{
	unsigned int seed = time(NULL), counts[MAX_LEAVES] = {};

	TH_LOG("Seed %u", seed);
	srandom(seed);

	for (int i = 0; i < NR_RANDOM; i++) {
		const struct bar *bar = &self->bars[i % self->nr_bars];
		u64 nr_pages = bar->len / page_size;
		u64 offset, len;

		offset = random_pages(nr_pages);
		/* Half of them from or to a boundary, where mistakes are */
		if (random() % 2)
			offset &= ~0ULL << random() % 20;
		len = 1 + random_pages(nr_pages - offset);
		if (random() % 4 == 0)
			len = nr_pages - offset;

		offset *= page_size;
		len *= page_size;
		for (int j = 0; j < nr_leaves; j++)
			counts[j] += expected_leaf(bar->phys + offset, len) == leaves[j];
		ASSERT_TRUE(placed_well(self->device->fd, bar, offset, len));
	}

	for (int j = 0; j < nr_leaves; j++)
		TH_LOG("%u of %u mappings want leaves of %lu bytes", counts[j],
		       NR_RANDOM, leaves[j]);
}

/* A mapping that cannot use a large leaf is not aligned to one. */
TEST_F(vfio_pci_mmap_placement_test, small_not_aligned)
{
	void *vaddr[64];
	int aligned = 0;

	for (int i = 0; i < ARRAY_SIZE(vaddr); i++) {
		vaddr[i] = bar_mmap(self->device->fd, self->largest, NULL, 0, page_size, 0);
		ASSERT_NE(vaddr[i], MAP_FAILED);
		aligned += IS_ALIGNED((u64)vaddr[i], leaves[1]);
	}

	EXPECT_LT(aligned, 2);

	for (int i = 0; i < ARRAY_SIZE(vaddr); i++)
		ASSERT_EQ(munmap(vaddr[i], page_size), 0);
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

		/* All of it, or all but the last page */
		for (int j = 0; j < 2; j++) {
			vaddr = bar_mmap(self->device->fd, bar, reserved + page_size, 0,
					 bar->len, 0);
			ASSERT_NE(vaddr, MAP_FAILED);
			EXPECT_TRUE(vaddr + bar->len <= reserved ||
				    vaddr >= reserved + bar->len + page_size);
			EXPECT_EQ((u64)vaddr % leaf, bar->phys % leaf);
			ASSERT_EQ(munmap(vaddr, bar->len), 0);

			if (bar->len == page_size)
				break;
			ASSERT_EQ(munmap(reserved + bar->len, page_size), 0);
		}
		unreserve(reserved, bar->len);
	}
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

/* MAP_32BIT leaves about 1 GiB of addresses: stay in it, align while there is room. */
TEST_F(vfio_pci_mmap_placement_test, map_32bit)
{
#ifdef MAP_32BIT
	for (int i = 0; i < self->nr_bars; i++) {
		const struct bar *bar = &self->bars[i];
		u64 len = min_t(u64, bar->len, SZ_64M);
		u64 leaf = expected_leaf(bar->phys, len);
		void *vaddr;

		vaddr = bar_mmap(self->device->fd, bar, NULL, 0, len, MAP_32BIT);
		ASSERT_NE(vaddr, MAP_FAILED);
		EXPECT_LE((u64)vaddr + len, SZ_2G);
		EXPECT_EQ((u64)vaddr % leaf, bar->phys % leaf);
		ASSERT_EQ(munmap(vaddr, len), 0);

		if (bar->len < SZ_2G)
			continue;

		EXPECT_EQ(bar_mmap(self->device->fd, bar, NULL, 0, bar->len, MAP_32BIT),
			  MAP_FAILED);
		EXPECT_EQ(errno, ENOMEM);
	}
#else
	SKIP(return, "The architecture has no MAP_32BIT");
#endif
}

/*
 * Of the addresses of MAP_32BIT, leave nothing but a hole of a given size: with
 * room for a large leaf it is used, without it any address will do, and only a
 * hole that is too small is an error.
 */
TEST_F(vfio_pci_mmap_placement_test, little_room)
{
#ifdef MAP_32BIT
	const struct bar *bar = self->largest;
	u64 len = leaves[1], hole_len;
	void *hole = NULL, *vaddr;

	if (expected_leaf(bar->phys, bar->len) < len)
		SKIP(return, "No BAR holds a large leaf");

	/* The search starts anywhere in the first 32 MiB above 1 GiB. */
	vaddr = mmap((void *)SZ_1G, SZ_64M, PROT_NONE, MAP_PRIVATE |
		     MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	ASSERT_EQ(vaddr, (void *)SZ_1G);

	for (u64 size = SZ_1G; size >= page_size; size /= 2) {
		for (;;) {
			vaddr = mmap(NULL, size, PROT_NONE, MAP_PRIVATE |
				     MAP_ANONYMOUS | MAP_32BIT, -1, 0);
			if (vaddr == MAP_FAILED)
				break;
			if (!hole)
				hole = vaddr + page_size;
		}
	}

	hole_len = len - page_size;
	ASSERT_EQ(munmap(hole, hole_len), 0);
	EXPECT_EQ(bar_mmap(self->device->fd, bar, NULL, 0, len, MAP_32BIT), MAP_FAILED);
	EXPECT_EQ(errno, ENOMEM);

	hole_len += page_size;
	ASSERT_EQ(munmap(hole, hole_len), 0);
	EXPECT_EQ(bar_mmap(self->device->fd, bar, NULL, 0, len, MAP_32BIT), hole);
	ASSERT_EQ(munmap(hole, hole_len), 0);

	hole_len += len;
	ASSERT_EQ(munmap(hole, hole_len), 0);
	vaddr = bar_mmap(self->device->fd, bar, NULL, 0, len, MAP_32BIT);
	EXPECT_TRUE(vaddr >= hole && vaddr + len <= hole + hole_len);
	EXPECT_EQ((u64)vaddr % len, bar->phys % len);
#else
	SKIP(return, "The architecture has no MAP_32BIT");
#endif
}

static void expect_error(struct __test_metadata *_metadata, int fd, u64 offset,
			 u64 len, int flags, int error)
{
	void *vaddr = mmap(NULL, len, PROT_READ, flags, fd, offset);

	EXPECT_EQ(vaddr, MAP_FAILED) {
		TH_LOG("Offset %#lx, length %#lx", offset,
		       len);
	}
	EXPECT_EQ(errno, error);
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
		EXPECT_EQ(touch(vaddr, bar->len), min_faults(bar->phys, bar->len));
		EXPECT_EQ(touch(vaddr, min_t(u64, bar->len, SZ_64M)), 0);
		ASSERT_EQ(munmap(vaddr, bar->len), 0);

		for (int j = 0; j < ARRAY_SIZE(table); j++) {
			/* The rest of a large BAR has been touched above. */
			if (!table_fits(j, bar, &len) || len > SZ_2G)
				continue;
			vaddr = bar_mmap(self->device->fd, bar, NULL, table[j].offset, len, 0);
			ASSERT_NE(vaddr, MAP_FAILED);
			EXPECT_EQ(touch(vaddr, len),
				  min_faults(bar->phys + table[j].offset, len)) {
				TH_LOG("BAR%d offset %#lx length %#lx",
				       bar->index, table[j].offset,
				       len);
			}
			ASSERT_EQ(munmap(vaddr, len), 0);
		}
	}
}

/*
 * What it is for: the cost of the BAR for DMA and for the CPU, next to that of a
 * mapping at an address which allows nothing but single pages.
 */
TEST_F_TIMEOUT(vfio_pci_mmap_placement_test, cost, 300)
{
	static const char * const what[] = { "placed by the kernel", "single pages" };
	const struct bar *bar = self->largest;
	u64 len = min_t(u64, bar->len, SZ_4G);
	double dma_ms[2];

	if (strcmp(variant->iommu_mode, MODE_VFIO_TYPE1V2_IOMMU))
		SKIP(return, "iommufd does not map BARs through their mmap()");

	for (int i = 0; i < 2; i++) {
		void *hint = i ? reserve_misaligned(len) + page_size : NULL;
		struct iova_allocator *iova_allocator;
		struct dma_region region = { .size = len };
		struct timespec start;
		u64 faults;

		region.vaddr = bar_mmap(self->device->fd, bar, hint, 0, len,
					i ? MAP_FIXED : 0);
		ASSERT_NE(region.vaddr, MAP_FAILED);

		iova_allocator = iova_allocator_init(self->iommu);
		region.iova = iova_allocator_alloc(iova_allocator, len);
		iova_allocator_cleanup(iova_allocator);

		clock_gettime(CLOCK_MONOTONIC, &start);
		iommu_map(self->iommu, &region);
		dma_ms[i] = ms_since(&start);
		iommu_unmap(self->iommu, &region);

		/* Again for the CPU, from no leaf at all */
		ASSERT_EQ(bar_mmap(self->device->fd, bar, region.vaddr, 0, len,
				   MAP_FIXED), region.vaddr);
		clock_gettime(CLOCK_MONOTONIC, &start);
		faults = touch(region.vaddr, len);
		TH_LOG("BAR%d, %lu bytes, %s: %lu faults in %.2f ms, MAP_DMA in %.3f ms",
		       bar->index, len, what[i], faults, ms_since(&start), dma_ms[i]);
		ASSERT_EQ(munmap(region.vaddr, len), 0);
	}

	TH_LOG("BAR%d, %lu bytes: MAP_DMA is %.0f times as fast", bar->index, len,
	       dma_ms[1] / dma_ms[0]);

	if (expected_leaf(bar->phys, len) > page_size)
		EXPECT_LT(2 * dma_ms[0], dma_ms[1]);
}

/* Before the device is bound to an iommufd there is no access to it. */
TEST(before_access)
{
	const char *path = vfio_pci_get_cdev_path(device_bdf);
	int fd = open(path, O_RDWR);

	ASSERT_GE(fd, 0);
	expect_error(_metadata, fd, 0, page_size, MAP_SHARED, EINVAL);
	expect_error(_metadata, fd, 0, SZ_1G, MAP_SHARED, EINVAL);
	expect_error(_metadata, fd, 0, page_size, MAP_PRIVATE, EINVAL);

	close(fd);
	free((void *)path);
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	leaves_init();

	return test_harness_run(argc, argv);
}
