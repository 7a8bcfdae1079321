/* SPDX-License-Identifier: Apache-2.0 */
/* The driver luks: knows a LUKS volume when it sees one, so that asking for one
 * gets the answer that leads on. */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/drivers.h"
#include "block/node.h"
#include "block/open.h"
#include "schema/types.h"

enum {
	MAGIC_LEN   = 6,
	VERSION_AT  = 6,
	HEADER_LEN  = 592,	/* of version 1, the shortest there is */
};

static int
check_header(struct node *file, struct error **errp)
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
	return 0;
}

static int
luks_open(struct node *n, struct opener *op, struct error **errp)
{
	const struct BlockdevOptionsLUKS *o = &n->options->u.luks;
	struct crypt_layer layer = { .node_name = n->name, .format = "luks",
				     .kind = CIPHER_LUKS };
	void *key = NULL;
	struct edge *file;

	if (opener_child(op, n, o->file, "file", ROLE_IMAGE, &file, errp) < 0)
		return -1;
	if (check_header(file->child, errp) < 0)
		return -1;
	layer.filename = node_filename(file->child);
	layer.file = file->child;
	layer.header_length = node_size(file->child);
	layer.depth = opener_depth(op);
	atomic_store(&n->size, node_size(file->child));
	if (opener_encrypted(op, n, &layer, &key, errp) < 0)
		return -1;
	if (!key)
		return 0;	/* refused in the end */
	opener_policy(op)->decryptor->forget(key);
	return error_set(errp, "'%s' is a LUKS volume; open it with: cryptsetup open %s "
			 "NAME", layer.filename, layer.filename);
}

static int
luks_read(struct node *n, uint64_t off, const struct iov *dst)
{
	(void)n;
	(void)off;
	(void)dst;
	return -EACCES;
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
	.open = luks_open,
	.read = luks_read,
	.write = luks_write,
};
