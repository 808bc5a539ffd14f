// SPDX-License-Identifier: GPL-2.0-only
/*
 * Takes a device away from its VFIO driver and gives it back, a thousand times,
 * in whatever state userspace can put it. The contract:
 *
 *  - The driver asks the user of a device for it by an eventfd, and waits for
 *    the last file and the last mapping of it to be closed. Until then the user
 *    notices nothing, save that a reset answers EAGAIN; nobody else gets in.
 *  - What was there before is there after: the device works, and neither a
 *    reference nor memory is lost, also where the driver fails to bind.
 *
 * It holds for all drivers: this uses the one that the device is bound to.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <linux/compiler.h>
#include <linux/limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

/* Cycles of each case, in both of its variants: together 1,000 */
#define NR_IDLE		360
#define NR_OPEN		60
#define NR_MAPPED	50
#define NR_RESET	8
#define NR_REMOVE	12
#define NR_VF		6
#define NR_VF_OPEN	4

#define VF_TOKEN "2ab74924-c335-45f4-9b16-8569e5b08258"

static const char *device_bdf;
static char *driver;
/* Of the driver, NULL if it is built into the kernel */
static char *module;

static int write_file(const char *path, const char *val)
{
	int fd = open(path, O_WRONLY);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, val, strlen(val)) < 0)
		ret = -errno;
	close(fd);

	return ret;
}

static void driver_path(char *path, const char *attr)
{
	snprintf_assert(path, PATH_MAX, "/sys/bus/pci/drivers/%s/%s", driver, attr);
}

static void device_path(char *path, const char *bdf, const char *attr)
{
	snprintf_assert(path, PATH_MAX, "/sys/bus/pci/devices/%s/%s", bdf, attr);
}

/* Writes to a file of the driver; 0 or a negative errno */
static int driver_write(const char *attr, const char *bdf)
{
	char path[PATH_MAX];

	driver_path(path, attr);

	return write_file(path, bdf);
}

static int device_write(const char *bdf, const char *attr, const char *val)
{
	char path[PATH_MAX];

	device_path(path, bdf, attr);

	return write_file(path, val);
}

static bool device_has(const char *bdf, const char *attr)
{
	char path[PATH_MAX];

	device_path(path, bdf, attr);

	return !access(path, F_OK);
}

static bool bound_to(const char *bdf, const char *name)
{
	char *current = sysfs_driver_get(bdf);
	bool ret = name && current ? !strcmp(name, current) : name == current;

	free(current);

	return ret;
}

static u64 read_number(const char *path)
{
	FILE *f = fopen(path, "r");
	u64 val;
	int ret;

	VFIO_ASSERT_NOT_NULL(f, "Failed to open %s\n", path);
	ret = fscanf(f, "%li", &val);
	VFIO_ASSERT_EQ(ret, 1);
	fclose(f);

	return val;
}

/* How often the module is in use, 0 if it cannot be unloaded anyway */
static u64 module_refcnt(void)
{
	char path[PATH_MAX];

	if (!module)
		return 0;
	snprintf_assert(path, sizeof(path), "/sys/module/%s/refcnt", module);

	return read_number(path);
}

/* The group of a device that was removed stays if somebody holds a reference to it. */
static int nr_iommu_groups(void)
{
	DIR *dir = opendir("/sys/kernel/iommu_groups");
	int nr = 0;

	VFIO_ASSERT_NOT_NULL(dir);
	while (readdir(dir))
		nr++;
	closedir(dir);

	return nr;
}

/*
 * A process that writes to sysfs what may have to wait for the user of the
 * device. A thread of that user must not: when the test is killed, it would
 * wait for the very files that it holds.
 */
struct writer {
	int sock;
};

struct writer_job {
	char path[PATH_MAX];
	char val[32];
};

static void writer_start(struct writer *writer)
{
	struct writer_job job;
	int socks[2], ret;
	pid_t pid;

	VFIO_ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, socks), 0);
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (pid) {
		writer->sock = socks[0];
		close(socks[1]);
		return;
	}

	close(socks[0]);
	while (read(socks[1], &job, sizeof(job)) == sizeof(job)) {
		ret = write_file(job.path, job.val);
		if (write(socks[1], &ret, sizeof(ret)) != sizeof(ret))
			break;
	}
	_exit(0);
}

/* Not to be waited for: in a test that has failed it may be waiting for us. */
static void writer_stop(struct writer *writer)
{
	close(writer->sock);
}

static void writer_write(struct writer *writer, const struct writer_job *job)
{
	VFIO_ASSERT_EQ(write(writer->sock, job, sizeof(*job)), sizeof(*job));
}

static void writer_unbind(struct writer *writer)
{
	struct writer_job job = {};

	driver_path(job.path, "unbind");
	snprintf_assert(job.val, sizeof(job.val), "%s", device_bdf);
	writer_write(writer, &job);
}

static void writer_device_write(struct writer *writer, const char *attr)
{
	struct writer_job job = { .val = "1" };

	device_path(job.path, device_bdf, attr);
	writer_write(writer, &job);
}

static bool writer_busy(struct writer *writer)
{
	struct pollfd pfd = { .fd = writer->sock, .events = POLLIN };

	return !poll(&pfd, 1, 0);
}

static int writer_wait(struct writer *writer)
{
	int ret;

	VFIO_ASSERT_EQ(read(writer->sock, &ret, sizeof(ret)), sizeof(ret));

	return ret;
}

/* Who has the device open, and is told by @request when the driver wants it back */
struct user {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int request;
};

static void request_set(struct user *user)
{
	u8 buf[sizeof(struct vfio_irq_set) + sizeof(int)] = {};
	struct vfio_irq_set *irq = (void *)buf;

	user->request = eventfd(0, 0);
	VFIO_ASSERT_GE(user->request, 0);

	irq->argsz = sizeof(buf);
	irq->flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
	irq->index = VFIO_PCI_REQ_IRQ_INDEX;
	irq->count = 1;
	memcpy(irq->data, &user->request, sizeof(int));
	ioctl_assert(user->device->fd, VFIO_DEVICE_SET_IRQS, irq);
}

static void user_open(struct user *user, const char *iommu_mode)
{
	user->iommu = iommu_init(iommu_mode);
	user->device = vfio_pci_device_init(device_bdf, user->iommu);
	request_set(user);
}

static void user_close(struct user *user)
{
	vfio_pci_device_cleanup(user->device);
	iommu_cleanup(user->iommu);
	close(user->request);
}

/* Returns once the driver has asked for the device. */
static void user_wait(struct user *user)
{
	u64 count;

	VFIO_ASSERT_EQ(read(user->request, &count, sizeof(count)), sizeof(count));
}

/* Does the device answer, and is it the one that it should be? */
static bool user_works(struct user *user, const char *bdf)
{
	char path[PATH_MAX];

	device_path(path, bdf, "vendor");

	return vfio_pci_config_readw(user->device, PCI_VENDOR_ID) == read_number(path);
}

static bool user_can_reset(struct user *user)
{
	return user->device->info.flags & VFIO_DEVICE_FLAGS_RESET;
}

static bool device_works(const char *iommu_mode)
{
	struct user user;
	bool ret;

	user_open(&user, iommu_mode);
	ret = user_works(&user, device_bdf);
	user_close(&user);

	return ret;
}

/* What another user gets who wants the device, too, or a negative errno */
static int group_get_device_fd(struct user *user)
{
	int fd = ioctl(user->device->group_fd, VFIO_GROUP_GET_DEVICE_FD, device_bdf);

	return fd < 0 ? -errno : fd;
}

FIXTURE(vfio_pci_bind_test) {
	struct writer writer;
	struct writer resetter;
	u64 refcnt;
	int nr_groups;
};

FIXTURE_VARIANT(vfio_pci_bind_test) {
	const char *iommu_mode;
};

/* Both interfaces that hand out a device file: the group and the cdev. */
FIXTURE_VARIANT_ADD(vfio_pci_bind_test, vfio_type1v2_iommu) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_VARIANT_ADD(vfio_pci_bind_test, iommufd) {
	.iommu_mode = MODE_IOMMUFD,
};

/* A device that has been removed has forgotten its driver. */
static int device_restore(void)
{
	int ret = write_file("/sys/bus/pci/rescan", "1");

	ret = ret ?: device_write(device_bdf, "driver_override", driver);

	return ret ?: driver_write("bind", device_bdf);
}

FIXTURE_SETUP(vfio_pci_bind_test)
{
	/* Whatever a case that failed has left behind */
	if (!bound_to(device_bdf, driver))
		ASSERT_EQ(device_restore(), 0);

	self->refcnt = module_refcnt();
	self->nr_groups = nr_iommu_groups();
	writer_start(&self->writer);
	writer_start(&self->resetter);
}

FIXTURE_TEARDOWN(vfio_pci_bind_test)
{
	writer_stop(&self->resetter);
	writer_stop(&self->writer);

	ASSERT_TRUE(bound_to(device_bdf, driver));
	EXPECT_TRUE(device_works(variant->iommu_mode));
	EXPECT_EQ(module_refcnt(), self->refcnt);
	EXPECT_EQ(nr_iommu_groups(), self->nr_groups);
}

TEST_F_TIMEOUT(vfio_pci_bind_test, idle, 120)
{
	for (int i = 0; i < NR_IDLE; i++) {
		ASSERT_EQ(driver_write("unbind", device_bdf), 0);
		ASSERT_TRUE(bound_to(device_bdf, NULL));
		ASSERT_FALSE(device_has(device_bdf, "vfio-dev"));
		ASSERT_EQ(driver_write("bind", device_bdf), 0);
		ASSERT_TRUE(bound_to(device_bdf, driver));
		ASSERT_TRUE(device_has(device_bdf, "vfio-dev"));
	}
}

TEST_F_TIMEOUT(vfio_pci_bind_test, open, 120)
{
	struct user user;

	for (int i = 0; i < NR_OPEN; i++) {
		user_open(&user, variant->iommu_mode);
		writer_unbind(&self->writer);
		user_wait(&user);

		if (user.iommu->mode->container_path)
			ASSERT_EQ(group_get_device_fd(&user), -ENODEV);
		ASSERT_FALSE(device_has(device_bdf, "vfio-dev"));
		if (user_can_reset(&user))
			ASSERT_EQ(__vfio_pci_device_reset(user.device), -EAGAIN);
		ASSERT_TRUE(user_works(&user, device_bdf));
		ASSERT_TRUE(writer_busy(&self->writer));

		user_close(&user);
		ASSERT_EQ(writer_wait(&self->writer), 0);
		ASSERT_TRUE(bound_to(device_bdf, NULL));
		ASSERT_EQ(driver_write("bind", device_bdf), 0);
	}
}

/* A thread that reads from all BARs, over and over */
struct toucher {
	pthread_t thread;
	u32 *vaddr[PCI_STD_NUM_BARS];
	int nr_vaddr;
	u64 touched;
	u64 bus_errors;
	bool stop;
};

static sigjmp_buf bus_error;

static void on_bus_error(int sig)
{
	siglongjmp(bus_error, 1);
}

static void *toucher_main(void *arg)
{
	struct toucher *toucher = arg;

	while (!READ_ONCE(toucher->stop)) {
		if (sigsetjmp(bus_error, 1)) {
			WRITE_ONCE(toucher->bus_errors, toucher->bus_errors + 1);
			continue;
		}
		for (int i = 0; i < toucher->nr_vaddr; i++)
			(void)READ_ONCE(*toucher->vaddr[i]);
		WRITE_ONCE(toucher->touched, toucher->touched + 1);
	}

	return NULL;
}

static void toucher_start(struct toucher *toucher, struct vfio_pci_device *device)
{
	memset(toucher, 0, sizeof(*toucher));

	for (int i = 0; i < PCI_STD_NUM_BARS; i++) {
		const struct vfio_region_info *info = &device->bars[i].info;
		void *vaddr;

		if (!(info->flags & VFIO_REGION_INFO_FLAG_MMAP))
			continue;
		vaddr = mmap(NULL, getpagesize(), PROT_READ, MAP_SHARED,
			     device->fd, info->offset);
		VFIO_ASSERT_NE(vaddr, MAP_FAILED);
		toucher->vaddr[toucher->nr_vaddr++] = vaddr;
	}

	signal(SIGBUS, on_bus_error);
	VFIO_ASSERT_EQ(pthread_create(&toucher->thread, NULL, toucher_main, toucher), 0);
}

static void toucher_stop(struct toucher *toucher)
{
	WRITE_ONCE(toucher->stop, true);
	pthread_join(toucher->thread, NULL);
	signal(SIGBUS, SIG_DFL);
}

static void toucher_unmap(struct toucher *toucher)
{
	for (int i = 0; i < toucher->nr_vaddr; i++)
		VFIO_ASSERT_EQ(munmap(toucher->vaddr[i], getpagesize()), 0);
}

/* Waits for one more than the thread may be in the middle of. */
static void await_two(const u64 *counter)
{
	u64 start = READ_ONCE(*counter);

	while (READ_ONCE(*counter) < start + 2)
		sched_yield();
}

TEST_F_TIMEOUT(vfio_pci_bind_test, mapped, 120)
{
	struct toucher toucher;
	struct user user;

	for (int i = 0; i < NR_MAPPED; i++) {
		user_open(&user, variant->iommu_mode);
		toucher_start(&toucher, user.device);
		if (!toucher.nr_vaddr) {
			toucher_stop(&toucher);
			user_close(&user);
			SKIP(return, "No BAR of %s can be mapped", device_bdf);
		}
		await_two(&toucher.touched);
		ASSERT_EQ(toucher.bus_errors, 0);

		writer_unbind(&self->writer);
		user_wait(&user);
		await_two(&toucher.touched);
		ASSERT_EQ(toucher.bus_errors, 0);

		/* As long as the file is there, a BAR comes and goes as always. */
		vfio_pci_cmd_clear(user.device, PCI_COMMAND_MEMORY);
		await_two(&toucher.bus_errors);
		vfio_pci_cmd_set(user.device, PCI_COMMAND_MEMORY);
		await_two(&toucher.touched);

		/* A mapping holds the device, too. */
		user_close(&user);
		await_two(&toucher.touched);
		toucher_stop(&toucher);
		ASSERT_TRUE(writer_busy(&self->writer));

		toucher_unmap(&toucher);
		ASSERT_EQ(writer_wait(&self->writer), 0);
		ASSERT_TRUE(bound_to(device_bdf, NULL));
		ASSERT_EQ(driver_write("bind", device_bdf), 0);
	}
}

struct reset_thread {
	pthread_t thread;
	struct user *user;
	bool stop;
	int nr_done;
	int error;
};

static void *reset_main(void *arg)
{
	struct reset_thread *reset = arg;

	while (!READ_ONCE(reset->stop)) {
		int ret = __vfio_pci_device_reset(reset->user->device);

		if (!ret)
			WRITE_ONCE(reset->nr_done, reset->nr_done + 1);
		else if (ret != -EAGAIN)
			reset->error = ret;
	}

	return NULL;
}

/* While the user and the administrator reset the device */
TEST_F_TIMEOUT(vfio_pci_bind_test, reset, 120)
{
	struct user user;

	for (int i = 0; i < NR_RESET; i++) {
		struct reset_thread reset = { .user = &user };

		user_open(&user, variant->iommu_mode);
		if (!user_can_reset(&user)) {
			user_close(&user);
			SKIP(return, "%s cannot be reset", device_bdf);
		}
		ASSERT_EQ(pthread_create(&reset.thread, NULL, reset_main, &reset), 0);
		/* Until the thread is at it; the next one is then under way. */
		while (!READ_ONCE(reset.nr_done))
			sched_yield();

		writer_device_write(&self->resetter, "reset");
		writer_unbind(&self->writer);
		user_wait(&user);
		WRITE_ONCE(reset.stop, true);
		pthread_join(reset.thread, NULL);
		ASSERT_EQ(reset.error, 0);
		ASSERT_EQ(__vfio_pci_device_reset(user.device), -EAGAIN);
		ASSERT_TRUE(user_works(&user, device_bdf));
		ASSERT_TRUE(writer_busy(&self->writer));

		user_close(&user);
		ASSERT_EQ(writer_wait(&self->writer), 0);
		ASSERT_TRUE(bound_to(device_bdf, NULL));
		/* A reset that is still under way does not keep it from being bound. */
		ASSERT_EQ(driver_write("bind", device_bdf), 0);
		ASSERT_EQ(writer_wait(&self->resetter), 0);
	}
}

static int vfs_create(const char *nr_vfs)
{
	return device_write(device_bdf, "sriov_numvfs", nr_vfs);
}

/* Why the device has no VFs, or NULL */
static const char *no_vfs(void)
{
	if (!device_has(device_bdf, "sriov_numvfs"))
		return "The device has no virtual functions";
	if (vfs_create("1") == -ENOENT)
		return "The driver is not allowed to make virtual functions";
	VFIO_ASSERT_EQ(vfs_create("0"), 0);

	return NULL;
}

TEST_F_TIMEOUT(vfio_pci_bind_test, vf, 120)
{
	if (no_vfs())
		SKIP(return, "%s", no_vfs());

	for (int i = 0; i < NR_VF; i++) {
		char *vf_bdf;

		ASSERT_EQ(vfs_create("1"), 0);
		ASSERT_EQ(vfs_create("2"), -EBUSY);
		vf_bdf = sysfs_sriov_vf_bdf_get(device_bdf, 0);
		ASSERT_TRUE(bound_to(vf_bdf, driver));

		ASSERT_EQ(driver_write("unbind", device_bdf), 0);
		ASSERT_TRUE(bound_to(device_bdf, NULL));
		ASSERT_FALSE(device_has(vf_bdf, ""));
		ASSERT_EQ(sysfs_sriov_numvfs_get(device_bdf), 0);
		ASSERT_EQ(vfs_create("1"), -ENOENT);
		ASSERT_EQ(driver_write("bind", device_bdf), 0);
		free(vf_bdf);
	}
}

/* As user_open(), but of a VF, for which one needs the token of the PF. */
static void user_open_vf(struct user *user, const char *iommu_mode, const char *bdf)
{
	struct vfio_region_info *config_space;

	user_open(user, iommu_mode);
	vfio_device_set_vf_token(user->device->fd, VF_TOKEN);
	user_close(user);

	user->iommu = iommu_init(iommu_mode);
	user->device = vfio_pci_device_alloc(bdf, user->iommu);
	/* None of these is open. */
	memset(user->device->msi_eventfds, -1, sizeof(user->device->msi_eventfds));
	if (user->iommu->mode->container_path) {
		vfio_pci_group_setup(user->device, bdf);
		vfio_container_set_iommu(user->device);
		__vfio_pci_group_get_device_fd(user->device, bdf, VF_TOKEN);
		VFIO_ASSERT_GE(user->device->fd, 0);
	} else {
		vfio_pci_cdev_open(user->device, bdf);
		VFIO_ASSERT_EQ(__vfio_device_bind_iommufd(user->device->fd,
							  user->iommu->iommufd,
							  VF_TOKEN), 0);
	}

	config_space = &user->device->config_space;
	config_space->argsz = sizeof(*config_space);
	config_space->index = VFIO_PCI_CONFIG_REGION_INDEX;
	ioctl_assert(user->device->fd, VFIO_DEVICE_GET_REGION_INFO, config_space);
	request_set(user);
}

/* To take the PF away means to take the VF away, for which its user is asked. */
TEST_F_TIMEOUT(vfio_pci_bind_test, vf_open, 120)
{
	if (no_vfs())
		SKIP(return, "%s", no_vfs());

	for (int i = 0; i < NR_VF_OPEN; i++) {
		struct user user;
		char *vf_bdf;

		ASSERT_EQ(vfs_create("1"), 0);
		vf_bdf = sysfs_sriov_vf_bdf_get(device_bdf, 0);
		user_open_vf(&user, variant->iommu_mode, vf_bdf);

		writer_unbind(&self->writer);
		user_wait(&user);
		/* Like that of any VF, the vendor that it has in itself is 0xffff. */
		ASSERT_TRUE(user_works(&user, vf_bdf));
		ASSERT_TRUE(writer_busy(&self->writer));

		user_close(&user);
		ASSERT_EQ(writer_wait(&self->writer), 0);
		ASSERT_TRUE(bound_to(device_bdf, NULL));
		ASSERT_FALSE(device_has(vf_bdf, ""));
		ASSERT_EQ(driver_write("bind", device_bdf), 0);
		free(vf_bdf);
	}
}

TEST_F(vfio_pci_bind_test, refused)
{
	struct user user;

	ASSERT_EQ(driver_write("bind", device_bdf), -EBUSY);
	user_open(&user, variant->iommu_mode);
	EXPECT_EQ(driver_write("bind", device_bdf), -EBUSY);
	EXPECT_TRUE(user_works(&user, device_bdf));
	user_close(&user);

	ASSERT_EQ(driver_write("unbind", device_bdf), 0);
	EXPECT_EQ(driver_write("unbind", device_bdf), -ENODEV);
	EXPECT_EQ(driver_write("bind", "no device"), -ENODEV);

	/* The driver takes no device that is not given to it. */
	ASSERT_EQ(device_write(device_bdf, "driver_override", "none"), 0);
	EXPECT_EQ(driver_write("bind", device_bdf), -ENODEV);
	EXPECT_TRUE(bound_to(device_bdf, NULL));
	ASSERT_EQ(device_write(device_bdf, "driver_override", driver), 0);
	ASSERT_EQ(driver_write("bind", device_bdf), 0);
}

/* The driver takes devices by an id as well, which it is given and loses again. */
TEST_F(vfio_pci_bind_test, dynamic_id)
{
	char path[PATH_MAX], id[16];
	u64 vendor, device;

	device_path(path, device_bdf, "vendor");
	vendor = read_number(path);
	device_path(path, device_bdf, "device");
	device = read_number(path);
	snprintf_assert(id, sizeof(id), "%04lx %04lx", vendor, device);

	ASSERT_EQ(driver_write("unbind", device_bdf), 0);
	ASSERT_EQ(device_write(device_bdf, "driver_override", "\n"), 0);
	EXPECT_EQ(driver_write("bind", device_bdf), -ENODEV);

	EXPECT_EQ(driver_write("new_id", id), 0);
	EXPECT_TRUE(bound_to(device_bdf, driver));
	EXPECT_TRUE(device_works(variant->iommu_mode));
	EXPECT_EQ(driver_write("new_id", id), -EEXIST);
	EXPECT_EQ(driver_write("remove_id", id), 0);
	EXPECT_EQ(driver_write("remove_id", id), -ENODEV);

	EXPECT_EQ(driver_write("unbind", device_bdf), 0);
	EXPECT_EQ(driver_write("bind", device_bdf), -ENODEV);
	ASSERT_EQ(device_write(device_bdf, "driver_override", driver), 0);
	ASSERT_EQ(driver_write("bind", device_bdf), 0);
}

/* VFIO refuses a bridge, but not before it has been given one. */
TEST_F(vfio_pci_bind_test, bridge)
{
	char path[PATH_MAX], real[PATH_MAX], *bdf, *old;

	device_path(path, device_bdf, "..");
	ASSERT_NE(realpath(path, real), NULL);
	bdf = basename(real);
	if (!device_has(bdf, "driver"))
		SKIP(return, "%s is not behind a bridge that has a driver", device_bdf);

	old = sysfs_driver_get(bdf);
	ASSERT_EQ(device_write(bdf, "driver/unbind", bdf), 0);
	ASSERT_EQ(device_write(bdf, "driver_override", driver), 0);
	for (int i = 0; i < 10; i++) {
		EXPECT_EQ(driver_write("bind", bdf), -EINVAL);
		EXPECT_TRUE(bound_to(bdf, NULL));
	}
	EXPECT_FALSE(device_has(bdf, "vfio-dev"));

	ASSERT_EQ(device_write(bdf, "driver_override", "\n"), 0);
	ASSERT_EQ(write_file("/sys/bus/pci/drivers_probe", bdf), 0);
	EXPECT_TRUE(bound_to(bdf, old));
	free(old);
}

/*
 * With fault injection, the first memory allocation of a system call can be made
 * to fail, then the second, and so on until there is none left to fail. Only the
 * probe can be tested so: while a device is opened, ACPI routes its interrupt,
 * and does not survive it.
 */
static int fail_nth_open(void)
{
	static const char failslab[] = "/sys/kernel/debug/failslab";
	char path[PATH_MAX];

	snprintf_assert(path, sizeof(path), "%s/verbose", failslab);
	if (write_file(path, "0"))
		return -1;
	snprintf_assert(path, sizeof(path), "%s/ignore-gfp-wait", failslab);
	if (write_file(path, "N"))
		return -1;

	return open("/proc/thread-self/fail-nth", O_RDWR);
}

static void fail_nth_set(int fail_nth, int nth)
{
	char buf[16];
	int len = snprintf(buf, sizeof(buf), "%d", nth);

	VFIO_ASSERT_EQ(pwrite(fail_nth, buf, len, 0), len);
}

/* Has there been an allocation to fail? */
static bool fail_nth_failed(int fail_nth)
{
	char left[16] = {};

	VFIO_ASSERT_GT(pread(fail_nth, left, sizeof(left) - 1, 0), 0);
	fail_nth_set(fail_nth, 0);

	return !atoi(left);
}

TEST_F_TIMEOUT(vfio_pci_bind_test, out_of_memory, 120)
{
	int fail_nth = fail_nth_open();
	int bind, ret, nth, nr_failed = 0;
	char path[PATH_MAX];
	bool failed;

	if (fail_nth < 0)
		SKIP(return, "There is no CONFIG_FAILSLAB, or no debugfs");

	driver_path(path, "bind");
	bind = open(path, O_WRONLY);
	ASSERT_GE(bind, 0);
	ASSERT_EQ(driver_write("unbind", device_bdf), 0);

	for (nth = 1; ; nth++) {
		fail_nth_set(fail_nth, nth);
		ret = write(bind, device_bdf, strlen(device_bdf)) < 0 ? -errno : 0;
		failed = fail_nth_failed(fail_nth);
		if (!failed)
			break;

		/* Some allocations can be done without. */
		ASSERT_TRUE(!ret || ret == -ENOMEM) {
			TH_LOG("Allocation %d: %d", nth, ret);
		}
		ASSERT_TRUE(bound_to(device_bdf, ret ? NULL : driver));
		ASSERT_EQ(device_has(device_bdf, "vfio-dev"), !ret);
		if (ret)
			nr_failed++;
		else
			ASSERT_EQ(driver_write("unbind", device_bdf), 0);
	}

	TH_LOG("%d of %d allocations made the probe fail", nr_failed, nth - 1);
	EXPECT_EQ(ret, 0);
	EXPECT_GT(nr_failed, 0);
	close(bind);
	close(fail_nth);
}

/*
 * Also while a reset waits for the removal or the removal for a reset. After all
 * of the above: what they have lost of the device shows when it goes.
 */
TEST_F_TIMEOUT(vfio_pci_bind_test, remove, 120)
{
	bool can_reset = device_has(device_bdf, "reset");
	struct user user;
	int ret;

	for (int i = 0; i < NR_REMOVE; i++) {
		user_open(&user, variant->iommu_mode);
		if (can_reset && i % 2)
			writer_device_write(&self->resetter, "reset");
		writer_device_write(&self->writer, "remove");
		user_wait(&user);
		if (can_reset && !(i % 2))
			writer_device_write(&self->resetter, "reset");

		ASSERT_TRUE(user_works(&user, device_bdf));
		ASSERT_TRUE(writer_busy(&self->writer));
		user_close(&user);
		ASSERT_EQ(writer_wait(&self->writer), 0);
		ASSERT_FALSE(device_has(device_bdf, ""));
		if (can_reset) {
			ret = writer_wait(&self->resetter);
			/* It came too late for the file, or for the device. */
			ASSERT_TRUE(!ret || ret == -ENOENT || ret == -ENODEV) {
				TH_LOG("reset: %d", ret);
			}
		}

		ASSERT_EQ(device_restore(), 0);
		ASSERT_TRUE(bound_to(device_bdf, driver));
	}
}

static int module_unload(void)
{
	return syscall(SYS_delete_module, module, O_NONBLOCK) ? -errno : 0;
}

TEST_F_TIMEOUT(vfio_pci_bind_test, module, 120)
{
	char modprobe[64];
	struct user user;

	if (!module)
		SKIP(return, "%s is built into the kernel", driver);
	snprintf_assert(modprobe, sizeof(modprobe), "modprobe %s", module);

	for (int i = 0; i < 10; i++) {
		user_open(&user, variant->iommu_mode);
		ASSERT_EQ(module_unload(), -EAGAIN);
		ASSERT_TRUE(user_works(&user, device_bdf));
		user_close(&user);

		ASSERT_EQ(module_unload(), 0);
		ASSERT_TRUE(bound_to(device_bdf, NULL));
		/* With its driver_override the device is bound right away. */
		ASSERT_EQ(system(modprobe), 0);
		ASSERT_TRUE(bound_to(device_bdf, driver));
	}
}

static void module_find(void)
{
	char path[PATH_MAX], target[PATH_MAX] = {};

	driver_path(path, "module");
	if (readlink(path, target, sizeof(target) - 1) < 0)
		return;
	snprintf_assert(path, sizeof(path), "/sys/module/%s/initstate", basename(target));
	/* Only what has been loaded has a state. */
	if (!access(path, F_OK))
		module = strdup(basename(target));
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);

	driver = sysfs_driver_get(device_bdf);
	if (!driver || !device_has(device_bdf, "vfio-dev"))
		ksft_exit_skip("%s is not bound to a driver of VFIO\n", device_bdf);
	module_find();
	printf("# The driver of %s is %s\n", device_bdf, driver);

	/* However it came to this driver, it shall come back to it. */
	VFIO_ASSERT_EQ(device_write(device_bdf, "driver_override", driver), 0);

	return test_harness_run(argc, argv);
}
