/* SPDX-License-Identifier: Apache-2.0 */
/* Counting what stored dirty bitmaps refer to: directory, tables, data. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "block/io.h"
#include "block/qcow2/bitmaps_int.h"
#include "block/qcow2/check_int.h"

#define FLAGS_RESERVED UINT32_C(0xfffffffc)
#define ENTRY_RESERVED UINT64_C(0xff000000000001fe)

static int
check_data(struct qcow2_checker *c, uint64_t entry)
{
	uint64_t data = entry & QCOW2_OFFSET_MASK;

	if ((entry & ENTRY_RESERVED) || (data && (entry & 1)) ||
	    !is_aligned(data, c->q->cluster_size)) {
		qcow2_check_say(c, "ERROR bitmap table entry is invalid: %" PRIx64, entry);
		c->result->corruptions++;
		return -EINVAL;
	}
	return data ? qcow2_check_count(c, data, c->q->cluster_size) : 0;
}

/* A bitmap's table of n entries, looked at piece by piece. */
static int
check_table(struct qcow2_checker *c, uint64_t off, uint64_t n)
{
	CLEANUP(cleanup_free) uint8_t *buf = malloc(c->q->cluster_size);
	uint64_t per_piece = c->q->cluster_size / 8;
	int r = buf ? qcow2_check_count(c, off, n * 8) : -ENOMEM;

	for (uint64_t i = 0; i < n && !r; i++) {
		if (i % per_piece == 0) {
			r = node_pread(qcow2_file(c->q), off + 8 * i, buf,
				       8 * min_u64(n - i, per_piece));
			if (r < 0) {
				qcow2_check_say(c, "ERROR failed to read a bitmap table: %s",
						strerror(-r));
				c->result->corruptions++;
				return r;
			}
		}
		r = check_data(c, get_be64(buf + 8 * (i % per_piece)));
	}
	return r;
}

/* What QEMU demands of an entry, which lies within the directory. */
static bool
is_sound(const struct qcow2 *q, const uint8_t *e)
{
	uint64_t off = get_be64(e), n = get_be32(e + 8), bytes = n << q->cluster_bits;
	uint32_t flags = get_be32(e + 12);

	if (!off || !is_aligned(off, q->cluster_size) || off > (uint64_t)INT64_MAX - 8 * n ||
	    !n || n > QCOW2_BITMAP_TABLE_MAX || bytes > QCOW2_BITMAP_BYTES_MAX)
		return false;
	if ((flags & FLAGS_RESERVED) || e[16] != QCOW2_BITMAP_TYPE ||
	    e[17] < QCOW2_BITMAP_GRANULARITY_MIN || e[17] > QCOW2_BITMAP_GRANULARITY_MAX ||
	    get_be16(e + 18) > QCOW2_BITMAP_NAME_MAX || get_be32(e + 20))
		return false;
	/* One in use may be too small: the disk may have grown meanwhile. */
	return (flags & QCOW2_BITMAP_IN_USE) || n == qcow2_bitmap_entries(q, q->header.size, e[17]);
}

static int
check_directory(struct qcow2_checker *c, const uint8_t *dir, uint64_t size)
{
	uint32_t n = 0;
	int r = 0;

	while (size && !r) {
		uint64_t len = QCOW2_BITMAP_ENTRY;

		if (size >= QCOW2_BITMAP_ENTRY)
			len = round_up(QCOW2_BITMAP_ENTRY + (uint64_t)get_be16(dir + 18) +
					       get_be32(dir + 20), 8);
		if (len > size || ++n > c->q->exts.nb_bitmaps || !is_sound(c->q, dir)) {
			qcow2_check_say(c, "ERROR bitmap directory entry %u is invalid", n);
			c->result->corruptions++;
			return -EINVAL;
		}
		r = check_table(c, get_be64(dir), get_be32(dir + 8));
		dir += len;
		size -= len;
	}
	if (!r && n != c->q->exts.nb_bitmaps) {
		qcow2_check_say(c, "ERROR bitmap directory has %u entries of %u", n,
				c->q->exts.nb_bitmaps);
		c->result->corruptions++;
		r = -EINVAL;
	}
	return r;
}

int
qcow2_check_bitmaps(struct qcow2_checker *c)
{
	const struct qcow2_exts *x = &c->q->exts;
	CLEANUP(cleanup_free) uint8_t *dir = NULL;
	int r;

	if (!x->has_bitmaps)
		return 0;
	r = qcow2_check_count(c, x->bitmap_dir_off, x->bitmap_dir_size);
	if (r < 0)
		return r;
	dir = malloc(x->bitmap_dir_size + 1);
	if (!dir)
		return -ENOMEM;
	r = node_pread(qcow2_file(c->q), x->bitmap_dir_off, dir, x->bitmap_dir_size);
	if (r < 0) {
		qcow2_check_say(c, "ERROR failed to read the bitmap directory: %s", strerror(-r));
		c->result->corruptions++;
		return -EINVAL;
	}
	return check_directory(c, dir, x->bitmap_dir_size);
}
