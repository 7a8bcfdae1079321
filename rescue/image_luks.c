/* SPDX-License-Identifier: Apache-2.0 */
/* What the header of a LUKS volume says, and headers that are apart from their volume. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "rescue/image.h"
#include "rescue/image_int.h"

enum { SECTOR = 512, SLOT_ENABLED = 0x00ac71f3 };

static void
take_name(const uint8_t *from, char *to, size_t len)
{
	memcpy(to, from, len);
	to[len] = '\0';
	for (char *c = to; *c; c++)
		if (*c < 0x20 || *c > 0x7e)
			*c = '?';
}

static void
decode(const uint8_t *h, struct image_luks *l)
{
	take_name(h + 8, l->alg, sizeof(l->alg) - 1);
	take_name(h + 40, l->mode, sizeof(l->mode) - 1);
	take_name(h + 72, l->hash, sizeof(l->hash) - 1);
	take_name(h + 168, l->uuid, sizeof(l->uuid) - 1);
	l->payload = (uint64_t)get_be32(h + 104) * SECTOR;
	l->key_len = get_be32(h + 108);
	l->iterations = get_be32(h + 164);
	for (unsigned i = 0; i < IMAGE_LUKS_SLOTS; i++) {
		const uint8_t *s = h + 208 + (size_t)48 * i;

		l->slot[i] = (struct image_luks_slot){ .active = get_be32(s) == SLOT_ENABLED,
						       .iterations = get_be32(s + 4),
						       .offset = (uint64_t)get_be32(s + 40) * SECTOR,
						       .stripes = get_be32(s + 44) };
	}
}

int
image_luks_look(struct image_look *l, uint64_t off, uint64_t len)
{
	struct image *im = l->im;
	uint8_t header[IMAGE_LUKS_HEADER] = { 0 };

	if (image_read_at(l, off, header, len < sizeof(header) ? len : sizeof(header)) < 0)
		return -1;
	im->luks = calloc(1, sizeof(*im->luks));
	if (!im->luks)
		return error_set(l->errp, "Cannot allocate memory");
	decode(header, im->luks);
	snprintf(im->cipher, sizeof(im->cipher), "%.20s-%.20s, %.20s", im->luks->alg,
		 im->luks->mode, im->luks->hash);
	return 0;
}

/* "cbc-essiv:sha256" */
static void
split_mode(const char *text, struct image_cipher *c)
{
	const char *dash = strchr(text, '-'), *colon = dash ? strchr(dash, ':') : NULL;
	size_t mode = dash ? (size_t)(dash - text) : strlen(text);
	size_t ivgen = colon ? (size_t)(colon - dash - 1) : dash ? strlen(dash + 1) : 0;

	snprintf(c->mode, sizeof(c->mode), "%.*s", (int)mode, text);
	snprintf(c->ivgen, sizeof(c->ivgen), "%.*s", (int)ivgen, dash ? dash + 1 : "");
	snprintf(c->ivgen_hash, sizeof(c->ivgen_hash), "%s", colon ? colon + 1 : "");
}

void
image_describe_cipher(const struct image *im, struct image_cipher *ret)
{
	const struct image_luks *l = im->luks;

	*ret = (struct image_cipher){ .alg = "" };
	if (im->encryption == CIPHER_QCOW_AES || im->encryption == CIPHER_QCOW2_AES) {
		*ret = (struct image_cipher){ .alg = "aes-128", .mode = "cbc", .ivgen = "plain64" };
	} else if (l) {
		split_mode(l->mode, ret);
		/* XTS takes two keys. */
		snprintf(ret->alg, sizeof(ret->alg), "%s-%u", l->alg,
			 l->key_len * (strcmp(ret->mode, "xts") ? 8 : 4));
		memcpy(ret->hash, l->hash, sizeof(ret->hash));
	}
}

/* ---- detached headers ---- */

static int
read_header(const char *path, struct image **ret, struct error **errp)
{
	struct image *header;

	if (image_read(path, &header, errp) < 0)
		return -1;
	*ret = header;
	if (header->format != IMAGE_LUKS)
		return error_set(errp, "'%s' is no LUKS header", path);
	if (header->version != 1)
		return error_set(errp, "'%s' is a LUKS header of version %u, which only cryptsetup "
				 "knows", path, header->version);
	return 0;
}

int
image_luks_attach(struct image *im, const char *path, struct error **errp)
{
	if (im->format != IMAGE_RAW && im->format != IMAGE_LUKS)
		return error_set(errp, "%s is a %s image, and not what a LUKS header is to be "
				 "given for", im->filename, image_format_name(im->format));
	if (read_header(path, &im->header, errp) < 0)
		return -1;
	free(im->luks);
	im->luks = im->header->luks;
	im->header->luks = NULL;
	im->format = IMAGE_LUKS;
	im->encryption = CIPHER_LUKS;
	im->version = im->header->version;
	memcpy(im->cipher, im->header->cipher, sizeof(im->cipher));
	image_luks_measure(im);
	return 0;
}

void
image_luks_measure(struct image *im)
{
	uint64_t payload = im->luks->payload;

	im->virtual_size = payload < im->file_size ? im->file_size - payload : 0;
}

int
image_luks_check(const struct image *im, struct error **errp)
{
	uint64_t payload;

	if (im->version != 1)
		return error_set(errp, "%s is a LUKS volume of version %u, which only cryptsetup "
				 "decrypts", im->filename, im->version);
	payload = im->luks->payload;
	if (payload > im->file_size)
		return error_set(errp, "%s: its LUKS header says that the data begins at byte %" PRIu64
				 ", which is beyond the end of the file", im->filename, payload);
	if (!im->header && !payload)
		return error_set(errp, "%s is a LUKS header by itself; give the file that has the "
				 "data, and this one by --header", im->filename);
	if (!im->header && payload < IMAGE_LUKS_HEADER)
		return error_set(errp, "%s: its LUKS header says that the data begins at byte %" PRIu64
				 ", where the header still is", im->filename, payload);
	return 0;
}
