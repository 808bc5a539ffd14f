// SPDX-License-Identifier: GPL-2.0-only
/*
 * What happens to a BAR mapping when a part of it is unmapped, moved, replaced
 * or given other flags, while leaves above the lowest page table level map it.
 * None of that may be seen from outside, save in faults:
 *
 *  - The part is what was asked for, the rest is what it was: mapped with the
 *    same protection to the same bytes of the device, and /proc/self/maps says
 *    so. An access to what is not mapped, or forbidden, is a SIGSEGV.
 *  - An error is the same for every leaf, and has left the leaves.
 *  - Touched again, the rest takes no more faults than there are leaves in the
 *    best mapping of what is now mapped.
 *  - The process has the page tables that it had before, once all is unmapped,
 *    and the kernel's log has no complaint.
 *
 * Every operation is done on parts that start and end at the borders of pages
 * and of leaves, and next to them; where MAP_FIXED has put the BAR at an address
 * that is congruent with the physical one, so that the largest leaves map it,
 * and where the kernel has put it; in the process that has mapped the BAR and in
 * a child. Each is a process of its own, which may die or hang in the kernel.
 *
 * The same holds when the kernel takes the leaves away while a part moves, since
 * somebody turns the device's memory off and on.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <linux/align.h>
#include <linux/compiler.h>
#include <linux/limits.h>
#include <linux/mman.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

/* QEMU's shared memory: BAR 2 is nothing but memory. */
#define PCI_VENDOR_ID_REDHAT_QUMRANET	0x1af4
#define PCI_DEVICE_ID_IVSHMEM		0x1110

/* For a process that does nothing but its case; a hung one is killed then. */
#define CASE_SECONDS 30
/* For a process that is to die */
#define KILL_SECONDS 3

/* How often a part moves there and back, and the device's memory is off, at least */
#define ZAP_ROUNDS 200
/* QEMU took 44 ms to turn memory off and on; an instrumented kernel takes longer. */
#define ZAP_SECONDS 300

static const char *device_bdf;
static struct vfio_pci_device *device;

/* What a page, a PMD and a PUD map, whether or not by a leaf */
static u64 page_size, pmd_size, pud_size;

/* The leaves that there are */
static u64 leaves[MAX_LEAF_SIZES];
static int nr_leaves;

/* The largest BAR: what is mapped of it, where it is in the file and on the bus */
static u64 bar_len, bar_offset, bar_phys;
/* Whether there is memory behind it, which may be written and has contents */
static bool bar_is_memory;

/* Set when a process could not be killed: it holds the locks of the mapping. */
static bool *stuck;

/*
 * The parts that an operation is done on: start and end, as numbers of PUD and
 * PMD leaves and pages.
 */
struct position {
	int puds;
	int pmds;
	int pages;
};

static const struct {
	struct position start;
	struct position end;
} parts[] = {
	/* One page: inside a PMD leaf, at its start and at its end */
	{ { 0, 4, 1 }, { 0, 4, 2 } },
	{ { 0, 4, 0 }, { 0, 4, 1 } },
	{ { 0, 4, -1 }, { 0, 4, 0 } },
	/* Two PMD leaves, and one page more or less at either border */
	{ { 0, 4, 0 }, { 0, 6, 0 } },
	{ { 0, 4, -1 }, { 0, 6, 0 } },
	{ { 0, 4, 1 }, { 0, 6, 0 } },
	{ { 0, 4, 0 }, { 0, 6, -1 } },
	{ { 0, 4, 0 }, { 0, 6, 1 } },
	{ { 0, 4, -1 }, { 0, 6, 1 } },
	{ { 0, 4, 1 }, { 0, 6, -1 } },
	/* From the start of the mapping */
	{ { 0, 0, 0 }, { 0, 0, 1 } },
	{ { 0, 0, 0 }, { 0, 1, 0 } },
	{ { 0, 0, 0 }, { 0, 2, 0 } },
	{ { 0, 0, 0 }, { 1, 0, -1 } },
	{ { 0, 0, 0 }, { 1, 0, 0 } },
	{ { 0, 0, 0 }, { 1, 0, 1 } },
	/* At the border of two PUD leaves, and across it */
	{ { 1, 0, -1 }, { 1, 0, 0 } },
	{ { 1, 0, 0 }, { 1, 0, 1 } },
	{ { 1, 0, -1 }, { 1, 0, 1 } },
	{ { 1, -1, 0 }, { 1, 0, 0 } },
	{ { 1, 0, 0 }, { 1, 1, 0 } },
	{ { 1, -1, 0 }, { 1, 1, 0 } },
	{ { 1, -1, 1 }, { 1, 1, -1 } },
	/* To the end of the mapping */
	{ { 1, 0, -1 }, { 2, 0, 0 } },
	{ { 1, 0, 0 }, { 2, 0, 0 } },
	{ { 1, 0, 1 }, { 2, 0, 0 } },
	{ { 2, -1, 0 }, { 2, 0, 0 } },
	{ { 2, 0, -1 }, { 2, 0, 0 } },
	/* All of it, and all but a page at either end */
	{ { 0, 0, 0 }, { 2, 0, 0 } },
	{ { 0, 0, 1 }, { 2, 0, -1 } },
};

static u64 position(const struct position *pos)
{
	return pos->puds * pud_size + pos->pmds * pmd_size + pos->pages * page_size;
}

/* The offsets that are looked at: the borders of all parts, and next to them */
#define MAX_POINTS 512
static u64 points[MAX_POINTS];
static int nr_points;

/* What a range of addresses is expected to be; without one, it is unmapped */
struct segment {
	u64 start;
	u64 end;
	u64 offset;	/* In the BAR */
	int prot;
	bool anon;	/* Anonymous memory and not the BAR */
};

#define MAX_SEGMENTS 16

struct mapping {
	char *vaddr;	/* Where the BAR is mapped */
	char *target;	/* PROT_NONE memory as large, to move a part to */
	char *reserved;	/* What vaddr is in, if the address is ours */
	char *target_reserved;
	struct segment segments[MAX_SEGMENTS];
	int nr_segments;
};

static __noreturn __printf(1, 2) void fail(const char *fmt, ...)
{
	va_list args;

	printf("# ");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	_exit(KSFT_FAIL);
}

#define CHECK(_ok, _fmt, ...) do {				\
	if (!(_ok))						\
		fail("%u: " _fmt, __LINE__, ##__VA_ARGS__);	\
} while (0)

/* The oracle: what is mapped, as segments in the order of their addresses */

static void segment_insert(struct mapping *m, struct segment new)
{
	int i = m->nr_segments++;

	CHECK(m->nr_segments <= MAX_SEGMENTS, "Too many segments");
	for (; i && m->segments[i - 1].start > new.start; i--)
		m->segments[i] = m->segments[i - 1];
	m->segments[i] = new;
}

static void segments_split(struct mapping *m, u64 addr)
{
	for (int i = 0; i < m->nr_segments; i++) {
		struct segment *seg = &m->segments[i], tail = *seg;

		if (addr <= seg->start || addr >= seg->end)
			continue;
		tail.start = addr;
		tail.offset += addr - seg->start;
		seg->end = addr;
		segment_insert(m, tail);
		return;
	}
}

/* The mapping is one VMA up to @start, one from there to @end, and one after. */
static void segments_isolate(struct mapping *m, u64 start, u64 end)
{
	segments_split(m, start);
	segments_split(m, end);
}

static void segments_remove(struct mapping *m, u64 start, u64 end)
{
	int left = 0;

	segments_isolate(m, start, end);
	for (int i = 0; i < m->nr_segments; i++) {
		struct segment *seg = &m->segments[i];

		if (seg->start < start || seg->end > end)
			m->segments[left++] = *seg;
	}
	m->nr_segments = left;
}

static void segments_protect(struct mapping *m, u64 start, u64 end, int prot)
{
	segments_isolate(m, start, end);
	for (int i = 0; i < m->nr_segments; i++) {
		struct segment *seg = &m->segments[i];

		if (seg->start >= start && seg->end <= end)
			seg->prot = prot;
	}
}

static const struct segment *segment_find(const struct mapping *m, u64 addr)
{
	for (int i = 0; i < m->nr_segments; i++) {
		const struct segment *seg = &m->segments[i];

		if (addr >= seg->start && addr < seg->end)
			return seg;
	}

	return NULL;
}

/* Appends to a list in which what looks like one range is one. */
static void segments_append(struct mapping *m, struct segment new)
{
	struct segment *last = &m->segments[m->nr_segments - 1];

	if (m->nr_segments && last->end == new.start && last->prot == new.prot &&
	    last->anon == new.anon &&
	    (new.anon || last->offset + (last->end - last->start) == new.offset))
		last->end = new.end;
	else
		segment_insert(m, new);
}

/* The size of the leaf that is to map @addr, the largest that fits its VMA */
static u64 leaf_size(const struct segment *seg, u64 addr)
{
	u64 phys = bar_phys + seg->offset + (addr - seg->start);

	for (int i = nr_leaves - 1; i > 0; i--) {
		u64 block = ALIGN_DOWN(addr, leaves[i]);

		if ((addr - phys) % leaves[i] == 0 && block >= seg->start &&
		    block + leaves[i] <= seg->end)
			return leaves[i];
	}

	return page_size;
}

/* What the kernel says and what the processor sees */

static u64 pread_device(u64 offset)
{
	u64 value;

	CHECK(pread(device->fd, &value, sizeof(value), bar_offset + offset) ==
	      sizeof(value), "pread() at %#lx: %s", offset, strerror(errno));
	return value;
}

static void pwrite_device(u64 offset, u64 value)
{
	CHECK(pwrite(device->fd, &value, sizeof(value), bar_offset + offset) ==
	      sizeof(value), "pwrite() at %#lx: %s", offset, strerror(errno));
}

/* What a case expects at each of the points, unless it writes there */
static u64 pattern(u64 offset)
{
	return (offset | 1) * 0x9e3779b97f4a7c15ULL;
}

static sigjmp_buf access_fault;

static void handle_fault(int sig)
{
	siglongjmp(access_fault, sig);
}

/* Returns the signal that the access got, or 0. */
static int try_read(char *vaddr, u64 *value)
{
	int sig = sigsetjmp(access_fault, 1);

	if (!sig)
		*value = READ_ONCE(*(u64 *)vaddr);

	return sig;
}

static int try_write(char *vaddr, u64 value)
{
	int sig = sigsetjmp(access_fault, 1);

	if (!sig)
		WRITE_ONCE(*(u64 *)vaddr, value);

	return sig;
}

/* A file of /proc, by system calls alone: the page tables stay as they are. */
static const char *read_proc(const char *path)
{
	static char buf[SZ_64K];
	int fd = open(path, O_RDONLY), len = 0, ret;

	CHECK(fd >= 0, "open(%s): %s", path, strerror(errno));
	while ((ret = read(fd, buf + len, sizeof(buf) - 1 - len)) > 0)
		len += ret;
	CHECK(!ret && len < sizeof(buf) - 1, "read(%s)", path);
	buf[len] = '\0';
	close(fd);

	return buf;
}

/* The page tables of this process, in KiB */
static long vm_pte(void)
{
	const char *line = strstr(read_proc("/proc/self/status"), "VmPTE:");

	CHECK(line, "No VmPTE in /proc/self/status");
	return strtol(line + strlen("VmPTE:"), NULL, 10);
}

static void check_maps(const struct mapping *m)
{
	struct mapping expected = {}, seen = {};
	const char *line = read_proc("/proc/self/maps");

	for (int i = 0; i < m->nr_segments; i++)
		segments_append(&expected, m->segments[i]);

	for (; *line; line = strchr(line, '\n') + 1) {
		const u64 windows[] = { (u64)m->vaddr, (u64)m->target };
		u64 start, end, offset;
		char perms[5];

		CHECK(sscanf(line, "%lx-%lx %4s %lx", &start, &end, perms, &offset) == 4,
		      "A line of /proc/self/maps");
		for (int i = 0; i < ARRAY_SIZE(windows); i++) {
			struct segment seg = {
				.start = max_t(u64, start, windows[i]),
				.end = min_t(u64, end, windows[i] + bar_len),
				.prot = (perms[0] == 'r' ? PROT_READ : 0) |
					(perms[1] == 'w' ? PROT_WRITE : 0) |
					(perms[2] == 'x' ? PROT_EXEC : 0),
				.anon = perms[3] == 'p',
			};

			if (seg.start >= seg.end)
				continue;
			if (!seg.anon)
				seg.offset = offset - bar_offset + seg.start - start;
			segments_append(&seen, seg);
		}
	}

	for (int i = 0; i < max(seen.nr_segments, expected.nr_segments); i++) {
		const struct segment *a = &seen.segments[i], *b = &expected.segments[i];

		CHECK(a->start == b->start && a->end == b->end && a->prot == b->prot &&
		      a->anon == b->anon && (a->anon || a->offset == b->offset),
		      "VMA %d is %#lx-%#lx prot %d offset %#lx%s, not %#lx-%#lx prot %d offset %#lx%s",
		      i, a->start, a->end, a->prot, a->offset, a->anon ? " anon" : "",
		      b->start, b->end, b->prot, b->offset, b->anon ? " anon" : "");
	}
}

/* The addresses of the points, in the mapping or in the target */
static u64 point_addr(const struct mapping *m, int i)
{
	return i < nr_points ? (u64)m->vaddr + points[i] :
			       (u64)m->target + points[i - nr_points];
}

/*
 * Reads what can be read of the BAR at the points. Returns the number of faults
 * that it took and, in @most, how many that are at most: one for each leaf.
 */
static long touch(const struct mapping *m, long *most)
{
	struct rusage before, after;
	u64 block = 0, size = 0;

	*most = 0;
	/* The first call pays for the faults of the libc code itself. */
	CHECK(!getrusage(RUSAGE_SELF, &after), "getrusage()");
	CHECK(!getrusage(RUSAGE_SELF, &before), "getrusage()");

	for (int i = 0; i < 2 * nr_points; i++) {
		u64 addr = point_addr(m, i);
		const struct segment *seg = segment_find(m, addr);
		u64 leaf;

		if (!seg || seg->anon || !(seg->prot & PROT_READ))
			continue;
		(void)READ_ONCE(*(u64 *)addr);

		leaf = leaf_size(seg, addr);
		if (ALIGN_DOWN(addr, leaf) != block || leaf != size)
			(*most)++;
		block = ALIGN_DOWN(addr, leaf);
		size = leaf;
	}

	CHECK(!getrusage(RUSAGE_SELF, &after), "getrusage()");
	return after.ru_minflt - before.ru_minflt + after.ru_majflt - before.ru_majflt;
}

static void check_point(const struct mapping *m, u64 addr)
{
	const struct segment *seg = segment_find(m, addr);
	u64 offset = seg ? seg->offset + (addr - seg->start) : 0;
	u64 value = 0, old = 0, new = ~pattern(addr);
	int prot = seg ? seg->prot : PROT_NONE;
	int sig;

	if (seg && !seg->anon && bar_is_memory)
		old = pread_device(offset);

	sig = try_read((char *)addr, &value);
	CHECK(sig == (prot & PROT_READ ? 0 : SIGSEGV), "read at %#lx: signal %d", addr, sig);
	if (prot & PROT_READ && (seg->anon || bar_is_memory))
		CHECK(value == old, "read at %#lx: %#lx, not %#lx", addr, value, old);

	/* Who knows what a write does to a device? */
	if (prot & PROT_WRITE && !seg->anon && !bar_is_memory)
		return;
	sig = try_write((char *)addr, new);
	CHECK(sig == (prot & PROT_WRITE ? 0 : SIGSEGV), "write at %#lx: signal %d", addr, sig);
	if (!seg || seg->anon || !bar_is_memory)
		return;
	value = pread_device(offset);
	CHECK(value == (prot & PROT_WRITE ? new : old),
	      "write at %#lx: the device has %#lx at %#lx", addr, value, offset);
	pwrite_device(offset, old);
}

/* Reads it all with the largest leaves, and returns the number of faults. */
static long check_faults(const struct mapping *m)
{
	long most, faults = touch(m, &most);

	CHECK(faults <= most, "%ld faults where %ld leaves map all", faults, most);
	return faults;
}

/* Is everything as the oracle says? @undisturbed: no leaf has gone, either. */
static void check_mapping(const struct mapping *m, bool undisturbed)
{
	long faults = check_faults(m);

	if (undisturbed)
		CHECK(!faults, "%ld faults where no leaf should have gone", faults);

	check_maps(m);
	for (int i = 0; i < 2 * nr_points; i++)
		check_point(m, point_addr(m, i));

	/* What belongs to nothing that was touched is as it was. */
	for (int i = 0; bar_is_memory && i < nr_points; i++)
		CHECK(pread_device(points[i]) == pattern(points[i]),
		      "The device's contents at %#lx", points[i]);
}

/* An operation has nothing to do to a part. No errno is negative. */
#define NOTHING_TO_DO -1

/*
 * The operations. Each does something to the part of the mapping at @start and
 * tells the oracle of what it has done, or returns the error or NOTHING_TO_DO.
 */
struct operation {
	int (*run)(struct mapping *m, u64 start, u64 len, long arg);
	long arg;
	int error;		/* What it fails with, leaving all as it is */
	bool harmless;		/* Succeeds, and leaves all as it is */
	bool dontfork;		/* The part is not inherited by a child */
};

static int do_munmap(struct mapping *m, u64 start, u64 len, long arg)
{
	if (munmap((void *)start, len))
		return errno;
	segments_remove(m, start, start + len);
	return 0;
}

static int do_mprotect(struct mapping *m, u64 start, u64 len, long prot)
{
	if (mprotect((void *)start, len, prot))
		return errno;
	segments_protect(m, start, start + len, prot);
	return 0;
}

/* Protect, use what may be used, and allow again */
static int do_mprotect_twice(struct mapping *m, u64 start, u64 len, long prot)
{
	long most;
	int ret = do_mprotect(m, start, len, prot);

	if (ret)
		return ret;
	touch(m, &most);
	return do_mprotect(m, start, len, PROT_READ | PROT_WRITE);
}

static int do_madvise(struct mapping *m, u64 start, u64 len, long advice)
{
	if (madvise((void *)start, len, advice))
		return errno;
	segments_isolate(m, start, start + len);
	return 0;
}

static int do_mlock(struct mapping *m, u64 start, u64 len, long arg)
{
	if (mlock((void *)start, len) || munlock((void *)start, len))
		return errno;
	return 0;
}

static int do_grow(struct mapping *m, u64 start, u64 len, long flags)
{
	if (mremap((void *)start, len, len + page_size, flags) != MAP_FAILED)
		return 0;
	return errno;
}

/* @arg: how many pages are left, or, if negative, how many go */
static int do_shrink(struct mapping *m, u64 start, u64 len, long arg)
{
	u64 left = arg > 0 ? arg * page_size : len + arg * page_size;

	/* Left as it is, it would test nothing. */
	if (!left || left >= len)
		return NOTHING_TO_DO;
	if (mremap((void *)start, len, left, 0) != (void *)start)
		return errno;
	segments_remove(m, start + left, start + len);
	return 0;
}

/* By how much two addresses fail to be congruent modulo the size of a PUD leaf */
enum skew { NO_SKEW, PMD_SKEW, PAGE_SKEW };

static u64 skew_bytes(long skew)
{
	return skew == PMD_SKEW ? pmd_size : skew == PAGE_SKEW ? page_size : 0;
}

/* Moves to the same offset in the target, which is congruent, save for a skew. */
static int do_move(struct mapping *m, u64 start, u64 len, long skew)
{
	u64 target = (u64)m->target + (start - (u64)m->vaddr) + skew_bytes(skew);
	struct segment new = *segment_find(m, start);
	void *ret;

	/* The end of the mapping stays below that of the target. */
	if (target + len > (u64)m->target + bar_len)
		return NOTHING_TO_DO;
	new.offset += start - new.start;
	new.start = target;
	new.end = target + len;
	ret = mremap((void *)start, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	if (ret == MAP_FAILED)
		return errno;
	CHECK(ret == (void *)target, "mremap() to %#lx moved to %p", target, ret);
	segments_remove(m, start, start + len);
	segments_remove(m, target, target + len);
	segment_insert(m, new);
	return 0;
}

/* There, and from there to where it was */
static int do_move_back(struct mapping *m, u64 start, u64 len, long skew)
{
	u64 target = (u64)m->target + (start - (u64)m->vaddr) + skew_bytes(skew);
	struct segment old;
	void *ret;
	long most;
	int error;

	if (target + len > (u64)m->target + bar_len)
		return NOTHING_TO_DO;
	error = do_move(m, start, len, skew);
	if (error)
		return error;
	touch(m, &most);
	old = *segment_find(m, target);
	old.start = start;
	old.end = start + len;
	ret = mremap((void *)target, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, start);
	if (ret == MAP_FAILED)
		return errno;
	CHECK(ret == (void *)start, "mremap() to %#lx moved to %p", start, ret);
	segments_remove(m, target, target + len);
	segment_insert(m, old);
	return 0;
}

static int do_dontunmap(struct mapping *m, u64 start, u64 len, long arg)
{
	if (mremap((void *)start, len, len,
		   MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, m->target) != MAP_FAILED)
		return 0;
	return errno;
}

/* A length of 0 asks for a second mapping of what is shared. */
static int do_duplicate(struct mapping *m, u64 start, u64 len, long arg)
{
	if (mremap((void *)start, 0, len, MREMAP_MAYMOVE | MREMAP_FIXED,
		   m->target) != MAP_FAILED)
		return 0;
	return errno;
}

static int do_map_anon(struct mapping *m, u64 start, u64 len, long arg)
{
	struct segment new = {
		.start = start,
		.end = start + len,
		.prot = PROT_READ | PROT_WRITE,
		.anon = true,
	};

	if (mmap((void *)start, len, new.prot, MAP_PRIVATE | MAP_ANONYMOUS |
		 MAP_NORESERVE | MAP_FIXED, -1, 0) != (void *)start)
		return errno;
	segments_remove(m, start, start + len);
	segment_insert(m, new);
	return 0;
}

/* Maps the same part of the BAR over a part, or, with a skew, one further on. */
static int do_map_bar(struct mapping *m, u64 start, u64 len, long skew)
{
	struct segment new = {
		.start = start,
		.end = start + len,
		.offset = start - (u64)m->vaddr + skew_bytes(skew),
		.prot = PROT_READ | PROT_WRITE,
	};

	if (new.offset + len > bar_len)
		return NOTHING_TO_DO;
	if (mmap((void *)start, len, new.prot, MAP_SHARED | MAP_FIXED, device->fd,
		 bar_offset + new.offset) != (void *)start)
		return errno;
	segments_remove(m, start, start + len);
	segment_insert(m, new);
	return 0;
}

/* What the processes of a case do */

static void *reserve(u64 len)
{
	void *vaddr = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
			   MAP_NORESERVE, -1, 0);

	CHECK(vaddr != MAP_FAILED, "mmap() of %#lx: %s", len, strerror(errno));
	return vaddr;
}

/* The first address in reserved memory that is @remainder modulo a PUD leaf */
static char *congruent(char *vaddr, u64 remainder)
{
	return vaddr + ((remainder - (u64)vaddr) & (pud_size - 1));
}

static void map_bar(struct mapping *m, bool fixed)
{
	void *hint = NULL;

	if (fixed) {
		m->reserved = reserve(bar_len + pud_size);
		hint = congruent(m->reserved, bar_phys);
	}
	m->target_reserved = reserve(bar_len + pud_size);

	m->vaddr = mmap(hint, bar_len, PROT_READ | PROT_WRITE,
			MAP_SHARED | (fixed ? MAP_FIXED : 0), device->fd, bar_offset);
	CHECK(m->vaddr != MAP_FAILED, "mmap() of the BAR: %s", strerror(errno));
	m->target = congruent(m->target_reserved, (u64)m->vaddr);

	m->nr_segments = 0;
	segment_insert(m, (struct segment) {
		.start = (u64)m->vaddr,
		.end = (u64)m->vaddr + bar_len,
		.prot = PROT_READ | PROT_WRITE,
	});
	segment_insert(m, (struct segment) {
		.start = (u64)m->target,
		.end = (u64)m->target + bar_len,
		.anon = true,
	});
}

static void unmap_all(const struct mapping *m)
{
	CHECK(!munmap(m->vaddr, bar_len), "munmap()");
	CHECK(!munmap(m->target_reserved, bar_len + pud_size), "munmap()");
	if (m->reserved)
		CHECK(!munmap(m->reserved, bar_len + pud_size), "munmap()");
}

/*
 * Maps the BAR by the largest leaves that fit. Returns the page tables that the
 * process had before, in KiB.
 */
static long map_all(struct mapping *m, bool fixed)
{
	long before, most;

	/* From now on, the process has all that it needs beside the BAR. */
	map_bar(m, fixed);
	touch(m, &most);
	check_maps(m);
	check_point(m, (u64)m->vaddr);
	check_point(m, (u64)m->target);
	unmap_all(m);

	before = vm_pte();
	map_bar(m, fixed);
	/* Without the leaves, what is done to them below would test nothing. */
	check_faults(m);

	return before;
}

static void wait_for(pid_t pid, const char *who)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid, "waitpid()");
	CHECK(!WIFSIGNALED(status), "%s died of signal %d", who, WTERMSIG(status));
	/* It has said why. */
	if (WEXITSTATUS(status))
		_exit(WEXITSTATUS(status));
}

static void operate(struct mapping *m, const struct operation *op, u64 start, u64 len)
{
	int error = op->run(m, (u64)m->vaddr + start, len, op->arg);
	pid_t pid;

	if (error == NOTHING_TO_DO)
		_exit(KSFT_SKIP);
	CHECK(error == op->error, "It gives %d (%s), not %d", error, strerror(error),
	      op->error);
	check_mapping(m, op->error || op->harmless);
	if (!op->dontfork)
		return;

	pid = fork();
	CHECK(pid >= 0, "fork()");
	if (!pid) {
		segments_remove(m, (u64)m->vaddr + start, (u64)m->vaddr + start + len);
		check_mapping(m, false);
		_exit(0);
	}
	wait_for(pid, "the child of the child");
	check_mapping(m, false);
}

static void handle_faults(void)
{
	signal(SIGSEGV, handle_fault);
	signal(SIGBUS, handle_fault);
}

static void unmap_and_check(const struct mapping *m, long before)
{
	unmap_all(m);
	CHECK(vm_pte() == before, "%ld KiB of page tables, before: %ld KiB", vm_pte(), before);
}

static void run_case(const struct operation *op, u64 start, u64 len, bool fixed, bool in_child)
{
	struct mapping m = {};
	long before;
	pid_t pid;

	handle_faults();
	before = map_all(&m, fixed);

	if (in_child) {
		pid = fork();
		CHECK(pid >= 0, "fork()");
		if (!pid) {
			operate(&m, op, start, len);
			unmap_all(&m);
			_exit(0);
		}
		wait_for(pid, "the child");
		check_mapping(&m, false);
	} else {
		operate(&m, op, start, len);
	}

	unmap_and_check(&m, before);
}

/* What the two processes of a zap case tell each other */
struct progress {
	unsigned int zaps;
	bool stop;
};

/* Turns the device's memory off, which takes all leaves away, and on again. */
static __noreturn void toggle_memory(struct progress *progress, pid_t parent)
{
	/* Not to be left behind by a process that is killed. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(KSFT_FAIL);

	while (!READ_ONCE(progress->stop)) {
		vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
		vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
		WRITE_ONCE(progress->zaps, progress->zaps + 1);
	}
	_exit(0);
}

/* What can be moved as a whole: the largest leaf that maps a part of the BAR */
static u64 largest_leaf(void)
{
	int i = nr_leaves - 1;

	while (i && leaves[i] > bar_len)
		i--;

	return leaves[i];
}

/* Moves the first leaf there and back, again and again, while leaves are zapped. */
static void run_zap_case(void)
{
	unsigned int moves = 0, mapped = 0, off = 0;
	u64 len = largest_leaf(), value;
	struct progress *progress;
	struct mapping m = {};
	long before;
	pid_t pid, self = getpid();
	int sig;

	progress = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(progress != MAP_FAILED, "mmap()");
	progress->stop = false;

	handle_faults();
	before = map_all(&m, true);

	pid = fork();
	CHECK(pid >= 0, "fork()");
	if (!pid)
		toggle_memory(progress, self);

	/* An even number of moves: it ends where it was. */
	while (moves < 2 * ZAP_ROUNDS || READ_ONCE(progress->zaps) < ZAP_ROUNDS || moves % 2) {
		char *from = moves % 2 ? m.target : m.vaddr;
		char *to = moves % 2 ? m.vaddr : m.target;

		sig = try_read(from, &value);
		CHECK(!sig || sig == SIGBUS, "read at %p: signal %d", from, sig);
		if (sig)
			off++;
		else
			mapped++;
		/* What is read is the device's, or nothing is: memory was on. */
		if (!sig && bar_is_memory)
			CHECK(value == pattern(0), "read at %p: %#lx", from, value);

		CHECK(mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to,
		      "mremap() from %p to %p: %s", from, to, strerror(errno));
		moves++;
	}
	WRITE_ONCE(progress->stop, true);
	wait_for(pid, "the process that turns memory off and on");

	printf("# %u moves of %#lx bytes, memory was off %u times, for %u of the reads\n",
	       moves, len, progress->zaps, off);
	fflush(stdout);
	CHECK(mapped, "No read has mapped a leaf");

	segments_remove(&m, (u64)m.target, (u64)m.target + len);
	check_mapping(&m, false);
	unmap_and_check(&m, before);
}

/* The kernel's complaints since the last call; leaves the first in @line. */
static bool kernel_complains(int kmsg, char *line, size_t size)
{
	static const char * const signs[] = {
		"bad pgd", "bad p4d", "bad pud", "bad pmd", "Bad page", "Bad rss",
		"BUG", "WARNING", "Oops", "general protection fault",
	};
	bool found = false;
	char record[SZ_8K];
	int len;

	/* EPIPE: records were lost, the next read gives the oldest there is. */
	while ((len = read(kmsg, record, sizeof(record) - 1)) > 0 ||
	       (len < 0 && errno == EPIPE)) {
		if (len < 0 || found)
			continue;
		record[len] = '\0';
		for (int i = 0; i < ARRAY_SIZE(signs); i++) {
			const char *text = strchr(record, ';') ?: record;

			if (!strstr(text, signs[i]))
				continue;
			snprintf(line, size, "%.*s", (int)strcspn(text + 1, "\n"), text + 1);
			found = true;
			break;
		}
	}

	return found;
}

static double seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/*
 * Waits until a process ends, @seconds at most; for one that dies in the kernel
 * with its locks held, that is never. Returns whether it has ended.
 */
static bool wait_bounded(pid_t pid, int *status, int seconds, int kmsg,
			 char *complaint, size_t size)
{
	const struct timespec nap = { .tv_nsec = 1000000 };
	double end = seconds_now() + seconds;
	bool killed = false;

	while (waitpid(pid, status, WNOHANG) != pid) {
		if (!*complaint && kernel_complains(kmsg, complaint, size))
			end = seconds_now() + KILL_SECONDS;
		if (seconds_now() > end) {
			if (killed)
				return false;
			kill(pid, SIGKILL);
			killed = true;
			end = seconds_now() + KILL_SECONDS;
		}
		nanosleep(&nap, NULL);
	}
	if (!*complaint)
		kernel_complains(kmsg, complaint, size);

	return true;
}

FIXTURE(vfio_pci_leaf_split_test) {
	int kmsg;
};

FIXTURE_VARIANT(vfio_pci_leaf_split_test) {
	struct operation op;
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, munmap) {
	.op = { do_munmap },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mprotect_read) {
	.op = { do_mprotect, PROT_READ },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mprotect_none) {
	.op = { do_mprotect, PROT_NONE },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mprotect_twice) {
	.op = { do_mprotect_twice, PROT_READ },
};

/* To allow again is to change a leaf that is not accessible. */
FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mprotect_none_twice) {
	.op = { do_mprotect_twice, PROT_NONE },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, madvise_dontfork) {
	.op = { do_madvise, MADV_DONTFORK, .dontfork = true },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, madvise_random) {
	.op = { do_madvise, MADV_RANDOM },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, madvise_dontdump) {
	.op = { do_madvise, MADV_DONTDUMP, .harmless = true },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, madvise_dontneed) {
	.op = { do_madvise, MADV_DONTNEED, EINVAL },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, madvise_free) {
	.op = { do_madvise, MADV_FREE, EINVAL },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, madvise_pageout) {
	.op = { do_madvise, MADV_PAGEOUT, EINVAL },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, madvise_dofork) {
	.op = { do_madvise, MADV_DOFORK, EINVAL },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mlock) {
	.op = { do_mlock, .harmless = true },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_grow) {
	.op = { do_grow, 0, EFAULT },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_grow_maymove) {
	.op = { do_grow, MREMAP_MAYMOVE, EFAULT },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_shrink_to_page) {
	.op = { do_shrink, 1 },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_shrink_by_page) {
	.op = { do_shrink, -1 },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_move) {
	.op = { do_move, NO_SKEW },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_move_pmd) {
	.op = { do_move, PMD_SKEW },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_move_page) {
	.op = { do_move, PAGE_SKEW },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_move_back) {
	.op = { do_move_back, NO_SKEW },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_dontunmap) {
	.op = { do_dontunmap, 0, EINVAL },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, mremap_duplicate) {
	.op = { do_duplicate, 0, EFAULT },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, map_fixed_anon) {
	.op = { do_map_anon },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, map_fixed_bar) {
	.op = { do_map_bar, NO_SKEW },
};

FIXTURE_VARIANT_ADD(vfio_pci_leaf_split_test, map_fixed_bar_skewed) {
	.op = { do_map_bar, PAGE_SKEW },
};

/* The kernel's log, from now on */
static int kmsg_open(void)
{
	int kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);

	VFIO_ASSERT_GE(kmsg, 0);
	VFIO_ASSERT_GE(lseek(kmsg, 0, SEEK_END), 0);

	return kmsg;
}

/* Why nothing can be tested, if so */
static const char *untestable(void)
{
	if (bar_len < 8 * pmd_size)
		return "No BAR of the device holds eight PMD leaves";
	if (*stuck)
		return "A process that died in the kernel holds the device's locks";

	return NULL;
}

FIXTURE_SETUP(vfio_pci_leaf_split_test)
{
	if (untestable())
		SKIP(return, "%s", untestable());

	self->kmsg = kmsg_open();
}

FIXTURE_TEARDOWN(vfio_pci_leaf_split_test)
{
	close(self->kmsg);
}

/* Waits for the process of a case. Returns whether there was something to do. */
static bool expect_case(struct __test_metadata *_metadata, int kmsg, pid_t pid,
			int seconds, u64 start, u64 end)
{
	char complaint[256] = "";
	int status = 0;

	*stuck = !wait_bounded(pid, &status, seconds, kmsg, complaint, sizeof(complaint));
	if (!*stuck && !*complaint && WIFEXITED(status) && WEXITSTATUS(status) == KSFT_SKIP)
		return false;

	EXPECT_TRUE(!*stuck && !status && !*complaint) {
		TH_LOG("[%#lx, %#lx): %s %d; %s", start, end,
		       *stuck ? "hangs in the kernel" : WIFSIGNALED(status) ?
		       "signal" : "exit code", WIFSIGNALED(status) ?
		       WTERMSIG(status) : WEXITSTATUS(status), complaint);
	}
	return true;
}

static void run_cases(struct __test_metadata *_metadata, int kmsg,
		      const struct operation *op, bool fixed, bool in_child)
{
	int ran = 0, beyond = 0, nothing = 0;

	for (int i = 0; i < ARRAY_SIZE(parts) && !*stuck; i++) {
		u64 start = position(&parts[i].start), end = position(&parts[i].end);
		pid_t pid;

		if (end > bar_len) {
			beyond++;
			continue;
		}

		fflush(stdout);
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			run_case(op, start, end - start, fixed, in_child);
			_exit(0);
		}

		if (expect_case(_metadata, kmsg, pid, CASE_SECONDS, start, end))
			ran++;
		else
			nothing++;
	}

	printf("# %d of %zu parts; %d are beyond the BAR, to %d there is nothing to do\n",
	       ran, ARRAY_SIZE(parts), beyond, nothing);
	if (!ran)
		SKIP(return, "There is no part to do this to");
}

/* Where MAP_FIXED puts it, or where the kernel does; by the process, or a child */

TEST_F_TIMEOUT(vfio_pci_leaf_split_test, fixed, 600)
{
	run_cases(_metadata, self->kmsg, &variant->op, true, false);
}

TEST_F_TIMEOUT(vfio_pci_leaf_split_test, plain, 600)
{
	run_cases(_metadata, self->kmsg, &variant->op, false, false);
}

TEST_F_TIMEOUT(vfio_pci_leaf_split_test, fixed_child, 600)
{
	run_cases(_metadata, self->kmsg, &variant->op, true, true);
}

TEST_F_TIMEOUT(vfio_pci_leaf_split_test, plain_child, 600)
{
	run_cases(_metadata, self->kmsg, &variant->op, false, true);
}

FIXTURE(vfio_pci_leaf_zap_test) {
	int kmsg;
};

FIXTURE_SETUP(vfio_pci_leaf_zap_test)
{
	if (untestable())
		SKIP(return, "%s", untestable());

	self->kmsg = kmsg_open();
}

FIXTURE_TEARDOWN(vfio_pci_leaf_zap_test)
{
	close(self->kmsg);
}

TEST_F_TIMEOUT(vfio_pci_leaf_zap_test, mremap, 600)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		run_zap_case();
		_exit(0);
	}
	EXPECT_TRUE(expect_case(_metadata, self->kmsg, pid, ZAP_SECONDS, 0, largest_leaf()));

	/* A process that was killed may have left it off. */
	if (!*stuck)
		vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
}

static void leaves_init(void)
{
	nr_leaves = leaf_sizes_get(leaves);
	page_size = leaves[0];
	/* Without large leaves, any border will do. */
	pmd_size = nr_leaves > 1 ? leaves[1] : page_size * (page_size / sizeof(u64));
	pud_size = pmd_size * (page_size / sizeof(u64));
}

static void bar_init(void)
{
	int bar = 0;

	for (int i = 0; i < PCI_STD_NUM_BARS; i++) {
		const struct vfio_region_info *info = &device->bars[i].info;

		if (!(info->flags & VFIO_REGION_INFO_FLAG_MMAP) || info->size <= bar_len)
			continue;
		bar = i;
		bar_len = info->size;
		bar_offset = info->offset;
	}

	/* A process that maps the device cannot end once another hangs. */
	for (int i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (device->bars[i].vaddr)
			VFIO_ASSERT_EQ(munmap(device->bars[i].vaddr,
					      ALIGN(device->bars[i].info.size, page_size)), 0);
	}

	/* Two PUD leaves have all the borders that there are. */
	bar_len = ALIGN_DOWN(min_t(u64, bar_len, 2 * pud_size), page_size);

	bar_phys = sysfs_bar_start_get(device_bdf, bar);
}

static int compare(const void *a, const void *b)
{
	return *(u64 *)a < *(u64 *)b ? -1 : *(u64 *)a > *(u64 *)b;
}

static void points_init(void)
{
	const u64 around[] = { -pmd_size, -page_size, 0, page_size, pmd_size };
	int nr = 0;

	for (int i = 0; i < 2 * ARRAY_SIZE(parts); i++) {
		u64 border = position(i % 2 ? &parts[i / 2].end : &parts[i / 2].start);

		for (int j = 0; j < ARRAY_SIZE(around); j++) {
			/* Below 0 is far above the length. */
			if (border + around[j] < bar_len)
				points[nr++] = border + around[j];
			VFIO_ASSERT_LT(nr, MAX_POINTS);
		}
	}

	qsort(points, nr, sizeof(*points), compare);
	for (int i = 0; i < nr; i++) {
		if (!nr_points || points[i] != points[nr_points - 1])
			points[nr_points++] = points[i];
	}

	bar_is_memory = vfio_pci_device_match(device, PCI_VENDOR_ID_REDHAT_QUMRANET,
					      PCI_DEVICE_ID_IVSHMEM);
	if (!bar_is_memory) {
		printf("# Not ivshmem: the contents of the BAR are not checked\n");
		return;
	}
	for (int i = 0; i < nr_points; i++)
		pwrite_device(points[i], pattern(points[i]));
}

int main(int argc, char *argv[])
{
	struct iommu *iommu;

	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	leaves_init();

	stuck = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(stuck, MAP_FAILED);

	/*
	 * One device for all: a process that hangs in the kernel never closes it,
	 * and it cannot be opened a second time.
	 */
	iommu = iommu_init(default_iommu_mode);
	device = vfio_pci_device_init(device_bdf, iommu);
	bar_init();
	if (bar_len >= 8 * pmd_size)
		points_init();

	return test_harness_run(argc, argv);
}
