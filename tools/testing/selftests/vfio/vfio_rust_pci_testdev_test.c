// SPDX-License-Identifier: GPL-2.0-only
/*
 * The sample driver rust_vfio_pci_testdev on the device that it is for, QEMU's
 * pci-testdev: what the driver changes of a PCI device, which is some bytes of
 * the configuration space, and what it adds, which is a region with memory, the
 * notebook, and an interrupt for when that is cleared. All else is to be as with
 * vfio-pci.
 *
 * The device is taken from the driver that it has, and given back in the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/limits.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

#define DRIVER "rust_vfio_pci_testdev"
#define ALIAS "alias vfio_pci:v00001B36d00000005sv*sd*bc*sc*i* " DRIVER "\n"

/* The notebook */
#define REGION VFIO_PCI_NUM_REGIONS
#define SIZE SZ_2M
#define VENDOR 0x1b36
#define SUBTYPE 1

/* The interrupt of the notebook */
#define CLEARED VFIO_PCI_NUM_IRQS

/* What the device's subsystem seems to be */
static const u8 subsystem[] = { 0x36, 0x1b, 0x52, 0x53 };

static const char *device_bdf;
static u64 page_size;

static int write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, value, strlen(value)) < 0)
		ret = -errno;
	close(fd);

	return ret;
}

static void device_path(char *path, const char *attr)
{
	snprintf_assert(path, PATH_MAX, "/sys/bus/pci/devices/%s/%s",
			device_bdf, attr);
}

/* Reads a file of the device and returns its length. */
static size_t device_read(const char *attr, void *buf, size_t size)
{
	char path[PATH_MAX];
	size_t ret;
	FILE *f;

	device_path(path, attr);
	f = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(f, "Failed to open %s\n", path);
	ret = fread(buf, 1, size, f);
	fclose(f);

	return ret;
}

static int device_write(const char *attr, const char *value)
{
	char path[PATH_MAX];

	device_path(path, attr);

	return write_file(path, value);
}

static bool bound_to(const char *driver)
{
	char *current = sysfs_driver_get(device_bdf);
	bool ret = driver && current ? !strcmp(driver, current) : driver == current;

	free(current);

	return ret;
}

/* Lets the kernel look for a driver again, of which @override is the only one. */
static void rebind(const char *override)
{
	if (!bound_to(NULL))
		VFIO_ASSERT_EQ(device_write("driver/unbind", device_bdf), 0);
	VFIO_ASSERT_EQ(device_write("driver_override", override), 0);
	VFIO_ASSERT_EQ(write_file("/sys/bus/pci/drivers_probe", device_bdf), 0);
}

FIXTURE(vfio_rust_pci_testdev_test) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int fd;
	off_t notebook;
};

FIXTURE_VARIANT(vfio_rust_pci_testdev_test) {
	const char *iommu_mode;
};

/* Both interfaces that hand out a device file: the group and the cdev. */
FIXTURE_VARIANT_ADD(vfio_rust_pci_testdev_test, vfio_type1v2_iommu) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_VARIANT_ADD(vfio_rust_pci_testdev_test, iommufd) {
	.iommu_mode = MODE_IOMMUFD,
};

static int region_info(int fd, struct vfio_region_info *info, u32 index, u32 size)
{
	info->argsz = size;
	info->index = index;

	return ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, info) ? -errno : 0;
}

FIXTURE_SETUP(vfio_rust_pci_testdev_test)
{
	struct vfio_region_info info;

	self->iommu = iommu_init(variant->iommu_mode);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	self->fd = self->device->fd;
	ASSERT_EQ(region_info(self->fd, &info, REGION, sizeof(info)), 0);
	self->notebook = info.offset;
}

FIXTURE_TEARDOWN(vfio_rust_pci_testdev_test)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

static ssize_t fd_read(int fd, void *buf, size_t len, off_t offset)
{
	ssize_t ret = pread(fd, buf, len, offset);

	return ret < 0 ? -errno : ret;
}

static ssize_t fd_write(int fd, const void *buf, size_t len, off_t offset)
{
	ssize_t ret = pwrite(fd, buf, len, offset);

	return ret < 0 ? -errno : ret;
}

static void *fd_mmap(int fd, u64 len, int flags, off_t offset)
{
	return mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, offset);
}

static int fd_mmap_error(int fd, u64 len, int flags, off_t offset)
{
	void *vaddr = fd_mmap(fd, len, flags, offset);

	if (vaddr == MAP_FAILED)
		return -errno;

	VFIO_ASSERT_EQ(munmap(vaddr, len), 0);
	return 0;
}

/* Whatever part of it is read, the subsystem is patched and nothing else. */
TEST_F(vfio_rust_pci_testdev_test, config_space)
{
	u8 expected[PCI_CFG_SPACE_SIZE], data[PCI_STD_HEADER_SIZEOF + 1];
	u64 offset = self->device->config_space.offset;

	ASSERT_EQ(device_read("config", expected, sizeof(expected)), sizeof(expected));
	ASSERT_NE(memcmp(expected + PCI_SUBSYSTEM_VENDOR_ID, subsystem, sizeof(subsystem)), 0);
	memcpy(expected + PCI_SUBSYSTEM_VENDOR_ID, subsystem, sizeof(subsystem));

	for (int i = 0; i < PCI_STD_HEADER_SIZEOF; i++) {
		for (int len = 1; len <= PCI_STD_HEADER_SIZEOF - i; len++) {
			memset(data, 0xee, sizeof(data));
			ASSERT_EQ(fd_read(self->fd, data, len, offset + i), len);
			ASSERT_EQ(memcmp(data, expected + i, len), 0) {
				TH_LOG("%d bytes at %#x", len, i);
			}
			ASSERT_EQ(data[len], 0xee);
		}
	}
}

TEST_F(vfio_rust_pci_testdev_test, config_space_errors)
{
	u64 offset = self->device->config_space.offset;
	u32 ones = -1, id;

	/* It is not for userspace to change. */
	EXPECT_EQ(fd_write(self->fd, &ones, sizeof(ones), offset + PCI_SUBSYSTEM_VENDOR_ID),
		  sizeof(ones));
	id = vfio_pci_config_readl(self->device, PCI_SUBSYSTEM_VENDOR_ID);
	EXPECT_EQ(memcmp(&id, subsystem, sizeof(subsystem)), 0);

	/* What vfio-pci answers to a bad buffer, and behind the end */
	EXPECT_EQ(fd_read(self->fd, NULL, 4, offset + PCI_SUBSYSTEM_VENDOR_ID), -EFAULT);
	EXPECT_EQ(fd_read(self->fd, &id, 4, offset + self->device->config_space.size), -EFAULT);
	EXPECT_EQ(fd_read(self->fd, &id, 0, offset + PCI_SUBSYSTEM_VENDOR_ID), 0);
}

TEST_F(vfio_rust_pci_testdev_test, region_info)
{
	struct vfio_region_info_cap_type *type;
	struct vfio_region_info *info;
	u64 buf[16] = {};

	info = (void *)buf;
	EXPECT_EQ(self->device->info.num_regions, REGION + 1);

	ASSERT_EQ(region_info(self->fd, info, REGION, sizeof(buf)), 0);
	EXPECT_EQ(info->flags, VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE |
			       VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS);
	EXPECT_EQ(info->size, SIZE);
	ASSERT_GE(info->cap_offset, sizeof(*info));
	ASSERT_LE(info->cap_offset + sizeof(*type), sizeof(buf));

	type = (void *)buf + info->cap_offset;
	EXPECT_EQ(type->header.id, VFIO_REGION_INFO_CAP_TYPE);
	EXPECT_EQ(type->header.version, 1);
	EXPECT_EQ(type->header.next, 0);
	EXPECT_EQ(type->type, VFIO_REGION_TYPE_PCI_VENDOR_TYPE | VENDOR);
	EXPECT_EQ(type->subtype, SUBTYPE);

	/* With no room for the capability there is none, but it is said how much it needs. */
	ASSERT_EQ(region_info(self->fd, info, REGION, sizeof(*info)), 0);
	EXPECT_EQ(info->argsz, sizeof(*info) + sizeof(*type));
	EXPECT_EQ(info->cap_offset, 0);

	EXPECT_EQ(region_info(self->fd, info, REGION + 1, sizeof(buf)), -EINVAL);
	EXPECT_EQ(region_info(self->fd, info, -1, sizeof(buf)), -EINVAL);
}

TEST_F(vfio_rust_pci_testdev_test, notebook_read_write)
{
	off_t start = self->notebook, end = start + SIZE;
	u8 pattern[1024], data[1024];

	for (int i = 0; i < sizeof(pattern); i++)
		pattern[i] = i * 5 + i / 256;

	/* At both ends, of odd lengths, and nothing else changes. */
	ASSERT_EQ(fd_write(self->fd, pattern, 999, start), 999);
	ASSERT_EQ(fd_write(self->fd, pattern, 999, end - 999), 999);
	ASSERT_EQ(fd_read(self->fd, data, 1000, start), 1000);
	EXPECT_EQ(memcmp(data, pattern, 999), 0);
	EXPECT_EQ(data[999], 0);
	ASSERT_EQ(fd_read(self->fd, data, 1000, end - 1000), 1000);
	EXPECT_EQ(data[0], 0);
	EXPECT_EQ(memcmp(data + 1, pattern, 999), 0);

	/* Across the end, at it, and behind */
	ASSERT_EQ(fd_write(self->fd, pattern, 1024, end - 3), 3);
	memset(data, 0xee, sizeof(data));
	ASSERT_EQ(fd_read(self->fd, data, 1024, end - 3), 3);
	EXPECT_EQ(memcmp(data, pattern, 3), 0);
	EXPECT_EQ(data[3], 0xee);
	EXPECT_EQ(fd_read(self->fd, data, 1, end), 0);
	EXPECT_EQ(fd_write(self->fd, data, 1, end), 0);
	EXPECT_EQ(fd_read(self->fd, data, 1, end + 1), -EINVAL);
	EXPECT_EQ(fd_write(self->fd, data, 1, end + 1), -EINVAL);

	/* The offsets of the next region, which does not exist */
	EXPECT_EQ(fd_read(self->fd, data, 1, start + (start / REGION)), -EINVAL);
	EXPECT_EQ(fd_write(self->fd, data, 1, start + (start / REGION)), -EINVAL);

	EXPECT_EQ(fd_read(self->fd, data, 0, start), 0);
	EXPECT_EQ(fd_read(self->fd, NULL, 1, start), -EFAULT);
	EXPECT_EQ(fd_write(self->fd, NULL, 1, start), -EFAULT);
}

TEST_F(vfio_rust_pci_testdev_test, notebook_map)
{
	off_t start = self->notebook, last = start + SIZE - page_size;
	u64 data = 0x0123456789abcdef;
	void *vaddr;

	vaddr = fd_mmap(self->fd, SIZE, MAP_SHARED, start);
	ASSERT_NE(vaddr, MAP_FAILED);

	/* The mapping is what read() and write() access. */
	ASSERT_EQ(fd_write(self->fd, &data, sizeof(data), last + 16), sizeof(data));
	EXPECT_EQ(READ_ONCE(*(u64 *)(vaddr + SIZE - page_size + 16)), data);
	WRITE_ONCE(*(u64 *)vaddr, ~data);
	ASSERT_EQ(fd_read(self->fd, &data, sizeof(data), start), sizeof(data));
	EXPECT_EQ(data, ~0x0123456789abcdef);
	ASSERT_EQ(munmap(vaddr, SIZE), 0);

	vaddr = fd_mmap(self->fd, page_size, MAP_SHARED, last);
	ASSERT_NE(vaddr, MAP_FAILED);
	EXPECT_EQ(READ_ONCE(*(u64 *)(vaddr + 16)), 0x0123456789abcdef);
	ASSERT_EQ(munmap(vaddr, page_size), 0);

	/* Not privately, and no more than there is */
	EXPECT_EQ(fd_mmap_error(self->fd, SIZE, MAP_PRIVATE, start), -EINVAL);
	EXPECT_EQ(fd_mmap_error(self->fd, 2 * page_size, MAP_SHARED, last), -EINVAL);
	EXPECT_EQ(fd_mmap_error(self->fd, 2 * SIZE, MAP_SHARED, start), -EINVAL);
	EXPECT_EQ(fd_mmap_error(self->fd, page_size, MAP_SHARED, start + SIZE), -EINVAL);
	EXPECT_EQ(fd_mmap_error(self->fd, page_size, MAP_SHARED, start + (start / REGION)),
		  -EINVAL);
	EXPECT_EQ(fd_mmap_error(self->fd, 1UL << 62, MAP_SHARED, start), -ENOMEM);
}

/*
 * Takes a place where so much would be aligned by accident, below or between what
 * is aligned, so that the next one is not.
 */
static void misalign(u64 len)
{
	VFIO_ASSERT_NE(mmap(NULL, len + page_size, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), MAP_FAILED);
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

/* By the driver: at a multiple of the leaf size, as the offset of the notebook is. */
TEST_F(vfio_rust_pci_testdev_test, notebook_placement)
{
	u64 leaf = leaf_size();
	void *vaddr;

	if (leaf != SIZE)
		SKIP(return, "The notebook is not a leaf");

	for (int i = 0; i < 16; i++) {
		misalign(SIZE);
		vaddr = fd_mmap(self->fd, SIZE, MAP_SHARED, self->notebook);
		ASSERT_NE(vaddr, MAP_FAILED);
		EXPECT_EQ((u64)vaddr % leaf, 0);
	}

	/* MAP_FIXED is never moved. */
	EXPECT_EQ(mmap(vaddr + page_size, SIZE, PROT_READ, MAP_SHARED | MAP_FIXED,
		       self->fd, self->notebook), vaddr + page_size);
}

/* The address of a BAR on the bus */
static u64 bar_phys(int index)
{
	u64 start = 0;
	char buf[4096];
	char *line = buf;

	buf[device_read("resource", buf, sizeof(buf) - 1)] = '\0';
	for (int i = 0; i <= index; i++) {
		start = strtoul(line, NULL, 16);
		line = strchr(line, '\n') + 1;
	}

	return start;
}

static u64 nr_faults(void)
{
	struct rusage usage;

	VFIO_ASSERT_EQ(getrusage(RUSAGE_SELF, &usage), 0);

	return usage.ru_minflt + usage.ru_majflt;
}

/* By vfio-pci-core, which the driver lets do it: by the BAR's physical address. */
TEST_F(vfio_rust_pci_testdev_test, bar_placement)
{
	u64 leaf = leaf_size(), len = 0, offset, before, faults;
	int index = 0;
	void *vaddr;

	if (!leaf)
		SKIP(return, "The kernel has no leaf larger than a page");

	for (int i = 0; i < PCI_STD_NUM_BARS; i++) {
		const struct vfio_region_info *info = &self->device->bars[i].info;

		if ((info->flags & VFIO_REGION_INFO_FLAG_MMAP) && info->size > len) {
			index = i;
			len = info->size;
			offset = info->offset;
		}
	}
#ifdef __x86_64__
	/* The only one of our architectures that maps pfns with a PUD leaf */
	if (len >= leaf * (page_size / sizeof(u64)))
		leaf *= page_size / sizeof(u64);
#endif
	if (len < leaf)
		SKIP(return, "No BAR holds a leaf: QEMU makes one with membar=2G");

	misalign(len);
	vaddr = fd_mmap(self->fd, len, MAP_SHARED, offset);
	ASSERT_NE(vaddr, MAP_FAILED);
	EXPECT_EQ((u64)vaddr % leaf, bar_phys(index) % leaf);

	/* The first call pays for the faults of the libc code itself. */
	nr_faults();
	before = nr_faults();
	for (u64 i = 0; i < len; i += page_size)
		(void)READ_ONCE(*(u32 *)(vaddr + i));
	faults = nr_faults() - before;
	EXPECT_EQ(faults, len / leaf);
	ASSERT_EQ(munmap(vaddr, len), 0);
}

/* Exports a range of a BAR, and returns the dma-buf or a negative errno. */
static int export(int fd, u32 index, u64 offset, u64 length)
{
	u64 buf[(sizeof(struct vfio_device_feature) +
		 sizeof(struct vfio_device_feature_dma_buf) +
		 sizeof(struct vfio_region_dma_range)) / sizeof(u64)] = {};
	struct vfio_device_feature *feature = (void *)buf;
	struct vfio_device_feature_dma_buf *dma_buf = (void *)feature->data;
	int ret;

	feature->argsz = sizeof(buf);
	feature->flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
	dma_buf->region_index = index;
	dma_buf->open_flags = O_RDWR | O_CLOEXEC;
	dma_buf->nr_ranges = 1;
	dma_buf->dma_ranges[0].offset = offset;
	dma_buf->dma_ranges[0].length = length;
	ret = ioctl(fd, VFIO_DEVICE_FEATURE, feature);

	return ret < 0 ? -errno : ret;
}

/* By the driver: the first half of the memory, and no registers */
TEST_F(vfio_rust_pci_testdev_test, dma_buf)
{
	u64 half = self->device->bars[2].info.size / 2;
	int ret;

	ret = export(self->fd, 0, 0, page_size);
	if (ret == -ENOTTY)
		SKIP(return, "The kernel exports no dma-bufs");
	EXPECT_EQ(ret, -EACCES);
	if (half < 2 * page_size)
		SKIP(return, "There is no memory: QEMU makes some with membar=2G");

	ret = export(self->fd, 2, 0, half);
	ASSERT_GE(ret, 0);
	EXPECT_EQ(lseek(ret, 0, SEEK_END), half);
	close(ret);
	ret = export(self->fd, 2, half - page_size, page_size);
	ASSERT_GE(ret, 0);
	close(ret);

	EXPECT_EQ(export(self->fd, 2, half, page_size), -EINVAL);
	EXPECT_EQ(export(self->fd, 2, half - page_size, 2 * page_size), -EINVAL);
	EXPECT_EQ(export(self->fd, 2, 0, 2 * half), -EINVAL);
	EXPECT_EQ(export(self->fd, 2, -page_size, page_size), -EOVERFLOW);
}

TEST_F(vfio_rust_pci_testdev_test, reset)
{
	u8 *vaddr = fd_mmap(self->fd, SIZE, MAP_SHARED, self->notebook);
	struct vfio_device_info info = { .argsz = sizeof(info) };
	u8 test = 1;
	u32 id;

	ASSERT_EQ(ioctl(self->fd, VFIO_DEVICE_GET_INFO, &info), 0);
	EXPECT_EQ(info.flags, VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET);
	EXPECT_EQ(info.num_regions, VFIO_PCI_NUM_REGIONS + 1);
	EXPECT_EQ(info.num_irqs, VFIO_PCI_NUM_IRQS + 1);

	ASSERT_NE(vaddr, MAP_FAILED);
	memset(vaddr, 0xaa, SIZE);
	/* The first register of BAR 0 selects a test, and then says which one it is. */
	ASSERT_EQ(pwrite(self->fd, &test, sizeof(test), 0), sizeof(test));
	ASSERT_EQ(pread(self->fd, &test, sizeof(test), 0), sizeof(test));
	ASSERT_EQ(test, 1);
	ASSERT_EQ(ioctl(self->fd, VFIO_DEVICE_RESET, NULL), 0);
	ASSERT_EQ(pread(self->fd, &test, sizeof(test), 0), sizeof(test));
	EXPECT_EQ(test, 0);

	for (u64 i = 0; i < SIZE; i += sizeof(u64)) {
		ASSERT_EQ(READ_ONCE(*(u64 *)(vaddr + i)), 0) {
			TH_LOG("At %#lx", i);
		}
	}
	id = vfio_pci_config_readl(self->device, PCI_SUBSYSTEM_VENDOR_ID);
	EXPECT_EQ(memcmp(&id, subsystem, sizeof(subsystem)), 0);
	ASSERT_EQ(munmap(vaddr, SIZE), 0);
}

static int irq_info(int fd, u32 index, struct vfio_irq_info *info)
{
	info->argsz = sizeof(*info);
	info->index = index;

	return ioctl(fd, VFIO_DEVICE_GET_IRQ_INFO, info) ? -errno : 0;
}

static int set_irq(int fd, u32 index, u32 flags, u32 count, int eventfd)
{
	u32 buf[(sizeof(struct vfio_irq_set) + sizeof(eventfd)) / sizeof(u32)] = {};
	struct vfio_irq_set *set = (void *)buf;

	set->argsz = sizeof(buf);
	set->flags = flags;
	set->index = index;
	set->count = count;
	memcpy(set->data, &eventfd, sizeof(eventfd));

	return ioctl(fd, VFIO_DEVICE_SET_IRQS, set) ? -errno : 0;
}

/* How often the eventfd has been signalled */
static u64 signals(int eventfd)
{
	u64 count = 0;

	VFIO_ASSERT_TRUE(read(eventfd, &count, sizeof(count)) > 0 || errno == EAGAIN);
	return count;
}

/* vfio-pci-core's are those of the device, and the driver's own follows. */
TEST_F(vfio_rust_pci_testdev_test, irq_info)
{
	u8 pin = vfio_pci_config_readb(self->device, PCI_INTERRUPT_PIN);
	u16 status = vfio_pci_config_readw(self->device, PCI_STATUS);
	struct vfio_irq_info info;
	u32 i;

	/* It has neither MSI nor MSI-X. */
	ASSERT_FALSE(status & PCI_STATUS_CAP_LIST);
	ASSERT_EQ(irq_info(self->fd, VFIO_PCI_INTX_IRQ_INDEX, &info), 0);
	EXPECT_EQ(info.count, !!pin);
	EXPECT_EQ(info.flags, VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE |
			      VFIO_IRQ_INFO_AUTOMASKED);
	for (i = VFIO_PCI_MSI_IRQ_INDEX; i < VFIO_PCI_NUM_IRQS; i++) {
		ASSERT_EQ(irq_info(self->fd, i, &info), 0);
		EXPECT_EQ(info.count, i > VFIO_PCI_MSIX_IRQ_INDEX);
		EXPECT_EQ(info.flags, VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE);
	}

	ASSERT_EQ(irq_info(self->fd, CLEARED, &info), 0);
	EXPECT_EQ(info.count, 1);
	EXPECT_EQ(info.flags, VFIO_IRQ_INFO_EVENTFD);
	EXPECT_EQ(irq_info(self->fd, CLEARED + 1, &info), -EINVAL);
	EXPECT_EQ(irq_info(self->fd, -1, &info), -EINVAL);
}

/* Each request reaches who has the interrupt, and fails as it does with vfio-pci. */
TEST_F(vfio_rust_pci_testdev_test, irqs)
{
	const u32 set = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	const u32 ring = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
	const u32 mask = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK;
	int request = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	int cleared = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

	ASSERT_GE(request, 0);
	ASSERT_GE(cleared, 0);

	/* The driver's own */
	ASSERT_EQ(set_irq(self->fd, CLEARED, set, 1, cleared), 0);
	EXPECT_EQ(signals(cleared), 0);
	ASSERT_EQ(ioctl(self->fd, VFIO_DEVICE_RESET, NULL), 0);
	EXPECT_EQ(signals(cleared), 1);

	/* vfio-pci-core's */
	ASSERT_EQ(set_irq(self->fd, VFIO_PCI_REQ_IRQ_INDEX, set, 1, request), 0);
	ASSERT_EQ(set_irq(self->fd, VFIO_PCI_REQ_IRQ_INDEX, ring, 1, 0), 0);
	EXPECT_EQ(signals(request), 1);
	EXPECT_EQ(signals(cleared), 0);
	EXPECT_EQ(set_irq(self->fd, VFIO_PCI_REQ_IRQ_INDEX, mask, 1, 0), -ENOTTY);
	EXPECT_EQ(set_irq(self->fd, VFIO_PCI_REQ_IRQ_INDEX, VFIO_IRQ_SET_DATA_NONE, 1, 0),
		  -ENOTTY);
	EXPECT_EQ(set_irq(self->fd, VFIO_PCI_REQ_IRQ_INDEX, set, 1, 1 << 20), -EBADF);
	EXPECT_EQ(set_irq(self->fd, VFIO_PCI_REQ_IRQ_INDEX, set, 1, self->fd), -EINVAL);
	EXPECT_EQ(set_irq(self->fd, VFIO_PCI_REQ_IRQ_INDEX, ring, 2, 0), -EINVAL);

	/* What the driver's own cannot do, and what there is not */
	EXPECT_EQ(set_irq(self->fd, CLEARED, mask, 1, 0), -EINVAL);
	EXPECT_EQ(set_irq(self->fd, CLEARED, set, 1, 1 << 20), -EBADF);
	EXPECT_EQ(set_irq(self->fd, CLEARED, ring, 2, 0), -EINVAL);
	EXPECT_EQ(set_irq(self->fd, CLEARED + 1, ring, 1, 0), -EINVAL);

	/* Neither is signalled any more. */
	ASSERT_EQ(set_irq(self->fd, CLEARED, ring, 0, 0), 0);
	ASSERT_EQ(set_irq(self->fd, VFIO_PCI_REQ_IRQ_INDEX, set, 1, -1), 0);
	ASSERT_EQ(ioctl(self->fd, VFIO_DEVICE_RESET, NULL), 0);
	EXPECT_EQ(signals(cleared), 0);
	EXPECT_EQ(signals(request), 0);
	close(cleared);
	close(request);
}

/* The next user does not find what the last one has left. */
TEST_F(vfio_rust_pci_testdev_test, reopen)
{
	u64 data = 0x1234;

	ASSERT_EQ(fd_write(self->fd, &data, sizeof(data), self->notebook), sizeof(data));
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);

	self->iommu = iommu_init(variant->iommu_mode);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	ASSERT_EQ(fd_read(self->device->fd, &data, sizeof(data), self->notebook), sizeof(data));
	EXPECT_EQ(data, 0);
}

/* By which userspace finds the driver for the device */
TEST(alias)
{
	char path[PATH_MAX], line[256];
	struct utsname name;
	bool found = false;
	FILE *f;

	ASSERT_EQ(uname(&name), 0);
	snprintf_assert(path, sizeof(path), "/lib/modules/%s/modules.alias", name.release);
	f = fopen(path, "r");
	if (!f)
		SKIP(return, "There is no %s", path);
	while (fgets(line, sizeof(line), f))
		found |= !strcmp(line, ALIAS);
	fclose(f);

	EXPECT_TRUE(found);
}

/* The device is there, and so is the driver, but nobody asks for it. */
TEST(only_when_asked_for)
{
	rebind("\n");
	EXPECT_FALSE(bound_to(DRIVER));
	rebind(DRIVER);
	EXPECT_TRUE(bound_to(DRIVER));
}

int main(int argc, char *argv[])
{
	char override[64], vendor[8] = {}, device[8] = {};
	int status;
	pid_t pid;

	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);

	device_read("vendor", vendor, sizeof(vendor) - 1);
	device_read("device", device, sizeof(device) - 1);
	if (strtoul(vendor, NULL, 0) != VENDOR || strtoul(device, NULL, 0) != 5)
		ksft_exit_skip("%s is not a pci-testdev of QEMU\n", device_bdf);
	if (access("/sys/bus/pci/drivers/" DRIVER, F_OK) && system("modprobe " DRIVER))
		ksft_exit_skip("modprobe cannot load " DRIVER "\n");

	override[device_read("driver_override", override, sizeof(override) - 1)] = '\0';
	rebind(DRIVER);
	if (!bound_to(DRIVER))
		ksft_exit_fail_msg(DRIVER " does not bind to %s\n", device_bdf);

	/* The harness does not return. */
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid)
		return test_harness_run(argc, argv);

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	rebind(strcmp(override, "(null)\n") ? override : "\n");
	return WIFEXITED(status) ? WEXITSTATUS(status) : KSFT_FAIL;
}
