// SPDX-License-Identifier: GPL-2.0-only
/*
 * Errors that the device reports through PCIe Advanced Error Reporting. The
 * contract: an uncorrectable error, fatal or not, signals the eventfd that the
 * user has set for VFIO_PCI_ERR_IRQ_INDEX, once, and the kernel's recovery
 * succeeds. A correctable error does not, and neither does any error when the
 * user has taken the eventfd back or closed the device.
 *
 * An error comes from outside: from QEMU's pcie_aer_inject_error, or from the
 * aer-inject tool. VFIO_SELFTESTS_AER_INJECT is the command that asks for it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <linux/limits.h>
#include <linux/netlink.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

/* How long an error may take from the command to the kernel, and from there to us */
#define TIMEOUT_MS (20 * 1000)

static const char *device_bdf;
static const char *command;

static void attr_path(char *path, const char *attr)
{
	snprintf_assert(path, PATH_MAX, "/sys/bus/pci/devices/%s/%s", device_bdf, attr);
}

static u16 vendor(void)
{
	char path[PATH_MAX];
	unsigned int val;
	FILE *f;
	int ret;

	attr_path(path, "vendor");
	f = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(f, "Failed to open %s\n", path);
	ret = fscanf(f, "%x", &val);
	VFIO_ASSERT_EQ(ret, 1);
	fclose(f);

	return val;
}

/* How many errors of the device the kernel has seen: the last line has the total. */
static u64 nr_errors(const char *kind)
{
	char path[PATH_MAX], attr[32], line[128];
	u64 total = 0;
	FILE *f;

	snprintf_assert(attr, sizeof(attr), "aer_dev_%s", kind);
	attr_path(path, attr);
	f = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(f, "Failed to open %s\n", path);
	while (fgets(line, sizeof(line), f))
		sscanf(line, "TOTAL_%*s %lu", &total);
	fclose(f);

	return total;
}

/* The kernel tells of the recovery of a device by uevents. */
static int uevents_open(void)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int sock = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT);

	VFIO_ASSERT_GE(sock, 0);
	VFIO_ASSERT_EQ(bind(sock, (struct sockaddr *)&addr, sizeof(addr)), 0);

	return sock;
}

static bool readable(int fd, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, timeout_ms) == 1;
}

/* Does @uevent, a list of strings, have this one? */
static bool uevent_has(const char *uevent, size_t len, const char *var, const char *val)
{
	char wanted[64];

	snprintf_assert(wanted, sizeof(wanted), "%s=%s", var, val);
	for (size_t i = 0; i < len; i += strlen(uevent + i) + 1) {
		if (!strcmp(uevent + i, wanted))
			return true;
	}

	return false;
}

static bool recovered(int sock)
{
	char uevent[4096];
	ssize_t len;

	while (readable(sock, TIMEOUT_MS)) {
		len = recv(sock, uevent, sizeof(uevent) - 1, 0);
		VFIO_ASSERT_GT(len, 0);
		uevent[len] = 0;
		if (!uevent_has(uevent, len, "PCI_SLOT_NAME", device_bdf))
			continue;
		if (uevent_has(uevent, len, "ERROR_EVENT", "SUCCESSFUL_RECOVERY"))
			return true;
		if (uevent_has(uevent, len, "ERROR_EVENT", "FAILED_RECOVERY"))
			return false;
	}

	return false;
}

/* The value of @eventfd, which is 0 again then */
static u64 signals(int eventfd)
{
	u64 count = 0;

	if (readable(eventfd, 0))
		VFIO_ASSERT_EQ(read(eventfd, &count, sizeof(count)), sizeof(count));

	return count;
}

struct user {
	struct iommu *iommu;
	struct vfio_pci_device *device;
};

FIXTURE(vfio_pci_aer_test) {
	struct user user;
	int eventfd;
	int uevents;
};

FIXTURE_VARIANT(vfio_pci_aer_test) {
	const char *iommu_mode;
};

/* Both interfaces that hand out a device file: the group and the cdev. */
FIXTURE_VARIANT_ADD(vfio_pci_aer_test, vfio_type1v2_iommu) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_VARIANT_ADD(vfio_pci_aer_test, iommufd) {
	.iommu_mode = MODE_IOMMUFD,
};

static void device_open(struct user *user, const char *iommu_mode)
{
	user->iommu = iommu_init(iommu_mode);
	user->device = vfio_pci_device_init(device_bdf, user->iommu);
}

static void device_close(struct user *user)
{
	vfio_pci_device_cleanup(user->device);
	iommu_cleanup(user->iommu);
}

static bool device_works(struct user *user)
{
	return vfio_pci_config_readw(user->device, PCI_VENDOR_ID) == vendor();
}

/* -1 takes the eventfd back. */
static void set_eventfd(struct user *user, int eventfd)
{
	u8 buf[sizeof(struct vfio_irq_set) + sizeof(int)] = {};
	struct vfio_irq_set *irq = (void *)buf;

	irq->argsz = sizeof(buf);
	irq->flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
	irq->index = VFIO_PCI_ERR_IRQ_INDEX;
	irq->count = 1;
	memcpy(irq->data, &eventfd, sizeof(int));
	ioctl_assert(user->device->fd, VFIO_DEVICE_SET_IRQS, irq);
}

FIXTURE_SETUP(vfio_pci_aer_test)
{
	char path[PATH_MAX];

	attr_path(path, "aer_dev_nonfatal");
	if (access(path, F_OK))
		SKIP(return, "%s cannot report errors, or not to this kernel", device_bdf);
	if (!command)
		SKIP(return, "Nobody injects errors: set VFIO_SELFTESTS_AER_INJECT");

	device_open(&self->user, variant->iommu_mode);
	self->eventfd = eventfd(0, 0);
	ASSERT_GE(self->eventfd, 0);
	set_eventfd(&self->user, self->eventfd);
	self->uevents = uevents_open();
}

FIXTURE_TEARDOWN(vfio_pci_aer_test)
{
	close(self->uevents);
	close(self->eventfd);
	device_close(&self->user);

	/* What is left of the error is gone with the next user. */
	device_open(&self->user, variant->iommu_mode);
	EXPECT_TRUE(device_works(&self->user));
	device_close(&self->user);
}

/* @kind is that of sysfs: correctable, nonfatal or fatal */
static void inject(const char *kind)
{
	char line[PATH_MAX];

	snprintf_assert(line, sizeof(line), "%s %s %s", command, kind, device_bdf);
	fflush(stdout);
	VFIO_ASSERT_EQ(system(line), 0, "%s failed\n", line);
}

TEST_F(vfio_pci_aer_test, nonfatal)
{
	u64 before = nr_errors("nonfatal");

	inject("nonfatal");
	ASSERT_TRUE(readable(self->eventfd, TIMEOUT_MS));
	EXPECT_TRUE(recovered(self->uevents));
	EXPECT_EQ(signals(self->eventfd), 1);
	EXPECT_EQ(nr_errors("nonfatal"), before + 1);
	EXPECT_TRUE(device_works(&self->user));
}

/* The kernel resets the link, with what hangs on it. */
TEST_F(vfio_pci_aer_test, fatal)
{
	u64 before = nr_errors("fatal");

	inject("fatal");
	ASSERT_TRUE(readable(self->eventfd, TIMEOUT_MS));
	EXPECT_TRUE(recovered(self->uevents));
	EXPECT_EQ(signals(self->eventfd), 1);
	EXPECT_EQ(nr_errors("fatal"), before + 1);
	EXPECT_TRUE(device_works(&self->user));
}

/* Every error is an event of its own. */
TEST_F(vfio_pci_aer_test, again)
{
	for (int i = 0; i < 5; i++) {
		inject("nonfatal");
		ASSERT_TRUE(recovered(self->uevents));
		ASSERT_EQ(signals(self->eventfd), 1);
	}
}

TEST_F(vfio_pci_aer_test, correctable)
{
	u64 before = nr_errors("correctable");

	inject("correctable");
	/* It causes no event that one could wait for. */
	for (int ms = 0; ms < TIMEOUT_MS && nr_errors("correctable") == before; ms += 10)
		usleep(10 * 1000);
	EXPECT_EQ(nr_errors("correctable"), before + 1);

	/* Errors are handled in turn: after the next one, this one has been. */
	inject("nonfatal");
	ASSERT_TRUE(recovered(self->uevents));
	EXPECT_EQ(signals(self->eventfd), 1);
}

TEST_F(vfio_pci_aer_test, no_eventfd)
{
	set_eventfd(&self->user, -1);
	inject("nonfatal");
	ASSERT_TRUE(recovered(self->uevents));
	EXPECT_EQ(signals(self->eventfd), 0);

	set_eventfd(&self->user, self->eventfd);
	inject("nonfatal");
	ASSERT_TRUE(recovered(self->uevents));
	EXPECT_EQ(signals(self->eventfd), 1);
}

TEST_F(vfio_pci_aer_test, no_user)
{
	device_close(&self->user);
	inject("nonfatal");
	EXPECT_TRUE(recovered(self->uevents));
	EXPECT_EQ(signals(self->eventfd), 0);
	device_open(&self->user, variant->iommu_mode);
	EXPECT_TRUE(device_works(&self->user));
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	command = getenv("VFIO_SELFTESTS_AER_INJECT");

	return test_harness_run(argc, argv);
}
