// SPDX-License-Identifier: GPL-2.0-only
/*
 * The sample driver rust_vfio_mem, a device that is memory, as userspace sees it
 * through its group and through its character device. What is tested is what a
 * driver written in Rust has in between; no hardware is needed.
 *
 * Each test loads the module and removes it, so nobody else may use the device,
 * and no test may leave anything mapped.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/bits.h>
#include <linux/compiler.h>
#include <linux/limits.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

#define MODULE "rust_vfio_mem"
#define SYSFS_MODULE "/sys/module/" MODULE
#define SYSFS_DEVICE "/sys/bus/faux/devices/" MODULE

/* What the sample has */
#define MEMORY_SIZE SZ_4M
#define MEMORY_END ((off_t)MEMORY_SIZE)
#define NEXT_REGION BIT_ULL(40)

static u64 page_size;

static bool module_present(void)
{
	return !access(SYSFS_MODULE, F_OK);
}

static int module_load(bool place)
{
	char command[64];

	snprintf_assert(command, sizeof(command), "modprobe " MODULE " place=%d",
			place);
	return system(command);
}

/*
 * Start to unload the module, which may have to wait for this process: the
 * other one shares neither its mappings nor its descriptors.
 */
static pid_t module_unload_start(void)
{
	pid_t pid = fork();

	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		/* VFIO, which may be a module, too, is not to go with it. */
		execlp("rmmod", "rmmod", MODULE, NULL);
		_exit(127);
	}

	return pid;
}

static int module_unload_finish(pid_t pid)
{
	int status;

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	return status;
}

static int module_unload(void)
{
	return module_unload_finish(module_unload_start());
}

static void cdev_path(char *path, size_t size)
{
	struct dirent *entry;
	DIR *dir = opendir(SYSFS_DEVICE "/vfio-dev");

	VFIO_ASSERT_NOT_NULL(dir);
	do {
		entry = readdir(dir);
		VFIO_ASSERT_NOT_NULL(entry);
	} while (strncmp(entry->d_name, "vfio", 4));

	snprintf_assert(path, size, "/dev/vfio/devices/%.16s", entry->d_name);
	closedir(dir);
}

static void group_path(char *path, size_t size)
{
	char link[PATH_MAX] = {};

	VFIO_ASSERT_GT(readlink(SYSFS_DEVICE "/iommu_group", link, sizeof(link) - 1), 0);
	snprintf_assert(path, size, "/dev/vfio/%.16s", strrchr(link, '/') + 1);
}

/* As ioctl(), but what it returns instead of -1 is the negative error. */
static int dev_ioctl(int fd, unsigned long cmd, void *arg)
{
	int ret = ioctl(fd, cmd, arg);

	return ret < 0 ? -errno : ret;
}

static ssize_t dev_read(int fd, void *buf, size_t len, off_t offset)
{
	ssize_t ret = pread(fd, buf, len, offset);

	return ret < 0 ? -errno : ret;
}

static ssize_t dev_write(int fd, const void *buf, size_t len, off_t offset)
{
	ssize_t ret = pwrite(fd, buf, len, offset);

	return ret < 0 ? -errno : ret;
}

static void *dev_mmap(int fd, void *hint, size_t len, int flags, off_t offset)
{
	return mmap(hint, len, PROT_READ | PROT_WRITE, flags, fd, offset);
}

static int dev_mmap_error(int fd, size_t len, int flags, off_t offset)
{
	void *vaddr = dev_mmap(fd, NULL, len, flags, offset);

	if (vaddr == MAP_FAILED)
		return -errno;

	munmap(vaddr, len);
	return 0;
}

static int bind_iommufd(int fd, int iommufd)
{
	struct vfio_device_bind_iommufd args = {
		.argsz = sizeof(args),
		.iommufd = iommufd,
	};

	return dev_ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &args);
}

FIXTURE(vfio_rust_mem_test) {
	struct iommu *iommu;
	char group_path[32];
	char cdev_path[64];
	int group_fd;
	int fd;
};

FIXTURE_VARIANT(vfio_rust_mem_test) {
	const char *iommu_mode;
	bool place;
};

FIXTURE_VARIANT_ADD(vfio_rust_mem_test, group) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
	.place = true,
};

FIXTURE_VARIANT_ADD(vfio_rust_mem_test, group_no_place) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
	.place = false,
};

FIXTURE_VARIANT_ADD(vfio_rust_mem_test, cdev) {
	.iommu_mode = MODE_IOMMUFD,
	.place = true,
};

FIXTURE_VARIANT_ADD(vfio_rust_mem_test, cdev_no_place) {
	.iommu_mode = MODE_IOMMUFD,
	.place = false,
};

static int device_open(const struct iommu *iommu, int group_fd,
		       const char *cdev_path)
{
	int fd;

	if (iommu->mode->container_path)
		return ioctl(group_fd, VFIO_GROUP_GET_DEVICE_FD, MODULE);

	fd = open(cdev_path, O_RDWR | O_CLOEXEC);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(bind_iommufd(fd, iommu->iommufd), 0);
	return fd;
}

FIXTURE_SETUP(vfio_rust_mem_test)
{
	const struct iommu_mode *mode;

	self->fd = -1;
	self->group_fd = -1;

	ASSERT_EQ(module_load(variant->place), 0);
	cdev_path(self->cdev_path, sizeof(self->cdev_path));
	group_path(self->group_path, sizeof(self->group_path));

	self->iommu = iommu_init(variant->iommu_mode);
	mode = self->iommu->mode;
	if (mode->container_path) {
		self->group_fd = open(self->group_path, O_RDWR | O_CLOEXEC);
		ASSERT_GE(self->group_fd, 0);
		ioctl_assert(self->group_fd, VFIO_GROUP_SET_CONTAINER,
			     &self->iommu->container_fd);
		ioctl_assert(self->iommu->container_fd, VFIO_SET_IOMMU,
			     (void *)mode->iommu_type);
	}

	self->fd = device_open(self->iommu, self->group_fd, self->cdev_path);
	ASSERT_GE(self->fd, 0);
}

FIXTURE_TEARDOWN(vfio_rust_mem_test)
{
	if (self->fd >= 0)
		ASSERT_EQ(close(self->fd), 0);
	if (self->group_fd >= 0)
		ASSERT_EQ(close(self->group_fd), 0);
	iommu_cleanup(self->iommu);

	if (module_present())
		ASSERT_EQ(module_unload(), 0);
}

TEST_F(vfio_rust_mem_test, device_info)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };

	ASSERT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_INFO, &info), 0);
	EXPECT_EQ(info.flags, VFIO_DEVICE_FLAGS_RESET);
	EXPECT_EQ(info.num_regions, 1);
	EXPECT_EQ(info.num_irqs, 1);

	info.argsz = offsetof(struct vfio_device_info, cap_offset) - 1;
	EXPECT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_INFO, &info), -EINVAL);
	EXPECT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_INFO, NULL), -EFAULT);

	/* No ioctl of a device */
	EXPECT_EQ(dev_ioctl(self->fd, VFIO_IOMMU_GET_INFO, &info), -ENOTTY);
}

TEST_F(vfio_rust_mem_test, region_info)
{
	struct vfio_region_info info = { .argsz = sizeof(info) };

	ASSERT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_REGION_INFO, &info), 0);
	EXPECT_EQ(info.flags, VFIO_REGION_INFO_FLAG_READ |
			      VFIO_REGION_INFO_FLAG_WRITE |
			      VFIO_REGION_INFO_FLAG_MMAP);
	EXPECT_EQ(info.size, MEMORY_SIZE);
	EXPECT_EQ(info.offset, 0);

	info.argsz = sizeof(info) - 1;
	EXPECT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_REGION_INFO, &info), -EINVAL);

	info.argsz = sizeof(info);
	info.index = 1;
	EXPECT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_REGION_INFO, &info), -EINVAL);
	info.index = -1;
	EXPECT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_REGION_INFO, &info), -EINVAL);
}

TEST_F(vfio_rust_mem_test, read_write)
{
	u8 pattern[1024], data[1024];

	for (int i = 0; i < sizeof(pattern); i++)
		pattern[i] = i * 7 + i / 256;

	/* At the start, in the middle, and the last bytes */
	ASSERT_EQ(dev_write(self->fd, pattern, 1000, 0), 1000);
	ASSERT_EQ(dev_write(self->fd, pattern, 1, page_size - 1), 1);
	ASSERT_EQ(dev_write(self->fd, pattern, 1000, MEMORY_END - 1000), 1000);
	ASSERT_EQ(dev_read(self->fd, data, 1000, 0), 1000);
	EXPECT_EQ(memcmp(data, pattern, 1000), 0);
	ASSERT_EQ(dev_read(self->fd, data, 1000, MEMORY_END - 1000), 1000);
	EXPECT_EQ(memcmp(data, pattern, 1000), 0);

	/* Nothing around them has changed. */
	ASSERT_EQ(dev_read(self->fd, data, 1, 1000), 1);
	EXPECT_EQ(data[0], 0);
	ASSERT_EQ(dev_read(self->fd, data, 1, MEMORY_END - 1001), 1);
	EXPECT_EQ(data[0], 0);

	/* Across the end, at it, and behind */
	ASSERT_EQ(dev_write(self->fd, pattern, 1024, MEMORY_END - 3), 3);
	memset(data, 0xee, sizeof(data));
	ASSERT_EQ(dev_read(self->fd, data, 1024, MEMORY_END - 3), 3);
	EXPECT_EQ(memcmp(data, pattern, 3), 0);
	EXPECT_EQ(data[3], 0xee);
	EXPECT_EQ(dev_read(self->fd, data, 1, MEMORY_END), 0);
	EXPECT_EQ(dev_write(self->fd, data, 1, MEMORY_END), 0);
	EXPECT_EQ(dev_read(self->fd, data, 1, MEMORY_END + 1), -EINVAL);
	EXPECT_EQ(dev_write(self->fd, data, 1, MEMORY_END + 1), -EINVAL);

	/* A region that does not exist, and the largest offset there is */
	EXPECT_EQ(dev_read(self->fd, data, 1, NEXT_REGION), -EINVAL);
	EXPECT_EQ(dev_write(self->fd, data, 1, NEXT_REGION), -EINVAL);
	EXPECT_EQ(dev_read(self->fd, data, 1, LLONG_MAX), -EINVAL);

	EXPECT_EQ(dev_read(self->fd, data, 0, 0), 0);
	EXPECT_EQ(dev_read(self->fd, NULL, 1, 0), -EFAULT);
	EXPECT_EQ(dev_write(self->fd, NULL, 1, 0), -EFAULT);
}

TEST_F(vfio_rust_mem_test, map)
{
	off_t last = MEMORY_END - page_size;
	void *vaddr;
	u64 data;

	vaddr = dev_mmap(self->fd, NULL, MEMORY_SIZE, MAP_SHARED, 0);
	ASSERT_NE(vaddr, MAP_FAILED);

	/* The mapping is what read() and write() access. */
	data = 0x0123456789abcdef;
	ASSERT_EQ(dev_write(self->fd, &data, sizeof(data), last + 16), sizeof(data));
	EXPECT_EQ(READ_ONCE(*(u64 *)(vaddr + last + 16)), data);
	WRITE_ONCE(*(u64 *)vaddr, ~data);
	ASSERT_EQ(dev_read(self->fd, &data, sizeof(data), 0), sizeof(data));
	EXPECT_EQ(data, ~0x0123456789abcdef);
	ASSERT_EQ(munmap(vaddr, MEMORY_SIZE), 0);

	vaddr = dev_mmap(self->fd, NULL, page_size, MAP_SHARED, last);
	ASSERT_NE(vaddr, MAP_FAILED);
	EXPECT_EQ(READ_ONCE(*(u64 *)(vaddr + 16)), 0x0123456789abcdef);
	ASSERT_EQ(munmap(vaddr, page_size), 0);

	/* Not privately, and no more than there is */
	EXPECT_EQ(dev_mmap_error(self->fd, page_size, MAP_PRIVATE, 0), -EINVAL);
	EXPECT_EQ(dev_mmap_error(self->fd, 2 * page_size, MAP_SHARED, last), -EINVAL);
	EXPECT_EQ(dev_mmap_error(self->fd, 2 * MEMORY_SIZE, MAP_SHARED, 0), -EINVAL);
	EXPECT_EQ(dev_mmap_error(self->fd, page_size, MAP_SHARED, MEMORY_END), -EINVAL);
	EXPECT_EQ(dev_mmap_error(self->fd, page_size, MAP_SHARED, NEXT_REGION), -EINVAL);
	EXPECT_EQ(dev_mmap_error(self->fd, 1UL << 62, MAP_SHARED, 0), -ENOMEM);
}

/* The size of the leaf above a page, 0 if the kernel does not use it */
static u64 leaf_size(void)
{
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "r");
	u64 size;
	int ret;

	if (!f)
		return 0;
	ret = fscanf(f, "%lu", &size);
	VFIO_ASSERT_EQ(ret, 1);
	fclose(f);
	return size;
}

/*
 * With the driver's own placement, the address and the offset are congruent
 * modulo the leaf size if the mapping holds a whole leaf. Without it, the kernel
 * puts one mapping below the other.
 */
TEST_F(vfio_rust_mem_test, placement)
{
	u64 leaf = leaf_size();
	const struct {
		u64 offset;
		u64 len;
	} table[] = {
		{ 0, MEMORY_SIZE },
		{ 0, leaf },
		{ leaf, leaf },
		{ page_size, MEMORY_SIZE - page_size },
		{ leaf - page_size, leaf + page_size },
	};
	void *vaddr[ARRAY_SIZE(table)];
	int congruent = 0;

	if (!leaf || 2 * leaf > MEMORY_SIZE)
		SKIP(return, "No leaf fits into the memory");

	for (int i = 0; i < ARRAY_SIZE(table); i++) {
		/* What lies below this one is not aligned by accident. */
		ASSERT_NE(mmap(NULL, page_size, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), MAP_FAILED);
		vaddr[i] = dev_mmap(self->fd, NULL, table[i].len, MAP_SHARED,
				    table[i].offset);
		ASSERT_NE(vaddr[i], MAP_FAILED);
		congruent += (u64)vaddr[i] % leaf == table[i].offset % leaf;
	}

	EXPECT_EQ(congruent == ARRAY_SIZE(table), variant->place) {
		TH_LOG("%d of %zu are congruent", congruent, ARRAY_SIZE(table));
	}

	for (int i = 0; i < ARRAY_SIZE(table); i++) {
		ASSERT_EQ(munmap(vaddr[i], table[i].len), 0);
	}
}

/* What userspace says of the address goes before what the driver does. */
TEST_F(vfio_rust_mem_test, placement_asked_for)
{
	void *reserved, *hint, *vaddr;
	u64 len = MEMORY_SIZE;

	reserved = mmap_reserve(len + 2 * page_size, MEMORY_SIZE, page_size);
	ASSERT_EQ(munmap(reserved, len + 2 * page_size), 0);
	hint = reserved + page_size;

	ASSERT_EQ(dev_mmap(self->fd, hint, len, MAP_SHARED, 0), hint);
	ASSERT_EQ(dev_mmap(self->fd, hint, len, MAP_SHARED | MAP_FIXED, 0), hint);
	EXPECT_EQ(dev_mmap(self->fd, hint, len, MAP_SHARED | MAP_FIXED_NOREPLACE, 0),
		  MAP_FAILED);
	EXPECT_EQ(errno, EEXIST);

	vaddr = dev_mmap(self->fd, hint, len, MAP_SHARED, 0);
	ASSERT_NE(vaddr, MAP_FAILED);
	EXPECT_NE(vaddr, hint);
	ASSERT_EQ(munmap(vaddr, len), 0);
	ASSERT_EQ(munmap(hint, len), 0);
}

static int set_irqs(int fd, u32 flags, u32 index, u32 count, const void *data,
		    size_t size)
{
	u32 buf[(sizeof(struct vfio_irq_set) + 16) / sizeof(u32)] = {};
	struct vfio_irq_set *set = (void *)buf;

	VFIO_ASSERT_LE(size, 16);
	set->argsz = sizeof(*set) + size;
	set->flags = flags;
	set->index = index;
	set->count = count;
	if (size)
		memcpy(set->data, data, size);

	return dev_ioctl(fd, VFIO_DEVICE_SET_IRQS, set);
}

static int set_doorbell(int fd, int eventfd)
{
	return set_irqs(fd, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
			0, 1, &eventfd, sizeof(eventfd));
}

static int ring(int fd)
{
	return set_irqs(fd, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
			0, 1, NULL, 0);
}

static int ring_if(int fd, u8 yes)
{
	return set_irqs(fd, VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_ACTION_TRIGGER,
			0, 1, &yes, sizeof(yes));
}

/* How often has it rung since this was called last? */
static u64 rings(int eventfd)
{
	u64 count;

	if (read(eventfd, &count, sizeof(count)) == sizeof(count))
		return count;

	VFIO_ASSERT_EQ(errno, EAGAIN);
	return 0;
}

TEST_F(vfio_rust_mem_test, irq_info)
{
	struct vfio_irq_info info = { .argsz = sizeof(info) };

	ASSERT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_IRQ_INFO, &info), 0);
	EXPECT_EQ(info.flags, VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE);
	EXPECT_EQ(info.count, 1);

	info.argsz = sizeof(info) - 1;
	EXPECT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_IRQ_INFO, &info), -EINVAL);
	info.argsz = sizeof(info);
	info.index = 1;
	EXPECT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_GET_IRQ_INFO, &info), -EINVAL);
}

TEST_F(vfio_rust_mem_test, irq)
{
	int first = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	int second = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	ASSERT_GE(first, 0);
	ASSERT_GE(second, 0);

	/* Nobody listens. */
	EXPECT_EQ(ring(self->fd), 0);

	ASSERT_EQ(set_doorbell(self->fd, first), 0);
	EXPECT_EQ(rings(first), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(first), 2);
	EXPECT_EQ(ring_if(self->fd, 0), 0);
	EXPECT_EQ(rings(first), 0);
	EXPECT_EQ(ring_if(self->fd, 1), 0);
	EXPECT_EQ(rings(first), 1);

	/* Another one instead */
	ASSERT_EQ(set_doorbell(self->fd, second), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(first), 0);
	EXPECT_EQ(rings(second), 1);

	/* None, by either way to say so */
	ASSERT_EQ(set_doorbell(self->fd, -1), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(second), 0);
	ASSERT_EQ(set_doorbell(self->fd, second), 0);
	ASSERT_EQ(set_irqs(self->fd, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
			   0, 0, NULL, 0), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(second), 0);
}

static int mask_by(int fd, u32 action, int eventfd)
{
	return set_irqs(fd, VFIO_IRQ_SET_DATA_EVENTFD | action, 0, 1, &eventfd,
			sizeof(eventfd));
}

TEST_F(vfio_rust_mem_test, irq_mask)
{
	const u32 mask = VFIO_IRQ_SET_ACTION_MASK;
	const u32 unmask = VFIO_IRQ_SET_ACTION_UNMASK;
	int doorbell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	int masks = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	int unmasks = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	ASSERT_GE(doorbell, 0);
	ASSERT_GE(masks, 0);
	ASSERT_GE(unmasks, 0);
	ASSERT_EQ(set_doorbell(self->fd, doorbell), 0);

	/* What rings while it is masked does so later, once. */
	ASSERT_EQ(set_irqs(self->fd, VFIO_IRQ_SET_DATA_NONE | mask, 0, 1, NULL, 0), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(doorbell), 0);
	ASSERT_EQ(set_irqs(self->fd, VFIO_IRQ_SET_DATA_NONE | unmask, 0, 1, NULL, 0), 0);
	EXPECT_EQ(rings(doorbell), 1);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(doorbell), 1);

	/* By eventfds. To take one away waits until it has done its work. */
	ASSERT_EQ(mask_by(self->fd, mask, masks), 0);
	ASSERT_EQ(mask_by(self->fd, unmask, unmasks), 0);
	EXPECT_EQ(mask_by(self->fd, mask, unmasks), -EBUSY);
	ASSERT_EQ(eventfd_write(masks, 1), 0);
	ASSERT_EQ(mask_by(self->fd, mask, -1), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(doorbell), 0);
	ASSERT_EQ(eventfd_write(unmasks, 1), 0);
	ASSERT_EQ(mask_by(self->fd, unmask, -1), 0);
	EXPECT_EQ(rings(doorbell), 1);

	/* Neither does anything any more. */
	ASSERT_EQ(eventfd_write(masks, 1), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(doorbell), 1);
	EXPECT_EQ(rings(masks), 1);

	/* What is not an eventfd */
	EXPECT_EQ(mask_by(self->fd, mask, 1 << 20), -EBADF);
	EXPECT_EQ(mask_by(self->fd, mask, self->fd), -EINVAL);

	/* One that is closed while it is set up */
	ASSERT_EQ(mask_by(self->fd, mask, masks), 0);
	close(doorbell);
	close(masks);
	close(unmasks);
}

TEST_F(vfio_rust_mem_test, irq_errors)
{
	const u32 trigger = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
	const u32 nothing = VFIO_IRQ_SET_DATA_NONE;
	const u32 eventfds = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	int doorbell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	ASSERT_GE(doorbell, 0);
	ASSERT_EQ(set_doorbell(self->fd, doorbell), 0);

	/* No descriptor, and that of something else */
	EXPECT_EQ(set_doorbell(self->fd, 1 << 20), -EBADF);
	EXPECT_EQ(set_doorbell(self->fd, self->fd), -EINVAL);

	/* More than there are, another index, no action, too few data */
	EXPECT_EQ(set_irqs(self->fd, trigger, 0, 2, NULL, 0), -EINVAL);
	EXPECT_EQ(set_irqs(self->fd, trigger, 0, -1, NULL, 0), -EINVAL);
	EXPECT_EQ(set_irqs(self->fd, trigger, 1, 1, NULL, 0), -EINVAL);
	EXPECT_EQ(set_irqs(self->fd, nothing, 0, 1, NULL, 0), -EINVAL);
	EXPECT_EQ(set_irqs(self->fd, eventfds, 0, 1, NULL, 0), -EINVAL);
	EXPECT_EQ(set_irqs(self->fd, eventfds, 0, 1, &doorbell, 3), -EINVAL);

	/* What was refused has changed nothing. */
	EXPECT_EQ(rings(doorbell), 0);
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(doorbell), 1);
}

TEST_F(vfio_rust_mem_test, reset)
{
	int doorbell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	void *vaddr;

	vaddr = dev_mmap(self->fd, NULL, MEMORY_SIZE, MAP_SHARED, 0);
	ASSERT_NE(vaddr, MAP_FAILED);
	memset(vaddr, 0xaa, MEMORY_SIZE);
	ASSERT_GE(doorbell, 0);
	ASSERT_EQ(set_doorbell(self->fd, doorbell), 0);

	ASSERT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_RESET, NULL), 0);

	for (u64 i = 0; i < MEMORY_SIZE; i += sizeof(u64)) {
		ASSERT_EQ(READ_ONCE(*(u64 *)(vaddr + i)), 0);
	}
	EXPECT_EQ(ring(self->fd), 0);
	EXPECT_EQ(rings(doorbell), 0);
	ASSERT_EQ(munmap(vaddr, MEMORY_SIZE), 0);
}

/* The next user does not find what the last one has left. */
TEST_F(vfio_rust_mem_test, reopen)
{
	u64 data = 0x1234;

	ASSERT_EQ(dev_write(self->fd, &data, sizeof(data), page_size), sizeof(data));
	ASSERT_EQ(close(self->fd), 0);
	self->fd = device_open(self->iommu, self->group_fd, self->cdev_path);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(dev_read(self->fd, &data, sizeof(data), page_size), sizeof(data));
	EXPECT_EQ(data, 0);
}

/* The group hands out any number of descriptors, the character device one. */
TEST_F(vfio_rust_mem_test, open_twice)
{
	u64 data = 0x1234;
	int other;

	ASSERT_EQ(dev_write(self->fd, &data, sizeof(data), 0), sizeof(data));

	other = open(self->cdev_path, O_RDWR | O_CLOEXEC);
	ASSERT_GE(other, 0);

	if (!self->iommu->mode->container_path) {
		EXPECT_EQ(bind_iommufd(other, self->iommu->iommufd), -EINVAL);
		EXPECT_EQ(dev_read(other, &data, sizeof(data), 0), -EINVAL);
		EXPECT_EQ(open(self->group_path, O_RDWR), -1);
		EXPECT_EQ(errno, EBUSY);
		ASSERT_EQ(close(other), 0);

		/* That did not take the device away. */
		ASSERT_EQ(dev_read(self->fd, &data, sizeof(data), 0), sizeof(data));
		EXPECT_EQ(data, 0x1234);
		return;
	}

	/* With the group in use, there is no way round it. */
	self->iommu->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->iommu->iommufd, 0);
	EXPECT_EQ(bind_iommufd(other, self->iommu->iommufd), -EBUSY);
	ASSERT_EQ(close(self->iommu->iommufd), 0);
	self->iommu->iommufd = 0;
	ASSERT_EQ(close(other), 0);
	EXPECT_EQ(open(self->group_path, O_RDWR), -1);
	EXPECT_EQ(errno, EBUSY);

	other = self->fd;
	self->fd = device_open(self->iommu, self->group_fd, self->cdev_path);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(dev_read(self->fd, &data, sizeof(data), 0), sizeof(data));
	EXPECT_EQ(data, 0x1234);

	/* It stays open until the last of them is closed. */
	ASSERT_EQ(close(other), 0);
	ASSERT_EQ(dev_read(self->fd, &data, sizeof(data), 0), sizeof(data));
	EXPECT_EQ(data, 0x1234);
	EXPECT_LT(ioctl(self->group_fd, VFIO_GROUP_GET_DEVICE_FD, "nobody"), 0);
	EXPECT_EQ(errno, ENODEV);
}

/* Unloading fails while the device is open, and changes nothing. */
static void unload_fails(struct __test_metadata *_metadata, const char *cdev_path)
{
	EXPECT_NE(module_unload(), 0);
	EXPECT_TRUE(module_present());
	EXPECT_EQ(access(cdev_path, F_OK), 0);
	EXPECT_EQ(access(SYSFS_DEVICE "/vfio-dev", F_OK), 0);
}

TEST_F(vfio_rust_mem_test, unload_while_open)
{
	u64 data = 0x1234;

	ASSERT_EQ(dev_write(self->fd, &data, sizeof(data), 0), sizeof(data));
	unload_fails(_metadata, self->cdev_path);

	ASSERT_EQ(dev_read(self->fd, &data, sizeof(data), 0), sizeof(data));
	EXPECT_EQ(data, 0x1234);
	EXPECT_EQ(dev_mmap_error(self->fd, MEMORY_SIZE, MAP_SHARED, 0), 0);
	EXPECT_EQ(dev_ioctl(self->fd, VFIO_DEVICE_RESET, NULL), 0);

	ASSERT_EQ(close(self->fd), 0);
	self->fd = -1;
	EXPECT_EQ(module_unload(), 0);
	EXPECT_FALSE(module_present());
}

/* A mapping keeps the device open, whose descriptor is closed. */
TEST_F(vfio_rust_mem_test, unload_while_mapped)
{
	u8 *vaddr;

	vaddr = dev_mmap(self->fd, NULL, MEMORY_SIZE, MAP_SHARED, 0);
	ASSERT_NE(vaddr, MAP_FAILED);
	memset(vaddr, 0xaa, MEMORY_SIZE);
	ASSERT_EQ(close(self->fd), 0);
	self->fd = -1;

	unload_fails(_metadata, self->cdev_path);

	for (u64 i = 0; i < MEMORY_SIZE; i += page_size) {
		ASSERT_EQ(READ_ONCE(vaddr[i]), 0xaa);
		WRITE_ONCE(vaddr[i], i / page_size);
	}

	ASSERT_EQ(munmap(vaddr, MEMORY_SIZE), 0);
	EXPECT_EQ(module_unload(), 0);
	EXPECT_FALSE(module_present());
}

/*
 * A descriptor that is not bound has not opened the device. Unloading takes the
 * device out of sight, and then waits for the descriptor.
 */
TEST_F(vfio_rust_mem_test, unload_while_unbound)
{
	struct pollfd ended = { .events = POLLIN };
	pid_t pid;
	int fd;

	ASSERT_EQ(close(self->fd), 0);
	self->fd = -1;
	fd = open(self->cdev_path, O_RDWR | O_CLOEXEC);
	ASSERT_GE(fd, 0);

	pid = module_unload_start();
	ended.fd = syscall(SYS_pidfd_open, pid, 0);
	ASSERT_GE(ended.fd, 0);

	while (!access(self->cdev_path, F_OK))
		ASSERT_EQ(poll(&ended, 1, 1), 0);
	if (self->group_fd >= 0) {
		EXPECT_LT(ioctl(self->group_fd, VFIO_GROUP_GET_DEVICE_FD, MODULE), 0);
		EXPECT_EQ(errno, ENODEV);
	}

	/* It has done all but the waiting by now, and would end. */
	EXPECT_EQ(poll(&ended, 1, 300), 0);
	EXPECT_TRUE(module_present());
	ASSERT_EQ(close(ended.fd), 0);

	ASSERT_EQ(close(fd), 0);
	EXPECT_EQ(module_unload_finish(pid), 0);
	EXPECT_FALSE(module_present());
}

FIXTURE(vfio_rust_mem_module) {
};

FIXTURE_SETUP(vfio_rust_mem_module)
{
}

FIXTURE_TEARDOWN(vfio_rust_mem_module)
{
}

/* An emulated processor takes its time. */
TEST_F_TIMEOUT(vfio_rust_mem_module, load_and_unload, 120)
{
	for (int i = 0; i < 100; i++) {
		ASSERT_EQ(module_load(true), 0);
		ASSERT_EQ(access(SYSFS_DEVICE "/vfio-dev", F_OK), 0);
		ASSERT_EQ(module_unload(), 0);
		ASSERT_NE(access(SYSFS_DEVICE, F_OK), 0);
	}
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();

	if (module_load(true))
		ksft_exit_skip("modprobe cannot load " MODULE "\n");
	if (access(SYSFS_MODULE "/initstate", F_OK))
		ksft_exit_skip(MODULE " is built in and cannot be unloaded\n");
	/* If this fails, so does every test. */
	module_unload();

	return test_harness_run(argc, argv);
}
