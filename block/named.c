/* SPDX-License-Identifier: Apache-2.0 */
/* Opening the backing file, or the data file, that an image's header names.
 *
 * The name is literal: neither JSON nor a protocol.  The format is never guessed,
 * because a guest could have written any header; and the operator may forbid
 * following names, or confine them to folders.
 *
 * A data file is handed out as it is, whatever it holds, and written to: a hostile
 * image could name any file of the host.  It is opened only in the operator's folders. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "aio/work.h"
#include "base/error.h"
#include "block/driver.h"
#include "block/node.h"
#include "block/opener.h"
#include "schema/types.h"

struct probe {
	const char *path;
	const char *const *dirs;
	bool is_device, is_outside;
};

static bool
lies_within(const char *path, const char *dir)
{
	CLEANUP(cleanup_free) char *real = realpath(dir, NULL);
	size_t len = real ? strlen(real) : 0;

	if (!real || strncmp(path, real, len) != 0)
		return false;
	return len == 1 || path[len] == '/';
}

static int
probe_path(void *arg)
{
	struct probe *p = arg;
	CLEANUP(cleanup_free) char *real = realpath(p->path, NULL);
	struct stat st;

	if (!real || stat(real, &st) < 0)
		return 0;	/* opening it will say what is wrong */
	p->is_device = S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode);
	p->is_outside = p->dirs;
	for (const char *const *d = p->dirs; d && *d; d++)
		if (lies_within(real, *d))
			p->is_outside = false;
	return 0;
}

/* name as the image at overlay means it: relative to the image's folder. */
static char *
resolve(const char *overlay, const char *name, struct error **errp)
{
	const char *slash = strrchr(overlay, '/');
	char *path = NULL;

	if (*name != '/' && !*overlay) {
		error_set(errp, "Cannot use relative backing file names for '%s'",
			  overlay);
		return NULL;
	}
	if (*name == '/' || !slash)
		path = strdup(name);
	else if (asprintf(&path, "%.*s%s", (int)(slash - overlay + 1), overlay, name) < 0)
		path = NULL;
	if (!path)
		error_set(errp, "Cannot allocate memory");
	return path;
}

static int
check_policy(const struct opener *op, const struct node *n, const char *what,
	     struct probe *p, struct error **errp)
{
	if (!op->policy->follow_images)
		return error_set(errp, "'%s' names the %s file '%s', and following "
				 "what images name is switched off",
				 opener_image_name(n), what, p->path);
	p->dirs = op->policy->image_dirs;
	work_run(probe_path, p);
	if (p->is_outside)
		return error_set(errp, "'%s' names the %s file '%s', which lies "
				 "outside of the folders for images",
				 opener_image_name(n), what, p->path);
	return 0;
}

/* The format's options struct over a file's; its first member is `file`. */
static int
open_named(struct opener *op, struct node *n, char *path, bool is_device,
	   enum BlockdevDriver fmt, struct edge **ret_edge, struct error **errp)
{
	struct BlockdevOptions file = {
		.driver = is_device ? BLOCKDEV_DRIVER_HOST_DEVICE : BLOCKDEV_DRIVER_FILE,
		.u.file.filename = path,
	};
	struct BlockdevRef file_ref = { .type = BLOCKDEV_REF_DEFINITION,
					.u.definition = file };
	struct BlockdevOptions format = { .driver = fmt };
	struct node *child = NULL;
	int r;

	switch (fmt) {
	case BLOCKDEV_DRIVER_RAW:
		format.u.raw.file = &file_ref;
		break;
	case BLOCKDEV_DRIVER_QCOW2:
		format.u.qcow2.file = &file_ref;
		break;
	case BLOCKDEV_DRIVER_QCOW:
		format.u.qcow.file = &file_ref;
		break;
	case BLOCKDEV_DRIVER_LUKS:
		format.u.luks.file = &file_ref;
		break;
	default:
		return error_set(errp, "Could not open backing file: '%s' names the "
				 "backing format '%s', which is no image format",
				 opener_image_name(n), BlockdevDriver_str(fmt));
	}
	r = opener_definition(op, n, &format, ROLE_COW, &child, errp);
	return opener_adopt(r, n, child, "backing", ROLE_COW, ret_edge, errp);
}

int
opener_backing_named(struct opener *op, struct node *n, const char *file,
		     const char *fmt, struct edge **ret_edge, struct error **errp)
{
	CLEANUP(cleanup_free) char *path = NULL;
	struct probe probe = { 0 };
	int driver;

	path = resolve(opener_image_name(n), file, errp);
	if (!path)
		return -1;
	probe.path = path;
	if (check_policy(op, n, "backing", &probe, errp) < 0)
		return -1;
	/* A format is never guessed: a guest could have written any header. */
	if (!fmt)
		return error_set(errp, "Could not open backing file: '%s' does not say "
				 "the format of its backing file '%s'; state it in the "
				 "'backing' option, or in the image with: qemu-img rebase "
				 "-u -F FORMAT", opener_image_name(n), file);
	driver = meta_enum_parse(&BlockdevDriver_meta, fmt);
	if (driver < 0)
		return error_set(errp, "Could not open backing file: Unknown driver '%s'",
				 fmt);
	return open_named(op, n, path, probe.is_device, (enum BlockdevDriver)driver,
			  ret_edge, errp);
}

int
opener_data_named(struct opener *op, struct node *n, const char *file,
		  struct edge **ret_edge, struct error **errp)
{
	struct probe probe = { .path = file };
	struct BlockdevOptions data = { .driver = BLOCKDEV_DRIVER_FILE,
					.u.file.filename = (char *)file };
	struct node *child = NULL;
	int r;

	if (op->policy->follow_images && !op->policy->image_dirs)
		return error_set(errp, "'data-file' is required for this image: the data file '%s' "
				 "that '%s' names is not opened for that alone", file,
				 opener_image_name(n));
	if (check_policy(op, n, "data", &probe, errp) < 0)
		return -1;
	r = opener_definition(op, n, &data, ROLE_DATA, &child, errp);
	return opener_adopt(r, n, child, "data-file", ROLE_DATA, ret_edge, errp);
}
