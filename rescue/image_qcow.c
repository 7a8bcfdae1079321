/* SPDX-License-Identifier: Apache-2.0 */
/* What the headers of qcow and qcow2 images say. */
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "rescue/image.h"
#include "rescue/image_int.h"

enum {
	NAME_MAX_QCOW = 1023,		/* a backing file's name */
	EXTENSIONS_MAX = 64 * 1024,	/* header extensions lie in the first cluster */
	FORMAT_MAX = 31,

	EXT_BACKING_FORMAT = 0xe2792aca,
	EXT_DATA_FILE = 0x44415441,
	EXT_BITMAPS = 0x23852875,
	EXT_CRYPTO = 0x0537be77,
	EXT_CRYPTO_LEN = 16,

	INCOMPAT_DIRTY = 1 << 0,
	INCOMPAT_CORRUPT = 1 << 1,
	INCOMPAT_DATA_FILE = 1 << 2,
	INCOMPAT_COMPRESSION = 1 << 3,
	INCOMPAT_EXTENDED_L2 = 1 << 4,
	COMPAT_LAZY_REFCOUNTS = 1 << 0,
	AUTOCLEAR_BITMAPS = 1 << 0,
	AUTOCLEAR_DATA_RAW = 1 << 1,
};

static int
read_backing_name(struct image_look *l)
{
	uint64_t off = get_be64(l->head + 8);
	uint32_t len = get_be32(l->head + 16);

	if (!off)
		return 0;
	if (len > NAME_MAX_QCOW)
		return image_bad(l, "the backing file's name is too long");
	return len ? image_read_string(l, off, len, &l->im->backing) : 0;
}

static int
set_encryption(struct image_look *l, uint32_t method, enum cipher_kind aes)
{
	switch (method) {
	case 0:
		l->im->encryption = CIPHER_NONE;
		return 0;
	case 1:
		l->im->encryption = aes;
		return 0;
	case 2:
		if (aes == CIPHER_QCOW2_AES) {
			l->im->encryption = CIPHER_QCOW2_LUKS;
			return 0;
		}
	}
	return image_bad(l, "the encryption method is unknown");
}

int
image_qcow_look(struct image_look *l)
{
	unsigned bits = l->head[32];

	l->im->virtual_size = get_be64(l->head + 24);
	if (bits < 9 || bits > 16)
		return image_bad(l, "the cluster size must be between 512 and 64k");
	l->im->cluster_size = 1ULL << bits;
	if (set_encryption(l, get_be32(l->head + 36), CIPHER_QCOW_AES) < 0)
		return -1;
	return read_backing_name(l);
}

/* Only what it is said to be is at stake here; the rescue reads it once more. */
static void
look_at_crypto(struct image_look *l, uint64_t off, uint32_t len)
{
	struct image_look quiet = { .fd = l->fd, .im = l->im };
	uint8_t ext[EXT_CRYPTO_LEN];

	if (l->im->encryption == CIPHER_QCOW2_LUKS && len >= sizeof(ext) && !l->im->luks &&
	    image_read_at(&quiet, off, ext, sizeof(ext)) == 0)
		(void)image_luks_look(&quiet, get_be64(ext), get_be64(ext + 8));
}

static int
look_at_extension(struct image_look *l, uint32_t type, uint64_t off, uint32_t len,
		  uint64_t autoclear)
{
	switch (type) {
	case EXT_BACKING_FORMAT:
		return image_read_string(l, off, len, &l->im->backing_format);
	case EXT_DATA_FILE:
		return len > NAME_MAX_QCOW ? 0 : image_read_string(l, off, len, &l->im->data_file);
	case EXT_CRYPTO:
		look_at_crypto(l, off, len);
		return 0;
	case EXT_BITMAPS:
		/* Whoever did not keep them up to date cleared the flag. */
		if (autoclear & AUTOCLEAR_BITMAPS && !l->im->bitmaps && !l->im->bitmaps_lost)
			image_bitmaps_look(l, off, len);
		return 0;
	default:
		return 0;
	}
}

/* Extensions: type, length, that many bytes padded to 8; type 0 ends them. */
static int
look_at_extensions(struct image_look *l, uint64_t off, uint64_t autoclear)
{
	while (off <= EXTENSIONS_MAX) {
		uint8_t ext[8];
		uint32_t type, len;
		int r;

		if (pread(l->fd, ext, sizeof(ext), (off_t)off) != sizeof(ext))
			return 0;
		type = get_be32(ext);
		len = get_be32(ext + 4);
		off += sizeof(ext);
		if (!type)
			return 0;
		if (len > EXTENSIONS_MAX)
			return image_bad(l, "a header extension is too long");
		if (type == EXT_BACKING_FORMAT && len > FORMAT_MAX)
			return image_bad(l, "the backing format's name is too long");
		r = look_at_extension(l, type, off, len, autoclear);
		if (r < 0)
			return -1;
		off += round_up(len, 8);
	}
	return 0;
}

/* What version 3 has more. */
static void
look_at_features(struct image *im, const uint8_t *head, uint32_t header_len)
{
	uint64_t incompat = get_be64(head + 72), compat = get_be64(head + 80);
	uint32_t order = get_be32(head + 96);

	im->dirty = incompat & INCOMPAT_DIRTY;
	im->corrupt = incompat & INCOMPAT_CORRUPT;
	im->external_data = incompat & INCOMPAT_DATA_FILE;
	im->subclusters = incompat & INCOMPAT_EXTENDED_L2;
	im->lazy_refcounts = compat & COMPAT_LAZY_REFCOUNTS;
	im->data_raw = get_be64(head + 88) & AUTOCLEAR_DATA_RAW;
	im->zstd = incompat & INCOMPAT_COMPRESSION && header_len > 104 && head[104] == 1;
	im->refcount_bits = order <= 6 ? 1u << order : 0;
}

int
image_qcow2_look(struct image_look *l)
{
	uint32_t bits = get_be32(l->head + 20), header = 72;
	uint64_t autoclear = 0;

	l->im->virtual_size = get_be64(l->head + 24);
	if (bits < 9 || bits > 21)
		return image_bad(l, "the cluster size must be a power of two between 512 and 2048k");
	l->im->cluster_size = 1ULL << bits;
	l->im->refcount_bits = 16;
	if (l->im->version >= 3) {
		header = get_be32(l->head + 100);
		if (header < 104 || header > l->im->cluster_size)
			return image_bad(l, "the header's length is wrong");
		look_at_features(l->im, l->head, header);
		autoclear = get_be64(l->head + 88);
	}
	if (set_encryption(l, get_be32(l->head + 32), CIPHER_QCOW2_AES) < 0 ||
	    read_backing_name(l) < 0)
		return -1;
	if (look_at_extensions(l, header, autoclear) < 0)
		return -1;
	image_snapshots_look(l, get_be64(l->head + 64), get_be32(l->head + 60));
	return 0;
}
