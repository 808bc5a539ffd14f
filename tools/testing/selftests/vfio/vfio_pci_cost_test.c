// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a device costs its user with one VFIO driver and with another one, which
 * $VFIO_SELFTESTS_OTHER_DRIVER names. What both leave to vfio-pci-core should
 * cost the same.
 *
 * The device changes from one driver to the other and back, round by round, so
 * that both are measured side by side, and has the driver that it had in the end.
 *
 * Times are printed, for somebody to look at, and judged by nobody: whatever else
 * the machine does, and where the drivers and their data happen to lie in memory,
 * makes a difference that no test can tell from one of the drivers. The fastest
 * of all rounds is what is disturbed least, and how far the fastest half of them
 * is apart says how much. Faults are counted, and are to be as many with the one
 * as with the other: that is what the time of a mapping is made of.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/limits.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

/* Of each driver; first one, then the other, then the other way round */
#define NR_ROUNDS 8
/* In a round, of which the fastest counts */
#define NR_BATCHES 20
/* What is touched page by page */
#define FAULT_LEN SZ_1M

static const char *device_bdf;
static const char *drivers[2];
static u64 page_size;

enum op {
	OP_MMAP,
	OP_FAULT,
	OP_READ,
	OP_REGION_INFO,
	OP_IRQ_INFO,
	OP_OPEN,
	NR_OPS,
};

/* By the process that measures for those that look at it */
static struct cost {
	double ns[2][NR_ROUNDS];
	long faults[2];
} *costs;

struct target {
	struct iommu *iommu;
	const char *path;
	int fd;
	u64 bar_offset;
	u64 bar_len;
	u64 config_offset;
	void *reserved;
};

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

/* Lets the kernel look for a driver again, of which @override is the only one. */
static void rebind(const char *override)
{
	char *current = sysfs_driver_get(device_bdf);
	char path[PATH_MAX];

	if (current) {
		snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/driver/unbind",
				device_bdf);
		VFIO_ASSERT_EQ(write_file(path, device_bdf), 0);
		free(current);
	}
	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/driver_override",
			device_bdf);
	VFIO_ASSERT_EQ(write_file(path, override), 0);
	VFIO_ASSERT_EQ(write_file("/sys/bus/pci/drivers_probe", device_bdf), 0);
}

static bool bind(const char *driver)
{
	char *current;
	bool ret;

	rebind(driver);
	current = sysfs_driver_get(device_bdf);
	ret = current && !strcmp(current, driver);
	free(current);

	return ret;
}

static void target_open(struct target *target)
{
	target->fd = open(target->path, O_RDWR);
	VFIO_ASSERT_GE(target->fd, 0);
	VFIO_ASSERT_EQ(__vfio_device_bind_iommufd(target->fd, target->iommu->iommufd, NULL), 0);
}

static void target_close(struct target *target)
{
	VFIO_ASSERT_EQ(close(target->fd), 0);
}

static u64 now(void)
{
	struct timespec ts;

	VFIO_ASSERT_EQ(clock_gettime(CLOCK_MONOTONIC, &ts), 0);

	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void *bar_mmap(const struct target *target, void *addr, u64 len, int flags)
{
	void *vaddr = mmap(addr, len, PROT_READ | PROT_WRITE, MAP_SHARED | flags,
			   target->fd, target->bar_offset);

	VFIO_ASSERT_NE(vaddr, MAP_FAILED);
	return vaddr;
}

/* Reads a word at every @step; returns the number of faults that it took. */
static long touch(u8 *vaddr, u64 len, u64 step)
{
	struct rusage before, after;

	/* The first call pays for the faults of the libc code itself. */
	VFIO_ASSERT_EQ(getrusage(RUSAGE_SELF, &after), 0);
	VFIO_ASSERT_EQ(getrusage(RUSAGE_SELF, &before), 0);
	for (u64 i = 0; i < len; i += step)
		(void)READ_ONCE(*(u32 *)(vaddr + i));
	VFIO_ASSERT_EQ(getrusage(RUSAGE_SELF, &after), 0);

	return after.ru_minflt - before.ru_minflt;
}

/* Those of the whole BAR where the kernel places it, and those of single pages */
static void count_faults(struct target *target, int driver)
{
	u8 *vaddr;

	vaddr = bar_mmap(target, NULL, target->bar_len, 0);
	costs[OP_MMAP].faults[driver] = touch(vaddr, target->bar_len, SZ_2M);
	VFIO_ASSERT_EQ(munmap(vaddr, target->bar_len), 0);

	vaddr = bar_mmap(target, target->reserved, FAULT_LEN, MAP_FIXED);
	costs[OP_FAULT].faults[driver] = touch(vaddr, FAULT_LEN, page_size);
	vaddr = mmap(vaddr, FAULT_LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		     -1, 0);
	VFIO_ASSERT_EQ(vaddr, target->reserved);
}

/* Does it some times and returns what it costs once. */
static double batch(struct target *target, enum op op)
{
	struct vfio_region_info region = { .argsz = sizeof(region) };
	struct vfio_irq_info irq = { .argsz = sizeof(irq) };
	u64 count = 100, start;
	double cost;
	u8 *vaddr;
	u32 word;

	switch (op) {
	case OP_MMAP:
		start = now();
		for (u64 i = 0; i < count; i++)
			munmap(bar_mmap(target, NULL, target->bar_len, 0), target->bar_len);
		break;
	case OP_FAULT:
		/* At an address that allows for single pages only */
		vaddr = bar_mmap(target, target->reserved, FAULT_LEN, MAP_FIXED);
		count = FAULT_LEN / page_size;
		start = now();
		for (u64 i = 0; i < count; i++)
			(void)READ_ONCE(*(u32 *)(vaddr + i * page_size));
		cost = now() - start;
		vaddr = mmap(vaddr, FAULT_LEN, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		VFIO_ASSERT_EQ(vaddr, target->reserved);
		return cost / count;
	case OP_READ:
		start = now();
		for (u64 i = 0; i < count; i++)
			VFIO_ASSERT_EQ(pread(target->fd, &word, sizeof(word),
					     target->config_offset), sizeof(word));
		break;
	case OP_REGION_INFO:
		start = now();
		for (u64 i = 0; i < count; i++)
			ioctl_assert(target->fd, VFIO_DEVICE_GET_REGION_INFO, &region);
		break;
	case OP_IRQ_INFO:
		start = now();
		for (u64 i = 0; i < count; i++)
			ioctl_assert(target->fd, VFIO_DEVICE_GET_IRQ_INFO, &irq);
		break;
	case OP_OPEN:
		count = 1;
		target_close(target);
		start = now();
		target_open(target);
		target_close(target);
		cost = now() - start;
		target_open(target);
		return cost;
	default:
		VFIO_FAIL("No such operation\n");
	}

	return (double)(now() - start) / count;
}

static void measure(int driver, int round)
{
	struct vfio_region_info info = { .argsz = sizeof(info) };
	struct target target = {};

	VFIO_ASSERT_TRUE(bind(drivers[driver]));
	target.iommu = iommu_init(MODE_IOMMUFD);
	target.path = vfio_pci_get_cdev_path(device_bdf);
	target_open(&target);

	for (int i = 0; i < PCI_STD_NUM_BARS; i++) {
		info.index = i;
		ioctl_assert(target.fd, VFIO_DEVICE_GET_REGION_INFO, &info);
		if ((info.flags & VFIO_REGION_INFO_FLAG_MMAP) && info.size >= FAULT_LEN) {
			target.bar_offset = info.offset;
			target.bar_len = info.size;
		}
	}
	info.index = VFIO_PCI_CONFIG_REGION_INDEX;
	ioctl_assert(target.fd, VFIO_DEVICE_GET_REGION_INFO, &info);
	target.config_offset = info.offset;
	target.reserved = mmap_reserve(FAULT_LEN, SZ_1G, page_size);

	if (target.bar_len)
		count_faults(&target, driver);

	/* In turns, so that what disturbs one batch is over before the next one. */
	for (int i = 0; i < NR_BATCHES; i++) {
		for (int op = target.bar_len ? 0 : OP_READ; op < NR_OPS; op++) {
			double *best = &costs[op].ns[driver][round], cost;

			cost = batch(&target, op);
			if (!i || cost < *best)
				*best = cost;
		}
	}

	VFIO_ASSERT_EQ(munmap(target.reserved, FAULT_LEN), 0);
	target_close(&target);
	free((void *)target.path);
	iommu_cleanup(target.iommu);
}

FIXTURE(vfio_pci_cost_test) {
};

FIXTURE_VARIANT(vfio_pci_cost_test) {
	enum op op;
	const char *what;
};

FIXTURE_VARIANT_ADD(vfio_pci_cost_test, mmap) {
	.op = OP_MMAP,
	.what = "mmap() and munmap() of a BAR",
};

FIXTURE_VARIANT_ADD(vfio_pci_cost_test, fault) {
	.op = OP_FAULT,
	.what = "fault of a page of a BAR",
};

FIXTURE_VARIANT_ADD(vfio_pci_cost_test, config_read) {
	.op = OP_READ,
	.what = "read of a word of the configuration space",
};

FIXTURE_VARIANT_ADD(vfio_pci_cost_test, region_info) {
	.op = OP_REGION_INFO,
	.what = "VFIO_DEVICE_GET_REGION_INFO",
};

FIXTURE_VARIANT_ADD(vfio_pci_cost_test, irq_info) {
	.op = OP_IRQ_INFO,
	.what = "VFIO_DEVICE_GET_IRQ_INFO",
};

FIXTURE_VARIANT_ADD(vfio_pci_cost_test, open_close) {
	.op = OP_OPEN,
	.what = "open() and close()",
};

FIXTURE_SETUP(vfio_pci_cost_test)
{
}

FIXTURE_TEARDOWN(vfio_pci_cost_test)
{
}

static int compare(const void *a, const void *b)
{
	double x = *(double *)a, y = *(double *)b;

	return (x > y) - (x < y);
}

TEST_F(vfio_pci_cost_test, same)
{
	struct cost *cost = &costs[variant->op];
	double best[2], spread[2];

	for (int i = 0; i < ARRAY_SIZE(best); i++) {
		qsort(cost->ns[i], NR_ROUNDS, sizeof(*cost->ns[i]), compare);
		best[i] = cost->ns[i][0];
		spread[i] = cost->ns[i][NR_ROUNDS / 2 - 1] - best[i];
	}

	if (!best[0])
		SKIP(return, "No BAR of %u bytes can be mapped", FAULT_LEN);

	TH_LOG("%s: %.0f ns (spread %.0f ns) with %s, %.0f ns (spread %.0f ns) with %s, 1 to %.2f",
	       variant->what, best[0], spread[0], drivers[0], best[1], spread[1], drivers[1],
	       best[1] / best[0]);
	EXPECT_EQ(cost->faults[0], cost->faults[1]);
}

int main(int argc, char *argv[])
{
	char path[PATH_MAX], command[64], override[64] = {};
	const char *had;
	int fd, status;
	pid_t pid;

	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	drivers[0] = sysfs_driver_get(device_bdf);
	drivers[1] = getenv("VFIO_SELFTESTS_OTHER_DRIVER");
	if (!drivers[0])
		ksft_exit_skip("%s has no driver\n", device_bdf);
	if (!drivers[1])
		ksft_exit_skip("VFIO_SELFTESTS_OTHER_DRIVER names no driver\n");

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/driver_override",
			device_bdf);
	fd = open(path, O_RDONLY);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_GT(read(fd, override, sizeof(override) - 1), 0);
	VFIO_ASSERT_EQ(close(fd), 0);
	had = strcmp(override, "(null)\n") ? override : "\n";

	costs = mmap(NULL, NR_OPS * sizeof(*costs), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(costs, MAP_FAILED);

	/* The driver may be built in. */
	snprintf_assert(command, sizeof(command), "modprobe %s 2> /dev/null", drivers[1]);
	status = system(command);
	if (!bind(drivers[1])) {
		rebind(had);
		ksft_exit_skip("%s does not bind to %s\n", drivers[1], device_bdf);
	}

	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		for (int i = 0; i < NR_ROUNDS; i++) {
			measure(i % 2, i);
			measure(!(i % 2), i);
		}
		exit(0);
	}
	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	rebind(had);
	VFIO_ASSERT_EQ(status, 0);

	return test_harness_run(argc, argv);
}
