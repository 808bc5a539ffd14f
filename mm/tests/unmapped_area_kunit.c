// SPDX-License-Identifier: GPL-2.0-only
/*
 * The placement of mappings by order: mm_get_unmapped_area_exact_order() and
 * mm_get_unmapped_area_order(), in an address space of the test's own, searched
 * from the top and from the bottom.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pgtable.h>
#include <linux/random.h>
#include <linux/sched/mm.h>

#include "../internal.h"

/* A hole that is left of the address space, of which all else is taken */
struct hole {
	unsigned long start;
	unsigned long len;
};

static unsigned long exact(unsigned long addr, unsigned long len,
			   unsigned long flags, unsigned long pfn,
			   unsigned int order)
{
	unsigned long ret;

	mmap_write_lock(current->mm);
	ret = mm_get_unmapped_area_exact_order(NULL, addr, len, 0, flags,
					       EMPTY_VMA_FLAGS, pfn, order);
	mmap_write_unlock(current->mm);
	return ret;
}

static unsigned long up_to(unsigned long addr, unsigned long len,
			   unsigned long flags, unsigned long pfn,
			   unsigned int order)
{
	unsigned long ret;

	mmap_write_lock(current->mm);
	ret = mm_get_unmapped_area_order(NULL, addr, len, 0, flags, pfn, order);
	mmap_write_unlock(current->mm);
	return ret;
}

static unsigned long by_default(unsigned long addr, unsigned long len,
				unsigned long flags)
{
	unsigned long ret;

	mmap_write_lock(current->mm);
	ret = mm_get_unmapped_area(NULL, addr, len, 0, flags);
	mmap_write_unlock(current->mm);
	return ret;
}

static unsigned long reserve(unsigned long addr, unsigned long len,
			     unsigned long flags)
{
	return vm_mmap(NULL, addr, len, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, 0);
}

/* The leaf orders that the architecture maps page frames with, ascending */
static int leaf_orders(unsigned int orders[2])
{
	int nr = 0;

	if (IS_ENABLED(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP))
		orders[nr++] = PMD_ORDER;
	if (IS_ENABLED(CONFIG_ARCH_SUPPORTS_PUD_PFNMAP))
		orders[nr++] = PUD_ORDER;
	return nr;
}

/* From the contract: does [pfn, pfn + nr) hold a block? By looking at each. */
static bool holds_block(unsigned long pfn, unsigned long nr, unsigned int order)
{
	unsigned long first = pfn >> order;

	for (unsigned long block = first; block <= first + 1; block++) {
		if (block << order >= pfn &&
		    (block + 1) << order <= pfn + nr)
			return true;
	}
	return false;
}

#define EXPECT_CONGRUENT(test, addr, pfn, order)				\
do {										\
	unsigned long __addr = (addr);						\
	KUNIT_EXPECT_FALSE(test, IS_ERR_VALUE(__addr));				\
	KUNIT_EXPECT_EQ(test, 0, offset_in_page(__addr));			\
	KUNIT_EXPECT_EQ(test, 0, ((__addr >> PAGE_SHIFT) - (pfn)) &		\
			((1UL << (order)) - 1));				\
} while (0)

static const struct exact_case {
	const char *name;
	unsigned long pfn;
	unsigned long nr_pages;
	unsigned int order;
	bool fits;
} exact_cases[] = {
	{ "one block",			0x200,		0x200,	9, true },
	{ "many blocks",		0x1000,		0x4000,	9, true },
	{ "block behind a head",	0x1ff,		0x201,	9, true },
	{ "block before a tail",	0x200,		0x2ff,	9, true },
	{ "MSI-X table cut off",	0x201,		0x400,	9, true },
	{ "one page short",		0x200,		0x1ff,	9, false },
	{ "long, but across blocks",	0x201,		0x3fe,	9, false },
	{ "a single page",		0x200,		1,	9, false },
	{ "GiB without its start",	0x40200,	0x3fe00, 18, false },
	{ "GiB from the middle",	0x60000,	0x40000, 18, false },
	{ "GiB behind a half",		0x60000,	0x60000, 18, true },
	{ "contiguous PMDs",		0x6000,		0x2000,	13, true },
	{ "pfn at the end",		-0x200UL,	0x1ff,	9, false },
	{ "pfn beyond the end",		-0x100UL,	0x200,	9, false },
	{ "overflow to the next block",	-0x100UL,	0x100,	9, false },
	{ "pfn at 2^51",		1UL << (BITS_PER_LONG - 13), 0x200, 9, true },
};

static void exact_desc(const struct exact_case *c, char *desc)
{
	strscpy(desc, c->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(exact, exact_cases, exact_desc);

static void exact_order_test(struct kunit *test)
{
	const struct exact_case *c = test->param_value;
	unsigned long addr = exact(0, c->nr_pages << PAGE_SHIFT, 0, c->pfn,
				   c->order);

	if (c->fits)
		EXPECT_CONGRUENT(test, addr, c->pfn, c->order);
	else
		KUNIT_EXPECT_EQ(test, (long)addr, -ERANGE);
}

/* No room is another error than no block, and neither is 0. */
static void exact_errors_test(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, (long)exact(0, TASK_SIZE, 0, 0, 9), -ENOMEM);
	KUNIT_EXPECT_EQ(test, (long)exact(0, -PAGE_SIZE, 0, 0, 9), -ERANGE);
	KUNIT_EXPECT_EQ(test, (long)up_to(0, TASK_SIZE, 0, 0, 9), -ENOMEM);
	KUNIT_EXPECT_EQ(test, (long)up_to(0, -PAGE_SIZE, 0, 0, 9), -ENOMEM);
}

/* Every pair of a random start and length gets the leaf of the contract. */
static void order_random_test(struct kunit *test)
{
	unsigned int orders[2];
	int nr = leaf_orders(orders);

	for (int i = 0; i < 10000; i++) {
		unsigned long pfn = get_random_u32() >> get_random_u32_below(20);
		unsigned long pages = 1 + get_random_u32_below(1 << 20);
		unsigned int max = get_random_u32_below(24), want = 0;
		unsigned long addr = up_to(0, pages << PAGE_SHIFT, 0, pfn, max);

		for (int j = 0; j < nr; j++) {
			if (orders[j] <= max && holds_block(pfn, pages, orders[j]))
				want = orders[j];
		}
		EXPECT_CONGRUENT(test, addr, pfn, want);
		if (!want)
			KUNIT_EXPECT_EQ(test, addr,
					by_default(0, pages << PAGE_SHIFT, 0));
	}
}

/* Orders that no leaf has, or that exceed any, harm nothing. */
static void order_extreme_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << 19;

	KUNIT_EXPECT_EQ(test, up_to(0, len, 0, 0, 0), by_default(0, len, 0));
	KUNIT_EXPECT_EQ(test, up_to(0, len, 0, 0, 1), by_default(0, len, 0));
	KUNIT_EXPECT_FALSE(test, IS_ERR_VALUE(up_to(0, len, 0, 0, UINT_MAX)));
	KUNIT_EXPECT_FALSE(test, IS_ERR_VALUE(up_to(0, len, 0, ULONG_MAX, 63)));
}

static void hint_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << PMD_ORDER, room, hint;

	/* A hole of exactly the length, at an odd address */
	room = reserve(0, 4 * len, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(room));
	hint = ALIGN(room, len) + PAGE_SIZE;

	/* Taken: ignored */
	KUNIT_EXPECT_NE(test, up_to(hint, len, 0, 0, PMD_ORDER), hint);
	if (IS_ENABLED(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP))
		EXPECT_CONGRUENT(test, up_to(hint, len, 0, 0, PMD_ORDER), 0,
				 PMD_ORDER);

	/* Free: it wins, though it is not aligned */
	KUNIT_ASSERT_EQ(test, vm_munmap(hint, len), 0);
	KUNIT_EXPECT_EQ(test, up_to(hint, len, 0, 0, PMD_ORDER), hint);
}

static void map_fixed_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << PMD_ORDER, room, fixed;

	room = reserve(0, 4 * len, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(room));
	fixed = ALIGN(room, len) + PAGE_SIZE;

	KUNIT_EXPECT_EQ(test, up_to(fixed, len, MAP_FIXED, 0, PMD_ORDER), fixed);
	KUNIT_EXPECT_EQ(test, exact(fixed, len, MAP_FIXED, 0, PMD_ORDER), fixed);
	KUNIT_EXPECT_EQ(test, (long)up_to(fixed, TASK_SIZE, MAP_FIXED, 0, PMD_ORDER),
			(long)by_default(fixed, TASK_SIZE, MAP_FIXED));
}

/* Take all of the address space, then give back a hole of a known place. */
static void fill(struct kunit *test, struct hole *hole)
{
	unsigned long addr;

	hole->start = 0;
	for (unsigned long len = BIT(fls64(TASK_SIZE) - 1); len >= PAGE_SIZE; len /= 2) {
		for (;;) {
			addr = reserve(0, len, 0);
			if (IS_ERR_VALUE(addr))
				break;
			if (!hole->start)
				hole->start = ALIGN(addr, PAGE_SIZE << PMD_ORDER) +
					      PAGE_SIZE;
		}
	}
	KUNIT_ASSERT_NE(test, hole->start, 0);
	KUNIT_ASSERT_EQ(test, vm_munmap(hole->start, hole->len), 0);
}

/* Without room for the padding the default placement still succeeds. */
static void little_room_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << PMD_ORDER;
	struct hole hole = { .len = len };

	fill(test, &hole);
	KUNIT_EXPECT_EQ(test, (long)exact(0, len, 0, 0, PMD_ORDER), -ENOMEM);
	KUNIT_EXPECT_EQ(test, up_to(0, len, 0, 0, PMD_ORDER), hole.start);
	KUNIT_EXPECT_EQ(test, (long)up_to(0, len + PAGE_SIZE, 0, 0, PMD_ORDER),
			-ENOMEM);

	/* With room for it the block is found, wherever it is in the hole. */
	KUNIT_ASSERT_EQ(test, vm_munmap(hole.start + len, len), 0);
	EXPECT_CONGRUENT(test, exact(0, len, 0, 0, PMD_ORDER), 0, PMD_ORDER);
	EXPECT_CONGRUENT(test, exact(0, len, 0, 0x77, PMD_ORDER - 1), 0x77,
			 PMD_ORDER - 1);
}

static int topdown_init(struct kunit *test)
{
	int ret;

	if (!IS_ENABLED(CONFIG_64BIT))
		kunit_skip(test, "a 32-bit machine never aligns");

	ret = kunit_attach_mm();
	if (ret)
		return ret;
	mm_flags_set(MMF_TOPDOWN, current->mm);
	return 0;
}

static int bottomup_init(struct kunit *test)
{
	int ret = topdown_init(test);

	if (ret)
		return ret;
	/* arch_pick_mmap_layout() put the base where a search goes down from. */
	current->mm->mmap_base = PAGE_ALIGN(TASK_SIZE / 3);
	mm_flags_clear(MMF_TOPDOWN, current->mm);
	return 0;
}

static struct kunit_case unmapped_area_test_cases[] = {
	KUNIT_CASE_PARAM(exact_order_test, exact_gen_params),
	KUNIT_CASE(exact_errors_test),
	KUNIT_CASE(order_random_test),
	KUNIT_CASE(order_extreme_test),
	KUNIT_CASE(hint_test),
	KUNIT_CASE(map_fixed_test),
	KUNIT_CASE(little_room_test),
	{}
};

static struct kunit_suite topdown_suite = {
	.name = "unmapped_area_topdown",
	.init = topdown_init,
	.test_cases = unmapped_area_test_cases,
};

static struct kunit_suite bottomup_suite = {
	.name = "unmapped_area_bottomup",
	.init = bottomup_init,
	.test_cases = unmapped_area_test_cases,
};

kunit_test_suites(&topdown_suite, &bottomup_suite);
