/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/header.h - the header of a qcow2 image: its fields and their limits.
 *
 * qcow2_header_parse() only decodes; qcow2_header_check() is the one place
 * where numbers from the header are judged, with sums that cannot overflow and
 * a cap before anything is allocated by them.
 *
 * Units      offsets and lengths are bytes.
 * Errors     0, or -1 with QEMU's text where QEMU has one for the situation.
 */
#ifndef BLOCK_QCOW2_HEADER_H
#define BLOCK_QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum {
	QCOW2_MAGIC = 0x514649fb,	/* "QFI" 0xfb */
	QCOW2_HEADER_V2 = 72,		/* bytes */
	QCOW2_HEADER_V3 = 104,
	QCOW2_HEADER_KNOWN = 105,	/* the end of the last field known here */
	QCOW2_HEADER_MAX = 112,		/* the same with its padding */
	QCOW2_CLUSTER_BITS_MIN = 9,
	QCOW2_CLUSTER_BITS_MAX = 21,
	QCOW2_CLUSTER_BITS_MIN_EXTL2 = 14,	/* a subcluster is at least a sector */
	QCOW2_L1_MAX = 32 << 20,	/* bytes of an L1 table */
	QCOW2_REFTABLE_MAX = 8 << 20,	/* bytes of the refcount table */
	QCOW2_SNAPSHOTS_MAX = 65536,
	QCOW2_BACKING_MAX = 1023,	/* bytes of a backing file's name */
};

enum qcow2_incompat {
	QCOW2_INCOMPAT_DIRTY	   = 1 << 0,
	QCOW2_INCOMPAT_CORRUPT	   = 1 << 1,
	QCOW2_INCOMPAT_DATA_FILE   = 1 << 2,
	QCOW2_INCOMPAT_COMPRESSION = 1 << 3,
	QCOW2_INCOMPAT_EXTL2	   = 1 << 4,
};

enum qcow2_compat {
	QCOW2_COMPAT_LAZY_REFCOUNTS = 1 << 0,
};

enum qcow2_autoclear {
	QCOW2_AUTOCLEAR_BITMAPS	 = 1 << 0,
	QCOW2_AUTOCLEAR_DATA_RAW = 1 << 1,
};

enum { QCOW2_CRYPT_NONE, QCOW2_CRYPT_AES, QCOW2_CRYPT_LUKS };
enum { QCOW2_COMPRESSION_ZLIB, QCOW2_COMPRESSION_ZSTD };

struct qcow2_header {
	uint32_t magic, version;
	uint64_t backing_off;
	uint32_t backing_len;
	uint32_t cluster_bits;
	uint64_t size;
	uint32_t crypt_method;
	uint32_t l1_size;		/* entries */
	uint64_t l1_off;
	uint64_t reftable_off;
	uint32_t reftable_clusters;
	uint32_t nb_snapshots;
	uint64_t snapshots_off;
	uint64_t incompat, compat, autoclear;
	uint32_t refcount_order;
	uint32_t header_len;
	uint8_t compression;
};

/* Where single fields stand, for updates in place. */
enum qcow2_field_off {
	QCOW2_OFF_BACKING = 8,
	QCOW2_OFF_SIZE = 24,
	QCOW2_OFF_L1_SIZE = 36,		/* and the L1 offset behind it */
	QCOW2_OFF_REFTABLE = 48,	/* and the number of clusters behind it */
	QCOW2_OFF_SNAPSHOTS = 60,	/* their number, and the table's offset behind it */
	QCOW2_OFF_INCOMPAT = 72,
	QCOW2_OFF_COMPAT = 80,
	QCOW2_OFF_AUTOCLEAR = 88,
};

/* Decode len bytes (at least QCOW2_HEADER_V2; absent fields get what the
 * specification says that they mean) and judge what is needed to find the rest:
 * magic, version, cluster size, the header's length. */
int qcow2_header_parse(const void *buf, size_t len, struct qcow2_header *ret,
		       struct error **errp);

/* Judge all other fields.  features is the feature name table of the image
 * (features_len bytes, may be NULL), to name what is not supported here. */
int qcow2_header_check(const struct qcow2_header *h, const void *features,
		       size_t features_len, bool read_only, struct error **errp);

/* Encode into buf, which has room for QCOW2_HEADER_MAX; returns the length,
 * which is h->header_len for images made here. */
size_t qcow2_header_encode(const struct qcow2_header *h, void *buf);

/* Is a table of n entries of size bytes each at off, cluster aligned, within
 * what an offset can express, and not larger than max bytes?  `what` names it. */
int qcow2_table_check(uint64_t off, uint64_t n, uint64_t size, uint64_t max,
		      unsigned cluster_bits, const char *what, struct error **errp);

/* Entries that an L1 table needs for a disk of this size. */
uint64_t qcow2_l1_entries(uint64_t size, unsigned cluster_bits, bool extended_l2);

#endif
