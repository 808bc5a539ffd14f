// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio_device_ops.get_unmapped_area: what the core makes of a driver that has
 * it, of one that has not, of a file that has no access to the device yet, and
 * of MAP_FIXED.
 */
#include <kunit/test.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/sched/mm.h>
#include <linux/vfio.h>

#include "vfio.h"

struct call {
	struct vfio_device *vdev;
	struct file *file;
	unsigned long addr;
	unsigned long len;
	unsigned long pgoff;
	unsigned long flags;
};

/* A device file, as far as the file operation looks at it */
struct placement {
	struct vfio_device vdev;
	struct vfio_device_file df;
	struct file *file;
	/* What the driver got, how often, and what it is to answer */
	struct call call;
	int nr_calls;
	unsigned long answer;
};

static unsigned long driver_get_unmapped_area(struct vfio_device *vdev,
		struct file *file, unsigned long addr, unsigned long len,
		unsigned long pgoff, unsigned long flags)
{
	struct placement *p = container_of(vdev, struct placement, vdev);

	p->call = (struct call){ vdev, file, addr, len, pgoff, flags };
	p->nr_calls++;
	return p->answer;
}

static const struct vfio_device_ops with_hook = {
	.name = "kunit",
	.get_unmapped_area = driver_get_unmapped_area,
};

static const struct vfio_device_ops without_hook = {
	.name = "kunit",
};

static unsigned long place(struct placement *p, unsigned long addr,
			   unsigned long len, unsigned long pgoff,
			   unsigned long flags)
{
	unsigned long ret;

	mmap_write_lock(current->mm);
	ret = vfio_device_fops.get_unmapped_area(p->file, addr, len, pgoff,
						 flags);
	mmap_write_unlock(current->mm);
	return ret;
}

static unsigned long place_by_default(struct placement *p, unsigned long addr,
				      unsigned long len, unsigned long pgoff,
				      unsigned long flags)
{
	unsigned long ret;

	mmap_write_lock(current->mm);
	ret = mm_get_unmapped_area(p->file, addr, len, pgoff, flags);
	mmap_write_unlock(current->mm);
	return ret;
}

static void hook_gets_arguments(struct kunit *test)
{
	struct placement *p = test->priv;

	p->answer = 0x7000;
	KUNIT_EXPECT_EQ(test, place(p, 0x5000, 0x3000, ULONG_MAX, MAP_SHARED), 0x7000);
	KUNIT_EXPECT_EQ(test, p->nr_calls, 1);
	KUNIT_EXPECT_PTR_EQ(test, p->call.vdev, &p->vdev);
	KUNIT_EXPECT_PTR_EQ(test, p->call.file, p->file);
	KUNIT_EXPECT_EQ(test, p->call.addr, 0x5000);
	KUNIT_EXPECT_EQ(test, p->call.len, 0x3000);
	KUNIT_EXPECT_EQ(test, p->call.pgoff, ULONG_MAX);
	KUNIT_EXPECT_EQ(test, p->call.flags, MAP_SHARED);

	/* Whatever the flags, but for MAP_FIXED */
	KUNIT_EXPECT_EQ(test, place(p, 0, 0x3000, 1, ~MAP_FIXED), 0x7000);
	KUNIT_EXPECT_EQ(test, p->nr_calls, 2);
	KUNIT_EXPECT_EQ(test, p->call.addr, 0);
	KUNIT_EXPECT_EQ(test, p->call.pgoff, 1);
	KUNIT_EXPECT_EQ(test, p->call.flags, ~MAP_FIXED);
}

static void hook_answer_unchanged(struct kunit *test)
{
	static const unsigned long answers[] = {
		-ENOMEM, -EINVAL, -EPERM, -ERANGE, 0, 1, PAGE_SIZE, -PAGE_SIZE,
	};
	struct placement *p = test->priv;

	/* mm checks it, so that there is nothing for the core to do. */
	for (int i = 0; i < ARRAY_SIZE(answers); i++) {
		p->answer = answers[i];
		KUNIT_EXPECT_EQ(test, place(p, 0, PAGE_SIZE, 0, MAP_SHARED), answers[i]);
	}
	KUNIT_EXPECT_EQ(test, p->nr_calls, ARRAY_SIZE(answers));
}

/* Mappings that are possible and not, with a hint that is free and without one */
static void expect_default(struct kunit *test)
{
	static const unsigned long pages[] = { 1, 512, 3 * 512 };
	const unsigned long hint = 513 * PAGE_SIZE;
	struct placement *p = test->priv;

	for (int i = 0; i < ARRAY_SIZE(pages); i++) {
		unsigned long len = pages[i] * PAGE_SIZE;

		KUNIT_EXPECT_EQ(test, place(p, 0, len, 7, MAP_SHARED),
				place_by_default(p, 0, len, 7, MAP_SHARED));
		KUNIT_EXPECT_EQ(test, place(p, hint, len, 7, MAP_SHARED), hint);
	}
	KUNIT_EXPECT_EQ(test, (long)place(p, 0, TASK_SIZE, 0, MAP_SHARED), -ENOMEM);
	KUNIT_EXPECT_EQ(test, p->nr_calls, 0);
}

static void no_hook_is_default(struct kunit *test)
{
	struct placement *p = test->priv;

	p->vdev.ops = &without_hook;
	expect_default(test);
}

/* Until access is granted the device is not looked at, nor what is at its place. */
static void no_access_is_default(struct kunit *test)
{
	struct vfio_device *devices[3];
	struct placement *p = test->priv;

	devices[0] = &p->vdev;
	devices[1] = NULL;
	/* No address of anything */
	devices[2] = (struct vfio_device *)-PAGE_SIZE;

	p->df.access_granted = false;
	p->answer = 0x7000;
	for (int i = 0; i < ARRAY_SIZE(devices); i++) {
		p->df.device = devices[i];
		expect_default(test);
	}

	p->df.device = &p->vdev;
	p->df.access_granted = true;
	KUNIT_EXPECT_EQ(test, place(p, 0, PAGE_SIZE, 0, MAP_SHARED), 0x7000);
}

/* What mremap() relies on: where there is no choice no driver is asked. */
static void map_fixed_is_obeyed(struct kunit *test)
{
	const unsigned long flags = MAP_SHARED | MAP_FIXED;
	const unsigned long fixed = 513 * PAGE_SIZE;
	struct placement *p = test->priv;

	KUNIT_EXPECT_TRUE(test, vfio_device_fops.fop_flags & FOP_OBEYS_MAP_FIXED);

	p->answer = 0x7000;
	for (int access = 0; access < 2; access++) {
		p->df.access_granted = access;
		KUNIT_EXPECT_EQ(test, place(p, fixed, PAGE_SIZE, 0, flags), fixed);
		KUNIT_EXPECT_EQ(test, place(p, fixed, 3 * PAGE_SIZE, 1,
					    flags | MAP_FIXED_NOREPLACE), fixed);
		/* Also if something else is mapped there */
		KUNIT_ASSERT_EQ(test, fixed,
				vm_mmap(NULL, fixed, PAGE_SIZE, PROT_NONE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0));
		KUNIT_EXPECT_EQ(test, place(p, fixed, PAGE_SIZE, 0, flags), fixed);
		KUNIT_ASSERT_EQ(test, vm_munmap(fixed, PAGE_SIZE), 0);
		KUNIT_EXPECT_EQ(test, place(p, fixed, TASK_SIZE, 0, flags),
				place_by_default(p, fixed, TASK_SIZE, 0, flags));
	}
	KUNIT_EXPECT_EQ(test, p->nr_calls, 0);
}

static int placement_init(struct kunit *test)
{
	struct placement *p;
	int ret;

	ret = kunit_attach_mm();
	if (ret)
		return ret;

	p = kunit_kzalloc(test, sizeof(*p), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, p);
	p->file = kunit_kzalloc(test, sizeof(*p->file), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, p->file);

	p->vdev.ops = &with_hook;
	p->df.device = &p->vdev;
	p->df.access_granted = true;
	p->file->f_op = &vfio_device_fops;
	p->file->private_data = &p->df;
	test->priv = p;
	return 0;
}

static struct kunit_case placement_test_cases[] = {
	KUNIT_CASE(hook_gets_arguments),
	KUNIT_CASE(hook_answer_unchanged),
	KUNIT_CASE(no_hook_is_default),
	KUNIT_CASE(no_access_is_default),
	KUNIT_CASE(map_fixed_is_obeyed),
	{}
};

static struct kunit_suite placement_suite = {
	.name = "vfio_get_unmapped_area",
	.init = placement_init,
	.test_cases = placement_test_cases,
};

kunit_test_suite(placement_suite);
