/* SPDX-License-Identifier: Apache-2.0 */
/* The driver luks: knows a LUKS volume when it sees one, so that asking for one
 * gets the answer that leads on; and reads one for who brings a decryptor. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/iov.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "block/node.h"
#include "block/open.h"
#include "schema/types.h"

enum {
	MAGIC_LEN   = 6,
	VERSION_AT  = 6,
	PAYLOAD_AT  = 104,	/* version 1: where the data starts, in sectors */
	SECTOR	    = 512,
	HEADER_LEN  = 592,	/* of version 1, the shortest there is */
};

struct luks {
	const struct decryptor *decryptor;	/* NULL: refused, nothing is read */
	void *key;
	uint64_t payload;
	bool detached;		/* the header is in a file of its own */
};

static int
check_header(struct node *file, uint64_t *ret_payload, struct error **errp)
{
	static const char magic[MAGIC_LEN] = "LUKS\xba\xbe";
	uint8_t header[HEADER_LEN];
	int err = node_pread(file, 0, header, sizeof(header));

	if (err)
		return error_set_errno(errp, err, "Unable to read LUKS header"), -1;
	if (memcmp(header, magic, MAGIC_LEN) != 0)
		return error_set(errp, "Volume is not in LUKS format");
	if (get_be16(header + VERSION_AT) < 1 || get_be16(header + VERSION_AT) > 2)
		return error_set(errp, "LUKS version %u is not supported",
				 get_be16(header + VERSION_AT));
	*ret_payload = (uint64_t)get_be32(header + PAYLOAD_AT) * SECTOR;
	return 0;
}

/* The volume's content, for whom there is a key. */
static int
open_payload(struct node *n, struct opener *op, void *key, uint64_t file_size,
	     struct error **errp)
{
	struct luks *l = n->state;

	bool is_outside = l->payload > file_size || (!l->detached && l->payload < HEADER_LEN);

	if (!n->read_only || is_outside) {
		opener_policy(op)->decryptor->forget(key);
		return error_set(errp, n->read_only ? "LUKS payload is outside of the file"
				 : "An encrypted image can only be opened read-only");
	}
	l->decryptor = opener_policy(op)->decryptor;
	l->key = key;
	n->limits.align = SECTOR;
	atomic_store(&n->size, round_down(file_size - l->payload, SECTOR));
	return 0;
}

static int
luks_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsLUKS *o = &n->options->u.luks;
	struct luks *l = n->state;
	struct crypt_layer layer = { .node_name = n->name, .format = "luks",
				     .kind = CIPHER_LUKS };
	void *key = NULL;
	struct edge *file, *header;

	l->detached = o->header;
	if (opener_child(op, n, o->file, "file",
			 l->detached ? ROLE_DATA | ROLE_PRIMARY : ROLE_IMAGE, &file, errp) < 0)
		return -1;
	header = file;
	if (o->header && opener_child(op, n, o->header, "header", ROLE_METADATA, &header, errp) < 0)
		return -1;
	if (check_header(header->child, &l->payload, errp) < 0)
		return -1;
	layer.filename = node_filename(file->child);
	layer.header = l->detached ? node_filename(header->child) : NULL;
	layer.file = header->child;
	layer.header_length = node_size(header->child);
	if (!l->detached)
		layer.header_length = min_u64(l->payload, layer.header_length);
	layer.depth = opener_depth(op);
	atomic_store(&n->size, node_size(file->child));
	if (opener_encrypted(op, n, &layer, &key, errp) < 0)
		return -1;
	if (!key)
		return 0;	/* refused in the end */
	return open_payload(n, op, key, node_size(file->child), errp);
}

static int
luks_close(struct node *n)
{
	struct luks *l = n->state;

	if (l->decryptor)
		l->decryptor->forget(l->key);
	return 0;
}

static int
read_decrypted(struct node *n, uint64_t off, void *buf, size_t len)
{
	struct luks *l = n->state;
	int r = node_pread(node_file(n), l->payload + off, buf, len);

	return r ? r : l->decryptor->decrypt(l->key, off, l->payload + off, buf, len);
}

/* Whole sectors; in place where the memory is of one piece. */
static int
luks_read(struct node *n, uint64_t off, const struct iov *dst)
{
	struct luks *l = n->state;
	CLEANUP(cleanup_free) void *buf = NULL;
	int r;

	if (!l->decryptor)
		return -EACCES;
	if (dst->count == 1)
		return read_decrypted(n, off, dst->vec->iov_base, dst->len);
	buf = iov_alloc(SECTOR, dst->len);
	if (!buf)
		return -ENOMEM;
	r = read_decrypted(n, off, buf, dst->len);
	if (!r)
		iov_write(dst, 0, buf, dst->len);
	return r;
}

static int
luks_write(struct node *n, uint64_t off, const struct iov *src, unsigned flags)
{
	(void)n;
	(void)off;
	(void)src;
	(void)flags;
	return -EACCES;
}

const struct driver driver_luks = {
	.name = "luks",
	.state_size = sizeof(struct luks),
	.open = luks_open,
	.close = luks_close,
	.read = luks_read,
	.write = luks_write,
};
