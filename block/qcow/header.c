/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/qcow/qcow.h"

#define MAGIC UINT32_C(0x514649fb)	/* "QFI" 0xfb */

enum { QCOW_VERSION = 1, TABLE_BITS_MIN = 9, TABLE_BITS_MAX = 16 };

int
qcow_header_parse(const void *buf, struct qcow_header *ret, struct error **errp)
{
	const uint8_t *p = buf;
	uint32_t crypt = get_be32(p + 36), version = get_be32(p + 4);
	struct qcow_header h = {
		.backing_off = get_be64(p + 8),
		.backing_len = get_be32(p + 16),
		.size = get_be64(p + 24),
		.cluster_bits = p[32],
		.l2_bits = p[33],
		.aes = crypt == 1,
		.l1_off = get_be64(p + 40),
	};
	unsigned shift;

	if (get_be32(p) != MAGIC)
		return error_set(errp, "Image not in qcow format");
	if (version != QCOW_VERSION)
		return error_set(errp, "qcow (v%d) does not support qcow version %" PRIu32,
				 QCOW_VERSION, version);
	if (h.size <= 1)
		return error_set(errp, "Image size is too small (must be at least 2 bytes)");
	if (h.cluster_bits < TABLE_BITS_MIN || h.cluster_bits > TABLE_BITS_MAX)
		return error_set(errp, "Cluster size must be between 512 and 64k");
	if (h.l2_bits < TABLE_BITS_MIN - 3 || h.l2_bits > TABLE_BITS_MAX - 3)
		return error_set(errp, "L2 table size must be between 512 and 64k");
	if (crypt > 1)
		return error_set(errp, "invalid encryption method in qcow header");
	shift = h.cluster_bits + h.l2_bits;
	if (h.size > INT64_MAX - (UINT64_C(1) << shift))
		return error_set(errp, "Image too large");
	h.l1_size = div_up(h.size, UINT64_C(1) << shift);
	if (h.l1_size > INT32_MAX / 8)
		return error_set(errp, "Image too large");
	if (h.l1_off > INT64_MAX - h.l1_size * 8)
		return error_set(errp, "L1 table offset invalid");
	if (h.backing_off && h.backing_len > QCOW_BACKING_MAX)
		return error_set(errp, "Backing file name too long");
	if (h.backing_off > INT64_MAX - QCOW_BACKING_MAX)
		return error_set(errp, "Invalid backing file offset");
	*ret = h;
	return 0;
}

void
qcow_header_encode(const struct qcow_header *h, void *buf)
{
	uint8_t *p = buf;

	memset(p, 0, QCOW_HEADER);
	put_be32(p, MAGIC);
	put_be32(p + 4, QCOW_VERSION);
	put_be64(p + 8, h->backing_off);
	put_be32(p + 16, h->backing_len);
	put_be64(p + 24, h->size);
	p[32] = (uint8_t)h->cluster_bits;
	p[33] = (uint8_t)h->l2_bits;
	put_be64(p + 40, h->l1_off);
}
