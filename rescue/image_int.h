/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/image_int.h - looking at one image file; for image*.c.
 *
 * Errors     0 or -1 with *errp of the look.
 */
#ifndef RESCUE_IMAGE_INT_H
#define RESCUE_IMAGE_INT_H

#include <stddef.h>
#include <stdint.h>

struct error;
struct image;
struct image_snapshot;

enum { IMAGE_HEADER_MAX = 4096 };	/* what of an image is looked at for its header */

/* A file being looked at: its first bytes, zero behind its end. */
struct image_look {
	int fd;
	uint8_t head[IMAGE_HEADER_MAX];
	struct image *im;
	struct error **errp;
};

/* "FILE: not a sound qcow2 image: what".  -1. */
int image_bad(struct image_look *l, const char *what);

int image_read_at(struct image_look *l, uint64_t off, void *buf, size_t len);
/* Into a new string, in place of *ret; it ends at its first NUL. */
int image_read_string(struct image_look *l, uint64_t off, size_t len, char **ret);

/* image_qcow.c: the header, and what it refers to. */
int image_qcow_look(struct image_look *l);
int image_qcow2_look(struct image_look *l);

/* image_luks.c: a header at off, of which len bytes are there. */
int image_luks_look(struct image_look *l, uint64_t off, uint64_t len);
/* How large the volume of im->luks is. */
void image_luks_measure(struct image *im);
/* Let im be the volume whose header is in the file at path. */
int image_luks_attach(struct image *im, const char *path, struct error **errp);

/* Look once more at im, which copy becomes a copy of, as far as a look goes.  -1: it is not
 * there any more.  l->fd is to be closed. */
int image_look_again(const struct image *im, struct image *copy, struct image_look *l);

/* image_bitmaps.c: the extension at off, of len bytes.  Damage is noted, and no error. */
void image_bitmaps_look(struct image_look *l, uint64_t off, uint32_t len);

/* image_snapshots.c: the table of n at off.  Damage to it is noted, and no error. */
void image_snapshots_look(struct image_look *l, uint64_t off, uint32_t n);
void image_snapshot_free(struct image_snapshot *s);	/* takes NULL */

#endif
