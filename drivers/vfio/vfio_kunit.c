// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio_device_ops.get_unmapped_area: what the core makes of a driver that has
 * it, of one that has not, and of a file that has no access to the device yet.
 */
#include <kunit/test.h>
#include <linux/fs.h>
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

	/* MAP_FIXED goes to the driver as well, mm needs its answer. */
	p->answer = 0x5000;
	KUNIT_EXPECT_EQ(test, place(p, 0x5000, 0x3000, 0, MAP_SHARED | MAP_FIXED),
			0x5000);
	KUNIT_EXPECT_EQ(test, p->nr_calls, 2);
	KUNIT_EXPECT_EQ(test, p->call.flags, MAP_SHARED | MAP_FIXED);
}

static void hook_error_unchanged(struct kunit *test)
{
	static const int errors[] = { -ENOMEM, -EINVAL, -EPERM, -ERANGE };
	struct placement *p = test->priv;

	for (int i = 0; i < ARRAY_SIZE(errors); i++) {
		p->answer = errors[i];
		KUNIT_EXPECT_EQ(test, (long)place(p, 0, PAGE_SIZE, 0, MAP_SHARED),
				errors[i]);
	}
}

static void no_hook_is_default(struct kunit *test)
{
	static const unsigned long lens[] = { PAGE_SIZE, PMD_SIZE, 3 * PMD_SIZE };
	struct placement *p = test->priv;

	p->vdev.ops = &without_hook;
	for (int i = 0; i < ARRAY_SIZE(lens); i++) {
		KUNIT_EXPECT_EQ(test, place(p, 0, lens[i], 7, MAP_SHARED),
				place_by_default(p, 0, lens[i], 7, MAP_SHARED));
		KUNIT_EXPECT_EQ(test, place(p, PMD_SIZE + PAGE_SIZE, lens[i], 7, MAP_SHARED),
				PMD_SIZE + PAGE_SIZE);
	}
	KUNIT_EXPECT_EQ(test, (long)place(p, 0, TASK_SIZE + PAGE_SIZE, 0, MAP_SHARED),
			-ENOMEM);
	KUNIT_EXPECT_EQ(test, p->nr_calls, 0);
}

static void no_access_no_placement(struct kunit *test)
{
	struct placement *p = test->priv;

	p->df.access_granted = false;
	p->answer = 0x7000;
	KUNIT_EXPECT_EQ(test, (long)place(p, 0, PAGE_SIZE, 0, MAP_SHARED), -EINVAL);
	p->vdev.ops = &without_hook;
	KUNIT_EXPECT_EQ(test, (long)place(p, 0, PAGE_SIZE, 0, MAP_SHARED), -EINVAL);
	/* Nor is the device looked at. */
	p->df.device = NULL;
	KUNIT_EXPECT_EQ(test, (long)place(p, 0, PAGE_SIZE, 0, MAP_SHARED), -EINVAL);
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
	KUNIT_CASE(hook_error_unchanged),
	KUNIT_CASE(no_hook_is_default),
	KUNIT_CASE(no_access_no_placement),
	{}
};

static struct kunit_suite placement_suite = {
	.name = "vfio_get_unmapped_area",
	.init = placement_init,
	.test_cases = placement_test_cases,
};

kunit_test_suite(placement_suite);

MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
