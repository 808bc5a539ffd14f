// SPDX-License-Identifier: GPL-2.0-only
/*
 * BARs that are exported as dma-bufs, and mapped for DMA by iommufd. The contract:
 *
 *  - VFIO_DEVICE_FEATURE_DMA_BUF exports ranges of pages of one BAR. A dma-buf of
 *    one range can be mapped, as a whole and in parts, by IOMMU_IOAS_MAP_FILE,
 *    into the IOAS of the device and into any other.
 *  - When the device's user disables its memory, resets or closes it, all
 *    mappings are revoked, and stay so. What is left of them is that the IOVA is
 *    in use until it is unmapped. Nothing can be mapped before the memory is
 *    back, and after the device was closed nothing of that dma-buf ever.
 *  - A dma-buf keeps nobody from closing the device or unbinding its driver.
 *
 * It holds for all drivers that export BARs as a whole: this uses the one that the
 * device is bound to. The memory of virtual functions cannot be disabled.
 *
 * Where a mapping leads is seen by DMA of a second device, which needs a driver in
 * libvfio, and has to reach the BARs of the first. VFIO_SELFTESTS_DMA_BDF is its
 * address. A BAR of the first that is prefetchable is overwritten then.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/compiler.h>
#include <linux/iommufd.h>
#include <linux/limits.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

/* What is copied by DMA: no more than any of the drivers can copy at a time */
#define DMA_SIZE 1024

static const char *device_bdf;
static const char *dma_bdf;
static u64 page_size;

/* struct vfio_device_feature_dma_buf, with room for ranges */
struct export {
	u32 region_index;
	u32 open_flags;
	u32 flags;
	u32 nr_ranges;
	struct vfio_region_dma_range ranges[2];
};

/* Returns the dma-buf, or a negative errno. */
static int feature_dma_buf(int fd, u32 flags, const struct export *export, size_t size)
{
	u64 buf[(sizeof(struct vfio_device_feature) + sizeof(*export)) / sizeof(u64)] = {};
	struct vfio_device_feature *feature = (void *)buf;
	int ret;

	feature->argsz = sizeof(*feature) + size;
	feature->flags = flags | VFIO_DEVICE_FEATURE_DMA_BUF;
	memcpy(feature->data, export, size);
	ret = ioctl(fd, VFIO_DEVICE_FEATURE, feature);

	return ret < 0 ? -errno : ret;
}

static int export_ranges(int fd, const struct export *export)
{
	return feature_dma_buf(fd, VFIO_DEVICE_FEATURE_GET, export, sizeof(*export));
}

static int export_range(int fd, u32 index, u64 offset, u64 length)
{
	struct export export = {
		.region_index = index,
		.open_flags = O_RDWR | O_CLOEXEC,
		.nr_ranges = 1,
		.ranges = { { offset, length } },
	};

	return export_ranges(fd, &export);
}

static int ioas_map(struct iommu *iommu, int dmabuf, u64 start, u64 length, iova_t iova)
{
	struct iommu_ioas_map_file args = {
		.size = sizeof(args),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA |
			 IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = iommu->ioas_id,
		.fd = dmabuf,
		.start = start,
		.length = length,
		.iova = iova,
	};

	return ioctl(iommu->iommufd, IOMMU_IOAS_MAP_FILE, &args) ? -errno : 0;
}

/* Returns how much was unmapped, or a negative errno. */
static s64 ioas_unmap(struct iommu *iommu, u64 length, iova_t iova)
{
	struct iommu_ioas_unmap args = {
		.size = sizeof(args),
		.ioas_id = iommu->ioas_id,
		.iova = iova,
		.length = length,
	};

	return ioctl(iommu->iommufd, IOMMU_IOAS_UNMAP, &args) ? -errno : args.length;
}

/* The largest BAR that consists of pages, or -1 */
static int largest_bar(struct vfio_pci_device *device)
{
	u64 size = page_size;
	int index = -1;

	for (int i = 0; i < PCI_STD_NUM_BARS; i++) {
		const struct vfio_region_info *info = &device->bars[i].info;

		if (info->flags & VFIO_REGION_INFO_FLAG_MMAP && info->size > size) {
			size = info->size;
			index = i;
		}
	}

	return index;
}

FIXTURE(vfio_pci_dmabuf_test) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct iommu *ioas;
	iova_t iova;
	int index;
	u64 size;
	int dmabuf;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_test) {
	const char *iommu_mode;
	bool own;
};

/* Mapped into the IOAS that the device is in */
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_test, iommufd_own_ioas) {
	.iommu_mode = MODE_IOMMUFD,
	.own = true,
};

/* Mapped into another, of another file, in which there is no device */
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_test, iommufd_other_ioas) {
	.iommu_mode = MODE_IOMMUFD,
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_test, vfio_type1v2_iommu_other_ioas) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_SETUP(vfio_pci_dmabuf_test)
{
	struct iova_allocator *allocator;

	self->iommu = iommu_init(variant->iommu_mode);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	self->ioas = variant->own ? self->iommu : iommu_init(MODE_IOMMUFD);
	self->index = largest_bar(self->device);
	if (self->index < 0)
		SKIP(return, "%s has no BAR of two pages", device_bdf);
	self->size = self->device->bars[self->index].info.size;

	allocator = iova_allocator_init(self->ioas);
	self->iova = iova_allocator_alloc(allocator, self->size);
	iova_allocator_cleanup(allocator);

	self->dmabuf = export_range(self->device->fd, self->index, 0, self->size);
	if (self->dmabuf == -ENOTTY || self->dmabuf == -EOPNOTSUPP)
		SKIP(return, "The driver of %s exports no dma-bufs", device_bdf);
	ASSERT_GE(self->dmabuf, 0);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_test)
{
	if (self->dmabuf >= 0)
		close(self->dmabuf);
	vfio_pci_device_cleanup(self->device);
	if (self->ioas != self->iommu)
		iommu_cleanup(self->ioas);
	iommu_cleanup(self->iommu);
}

TEST_F(vfio_pci_dmabuf_test, export)
{
	struct export export = {
		.region_index = self->index,
		.nr_ranges = 2,
		.ranges = { { page_size, page_size }, { 0, self->size } },
	};
	int fd = self->device->fd, dmabuf;

	EXPECT_EQ(lseek(self->dmabuf, 0, SEEK_END), self->size);
	EXPECT_EQ(fcntl(self->dmabuf, F_GETFD), FD_CLOEXEC);
	EXPECT_EQ(fcntl(self->dmabuf, F_GETFL) & O_ACCMODE, O_RDWR);

	/* Ranges may overlap, and the last page is one as well. */
	dmabuf = export_ranges(fd, &export);
	ASSERT_GE(dmabuf, 0);
	EXPECT_EQ(lseek(dmabuf, 0, SEEK_END), self->size + page_size);
	EXPECT_EQ(fcntl(dmabuf, F_GETFD), 0);
	EXPECT_EQ(fcntl(dmabuf, F_GETFL) & O_ACCMODE, O_RDONLY);
	close(dmabuf);
	dmabuf = export_range(fd, self->index, self->size - page_size, page_size);
	ASSERT_GE(dmabuf, 0);
	close(dmabuf);

	EXPECT_EQ(feature_dma_buf(fd, VFIO_DEVICE_FEATURE_PROBE, &export, 0), 0);
	EXPECT_EQ(feature_dma_buf(fd, VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_GET,
				  &export, 0), 0);
}

TEST_F(vfio_pci_dmabuf_test, export_errors)
{
	const u64 page = page_size, size = self->size;
	const struct {
		struct vfio_region_dma_range range;
		int error;
	} ranges[] = {
		{ { 0, 0 }, -EINVAL },
		{ { 1, page }, -EINVAL },
		{ { page / 2, page }, -EINVAL },
		{ { 0, page + 1 }, -EINVAL },
		{ { 0, page / 2 }, -EINVAL },
		/* Beyond the end */
		{ { 0, size + page }, -EINVAL },
		{ { page, size }, -EINVAL },
		{ { size, page }, -EINVAL },
		{ { size - page, 2 * page }, -EINVAL },
		{ { 1UL << 40, page }, -EINVAL },
		/* What a physical address has no room for */
		{ { -page, page }, -EOVERFLOW },
		{ { -page, 2 * page }, -EOVERFLOW },
		{ { page, (1UL << 63) - page }, -EINVAL },
		{ { 0, 1UL << 63 }, -EINVAL },
		{ { 0, -page }, -EINVAL },
	};
	const struct export good = {
		.region_index = self->index,
		.nr_ranges = 1,
		.ranges = { { 0, page } },
	};
	struct export bad;
	int fd = self->device->fd;

	for (int i = 0; i < ARRAY_SIZE(ranges); i++) {
		bad = good;
		bad.ranges[0] = ranges[i].range;
		EXPECT_EQ(export_ranges(fd, &bad), ranges[i].error) {
			TH_LOG("offset %#llx, length %#llx", bad.ranges[0].offset,
			       bad.ranges[0].length);
		}
		/* The second one is checked, too. */
		bad.nr_ranges = 2;
		bad.ranges[1] = bad.ranges[0];
		bad.ranges[0] = good.ranges[0];
		EXPECT_EQ(export_ranges(fd, &bad), ranges[i].error) {
			TH_LOG("second: offset %#llx, length %#llx", bad.ranges[1].offset,
			       bad.ranges[1].length);
		}
	}

	/* Lengths whose sum has no room */
	bad = good;
	bad.nr_ranges = 2;
	bad.ranges[0].length = 1UL << 63;
	bad.ranges[1].length = 1UL << 63;
	EXPECT_EQ(export_ranges(fd, &bad), -EINVAL);

	bad = good;
	bad.nr_ranges = 0;
	EXPECT_EQ(export_ranges(fd, &bad), -EINVAL);
	bad = good;
	bad.flags = 1;
	EXPECT_EQ(export_ranges(fd, &bad), -EINVAL);

	/* Only BARs, and only those that there are */
	for (u32 index = VFIO_PCI_ROM_REGION_INDEX; index <= VFIO_PCI_NUM_REGIONS; index++)
		EXPECT_EQ(export_range(fd, index, 0, page), -ENODEV);
	EXPECT_EQ(export_range(fd, -1, 0, page), -ENODEV);
	for (int i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (!self->device->bars[i].info.size)
			EXPECT_EQ(export_range(fd, i, 0, page), -ENODEV);
	}

	EXPECT_EQ(feature_dma_buf(fd, VFIO_DEVICE_FEATURE_GET, &good,
				  sizeof(struct vfio_device_feature_dma_buf) - 1), -EINVAL);
	EXPECT_EQ(feature_dma_buf(fd, VFIO_DEVICE_FEATURE_SET, &good, sizeof(good)), -EINVAL);
	EXPECT_EQ(feature_dma_buf(fd, VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_SET,
				  &good, sizeof(good)), -EINVAL);
	EXPECT_EQ(feature_dma_buf(fd, 0, &good, sizeof(good)), -EINVAL);
}

TEST_F(vfio_pci_dmabuf_test, map)
{
	const u64 page = page_size, size = self->size;
	const iova_t iova = self->iova;
	int part;

	ASSERT_EQ(ioas_map(self->ioas, self->dmabuf, 0, size, iova), 0);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, size, iova), -EEXIST);
	/* A mapping is unmapped as a whole. */
	EXPECT_EQ(ioas_unmap(self->ioas, page, iova), -ENOENT);
	EXPECT_EQ(ioas_unmap(self->ioas, size, iova), size);
	EXPECT_EQ(ioas_unmap(self->ioas, size, iova), -ENOENT);

	/* Parts of the dma-buf, and of one that is a part of the BAR */
	part = export_range(self->device->fd, self->index, page, page);
	ASSERT_GE(part, 0);
	ASSERT_EQ(ioas_map(self->ioas, self->dmabuf, size - page, page, iova), 0);
	ASSERT_EQ(ioas_map(self->ioas, part, 0, page, iova + page), 0);
	/* A mapping holds what it maps. */
	close(part);
	close(self->dmabuf);
	self->dmabuf = -1;
	EXPECT_EQ(ioas_unmap(self->ioas, 2 * page, iova), 2 * page);
}

TEST_F(vfio_pci_dmabuf_test, map_errors)
{
	const u64 page = page_size, size = self->size;
	const iova_t iova = self->iova;
	struct export export = {
		.region_index = self->index,
		.nr_ranges = 2,
		.ranges = { { 0, page }, { page, page } },
	};
	int dmabuf;

	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, 0, iova), -EINVAL);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, size + page, iova), -EINVAL);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, page, size, iova), -EINVAL);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, size, page, iova), -EINVAL);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, -page, 2 * page, iova), -EOVERFLOW);
	/* An IOAS in which there is a device maps pages only. */
	if (variant->own) {
		EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page / 2, iova), -EINVAL);
		EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, page / 2, page, iova), -EINVAL);
		EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova + page / 2),
			  -EINVAL);
	}

	/* More than one range has no representation there, even if they are adjacent. */
	dmabuf = export_ranges(self->device->fd, &export);
	ASSERT_GE(dmabuf, 0);
	EXPECT_EQ(ioas_map(self->ioas, dmabuf, 0, page, iova), -EOPNOTSUPP);
	close(dmabuf);
	EXPECT_EQ(ioas_map(self->ioas, dmabuf, 0, page, iova), -EBADF);

	EXPECT_EQ(ioas_unmap(self->ioas, size, iova), -ENOENT);
}

static bool is_virtfn(void)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/physfn", device_bdf);
	return !access(path, F_OK);
}

TEST_F(vfio_pci_dmabuf_test, memory_disabled)
{
	const u64 page = page_size, size = self->size;
	const iova_t iova = self->iova;
	int born_revoked;

	if (is_virtfn())
		SKIP(return, "The memory of %s cannot be disabled", device_bdf);

	ASSERT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova), 0);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova + page), -ENODEV);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova), -ENODEV);

	/* What is exported now is for later. */
	born_revoked = export_range(self->device->fd, self->index, 0, size);
	ASSERT_GE(born_revoked, 0);
	EXPECT_EQ(ioas_map(self->ioas, born_revoked, 0, page, iova + page), -ENODEV);
	/* Other bits change nothing. */
	vfio_pci_cmd_set(self->device, PCI_COMMAND_PARITY);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova + page), -ENODEV);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_PARITY);

	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(ioas_map(self->ioas, born_revoked, 0, page, iova + page), 0);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova), -EEXIST);
	EXPECT_EQ(ioas_unmap(self->ioas, 2 * page, iova), 2 * page);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, size, iova), 0);
	close(born_revoked);

	/* One that is still mapped when its IOAS goes */
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
}

TEST_F(vfio_pci_dmabuf_test, reset)
{
	const u64 size = self->size;
	const iova_t iova = self->iova;

	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "%s cannot be reset", device_bdf);

	ASSERT_EQ(ioas_map(self->ioas, self->dmabuf, 0, size, iova), 0);
	for (int i = 0; i < 3; i++) {
		vfio_pci_device_reset(self->device);
		EXPECT_EQ(ioas_unmap(self->ioas, size, iova), size);
		ASSERT_EQ(ioas_map(self->ioas, self->dmabuf, 0, size, iova), 0);
	}

	if (is_virtfn())
		return;

	/* A reset does not bring back what is disabled. */
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	vfio_pci_device_reset(self->device);
	EXPECT_EQ(ioas_unmap(self->ioas, size, iova), size);
	if (!(vfio_pci_config_readw(self->device, PCI_COMMAND) & PCI_COMMAND_MEMORY))
		EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, size, iova), -ENODEV);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, size, iova), 0);
}

/* Closes the device, and its container; an IOAS of its own lives on. */
static void user_close(struct vfio_pci_device *device, struct iommu *iommu)
{
	vfio_pci_device_cleanup(device);
	if (!iommu->iommufd)
		iommu_cleanup(iommu);
}

static struct vfio_pci_device *user_open(struct iommu **iommu, const char *iommu_mode)
{
	if (strcmp(iommu_mode, MODE_IOMMUFD))
		*iommu = iommu_init(iommu_mode);

	return vfio_pci_device_init(device_bdf, *iommu);
}

TEST_F(vfio_pci_dmabuf_test, closed)
{
	const u64 page = page_size, size = self->size;
	const iova_t iova = self->iova;
	int dmabuf;

	ASSERT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova), 0);
	user_close(self->device, self->iommu);
	EXPECT_EQ(lseek(self->dmabuf, 0, SEEK_END), size);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova + page), -ENODEV);

	self->device = user_open(&self->iommu, variant->iommu_mode);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova + page), -ENODEV);
	EXPECT_EQ(ioas_unmap(self->ioas, page, iova), page);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova), -ENODEV);

	dmabuf = export_range(self->device->fd, self->index, 0, size);
	ASSERT_GE(dmabuf, 0);
	EXPECT_EQ(ioas_map(self->ioas, dmabuf, 0, size, iova), 0);
	/* The one of the first opening does not concern the second. */
	close(self->dmabuf);
	self->dmabuf = -1;
	EXPECT_EQ(ioas_unmap(self->ioas, size, iova), size);
	EXPECT_EQ(ioas_map(self->ioas, dmabuf, 0, size, iova), 0);

	/* The mapping is the last that holds it. */
	close(dmabuf);
}

static int driver_write(const char *driver, const char *attr)
{
	char path[PATH_MAX];
	int fd, ret = 0;

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/drivers/%s/%s", driver, attr);
	fd = open(path, O_WRONLY);
	VFIO_ASSERT_GE(fd, 0, "open(%s) failed\n", path);
	if (write(fd, device_bdf, strlen(device_bdf)) < 0)
		ret = -errno;
	close(fd);

	return ret;
}

TEST_F(vfio_pci_dmabuf_test, unbound)
{
	char *driver = sysfs_driver_get(device_bdf);
	const u64 page = page_size;
	const iova_t iova = self->iova;

	ASSERT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova), 0);
	user_close(self->device, self->iommu);
	ASSERT_EQ(driver_write(driver, "unbind"), 0);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova + page), -ENODEV);
	EXPECT_EQ(ioas_unmap(self->ioas, page, iova), page);
	close(self->dmabuf);

	ASSERT_EQ(driver_write(driver, "bind"), 0);
	free(driver);
	self->device = user_open(&self->iommu, variant->iommu_mode);
	self->dmabuf = export_range(self->device->fd, self->index, 0, self->size);
	ASSERT_GE(self->dmabuf, 0);
	EXPECT_EQ(ioas_map(self->ioas, self->dmabuf, 0, page, iova), 0);
}

struct dma_setup {
	/* The device whose BAR it is */
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int index;
	int dmabuf;
	/* The one that accesses it */
	struct iommu *dma_iommu;
	struct vfio_pci_device *dma_device;
	struct dma_region memory;
	iova_t iova;
};

FIXTURE(vfio_pci_dmabuf_dma_test) {
	struct dma_setup setup;
};

static void region_map(struct iommu *iommu, struct iova_allocator *allocator,
		       struct dma_region *region, u64 size)
{
	region->vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->iova = iova_allocator_alloc(allocator, size);
	region->size = size;
	iommu_map(iommu, region);
}

/*
 * The second and third pages of the BAR are exported. What is accessed is at the
 * start of the latter.
 */
static u8 *bar_accessed(struct vfio_pci_device *device, int index)
{
	return device->bars[index].vaddr + 2 * page_size;
}

static void bar_fill(struct vfio_pci_device *device, int index, u8 val)
{
	u8 *vaddr = bar_accessed(device, index);

	for (int i = 0; i < DMA_SIZE; i++)
		WRITE_ONCE(vaddr[i], val);
}

/* How many bytes there have the value */
static int count(const u8 *vaddr, u8 val)
{
	int n = 0;

	for (int i = 0; i < DMA_SIZE; i++)
		n += READ_ONCE(vaddr[i]) == val;

	return n;
}

/* A BAR that is memory, or -1. What is not prefetchable must not be tried. */
static int memory_bar(struct vfio_pci_device *device)
{
	for (int i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &device->bars[i];
		u32 val;

		if (!bar->vaddr || bar->info.size < 3 * page_size)
			continue;
		val = vfio_pci_config_readl(device, PCI_BASE_ADDRESS_0 + 4 * i);
		if (!(val & PCI_BASE_ADDRESS_MEM_PREFETCH))
			continue;
		bar_fill(device, i, 0x5a);
		if (count(bar_accessed(device, i), 0x5a) == DMA_SIZE)
			return i;
	}

	return -1;
}

FIXTURE_SETUP(vfio_pci_dmabuf_dma_test)
{
	struct dma_setup *setup = &self->setup;
	struct iova_allocator *allocator;

	if (!dma_bdf)
		SKIP(return, "VFIO_SELFTESTS_DMA_BDF names no device for DMA");
	if (!strcmp(dma_bdf, device_bdf))
		SKIP(return, "%s does not access itself", device_bdf);

	setup->iommu = iommu_init(MODE_IOMMUFD);
	setup->device = vfio_pci_device_init(device_bdf, setup->iommu);
	setup->index = memory_bar(setup->device);
	if (setup->index < 0)
		SKIP(return, "%s has no BAR that is memory", device_bdf);
	setup->dmabuf = export_range(setup->device->fd, setup->index, page_size,
				     2 * page_size);
	if (setup->dmabuf == -ENOTTY || setup->dmabuf == -EOPNOTSUPP)
		SKIP(return, "The driver of %s exports no dma-bufs", device_bdf);
	ASSERT_GE(setup->dmabuf, 0);

	setup->dma_iommu = iommu_init(MODE_IOMMUFD);
	setup->dma_device = vfio_pci_device_init(dma_bdf, setup->dma_iommu);
	if (!setup->dma_device->driver.ops)
		SKIP(return, "There is no driver for %s", dma_bdf);
	allocator = iova_allocator_init(setup->dma_iommu);
	region_map(setup->dma_iommu, allocator, &setup->dma_device->driver.region, SZ_2M);
	region_map(setup->dma_iommu, allocator, &setup->memory, page_size);
	setup->iova = iova_allocator_alloc(allocator, 4 * page_size);
	iova_allocator_cleanup(allocator);
	vfio_pci_driver_init(setup->dma_device);

	ASSERT_EQ(ioas_map(setup->dma_iommu, setup->dmabuf, 0, 2 * page_size, setup->iova), 0);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_dma_test)
{
	struct dma_setup *setup = &self->setup;

	vfio_pci_device_cleanup(setup->dma_device);
	iommu_cleanup(setup->dma_iommu);
	if (setup->dmabuf >= 0)
		close(setup->dmabuf);
	vfio_pci_device_cleanup(setup->device);
	iommu_cleanup(setup->iommu);
}

/*
 * Has the other device write to the IOVA, and returns whether that reaches the
 * BAR. Devices need not notice if it does not.
 */
static bool dma_writes(struct dma_setup *setup)
{
	const u8 *vaddr = bar_accessed(setup->device, setup->index);
	int n;

	bar_fill(setup->device, setup->index, 0x11);
	memset(setup->memory.vaddr, 0xee, DMA_SIZE);
	vfio_pci_driver_memcpy(setup->dma_device, setup->memory.iova,
			       setup->iova + page_size, DMA_SIZE);

	n = count(vaddr, 0xee);
	VFIO_ASSERT_EQ(count(vaddr, 0x11), DMA_SIZE - n);
	VFIO_ASSERT_TRUE(!n || n == DMA_SIZE);

	return n;
}

/* Has it read from there, and returns whether that gives what the BAR has. */
static bool dma_reads(struct dma_setup *setup)
{
	int n;

	bar_fill(setup->device, setup->index, 0x77);
	memset(setup->memory.vaddr, 0x22, DMA_SIZE);
	vfio_pci_driver_memcpy(setup->dma_device, setup->iova + page_size,
			       setup->memory.iova, DMA_SIZE);

	n = count(setup->memory.vaddr, 0x77);
	VFIO_ASSERT_TRUE(!n || n == DMA_SIZE);

	return n;
}

/* After something that has revoked the mapping: until it is mapped again */
static void assert_revoked(struct dma_setup *setup)
{
	const u64 size = 2 * page_size;

	VFIO_ASSERT_FALSE(dma_writes(setup));
	VFIO_ASSERT_FALSE(dma_reads(setup));

	VFIO_ASSERT_EQ(ioas_unmap(setup->dma_iommu, size, setup->iova), size);
	VFIO_ASSERT_EQ(ioas_map(setup->dma_iommu, setup->dmabuf, 0, size, setup->iova), 0);
	VFIO_ASSERT_TRUE(dma_writes(setup));
	VFIO_ASSERT_TRUE(dma_reads(setup));
}

TEST_F(vfio_pci_dmabuf_dma_test, unmapped)
{
	struct dma_setup *setup = &self->setup;
	const u64 page = page_size;

	ASSERT_TRUE(dma_writes(setup));
	ASSERT_TRUE(dma_reads(setup));

	/* The second page of the dma-buf, by itself */
	ASSERT_EQ(ioas_unmap(setup->dma_iommu, 2 * page, setup->iova), 2 * page);
	ASSERT_FALSE(dma_writes(setup));
	ASSERT_EQ(ioas_map(setup->dma_iommu, setup->dmabuf, page, page, setup->iova + page), 0);
	ASSERT_TRUE(dma_writes(setup));
	ASSERT_TRUE(dma_reads(setup));

	/* The mapping is all that is needed. */
	close(setup->dmabuf);
	setup->dmabuf = -1;
	ASSERT_TRUE(dma_writes(setup));
	ASSERT_EQ(ioas_unmap(setup->dma_iommu, page, setup->iova + page), page);
	ASSERT_FALSE(dma_writes(setup));
}

TEST_F(vfio_pci_dmabuf_dma_test, memory_disabled)
{
	struct dma_setup *setup = &self->setup;

	ASSERT_TRUE(dma_writes(setup));
	vfio_pci_cmd_clear(setup->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(setup->device, PCI_COMMAND_MEMORY);
	assert_revoked(setup);
}

TEST_F(vfio_pci_dmabuf_dma_test, reset)
{
	struct dma_setup *setup = &self->setup;

	if (!(setup->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "%s cannot be reset", device_bdf);

	ASSERT_TRUE(dma_writes(setup));
	vfio_pci_device_reset(setup->device);
	assert_revoked(setup);
}

TEST_F(vfio_pci_dmabuf_dma_test, closed)
{
	struct dma_setup *setup = &self->setup;
	const u64 page = page_size;

	ASSERT_TRUE(dma_writes(setup));
	vfio_pci_device_cleanup(setup->device);
	setup->device = vfio_pci_device_init(device_bdf, setup->iommu);
	ASSERT_FALSE(dma_writes(setup));
	ASSERT_EQ(ioas_map(setup->dma_iommu, setup->dmabuf, 0, page, setup->iova + 2 * page),
		  -ENODEV);

	close(setup->dmabuf);
	setup->dmabuf = export_range(setup->device->fd, setup->index, page, 2 * page);
	ASSERT_GE(setup->dmabuf, 0);
	assert_revoked(setup);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	dma_bdf = getenv("VFIO_SELFTESTS_DMA_BDF");

	return test_harness_run(argc, argv);
}
