/* SPDX-License-Identifier: Apache-2.0 */
/* What a file's requests must keep to, and how large it is. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/file.h"

enum { ALIGN_MAX = 4096, PROBE_LEN = 4 * ALIGN_MAX };

/* The smallest power of two that reads at (with the offset and length, or with
 * the memory, of that alignment) succeed with; ALIGN_MAX if none does. */
static uint32_t
probe_reads(int fd, uint8_t *buf, bool of_memory)
{
	for (uint32_t a = of_memory ? 1 : 512; a < ALIGN_MAX; a *= 2) {
		uint8_t *at = of_memory ? buf + a : buf;
		size_t len = of_memory ? ALIGN_MAX : a;
		off_t off = of_memory ? 0 : (off_t)a;

		/* Where a read at 512 succeeds, so do those at its multiples. */
		if (pread(fd, at, len, off) >= 0 || errno != EINVAL)
			return a;
	}
	return ALIGN_MAX;
}

/* Ask the kernel (since 6.1; the C library's struct may not know these members
 * yet, their place is fixed). */
static bool
ask_statx(int fd, uint32_t *ret_align, uint32_t *ret_mem_align)
{
	enum { MASK_DIOALIGN = 0x2000, AT_MEM_ALIGN = 0x98, AT_ALIGN = 0x9c };
	struct statx sx;

	if (statx(fd, "", AT_EMPTY_PATH, MASK_DIOALIGN, &sx) < 0 ||
	    !(sx.stx_mask & MASK_DIOALIGN))
		return false;
	memcpy(ret_mem_align, (char *)&sx + AT_MEM_ALIGN, sizeof(*ret_mem_align));
	memcpy(ret_align, (char *)&sx + AT_ALIGN, sizeof(*ret_align));
	return is_pow2(*ret_align) && is_pow2(*ret_mem_align);
}

void
file_probe_limits(int fd, const struct stat *st, bool direct, struct limits *l)
{
	CLEANUP(cleanup_free) uint8_t *buf = NULL;
	int sector = 0;

	l->align = l->mem_align = 1;
	if (!direct)
		return;
	l->align = l->mem_align = ALIGN_MAX;
	buf = iov_alloc(ALIGN_MAX, PROBE_LEN);
	if (!ask_statx(fd, &l->align, &l->mem_align) && buf) {
		l->align = probe_reads(fd, buf, false);
		l->mem_align = probe_reads(fd, buf, true);
	}
	if (S_ISBLK(st->st_mode) && ioctl(fd, BLKSSZGET, &sector) == 0 &&
	    is_pow2((uint64_t)sector) && (uint32_t)sector > l->align)
		l->align = (uint32_t)sector;
	/* A buffer's pieces are transfers of their own on the way down. */
	if (l->mem_align < l->align)
		l->mem_align = l->align;
}

int
file_probe_size(int fd, const struct stat *st, uint64_t *ret_size)
{
	uint64_t bytes;
	off_t end;

	if (S_ISBLK(st->st_mode)) {
		if (ioctl(fd, BLKGETSIZE64, &bytes) < 0)
			return -errno;
	} else {
		end = S_ISREG(st->st_mode) ? st->st_size : lseek(fd, 0, SEEK_END);
		if (end < 0)
			return -errno;
		bytes = (uint64_t)end;
	}
	if (bytes > INT64_MAX - 511)
		return -EFBIG;
	/* Disks come in sectors; a last partial one reads as padded with zeroes. */
	*ret_size = round_up(bytes, 512);
	return 0;
}
