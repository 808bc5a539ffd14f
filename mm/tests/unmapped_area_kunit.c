// SPDX-License-Identifier: GPL-2.0-only
/*
 * The placement of mappings by order: mm_get_unmapped_area_exact_order() and
 * mm_get_unmapped_area_order(), in an address space of the test's own, searched
 * from the top and from the bottom.
 *
 * All of that address space is taken, but for one hole that a case opens where
 * it wants it.  So it is known which addresses are possible, and the one that
 * the contract demands is found by trying each of them.  The leaves are those
 * that a case pretends the machine to have, so that every architecture tests
 * the choice among several.
 */
#include <kunit/static_stub.h>
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pgtable.h>
#include <linux/random.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/security.h>

#include "../internal.h"

/* Where the hole of most cases is, whatever the architecture, in pages */
#define ZONE_ORDER	(IS_ENABLED(CONFIG_64BIT) ? 22 : 17)
#define ZONE_SIZE	(PAGE_SIZE << ZONE_ORDER)

/* The orders of x86-64's leaves stand for those of any machine. */
#define SMALL_LEAF	9
#define LARGE_LEAF	18

struct space {
	bool topdown;
	/* The addresses that there are, all of them taken but for the hole */
	unsigned long first;
	unsigned long last;
	/* Where a search begins and ends that goes up from the bottom */
	unsigned long bottom;
	unsigned long top;
	/* What is free */
	unsigned long hole;
	unsigned long hole_end;
	/* The orders of the leaves that the machine is to have, as a mask */
	unsigned long leaves;
};

static unsigned long fake_leaf_orders(void)
{
	struct space *s = kunit_get_current_test()->priv;

	return s->leaves;
}

static void set_leaves(struct kunit *test, unsigned long leaves)
{
	struct space *s = test->priv;

	s->leaves = leaves;
	kunit_activate_static_stub(test, pfnmap_leaf_orders, fake_leaf_orders);
}

static unsigned long take(unsigned long addr, unsigned long len)
{
	return vm_mmap(NULL, addr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
		       MAP_NORESERVE | MAP_FIXED, 0);
}

/* Leave [start, start + len) free, and nothing else. */
static void open_hole(struct kunit *test, unsigned long start, unsigned long len)
{
	struct space *s = test->priv;

	if (s->hole != s->hole_end)
		KUNIT_ASSERT_EQ(test, take(s->hole, s->hole_end - s->hole), s->hole);
	s->hole = start;
	s->hole_end = start + len;
	if (len)
		KUNIT_ASSERT_EQ(test, vm_munmap(start, len), 0);
}

/* The zone is in the middle of what both directions search. */
static unsigned long zone(const struct space *s)
{
	return ALIGN(s->bottom, ZONE_SIZE);
}

/* What is returned is page aligned, in the hole and free. */
static unsigned long check(struct kunit *test, unsigned long addr, unsigned long len)
{
	struct space *s = test->priv;

	if (IS_ERR_VALUE(addr))
		return addr;
	KUNIT_EXPECT_EQ(test, 0, offset_in_page(addr));
	KUNIT_EXPECT_GE(test, addr, s->hole);
	KUNIT_EXPECT_LE(test, len, s->hole_end - addr);
	KUNIT_EXPECT_NULL(test, find_vma_intersection(current->mm, addr, addr + len));
	return addr;
}

static unsigned long exact(struct kunit *test, unsigned long addr,
			   unsigned long len, unsigned long flags,
			   unsigned long pfn, unsigned int order)
{
	unsigned long ret;

	mmap_write_lock(current->mm);
	ret = mm_get_unmapped_area_exact_order(NULL, addr, len, 0, flags,
					       EMPTY_VMA_FLAGS, pfn, order);
	if (!(flags & MAP_FIXED))
		check(test, ret, len);
	mmap_write_unlock(current->mm);
	return ret;
}

static unsigned long up_to(struct kunit *test, unsigned long addr,
			   unsigned long len, unsigned long flags,
			   unsigned long pfn, unsigned int order)
{
	unsigned long ret;

	mmap_write_lock(current->mm);
	ret = mm_get_unmapped_area_order(NULL, addr, len, 0, flags, pfn, order);
	if (!(flags & MAP_FIXED))
		check(test, ret, len);
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

static bool congruent(unsigned long addr, unsigned long pfn, unsigned int order)
{
	return !(((addr >> PAGE_SHIFT) - pfn) & (BIT(order) - 1));
}

/*
 * The first address of the hole, in the direction of the search, that is
 * congruent with the pfn; 0 if there is none.  By trying each.
 */
static unsigned long first_congruent(const struct space *s, bool topdown,
				     unsigned long len, unsigned long pfn,
				     unsigned int order)
{
	unsigned long slack = (s->hole_end - s->hole - len) >> PAGE_SHIFT;

	for (unsigned long i = 0; i <= slack; i++) {
		unsigned long addr = topdown ?
			s->hole_end - len - (i << PAGE_SHIFT) :
			s->hole + (i << PAGE_SHIFT);

		if (congruent(addr, pfn, order))
			return addr;
	}
	return 0;
}

/*
 * The address that mm_get_unmapped_area_order() has to return, or -ENOMEM; 0 if
 * there is more than one answer: a congruent address exists, but without room
 * for a whole leaf of padding the search need not find it.
 */
static unsigned long due(const struct space *s, unsigned long len,
			 unsigned long pfn, unsigned int max_order)
{
	unsigned long room = s->hole_end - s->hole, addr;
	unsigned int order = min(max_order, BITS_PER_LONG - 1);

	if (len > room)
		return -ENOMEM;

	/* One policy for 32-bit machines: they never align. */
	if (!IS_ENABLED(CONFIG_64BIT))
		order = 0;

	for (; order; order--) {
		if (!(s->leaves & BIT(order)) ||
		    !holds_block(pfn, len >> PAGE_SHIFT, order))
			continue;
		addr = first_congruent(s, s->topdown, len, pfn, order);
		if (addr)
			return room - len >= PAGE_SIZE << order ? addr : 0;
	}
	return first_congruent(s, s->topdown, len, 0, 0);
}

/* Which mapping holds a block of which order */
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
	{ "one page too late",		0x201,		0x200,	9, false },
	{ "a single page",		0x200,		1,	9, false },
	{ "two pages",			0x1fe,		2,	1, true },
	{ "GiB without its start",	0x40200,	0x3fe00, 18, false },
	{ "GiB from the middle",	0x60000,	0x40000, 18, false },
	{ "GiB behind a half",		0x60000,	0x60000, 18, true },
	{ "contiguous PMDs",		0x6000,		0x2000,	13, true },
	{ "pfn at the end",		-0x200UL,	0x1ff,	9, false },
	{ "no next block at the end",	-0x100UL,	0xff,	9, false },
	{ "pfn beyond the end",		-0x100UL,	0x200,	9, false },
	{ "overflow to the next block",	-0x100UL,	0x100,	9, false },
	{ "length that overflows",	-0x200UL,	0x400,	9, false },
	{ "pfn of the highest bit",	1UL << (BITS_PER_LONG - 1), 0x200, 9, true },
};

static void exact_desc(const struct exact_case *c, char *desc)
{
	strscpy(desc, c->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(exact, exact_cases, exact_desc);

static void exact_order_test(struct kunit *test)
{
	const struct exact_case *c = test->param_value;
	unsigned long len = c->nr_pages << PAGE_SHIFT;
	unsigned long size = PAGE_SIZE << c->order;
	struct space *s = test->priv;

	if (c->nr_pages + (2UL << c->order) > BIT(ZONE_ORDER))
		kunit_skip(test, "the address space of 32 bits is too small");

	/* At any address, and next to one that is congruent */
	for (int i = 0; i < 8; i++) {
		unsigned long skew = i < 4 ? i : get_random_u32_below(BIT(c->order));

		open_hole(test, zone(s) + (skew << PAGE_SHIFT), len + size);
		if (c->fits)
			KUNIT_EXPECT_EQ(test, exact(test, 0, len, 0, c->pfn, c->order),
					first_congruent(s, s->topdown, len, c->pfn,
							c->order));
		else
			KUNIT_EXPECT_EQ(test, (long)exact(test, 0, len, 0, c->pfn,
							  c->order), -ERANGE);
	}
}

/* No room is another error than no block. */
static void exact_errors_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << SMALL_LEAF;
	struct space *s = test->priv;

	/* One page less than the mapping and its padding, and nothing */
	for (int i = 0; i < 2; i++) {
		open_hole(test, zone(s) + PAGE_SIZE, i ? 0 : 2 * len - PAGE_SIZE);
		KUNIT_EXPECT_EQ(test, (long)exact(test, 0, len, 0, 0, SMALL_LEAF),
				-ENOMEM);
		KUNIT_EXPECT_EQ(test, (long)exact(test, 0, len, 0, 1, SMALL_LEAF),
				-ERANGE);
		KUNIT_EXPECT_EQ(test, (long)exact(test, 0, len - PAGE_SIZE, 0, 0,
						  SMALL_LEAF), -ERANGE);
	}
	/* More than there ever is, and more than can be counted */
	open_hole(test, zone(s) + PAGE_SIZE, 8 * len);
	KUNIT_EXPECT_EQ(test, (long)exact(test, 0, s->last, 0, 0, SMALL_LEAF), -ENOMEM);
	KUNIT_EXPECT_EQ(test, (long)exact(test, 0, -PAGE_SIZE, 0, 0, SMALL_LEAF),
			-ENOMEM);
	KUNIT_EXPECT_EQ(test, (long)exact(test, 0, -len, 0, 0, SMALL_LEAF), -ENOMEM);
}

/* Drivers see the error of the default placement, whatever it was that failed. */
static void order_errors_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << SMALL_LEAF;
	struct space *s = test->priv;

	set_leaves(test, BIT(SMALL_LEAF) | BIT(2));
	for (int i = 0; i < 2; i++) {
		open_hole(test, zone(s), i ? 0 : len - PAGE_SIZE);
		KUNIT_EXPECT_EQ(test, (long)up_to(test, 0, len, 0, 0, SMALL_LEAF), -ENOMEM);
		KUNIT_EXPECT_EQ(test, (long)up_to(test, 0, len, 0, 1, SMALL_LEAF), -ENOMEM);
	}
	KUNIT_EXPECT_EQ(test, (long)up_to(test, 0, PAGE_SIZE, 0, 0, 0), -ENOMEM);
	open_hole(test, zone(s), 8 * len);
	KUNIT_EXPECT_EQ(test, (long)up_to(test, 0, s->last, 0, 0, SMALL_LEAF), -ENOMEM);
	KUNIT_EXPECT_EQ(test, (long)up_to(test, 0, -PAGE_SIZE, 0, 0, SMALL_LEAF), -ENOMEM);
	KUNIT_EXPECT_EQ(test, (long)up_to(test, 0, -len, 0, 0, SMALL_LEAF), -ENOMEM);
}

/*
 * The leaf that is due, by hand, with leaves of 2 MiB and 1 GiB in pages of
 * 4 KiB.  There is room for any, so only the contract limits the alignment.
 */
static const struct leaf_case {
	const char *name;
	unsigned long pfn;
	unsigned long nr_pages;
	unsigned int max_order;
	unsigned int leaf;
} leaf_cases[] = {
	{ "a page",				0x40000, 1,	 18, 0 },
	{ "a page less than 2 MiB",		0x40000, 0x1ff,	 18, 0 },
	{ "2 MiB",				0x40000, 0x200,	 18, 9 },
	{ "2 MiB, half a leaf late",		0x40100, 0x200,	 18, 0 },
	{ "MSI-X table of 4 KiB cut off",	0x40201, 0x3ff,	 18, 9 },
	{ "1 GiB less a page",			0x40000, 0x3ffff, 18, 9 },
	{ "1 GiB",				0x40000, 0x40000, 18, 18 },
	{ "1 GiB at offset 2 MiB, to its end",	0x40200, 0x3fe00, 18, 9 },
	{ "2 GiB at offset 2 MiB, to its end",	0x80200, 0x7fe00, 19, 18 },
	{ "2 GiB from the middle of one",	0x60000, 0x80000, 19, 18 },
	{ "8 GiB, in leaves of 1 GiB",		0x200000, 0x200000, 21, 18 },
	{ "1 GiB of a region of 512 MiB",	0x40000, 0x40000, 17, 9 },
	{ "1 GiB of a region of 2 MiB",		0x40000, 0x40000, 9, 9 },
	{ "1 GiB of a region of 1 MiB",		0x40000, 0x40000, 8, 0 },
	{ "1 GiB of a region of a page",	0x40000, 0x40000, 0, 0 },
	{ "any order",				0x40000, 0x40000, UINT_MAX, 18 },
	{ "as many orders as bits",		0x40000, 0x40000, BITS_PER_LONG, 18 },
	{ "the order of the highest bit",	0x40000, 0x40000, BITS_PER_LONG - 1, 18 },
	{ "the last pfn",			-1UL,	 0x40000, 18, 0 },
};

static void leaf_desc(const struct leaf_case *c, char *desc)
{
	strscpy(desc, c->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(leaf, leaf_cases, leaf_desc);

static void leaf_test(struct kunit *test)
{
	const struct leaf_case *c = test->param_value;
	unsigned long len = c->nr_pages << PAGE_SHIFT, room, start, addr;
	struct space *s = test->priv;
	unsigned int leaf = c->leaf;

	if (!IS_ENABLED(CONFIG_64BIT)) {
		if (c->nr_pages > BIT(ZONE_ORDER - 1))
			kunit_skip(test, "the address space of 32 bits is too small");
		leaf = 0;
	}
	set_leaves(test, BIT(SMALL_LEAF) | BIT(LARGE_LEAF));
	room = len + (PAGE_SIZE << (ZONE_ORDER - 2));

	/*
	 * Among the addresses that are congruent only modulo the leaf that is
	 * due: an alignment to more is seen, since it ends up elsewhere.
	 */
	for (int i = 0; i < 16; i++) {
		start = zone(s) + (get_random_u32_below(BIT(SMALL_LEAF)) << PAGE_SHIFT);
		open_hole(test, start, room);
		addr = first_congruent(s, s->topdown, len, c->pfn, leaf);
		KUNIT_EXPECT_EQ(test, up_to(test, 0, len, 0, c->pfn, c->max_order), addr);
	}
}

/* Sets of leaves, as the processors of some architectures have them */
static const struct leaf_set {
	const char *name;
	unsigned long orders;
} leaf_sets[] = {
	{ "no leaf",			0 },
	{ "a small leaf",		BIT(9) },
	{ "a large leaf",		BIT(18) },
	{ "two leaves",			BIT(9) | BIT(18) },
	{ "contiguous leaves",		BIT(4) | BIT(9) | BIT(13) | BIT(18) },
	{ "pages of 64 KiB",		BIT(5) | BIT(13) | BIT(18) },
	{ "leaves of this machine",	ULONG_MAX },
};

static void set_desc(const struct leaf_set *set, char *desc)
{
	strscpy(desc, set->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(set, leaf_sets, set_desc);

/*
 * The largest leaf of a set that there is room for in the zone, twice.  What the
 * machine has beyond that is left out.
 */
static void set_leaves_of_param(struct kunit *test)
{
	const struct leaf_set *set = test->param_value;
	unsigned long orders = set->orders;

	if (orders == ULONG_MAX) {
		orders = pfnmap_leaf_orders();
		kunit_info(test, "orders %#lx", orders);
	}
	set_leaves(test, orders & (BIT(ZONE_ORDER - 1) - 1));
}

/* Every mapping of every magnitude gets the leaf that is due, wherever the hole is. */
static void random_test(struct kunit *test)
{
	struct space *s = test->priv;
	int judged = 0;

	set_leaves_of_param(test);
	for (int i = 0; i < 500; i++) {
		unsigned long pfn = get_random_u32() >> get_random_u32_below(20);
		unsigned long nr = 1 + (get_random_u32_below(BIT(ZONE_ORDER - 2)) >>
					get_random_u32_below(ZONE_ORDER - 2));
		unsigned long room = nr + get_random_u32_below(BIT(ZONE_ORDER - 2));
		unsigned long skew = get_random_u32_below(BIT(ZONE_ORDER - 2));
		unsigned int max = get_random_u32_below(24);
		unsigned long addr, got;

		open_hole(test, zone(s) + (skew << PAGE_SHIFT), room << PAGE_SHIFT);
		addr = due(s, nr << PAGE_SHIFT, pfn, max);
		got = up_to(test, 0, nr << PAGE_SHIFT, 0, pfn, max);
		KUNIT_EXPECT_FALSE(test, IS_ERR_VALUE(got));
		if (!addr)
			continue;
		KUNIT_EXPECT_EQ(test, got, addr);
		judged++;
	}
	KUNIT_EXPECT_GT(test, judged, 100);
}

/* With little room, each leaf of a set gives way to the next smaller one. */
static void smaller_leaf_test(struct kunit *test)
{
	unsigned long pfn, len, addr, orders;
	struct space *s = test->priv;
	unsigned int largest;

	if (!IS_ENABLED(CONFIG_64BIT))
		kunit_skip(test, "a 32-bit machine never aligns");

	set_leaves_of_param(test);
	if (!s->leaves)
		kunit_skip(test, "there is no leaf that could give way");

	/* Three pages, and one of the largest leaf */
	largest = __fls(s->leaves);
	pfn = (4UL << largest) - 3;
	len = PAGE_SIZE * (BIT(largest) + 3);

	for (orders = s->leaves; orders; orders &= ~BIT(__fls(orders))) {
		unsigned int order = __fls(orders);
		unsigned long smaller = orders & ~BIT(order);
		unsigned int next = smaller ? __fls(smaller) : 0;
		/* The first address that is congruent is almost a leaf away. */
		unsigned long start = zone(s) + PAGE_SIZE * (BIT(order) - 2);

		open_hole(test, start, len + (PAGE_SIZE << order));
		addr = first_congruent(s, s->topdown, len, pfn, order);
		KUNIT_ASSERT_NE(test, addr, 0);
		KUNIT_EXPECT_EQ(test, up_to(test, 0, len, 0, pfn, order), addr);

		/* Room for the next one, and for no more */
		open_hole(test, start, next ? len + (PAGE_SIZE << next) : len);
		KUNIT_ASSERT_EQ(test, 0, first_congruent(s, s->topdown, len, pfn, order));
		addr = first_congruent(s, s->topdown, len, pfn, next);
		KUNIT_ASSERT_NE(test, addr, 0);
		KUNIT_EXPECT_EQ(test, up_to(test, 0, len, 0, pfn, largest), addr);
	}
}

/* Every pfn and largest order, for a mapping in a hole that is open */
static int every_pfn(struct kunit *test, unsigned long nr)
{
	unsigned long len = nr << PAGE_SHIFT, addr, got;
	struct space *s = test->priv;
	int judged = 0;

	for (unsigned long pfn = 0; pfn < 8; pfn++) {
		for (unsigned int max = 0; max <= 4; max++) {
			addr = due(s, len, pfn, max);
			got = up_to(test, 0, len, 0, pfn, max);
			if (!addr)
				continue;
			judged++;
			if (got != addr)
				KUNIT_FAIL_AND_ABORT(test,
						     "pfn %lu nr %lu max %u leaves %#lx hole %#lx to %#lx: %#lx, not %#lx",
						     pfn, nr, max, s->leaves, s->hole,
						     s->hole_end, got, addr);
		}
	}
	return judged;
}

/* All that there is, where leaves are of a few pages: each mapping in each hole */
static void exhaustive_test(struct kunit *test)
{
	static const unsigned long sets[] = { 0, BIT(1), BIT(2), BIT(1) | BIT(3) };
	static const unsigned long slacks[] = { 0, 1, 2, 3, 4, 5, 8, 9, 16 };
	struct space *s = test->priv;
	int judged = 0;

	for (int i = 0; i < ARRAY_SIZE(sets); i++) {
		set_leaves(test, sets[i]);
		for (unsigned long nr = 1; nr <= 16; nr++) {
			for (int j = 0; j < ARRAY_SIZE(slacks) * 8; j++) {
				open_hole(test, zone(s) + (j % 8) * PAGE_SIZE,
					  (nr + slacks[j / 8]) << PAGE_SHIFT);
				judged += every_pfn(test, nr);
			}
		}
	}
	KUNIT_EXPECT_GT(test, judged, 100000);
}

/*
 * One mapping after the other, until there is no room: each is next to the one
 * before, with less than a leaf in between, and takes what was free.
 */
static void repeated_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE * (BIT(SMALL_LEAF) + 2), pfn = BIT(LARGE_LEAF) - 1;
	struct space *s = test->priv;
	unsigned long addr, got;
	int placed = 0;

	set_leaves(test, BIT(SMALL_LEAF) | BIT(LARGE_LEAF));
	open_hole(test, zone(s) + 5 * PAGE_SIZE, 21 * (PAGE_SIZE << SMALL_LEAF));
	for (;;) {
		addr = due(s, len, pfn, LARGE_LEAF);
		/* Too little for another leaf, or for anything */
		if (!addr || IS_ERR_VALUE(addr))
			break;
		got = up_to(test, 0, len, 0, pfn, LARGE_LEAF);
		KUNIT_ASSERT_EQ(test, got, addr);
		KUNIT_ASSERT_EQ(test, take(got, len), got);
		/* What is left on the other side of it is no room for one. */
		if (s->topdown)
			s->hole_end = got;
		else
			s->hole = got + len;
		placed++;
	}
	/* Two leaves each at most, or one where nothing is aligned */
	KUNIT_EXPECT_GE(test, placed, 9);
}

/* Nothing beyond the borders of what is searched, though it is free there */
static void border_test(struct kunit *test)
{
	unsigned long size = PAGE_SIZE << SMALL_LEAF, len = 2 * size, room = len + size;
	struct space *s = test->priv, inside;
	unsigned long border, pfn;

	set_leaves(test, BIT(SMALL_LEAF));

	/* Where the search begins, congruent and next to it */
	border = s->topdown ? current->mm->mmap_base : s->bottom;
	open_hole(test, border - room, 2 * room);
	inside = *s;
	if (s->topdown)
		inside.hole_end = border;
	else
		inside.hole = border;
	pfn = (inside.hole >> PAGE_SHIFT) % BIT(SMALL_LEAF) + 2 * BIT(SMALL_LEAF);
	for (int i = -1; i <= 1; i++) {
		KUNIT_EXPECT_EQ(test, up_to(test, 0, len, 0, pfn + i, SMALL_LEAF),
				due(&inside, len, pfn + i, SMALL_LEAF));
	}

	/* Where it ends */
	if (s->topdown) {
		open_hole(test, s->first, room);
		inside = *s;
	} else {
		open_hole(test, s->top - room, room + min(s->last - s->top, room));
		inside = *s;
		inside.hole_end = s->top;
	}
	pfn = (inside.hole >> PAGE_SHIFT) % BIT(SMALL_LEAF) + 2 * BIT(SMALL_LEAF);
	for (int i = -1; i <= 1; i++) {
		KUNIT_EXPECT_EQ(test, up_to(test, 0, len, 0, pfn + i, SMALL_LEAF),
				due(&inside, len, pfn + i, SMALL_LEAF));
	}
	KUNIT_EXPECT_EQ(test, (long)up_to(test, 0, room + PAGE_SIZE, 0, pfn, SMALL_LEAF),
			-ENOMEM);
}

/*
 * What finds no room below mmap_base is searched from the bottom, also in an
 * address space that is searched from the top: the first that is congruent is
 * taken there, without the waste of a whole leaf.
 */
static void upwards_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << SMALL_LEAF, start;
	struct space *s = test->priv;

	set_leaves(test, BIT(SMALL_LEAF));
	/* The mmap_base of both directions is below the hole. */
	start = ALIGN(s->topdown ? current->mm->mmap_base : s->bottom, ZONE_SIZE);
	for (unsigned long skew = 0; skew < 3; skew++) {
		open_hole(test, start + skew * PAGE_SIZE, 3 * len);
		for (unsigned long pfn = 0; pfn < 3; pfn++) {
			KUNIT_EXPECT_EQ(test, exact(test, 0, len + 3 * PAGE_SIZE, 0,
						    BIT(SMALL_LEAF) - pfn, SMALL_LEAF),
					first_congruent(s, false, len + 3 * PAGE_SIZE,
							-pfn, SMALL_LEAF));
		}
	}
}

/* MAP_32BIT has a window of its own, searched from the bottom by x86-64. */
static void map_32bit_direction_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << SMALL_LEAF;
	struct space *s = test->priv;

	if (!IS_ENABLED(CONFIG_X86_64) || IS_ENABLED(CONFIG_UML))
		kunit_skip(test, "MAP_32BIT has no window of its own");

	for (unsigned long skew = 0; skew < 3; skew++) {
		open_hole(test, SZ_1G + skew * PAGE_SIZE, 3 * len);
		KUNIT_EXPECT_EQ(test, exact(test, 0, len, MAP_32BIT, 0, SMALL_LEAF),
				first_congruent(s, false, len, 0, SMALL_LEAF));
	}
}

/* Addresses of 32 bits are too few to be aligned. */
static void map_32bit_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << SMALL_LEAF;

	if (!MAP_32BIT)
		kunit_skip(test, "the architecture has no MAP_32BIT");

	set_leaves(test, BIT(SMALL_LEAF));
	/* In the window of x86-64, and where UML and i386 find it as well */
	open_hole(test, 0x50000000 + PAGE_SIZE, 4 * len);
	KUNIT_EXPECT_FALSE(test, IS_ERR_VALUE(by_default(0, len, MAP_32BIT)));
	KUNIT_EXPECT_EQ(test, up_to(test, 0, len, MAP_32BIT, 0, SMALL_LEAF),
			by_default(0, len, MAP_32BIT));
}

/* So they are for a 32-bit program on a 64-bit machine. */
static void compat_test(struct kunit *test)
{
#if defined(CONFIG_IA32_EMULATION) && !defined(CONFIG_UML)
	unsigned long len = PAGE_SIZE << SMALL_LEAF, addr, want;

	set_leaves(test, BIT(SMALL_LEAF));
	/* Below both of the bases that such a program has */
	open_hole(test, 0x60000000 + PAGE_SIZE, 4 * len);
	current_thread_info()->status |= TS_COMPAT;
	addr = up_to(test, 0, len, 0, 0, SMALL_LEAF);
	want = by_default(0, len, 0);
	current_thread_info()->status &= ~TS_COMPAT;
	KUNIT_EXPECT_FALSE(test, IS_ERR_VALUE(want));
	KUNIT_EXPECT_EQ(test, addr, want);
#else
	kunit_skip(test, "no system call of a 32-bit program can be pretended");
#endif
}

/* A hint that is free wins, aligned or not, and with room for padding or not. */
static void hint_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << SMALL_LEAF, start, hint;
	struct space *s = test->priv;

	set_leaves(test, BIT(SMALL_LEAF));
	start = zone(s) + 3 * PAGE_SIZE;

	/* It is all that there is. */
	open_hole(test, start, len);
	KUNIT_EXPECT_EQ(test, up_to(test, start, len, 0, 0, SMALL_LEAF), start);
	KUNIT_EXPECT_EQ(test, up_to(test, start, len, 0, 0, 0), start);

	/* In the middle of plenty, at its start, and at its end */
	open_hole(test, start, 8 * len);
	for (int i = 0; i <= 7; i++) {
		hint = start + i * len;
		KUNIT_EXPECT_EQ(test, up_to(test, hint, len, 0, 0, SMALL_LEAF), hint);
	}

	/* A page of it is taken, before the hole and behind it: it is ignored. */
	KUNIT_EXPECT_EQ(test, up_to(test, start - PAGE_SIZE, len, 0, 0, SMALL_LEAF),
			due(s, len, 0, SMALL_LEAF));
	KUNIT_EXPECT_EQ(test, up_to(test, s->hole_end - len + PAGE_SIZE, len, 0, 0,
				    SMALL_LEAF), due(s, len, 0, SMALL_LEAF));
	/* So it is if all is taken, and if no address is that high. */
	KUNIT_EXPECT_EQ(test, up_to(test, start - 2 * len, len, 0, 0, SMALL_LEAF),
			due(s, len, 0, SMALL_LEAF));
	KUNIT_EXPECT_EQ(test, up_to(test, -2 * PAGE_SIZE, len, 0, 0, 0),
			due(s, len, 0, 0));
}

/* The search for one order takes a hint if it is free with the padding. */
static void exact_hint_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << SMALL_LEAF, start;
	struct space *s = test->priv;

	start = zone(s) + 3 * PAGE_SIZE;
	open_hole(test, start, 8 * len);
	KUNIT_EXPECT_EQ(test, exact(test, start + len, len, 0, 0, SMALL_LEAF), start + len);
	KUNIT_EXPECT_EQ(test, exact(test, start + 6 * len, len, 0, 0, SMALL_LEAF),
			start + 6 * len);
	KUNIT_EXPECT_EQ(test, exact(test, start + 7 * len, len, 0, 0, SMALL_LEAF),
			first_congruent(s, s->topdown, len, 0, SMALL_LEAF));
}

/* A hint beyond the default window is what opens the rest of the address space. */
static void high_hint_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << SMALL_LEAF, start;
	struct space *s = test->priv;

	if (s->last - s->top < 2 * ZONE_SIZE)
		kunit_skip(test, "there is nothing beyond the default window");

	set_leaves(test, BIT(SMALL_LEAF));
	start = ALIGN(s->top, ZONE_SIZE);
	for (unsigned long skew = 2; skew < 5; skew++) {
		unsigned long hint = start + skew * PAGE_SIZE;

		open_hole(test, hint, 4 * len);
		KUNIT_EXPECT_EQ(test, (long)up_to(test, 0, len, 0, 0, SMALL_LEAF), -ENOMEM);
		KUNIT_EXPECT_EQ(test, up_to(test, hint, len, 0, 0, SMALL_LEAF), hint);
		KUNIT_EXPECT_EQ(test, up_to(test, hint + PAGE_SIZE, len, 0, 0, SMALL_LEAF),
				hint + PAGE_SIZE);
		/* Taken */
		KUNIT_EXPECT_EQ(test, up_to(test, hint - PAGE_SIZE, len, 0, 0, SMALL_LEAF),
				due(s, len, 0, SMALL_LEAF));
		/* Both ends of what is found are congruent: no leaf is wasted. */
		KUNIT_EXPECT_EQ(test, up_to(test, hint - PAGE_SIZE, 2 * len, 0, skew,
					    SMALL_LEAF),
				due(s, 2 * len, skew, SMALL_LEAF));
	}
}

/* MAP_FIXED is never moved, whether what is there is free or not. */
static void map_fixed_test(struct kunit *test)
{
	unsigned long len = PAGE_SIZE << SMALL_LEAF, fixed;
	struct space *s = test->priv;

	set_leaves(test, BIT(SMALL_LEAF));
	fixed = zone(s) + PAGE_SIZE;
	for (int i = 0; i < 2; i++) {
		open_hole(test, fixed + i * len, 4 * len);
		KUNIT_EXPECT_EQ(test, up_to(test, fixed, len, MAP_FIXED, 0, SMALL_LEAF),
				fixed);
		KUNIT_EXPECT_EQ(test, exact(test, fixed, len, MAP_FIXED, 0, SMALL_LEAF),
				fixed);
	}
	KUNIT_EXPECT_EQ(test, up_to(test, 0, len, MAP_FIXED, 0, SMALL_LEAF),
			by_default(0, len, MAP_FIXED));
	KUNIT_EXPECT_EQ(test, (long)up_to(test, fixed, s->last, MAP_FIXED, 0, SMALL_LEAF),
			(long)by_default(fixed, s->last, MAP_FIXED));
}

/*
 * An architecture that colours its caches looks at the offset in the file.  What
 * is not aligned keeps the colour that it has without the pfn.
 */
static void colour_test(struct kunit *test)
{
	unsigned long len = 3 * PAGE_SIZE, addr, want;
	unsigned int randomize = current->flags & PF_RANDOMIZE;
	struct space *s = test->priv;

	set_leaves(test, BIT(SMALL_LEAF));
	open_hole(test, zone(s), ZONE_SIZE / 2);
	/* Some do so for programs with randomised addresses only. */
	current->flags |= PF_RANDOMIZE;
	mmap_write_lock(current->mm);
	for (unsigned long pgoff = 0; pgoff < 256; pgoff += 5) {
		want = mm_get_unmapped_area(NULL, 0, len, pgoff, MAP_SHARED);
		addr = mm_get_unmapped_area_order(NULL, 0, len, pgoff, MAP_SHARED,
						  0x123, SMALL_LEAF);
		KUNIT_EXPECT_FALSE(test, IS_ERR_VALUE(want));
		KUNIT_EXPECT_EQ(test, addr, want);
	}
	mmap_write_unlock(current->mm);
	if (!randomize)
		current->flags &= ~PF_RANDOMIZE;
}

/* What this machine maps page frames with, by what it says of itself elsewhere */
static void machine_test(struct kunit *test)
{
	unsigned long orders = pfnmap_leaf_orders();
	bool pmd = IS_ENABLED(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP);
	bool pud = IS_ENABLED(CONFIG_ARCH_SUPPORTS_PUD_PFNMAP);

#if defined(CONFIG_X86) && !defined(CONFIG_UML)
	pmd = pmd && boot_cpu_has(X86_FEATURE_PSE);
	pud = pud && boot_cpu_has(X86_FEATURE_GBPAGES);
#else
	pmd = pmd && has_transparent_hugepage();
	pud = pud && has_transparent_pud_hugepage();
#endif
	KUNIT_EXPECT_EQ(test, !!(orders & BIT(PMD_ORDER)), pmd);
	/* Of two levels that are folded into one the other has the order. */
	if (PUD_ORDER != PMD_ORDER)
		KUNIT_EXPECT_EQ(test, !!(orders & BIT(PUD_ORDER)), pud);
	/* A page is no leaf to align to, and without a table there is none. */
	KUNIT_EXPECT_EQ(test, orders & 1, 0);
	if (!pmd && !pud)
		KUNIT_EXPECT_EQ(test, orders, 0);
}

/* A new address space, all of it taken */
static int space_init(struct kunit *test, bool topdown)
{
	unsigned long base, step;
	struct mm_struct *mm;
	struct space *s;
	int ret;

	s = kunit_kzalloc(test, sizeof(*s), GFP_KERNEL);
	if (!s)
		return -ENOMEM;
	ret = kunit_attach_mm();
	if (ret)
		return ret;

	mm = current->mm;
	s->topdown = topdown;
	s->first = max3(PAGE_SIZE, PAGE_ALIGN(mmap_min_addr),
			(unsigned long)FIRST_USER_ADDRESS);
	s->last = TASK_SIZE & PAGE_MASK;
	s->bottom = PAGE_ALIGN(TASK_UNMAPPED_BASE);
#if defined(CONFIG_X86_64) && !defined(CONFIG_UML)
	s->top = DEFAULT_MAP_WINDOW;
#else
	s->top = arch_get_mmap_end(0, PAGE_SIZE, 0) & PAGE_MASK;
#endif

	base = PAGE_ALIGN(s->top / 4 * 3);
	if (base < zone(s) || base - zone(s) < ZONE_SIZE)
		kunit_skip(test, "the address space is too small");

	/* x86 has a base for each direction, all others have one. */
	mm->mmap_legacy_base = s->bottom;
	if (topdown) {
		mm->mmap_base = base;
		mm_flags_set(MMF_TOPDOWN, mm);
	} else {
		mm->mmap_base = s->bottom;
		mm_flags_clear(MMF_TOPDOWN, mm);
	}

	/* In pieces that do not exceed the default window. */
	for (unsigned long addr = s->first; addr != s->last; addr += step) {
		unsigned long got;

		step = min(s->last - addr, s->top / 2 & PAGE_MASK);
		got = take(addr, step);
		if (got != addr) {
			kunit_err(test, "%#lx of %#lx bytes: %ld", addr, step, (long)got);
			return -ENOMEM;
		}
	}
	test->priv = s;
	return 0;
}

static int topdown_init(struct kunit *test)
{
	return space_init(test, true);
}

static int bottomup_init(struct kunit *test)
{
	return space_init(test, false);
}

static struct kunit_case unmapped_area_test_cases[] = {
	KUNIT_CASE_PARAM(exact_order_test, exact_gen_params),
	KUNIT_CASE(exact_errors_test),
	KUNIT_CASE(exact_hint_test),
	KUNIT_CASE(order_errors_test),
	KUNIT_CASE_PARAM(leaf_test, leaf_gen_params),
	KUNIT_CASE_PARAM(random_test, set_gen_params),
	KUNIT_CASE_PARAM(smaller_leaf_test, set_gen_params),
	KUNIT_CASE(exhaustive_test),
	KUNIT_CASE(repeated_test),
	KUNIT_CASE(border_test),
	KUNIT_CASE(upwards_test),
	KUNIT_CASE(map_32bit_direction_test),
	KUNIT_CASE(map_32bit_test),
	KUNIT_CASE(compat_test),
	KUNIT_CASE(hint_test),
	KUNIT_CASE(high_hint_test),
	KUNIT_CASE(map_fixed_test),
	KUNIT_CASE(colour_test),
	KUNIT_CASE(machine_test),
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
