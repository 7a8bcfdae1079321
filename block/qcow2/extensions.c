/* SPDX-License-Identifier: Apache-2.0 */
#include "block/qcow2/extensions.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "block/qcow2/header.h"

enum { EXT_HEAD = 8, CRYPTO_LEN = 16, BITMAPS_LEN = 24, NAME_LEN = 46 };

static int
append(struct qcow2_exts *x, uint32_t type, const void *data, uint32_t len)
{
	struct qcow2_ext *list = realloc(x->list, (x->n + 1) * sizeof(*list));
	uint8_t *copy;

	if (!list)
		return -ENOMEM;
	x->list = list;
	copy = malloc(len + 1);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, data, len);
	copy[len] = '\0';
	list[x->n++] = (struct qcow2_ext){ .type = type, .len = len, .data = copy };
	return 0;
}

int
qcow2_ext_split(const uint8_t *buf, size_t off, size_t end, struct qcow2_exts *ret,
		struct error **errp)
{
	memset(ret, 0, sizeof(*ret));
	while (off < end) {
		uint32_t type, len;

		if (end - off < EXT_HEAD || get_be32(buf + off + 4) > end - off - EXT_HEAD) {
			qcow2_ext_done(ret);
			return error_set(errp, "Header extension too large");
		}
		type = get_be32(buf + off);
		len = get_be32(buf + off + 4);
		off += EXT_HEAD;
		if (type == QCOW2_EXT_END)
			break;
		if (append(ret, type, buf + off, len)) {
			qcow2_ext_done(ret);
			return error_set(errp, "Out of memory for the header extensions");
		}
		if (type == QCOW2_EXT_FEATURE_TABLE) {
			ret->features = ret->list[ret->n - 1].data;
			ret->features_len = len;
		}
		off += round_up(len, 8);
	}
	ret->end = off;
	return 0;
}

static int
decode_crypto(const struct qcow2_header *h, const struct qcow2_ext *e, struct qcow2_exts *x,
	      struct error **errp)
{
	if (h->crypt_method != QCOW2_CRYPT_LUKS)
		return error_set(errp, "CRYPTO header extension only expected with LUKS "
				       "encryption method");
	if (e->len != CRYPTO_LEN)
		return error_set(errp, "CRYPTO header extension size %" PRIu32
				       ", but expected size %d", e->len, CRYPTO_LEN);
	x->crypto_off = get_be64(e->data);
	x->crypto_len = get_be64(e->data + 8);
	if (!is_aligned(x->crypto_off, UINT64_C(1) << h->cluster_bits))
		return error_set(errp, "Encryption header offset '%" PRIu64 "' is not a multiple "
				       "of cluster size '%" PRIu32 "'", x->crypto_off,
				 UINT32_C(1) << h->cluster_bits);
	if (x->crypto_off > INT64_MAX || x->crypto_len > (uint64_t)INT64_MAX - x->crypto_off)
		return error_set(errp, "Encryption header length '%" PRIu64 "' is invalid",
				 x->crypto_len);
	x->has_crypto = true;
	return 0;
}

static int
decode_bitmaps(const struct qcow2_header *h, const struct qcow2_ext *e, struct qcow2_exts *x,
	       struct error **errp)
{
	if (e->len != BITMAPS_LEN)
		return error_set(errp, "bitmaps_ext: Invalid extension length");
	/* A program without bitmap support wrote to the image: not consistent. */
	if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	x->nb_bitmaps = get_be32(e->data);
	x->bitmap_dir_size = get_be64(e->data + 8);
	x->bitmap_dir_off = get_be64(e->data + 16);
	if (get_be32(e->data + 4))
		return error_set(errp, "bitmaps_ext: Reserved field is not zero");
	if (x->nb_bitmaps > QCOW2_BITMAPS_MAX)
		return error_set(errp, "bitmaps_ext: Image has %" PRIu32 " bitmaps, exceeding the "
				       "QEMU supported maximum of %d", x->nb_bitmaps,
				 QCOW2_BITMAPS_MAX);
	if (!x->nb_bitmaps)
		return error_set(errp, "found bitmaps extension with zero bitmaps");
	if (!is_aligned(x->bitmap_dir_off, UINT64_C(1) << h->cluster_bits) ||
	    x->bitmap_dir_off > (uint64_t)INT64_MAX - QCOW2_BITMAP_DIR_MAX)
		return error_set(errp, "bitmaps_ext: invalid bitmap directory offset");
	if (x->bitmap_dir_size > QCOW2_BITMAP_DIR_MAX)
		return error_set(errp, "bitmaps_ext: bitmap directory size (%" PRIu64 ") exceeds "
				       "the maximum supported size (%d)", x->bitmap_dir_size,
				 QCOW2_BITMAP_DIR_MAX);
	x->has_bitmaps = true;
	return 0;
}

/* A string extension; the piece's data ends in a zero byte behind its length. */
static int
decode_string(const struct qcow2_ext *e, char **ret, struct error **errp)
{
	free(*ret);
	*ret = strdup((const char *)e->data);
	return *ret ? 0 : error_set(errp, "Out of memory for the header extensions");
}

int
qcow2_ext_decode(const struct qcow2_header *h, struct qcow2_exts *x, struct error **errp)
{
	int r = 0;

	for (size_t i = 0; i < x->n && !r; i++) {
		const struct qcow2_ext *e = &x->list[i];

		switch (e->type) {
		case QCOW2_EXT_BACKING_FORMAT:
			if (e->len > QCOW2_EXT_FORMAT_MAX)
				return error_set(errp, "ERROR: ext_backing_format: len=%" PRIu32
						       " too large (>=%d)", e->len,
						 QCOW2_EXT_FORMAT_MAX + 1);
			r = decode_string(e, &x->backing_format, errp);
			break;
		case QCOW2_EXT_DATA_FILE:
			r = decode_string(e, &x->data_file, errp);
			break;
		case QCOW2_EXT_CRYPTO:
			r = decode_crypto(h, e, x, errp);
			break;
		case QCOW2_EXT_BITMAPS:
			r = decode_bitmaps(h, e, x, errp);
			break;
		default:
			break;
		}
	}
	if (!r && h->crypt_method == QCOW2_CRYPT_LUKS && !x->has_crypto)
		return error_set(errp, "Missing CRYPTO header for crypt method %d",
				 QCOW2_CRYPT_LUKS);
	return r;
}

int
qcow2_ext_set(struct qcow2_exts *x, uint32_t type, const void *data, uint32_t len)
{
	for (size_t i = 0; i < x->n; i++) {
		struct qcow2_ext *e = &x->list[i];
		uint8_t *copy;

		if (e->type != type)
			continue;
		if (!len) {
			free(e->data);
			memmove(e, e + 1, (x->n - i - 1) * sizeof(*e));
			x->n--;
			return 0;
		}
		copy = malloc(len + 1);
		if (!copy)
			return -ENOMEM;
		memcpy(copy, data, len);
		copy[len] = '\0';
		free(e->data);
		e->data = copy;
		e->len = len;
		return 0;
	}
	return len ? append(x, type, data, len) : 0;
}

size_t
qcow2_ext_encode(const struct qcow2_exts *x, uint8_t *buf, size_t max)
{
	size_t off = 0;

	for (size_t i = 0; i < x->n; i++) {
		const struct qcow2_ext *e = &x->list[i];
		size_t padded = round_up(e->len, 8);

		if (max - off < EXT_HEAD + padded)
			return 0;
		put_be32(buf + off, e->type);
		put_be32(buf + off + 4, e->len);
		memcpy(buf + off + EXT_HEAD, e->data, e->len);
		memset(buf + off + EXT_HEAD + e->len, 0, padded - e->len);
		off += EXT_HEAD + padded;
	}
	if (max - off < EXT_HEAD)
		return 0;
	memset(buf + off, 0, EXT_HEAD);
	return off + EXT_HEAD;
}

int
qcow2_ext_add_names(struct qcow2_exts *x)
{
	static const struct {
		uint8_t type, bit;
		const char *name;
	} names[] = {
		{ 0, 0, "dirty bit" },
		{ 0, 1, "corrupt bit" },
		{ 0, 2, "external data file" },
		{ 0, 3, "compression type" },
		{ 0, 4, "extended L2 entries" },
		{ 1, 0, "lazy refcounts" },
		{ 2, 0, "bitmaps" },
		{ 2, 1, "raw external data" },
	};
	uint8_t table[ARRAY_SIZE(names) * (2 + NAME_LEN)] = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		uint8_t *e = table + i * (2 + NAME_LEN);

		e[0] = names[i].type;
		e[1] = names[i].bit;
		memcpy(e + 2, names[i].name, strlen(names[i].name));
	}
	return qcow2_ext_set(x, QCOW2_EXT_FEATURE_TABLE, table, sizeof(table));
}

void
qcow2_ext_forget(struct qcow2_exts *x)
{
	for (size_t i = 0; i < x->n; i++)
		free(x->list[i].data);
	free(x->list);
	x->list = NULL;
	x->n = x->features_len = 0;
	x->features = NULL;
}

void
qcow2_ext_done(struct qcow2_exts *x)
{
	qcow2_ext_forget(x);
	free(x->backing_format);
	free(x->data_file);
	memset(x, 0, sizeof(*x));
}
