/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/header.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

/* Every field: where it stands, how wide it is, where it goes. */
static const struct field {
	uint8_t off, width;
	uint8_t at;		/* offset in struct qcow2_header */
} fields[] = {
#define FIELD(offset, name) \
	{ (offset), sizeof(((struct qcow2_header *)0)->name), offsetof(struct qcow2_header, name) }
	FIELD(0, magic),
	FIELD(4, version),
	FIELD(QCOW2_OFF_BACKING, backing_off),
	FIELD(16, backing_len),
	FIELD(20, cluster_bits),
	FIELD(QCOW2_OFF_SIZE, size),
	FIELD(32, crypt_method),
	FIELD(QCOW2_OFF_L1_SIZE, l1_size),
	FIELD(40, l1_off),
	FIELD(QCOW2_OFF_REFTABLE, reftable_off),
	FIELD(56, reftable_clusters),
	FIELD(60, nb_snapshots),
	FIELD(64, snapshots_off),
	FIELD(QCOW2_OFF_INCOMPAT, incompat),
	FIELD(QCOW2_OFF_COMPAT, compat),
	FIELD(QCOW2_OFF_AUTOCLEAR, autoclear),
	FIELD(96, refcount_order),
	FIELD(100, header_len),
	FIELD(104, compression),
#undef FIELD
};

enum { NAME_TABLE_ENTRY = 48, FEATURE_TEXT_MAX = 1024 };

static void
decode(const uint8_t *buf, size_t len, struct qcow2_header *h)
{
	memset(h, 0, sizeof(*h));
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		const struct field *f = &fields[i];
		void *to = (char *)h + f->at;

		if ((size_t)f->off + f->width > len)
			break;
		if (f->width == 8) {
			uint64_t v = get_be64(buf + f->off);
			memcpy(to, &v, sizeof(v));
		} else if (f->width == 4) {
			uint32_t v = get_be32(buf + f->off);
			memcpy(to, &v, sizeof(v));
		} else {
			memcpy(to, buf + f->off, 1);
		}
	}
}

/* What version 2 leaves out, and what a short version 3 header does. */
static void
fill_absent(struct qcow2_header *h)
{
	if (h->version == 2) {
		h->incompat = h->compat = h->autoclear = 0;
		h->refcount_order = 4;
		h->header_len = QCOW2_HEADER_V2;
	}
	if (h->header_len <= 104)
		h->compression = QCOW2_COMPRESSION_ZLIB;
}

int
qcow2_header_parse(const void *buf, size_t len, struct qcow2_header *ret, struct error **errp)
{
	struct qcow2_header h;

	if (len < QCOW2_HEADER_V2)
		return error_set(errp, "Image is not in qcow2 format");
	decode(buf, len, &h);
	if (h.magic != QCOW2_MAGIC)
		return error_set(errp, "Image is not in qcow2 format");
	if (h.version < 2 || h.version > 3)
		return error_set(errp, "Unsupported qcow2 version %" PRIu32, h.version);
	if (h.cluster_bits < QCOW2_CLUSTER_BITS_MIN || h.cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return error_set(errp, "Unsupported cluster size: 2^%" PRIu32, h.cluster_bits);
	fill_absent(&h);
	if (h.version >= 3 && h.header_len < QCOW2_HEADER_V3)
		return error_set(errp, "qcow2 header too short");
	if (h.header_len > UINT32_C(1) << h.cluster_bits)
		return error_set(errp, "qcow2 header exceeds cluster size");
	if (h.backing_off > UINT32_C(1) << h.cluster_bits)
		return error_set(errp, "Invalid backing file offset");
	*ret = h;
	return 0;
}

/* ---- features ---- */

/* Append the names of the bits in mask, from the image's own table. */
static void
name_features(uint64_t mask, const uint8_t *table, size_t len, char *text, size_t max)
{
	size_t n = 0;

	text[0] = '\0';
	for (; len >= NAME_TABLE_ENTRY; table += NAME_TABLE_ENTRY, len -= NAME_TABLE_ENTRY) {
		if (table[0] != 0 || table[1] > 63 || !(mask & UINT64_C(1) << table[1]))
			continue;
		mask &= ~(UINT64_C(1) << table[1]);
		if (n < max)
			n += (size_t)snprintf(text + n, max - n, "%s%.46s", n ? ", " : "",
					      (const char *)table + 2);
	}
	if (mask && n < max)
		snprintf(text + n, max - n, "%sUnknown incompatible feature: %" PRIx64,
			 n ? ", " : "", mask);
}

static int
check_features(const struct qcow2_header *h, const void *table, size_t len, bool read_only,
	       struct error **errp)
{
	const uint64_t known = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT |
			       QCOW2_INCOMPAT_DATA_FILE | QCOW2_INCOMPAT_COMPRESSION |
			       QCOW2_INCOMPAT_EXTL2;
	char text[FEATURE_TEXT_MAX];

	if (h->compression > QCOW2_COMPRESSION_ZSTD)
		return error_set(errp, "qcow2: unknown compression type: %u", h->compression);
	if (h->compression == QCOW2_COMPRESSION_ZLIB && (h->incompat & QCOW2_INCOMPAT_COMPRESSION))
		return error_set(errp, "qcow2: Compression type incompatible feature bit must "
				       "not be set");
	if (h->compression != QCOW2_COMPRESSION_ZLIB && !(h->incompat & QCOW2_INCOMPAT_COMPRESSION))
		return error_set(errp, "qcow2: Compression type incompatible feature bit must "
				       "be set");
	if (h->incompat & ~known) {
		name_features(h->incompat & ~known, table, len, text, sizeof(text));
		return error_set(errp, "Unsupported qcow2 feature(s): %s", text);
	}
	if ((h->incompat & QCOW2_INCOMPAT_EXTL2) &&
	    h->cluster_bits < QCOW2_CLUSTER_BITS_MIN_EXTL2)
		return error_set(errp, "Unsupported subcluster size: %u",
				 1u << h->cluster_bits >> 5);
	if ((h->incompat & QCOW2_INCOMPAT_CORRUPT) && !read_only)
		return error_set(errp, "qcow2: Image is corrupt; cannot be opened read/write");
	return 0;
}

/* ---- limits ---- */

int
qcow2_table_check(uint64_t off, uint64_t n, uint64_t size, uint64_t max, unsigned cluster_bits,
		  const char *what, struct error **errp)
{
	if (n > max / size)
		return error_set(errp, "%s too large", what);
	/* The end of the table must be expressible as a signed offset. */
	if (off > (uint64_t)INT64_MAX - n * size || !is_aligned(off, UINT64_C(1) << cluster_bits))
		return error_set(errp, "%s offset invalid", what);
	return 0;
}

uint64_t
qcow2_l1_entries(uint64_t size, unsigned cluster_bits, bool extended_l2)
{
	return div_up(size, UINT64_C(1) << (2 * cluster_bits - (extended_l2 ? 4 : 3)));
}

int
qcow2_header_check(const struct qcow2_header *h, const void *features, size_t features_len,
		   bool read_only, struct error **errp)
{
	uint32_t cluster = UINT32_C(1) << h->cluster_bits;
	uint64_t need;

	if (check_features(h, features, features_len, read_only, errp))
		return -1;
	if (h->refcount_order > 6)
		return error_set(errp, "Reference count entry width too large; may not exceed "
				       "64 bits");
	if (h->crypt_method > QCOW2_CRYPT_LUKS)
		return error_set(errp, "Unsupported encryption method %" PRId32,
				 (int32_t)h->crypt_method);
	if (!h->reftable_clusters)
		return error_set(errp, "Image does not contain a reference count table");
	if (qcow2_table_check(h->reftable_off, h->reftable_clusters, cluster, QCOW2_REFTABLE_MAX,
			      h->cluster_bits, "Reference count table", errp))
		return -1;
	/* A snapshot's entry takes at least 40 bytes. */
	if (qcow2_table_check(h->snapshots_off, h->nb_snapshots, 40, 40 * QCOW2_SNAPSHOTS_MAX,
			      h->cluster_bits, "Snapshot table", errp))
		return -1;
	if (qcow2_table_check(h->l1_off, h->l1_size, 8, QCOW2_L1_MAX, h->cluster_bits,
			      "Active L1 table", errp))
		return -1;
	need = qcow2_l1_entries(h->size, h->cluster_bits, h->incompat & QCOW2_INCOMPAT_EXTL2);
	if (need > INT32_MAX || h->size > INT64_MAX)
		return error_set(errp, "Image is too big");
	if (h->l1_size < need)
		return error_set(errp, "L1 table is too small");
	if (h->backing_off &&
	    h->backing_len > min_u64(QCOW2_BACKING_MAX, cluster - h->backing_off))
		return error_set(errp, "Backing file name too long");
	return 0;
}

size_t
qcow2_header_encode(const struct qcow2_header *h, void *buf)
{
	uint8_t *to = buf;
	size_t len = min_u64(h->header_len, QCOW2_HEADER_MAX);

	memset(to, 0, QCOW2_HEADER_MAX);
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		const struct field *f = &fields[i];
		const char *from = (const char *)h + f->at;
		uint64_t v64;
		uint32_t v32;

		if ((size_t)f->off + f->width > len)
			break;
		if (f->width == 8) {
			memcpy(&v64, from, sizeof(v64));
			put_be64(to + f->off, v64);
		} else if (f->width == 4) {
			memcpy(&v32, from, sizeof(v32));
			put_be32(to + f->off, v32);
		} else {
			memcpy(to + f->off, from, 1);
		}
	}
	return len;
}
