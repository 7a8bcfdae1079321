/* SPDX-License-Identifier: Apache-2.0 */
/* Following what images name: backing files, and data files. */
#include "rescue/image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "rescue/image_int.h"

static int
no_memory(struct error **errp)
{
	return error_set(errp, "Cannot allocate memory");
}

/* ---- data files ---- */

/* QEMU takes a relative name from the current folder.  If there is nothing, the image
 * was moved together with its data file, as likely as not. */
static char *
data_path(const struct image *im, struct error **errp)
{
	char *beside = image_path_beside(im, im->data_file);
	struct stat here, there;

	if (!beside) {
		no_memory(errp);
		return NULL;
	}
	if (stat(im->data_file, &here) < 0)
		return beside;
	if (stat(beside, &there) == 0 &&
	    (here.st_dev != there.st_dev || here.st_ino != there.st_ino)) {
		error_set(errp, "'%s' may be that of the current folder or '%s'; go to the "
			  "folder of the right one", im->data_file, beside);
		free(beside);
		return NULL;
	}
	free(beside);
	return strdup(im->data_file);
}

static int
follow_data(struct image *im, struct error **errp)
{
	CLEANUP(cleanup_free) char *path = NULL;

	if (!im->external_data)
		return 0;
	if (!im->data_file)
		return error_set(errp, "%s keeps its data in another file, and does not say in "
				 "which", im->filename);
	path = data_path(im, errp);
	/* It is raw, whatever its guest made it look like. */
	if (path && image_read_raw(path, &im->data, errp) == 0)
		return 0;
	error_prepend(errp, "The data file of %s: ", im->filename);
	return -1;
}

/* ---- chains ---- */

const struct image *
image_chain_file(const struct image_chain *chain, unsigned i)
{
	for (unsigned l = 0; l < chain->count; l++) {
		const struct image *im = chain->layer[l];

		if (i-- == 0)
			return im;
		if (im->data && i-- == 0)
			return im->data;
		if (im->header && i-- == 0)
			return im->header;
	}
	return NULL;
}

const struct image *
image_chain_find(const struct image_chain *chain, dev_t dev, ino_t ino)
{
	const struct image *im;

	for (unsigned i = 0; (im = image_chain_file(chain, i)); i++)
		if (im->dev == dev && im->ino == ino)
			return im;
	return NULL;
}

static bool
is_same(const struct image *im)
{
	struct stat st;

	if (im->is_device || stat(im->filename, &st) < 0 || st.st_dev != im->dev ||
	    st.st_ino != im->ino)
		return true;
	return (uint64_t)st.st_size == im->file_size && st.st_mtim.tv_sec == im->mtime.tv_sec &&
	       st.st_mtim.tv_nsec == im->mtime.tv_nsec;
}

int
image_chain_check_same(const struct image_chain *chain, struct error **errp)
{
	const struct image *im;

	for (unsigned i = 0; (im = image_chain_file(chain, i)); i++)
		if (!is_same(im))
			return error_set(errp, "'%s' was changed while it was read; what was "
					 "copied of it cannot be trusted", im->filename);
	return 0;
}

static bool
is_layer(const struct image_chain *chain, const struct image *im)
{
	for (unsigned i = 0; i < chain->count; i++)
		if (chain->layer[i]->dev == im->dev && chain->layer[i]->ino == im->ino)
			return true;
	return false;
}

static bool
is_known_format(const char *name)
{
	static const enum image_format all[] = { IMAGE_RAW, IMAGE_QCOW, IMAGE_QCOW2, IMAGE_LUKS };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (!strcmp(name, image_format_name(all[i])))
			return true;
	return false;
}

/* Believe what the overlay recorded of its backing file's format; where it recorded
 * none, the first bytes decide.  detached: a LUKS header is elsewhere. */
static int
read_layer(const char *path, const char *recorded, bool detached, struct image **ret,
	   struct error **errp)
{
	CLEANUP(image_freep) struct image *im = NULL;

	if (recorded && (!strcmp(recorded, "raw") || (detached && !strcmp(recorded, "luks"))))
		return image_read_raw(path, ret, errp);
	if (recorded && !is_known_format(recorded))
		return error_set(errp, "%s is said to be a %s image by what is based on it; only raw, qcow, "
				 "qcow2 and LUKS ones can be read", path, recorded);
	if (image_read(path, &im, errp) < 0)
		return -1;
	if (recorded && strcmp(recorded, image_format_name(im->format)))
		return error_set(errp, "%s is said to be a %s image by what is based on it, but "
				 "looks like %s", path, recorded, image_format_name(im->format));
	*ret = STEAL(im);
	return 0;
}

static int
add_layer(struct image_chain *chain, const char *path, const char *format, bool detached,
	  struct error **errp)
{
	CLEANUP(image_freep) struct image *im = NULL;

	if (chain->count == IMAGE_CHAIN_MAX)
		return error_set(errp, "The chain of backing files has more than %d images",
				 IMAGE_CHAIN_MAX);
	if (read_layer(path, format, detached, &im, errp) < 0)
		return -1;
	if (is_layer(chain, im))
		return error_set(errp, "%s is, through its backing files, based on itself", path);
	chain->layer[chain->count++] = STEAL(im);
	return 0;
}

/* Is it what QEMU would take for the address of something that is no file? */
static bool
looks_remote(const char *name)
{
	const char *colon = strchr(name, ':'), *slash = strchr(name, '/');

	return colon && (!slash || colon < slash);
}

static void
blame(const struct image *im, struct error **errp)
{
	error_prepend(errp, "The backing file of %s: ", im->filename);
	if (looks_remote(im->backing))
		error_append(errp, "; what an image names is a file, and nothing else is opened");
}

static int
read_all(struct image_chain *chain, const char *filename, const char *header,
	 struct error **errp)
{
	if (add_layer(chain, filename, NULL, header, errp) < 0)
		return -1;
	for (;;) {
		struct image *im = chain->layer[chain->count - 1];
		CLEANUP(cleanup_free) char *path = NULL;

		if (follow_data(im, errp) < 0)
			return -1;
		if (!im->backing)
			return header ? image_luks_attach(im, header, errp) : 0;
		path = image_path_beside(im, im->backing);
		if (!path)
			return no_memory(errp);
		if (add_layer(chain, path, im->backing_format, header, errp) < 0) {
			blame(im, errp);
			return -1;
		}
	}
}

int
image_chain_read(const char *filename, const char *header, struct image_chain *ret,
		 struct error **errp)
{
	struct image_chain chain = { .count = 0 };

	if (read_all(&chain, filename, header, errp) < 0) {
		image_chain_done(&chain);
		return -1;
	}
	*ret = chain;
	return 0;
}

void
image_chain_done(struct image_chain *chain)
{
	for (unsigned i = 0; i < chain->count; i++)
		image_free(chain->layer[i]);
	chain->count = 0;
}
