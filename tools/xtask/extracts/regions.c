// SPDX-License-Identifier: GPL-2.0
/*
 * What vfio-pci and nvgrace-gpu state of a mapping: which page frame it starts
 * with, and the order of what it is a part of.  regions.h holds the source of
 * their get_unmapped_area, cut out of the tree by `cargo xtask test --only
 * regions`.  Devices, mappings and mm's functions are stubs; of each mapping it
 * is known what it maps.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE (1UL << PAGE_SHIFT)
#define PAGE_ALIGN(x) (((x) + PAGE_SIZE - 1) & -PAGE_SIZE)
#define PHYS_PFN(x) ((unsigned long)((x) >> PAGE_SHIFT))
#define ilog2(x) (63 - __builtin_clzll(x))
#define container_of(ptr, type, member) \
	((type *)((char *)(ptr) - offsetof(type, member)))

#define VFIO_PCI_OFFSET_SHIFT 40
enum {
	VFIO_PCI_BAR2_REGION_INDEX = 2,
	VFIO_PCI_BAR4_REGION_INDEX = 4,
	VFIO_PCI_ROM_REGION_INDEX = 6,
	VFIO_PCI_NUM_REGIONS = 9,
};

typedef uint64_t u64;

struct file;
struct vfio_pci_core_device;
struct vfio_pci_region;

struct vfio_device {
	int unused;
};

struct pci_dev {
	u64 start[VFIO_PCI_ROM_REGION_INDEX + 1];
	u64 len[VFIO_PCI_ROM_REGION_INDEX + 1];
};

#define pci_resource_start(pdev, i) ((pdev)->start[i])
#define pci_resource_len(pdev, i) ((pdev)->len[i])

struct vfio_pci_regops {
	unsigned long (*get_unmapped_area)(struct vfio_pci_core_device *vdev,
			struct vfio_pci_region *region, struct file *file,
			unsigned long addr, unsigned long len,
			unsigned long pgoff, unsigned long flags);
};

struct vfio_pci_region {
	const struct vfio_pci_regops *ops;
};

struct vfio_pci_core_device {
	/* Not first, so that it takes a container_of() */
	long unused;
	struct vfio_device vdev;
	struct pci_dev *pdev;
	int num_regions;
	struct vfio_pci_region *region;
	bool bar_mmap_supported[VFIO_PCI_ROM_REGION_INDEX];
};

struct mem_region {
	u64 memphys;
	size_t memlength;
};

struct nvgrace_gpu_pci_core_device {
	long unused;
	struct vfio_pci_core_device core_device;
	struct mem_region usemem;
	struct mem_region resmem;
};

static struct mem_region *
nvgrace_gpu_memregion(int index, struct nvgrace_gpu_pci_core_device *nvdev)
{
	if (index == VFIO_PCI_BAR4_REGION_INDEX)
		return &nvdev->usemem;
	if (nvdev->resmem.memlength && index == VFIO_PCI_BAR2_REGION_INDEX)
		return &nvdev->resmem;
	return NULL;
}

/* Who placed the mapping, and what was said of it */
enum placed { NOBODY, ANYWHERE, BY_PFN, BY_OWNER };

struct call {
	enum placed by;
	struct file *file;
	unsigned long addr, len, pgoff, flags, pfn;
	unsigned int order;
	struct vfio_pci_region *region;
};

static struct call call;
static int calls;
static unsigned long answer;

static unsigned long called(struct call c)
{
	call = c;
	calls++;
	return answer;
}

static unsigned long mm_get_unmapped_area(struct file *file, unsigned long addr,
		unsigned long len, unsigned long pgoff, unsigned long flags)
{
	return called((struct call){ ANYWHERE, file, addr, len, pgoff, flags });
}

static unsigned long mm_get_unmapped_area_order(struct file *file,
		unsigned long addr, unsigned long len, unsigned long pgoff,
		unsigned long flags, unsigned long pfn, unsigned int order)
{
	return called((struct call){ BY_PFN, file, addr, len, pgoff, flags, pfn,
				     order });
}

static unsigned long owner(struct vfio_pci_core_device *vdev,
		struct vfio_pci_region *region, struct file *file,
		unsigned long addr, unsigned long len, unsigned long pgoff,
		unsigned long flags)
{
	return called((struct call){ BY_OWNER, file, addr, len, pgoff, flags, 0,
				     0, region });
}

#define EXPORT_SYMBOL_GPL(symbol)
#include "regions.h"

static uint64_t next(void)
{
	static uint64_t seed;
	uint64_t z = (seed += 0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

/* A mapping of memory: is it in there, and what is there to say of it? */
static bool in_memory(u64 start, u64 bytes, u64 offset, u64 len, struct call *due)
{
	u64 pages = (bytes + PAGE_SIZE - 1) / PAGE_SIZE;

	if (offset / PAGE_SIZE + len / PAGE_SIZE > pages)
		return false;
	due->by = BY_PFN;
	due->pfn = (start + offset) / PAGE_SIZE;
	for (due->order = 0; 2ULL << due->order <= pages; due->order++)
		;
	return true;
}

int main(int argc, char **argv)
{
	unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 1000;
	static const struct vfio_pci_regops without, with = { owner };
	unsigned long seen[4] = {};

	for (unsigned long i = 0; i < rounds; i++) {
		struct vfio_pci_region regions[3] = { { &with }, { &without }, {} };
		struct nvgrace_gpu_pci_core_device nv = {};
		struct vfio_pci_core_device *core = &nv.core_device;
		struct pci_dev pdev;
		bool grace = next() % 2;
		unsigned int index = next() % 16 ? next() % 14 : next() % (1 << 12);
		struct call due = { ANYWHERE };
		u64 size, offset;
		unsigned long ret;

		for (int bar = 0; bar <= VFIO_PCI_ROM_REGION_INDEX; bar++) {
			/* A power of two, not always of a page, at a multiple of it */
			pdev.len[bar] = 16ULL << next() % 36;
			pdev.start[bar] = next() % (1 << 12) * PAGE_ALIGN(pdev.len[bar]);
			if (bar < VFIO_PCI_ROM_REGION_INDEX)
				core->bar_mmap_supported[bar] = next() % 4;
		}
		core->pdev = &pdev;
		core->num_regions = next() % 4;
		core->region = regions;
		/* Memory begins and ends anywhere. */
		nv.usemem.memphys = (next() >> 20) * PAGE_SIZE;
		nv.usemem.memlength = (1 + (next() >> 30 >> next() % 30)) * PAGE_SIZE;
		nv.resmem.memphys = (next() >> 20) * PAGE_SIZE;
		nv.resmem.memlength = next() % 2 * (1 + next() % 1000) * PAGE_SIZE;

		size = PAGE_SIZE;
		if (index <= VFIO_PCI_ROM_REGION_INDEX)
			size = PAGE_ALIGN(pdev.len[index]);
		if (grace && nvgrace_gpu_memregion(index, &nv))
			size = nvgrace_gpu_memregion(index, &nv)->memlength;
		/* Up to the end, beyond it, from it, and somewhere */
		offset = next() % 3 ? next() % (size / PAGE_SIZE + 1) * PAGE_SIZE : 0;
		due.len = next() % 4 ? size - offset : 1 + next() % (2 * size / PAGE_SIZE);
		if (due.len % PAGE_SIZE || !due.len)
			due.len = PAGE_SIZE;
		if (!(next() % 8))
			due.len += PAGE_SIZE;
		offset &= (1ULL << VFIO_PCI_OFFSET_SHIFT) - 1;

		due.file = (struct file *)next();
		due.addr = next() & -PAGE_SIZE;
		due.flags = next();
		due.pgoff = ((u64)index << (VFIO_PCI_OFFSET_SHIFT - PAGE_SHIFT)) |
			    offset / PAGE_SIZE;

		if (grace && index == VFIO_PCI_BAR4_REGION_INDEX) {
			in_memory(nv.usemem.memphys, nv.usemem.memlength, offset,
				  due.len, &due);
		} else if (grace && index == VFIO_PCI_BAR2_REGION_INDEX &&
			   nv.resmem.memlength) {
			in_memory(nv.resmem.memphys, nv.resmem.memlength, offset,
				  due.len, &due);
		} else if (index < VFIO_PCI_ROM_REGION_INDEX) {
			if (core->bar_mmap_supported[index])
				in_memory(pdev.start[index], pdev.len[index], offset,
					  due.len, &due);
		} else if (index == VFIO_PCI_NUM_REGIONS && core->num_regions) {
			/* The owner of the first region answers, no other does. */
			due.by = BY_OWNER;
			due.region = regions;
		}

		calls = 0;
		answer = next();
		ret = (grace ? nvgrace_gpu_get_unmapped_area :
			       vfio_pci_core_get_unmapped_area)
			(&core->vdev, due.file, due.addr, due.len, due.pgoff, due.flags);
		if (calls != 1 || ret != answer || call.by != due.by ||
		    call.file != due.file || call.addr != due.addr ||
		    call.len != due.len || call.pgoff != due.pgoff ||
		    call.flags != due.flags || call.pfn != due.pfn ||
		    call.order != due.order || call.region != due.region) {
			printf("%s region %u offset %#llx len %#lx: %d, pfn %#lx order %u, not %d, pfn %#lx order %u\n",
			       grace ? "nvgrace-gpu" : "vfio-pci", index,
			       (unsigned long long)offset, due.len, call.by, call.pfn,
			       call.order, due.by, due.pfn, due.order);
			return 1;
		}
		seen[call.by]++;
	}

	printf("%lu mappings: %lu placed by a pfn, %lu by the owner of a region, %lu anywhere\n",
	       rounds, seen[BY_PFN], seen[BY_OWNER], seen[ANYWHERE]);
	return seen[BY_PFN] && seen[BY_OWNER] && seen[ANYWHERE] ? 0 : 1;
}
