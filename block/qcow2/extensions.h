/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/extensions.h - what may stand between the header and the backing
 * file's name: the header extensions.
 *
 * Extensions that nobody here knows are kept as they are when the header is
 * written anew.
 *
 * Ownership  qcow2_ext_split() copies; qcow2_ext_done() frees.
 */
#ifndef BLOCK_QCOW2_EXTENSIONS_H
#define BLOCK_QCOW2_EXTENSIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct qcow2_header;

enum {
	QCOW2_EXT_END = 0,
	QCOW2_EXT_FORMAT_MAX = 15,	/* bytes of a backing format's name */
	QCOW2_BITMAPS_MAX = 65535,
	QCOW2_BITMAP_DIR_MAX = 65535 * 1024,
};
#define QCOW2_EXT_BACKING_FORMAT UINT32_C(0xe2792aca)
#define QCOW2_EXT_FEATURE_TABLE UINT32_C(0x6803f857)
#define QCOW2_EXT_BITMAPS UINT32_C(0x23852875)
#define QCOW2_EXT_CRYPTO UINT32_C(0x0537be77)
#define QCOW2_EXT_DATA_FILE UINT32_C(0x44415441)

/* One extension, as it stands in the image. */
struct qcow2_ext {
	uint32_t type, len;
	uint8_t *data;
};

struct qcow2_exts {
	struct qcow2_ext *list;		/* in the order of the image */
	size_t n;
	uint64_t end;			/* of them on disk, from the start of the image */

	/* What is known, decoded. */
	char *backing_format;		/* NULL: none */
	char *data_file;
	const uint8_t *features;	/* the feature name table, within list */
	size_t features_len;
	bool has_crypto;
	uint64_t crypto_off, crypto_len;
	bool has_bitmaps;		/* and the autoclear bit vouches for them */
	uint32_t nb_bitmaps;
	uint64_t bitmap_dir_off, bitmap_dir_size;
};

/* Split buf[off, end), of the first bytes of the image, into pieces, which is as far as
 * it goes before the features are judged; then decode them.  0 or -1. */
int qcow2_ext_split(const uint8_t *buf, size_t off, size_t end, struct qcow2_exts *ret,
		    struct error **errp);
int qcow2_ext_decode(const struct qcow2_header *h, struct qcow2_exts *x, struct error **errp);

/* Set (len > 0), or remove, the extension of a type.  0 or -ENOMEM. */
int qcow2_ext_set(struct qcow2_exts *x, uint32_t type, const void *data, uint32_t len);

/* Write all of x with its end mark into buf; returns the bytes used, or 0 if
 * max is too small. */
size_t qcow2_ext_encode(const struct qcow2_exts *x, uint8_t *buf, size_t max);

/* The feature name table that images made here carry. */
int qcow2_ext_add_names(struct qcow2_exts *x);

/* Forget what is not known here, and only kept to be written back. */
void qcow2_ext_forget(struct qcow2_exts *x);
void qcow2_ext_done(struct qcow2_exts *x);

#endif
