/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/image.h - what an image file says of itself.
 *
 * Reads headers only, and never opens what they name, but for image_chain_read().
 * It locks nothing, so what it says of an image in use may be out of date.
 *
 * Units      bytes.
 * Context    any thread; blocks.
 * Ownership  callers own what they get.
 * Errors     0 or -1 with *errp.  A header that cannot be right is an error.
 */
#ifndef RESCUE_IMAGE_H
#define RESCUE_IMAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "block/open.h"

struct error;

enum image_format { IMAGE_RAW, IMAGE_QCOW, IMAGE_QCOW2, IMAGE_LUKS };

enum { IMAGE_CHAIN_MAX = 200 };

enum { IMAGE_LUKS_HEADER = 592, IMAGE_LUKS_SLOTS = 8 };

/* A LUKS header of version 1, as it is and not judged. */
struct image_luks {
	char alg[33], mode[33], hash[33], uuid[41];	/* printable */
	uint32_t key_len, iterations;
	uint64_t payload;
	struct image_luks_slot {
		bool active;
		uint32_t iterations, stripes;
		uint64_t offset;
	} slot[IMAGE_LUKS_SLOTS];
};

/* How data is encrypted, in the terms of qemu-img info; what is not known is "". */
struct image_cipher {
	char alg[40];			/* "aes-256" */
	char mode[33], ivgen[33], ivgen_hash[33], hash[33];
};

/* An internal snapshot. */
struct image_snapshot {
	unsigned index;			/* in their table */
	char *id, *name;
	uint64_t disk_size, vm_state_size;
	uint32_t date_sec, date_nsec;
	uint64_t vm_clock_nsec;
	uint64_t icount;		/* UINT64_MAX: none */
};

/* A dirty bitmap that an image stores. */
struct image_bitmap {
	char *name;
	uint64_t granularity;
	bool in_use, is_auto;		/* in_use: what it says is out of date */
};

struct image {
	char *filename;
	enum image_format format;	/* by its first bytes; raw is all that is unknown */
	enum cipher_kind encryption;
	unsigned version;
	uint64_t virtual_size, cluster_size;	/* cluster_size 0: none */
	uint64_t file_size, disk_size;	/* the file's own length, and what it occupies */
	dev_t dev;
	ino_t ino;
	struct timespec mtime;
	char *backing;			/* as the header has it; NULL: none */
	char *backing_format;		/* NULL: the header does not say */
	char *data_file;		/* as the header has it; NULL: none */
	bool external_data;		/* what the guest stored is in a data file */
	struct image *data;		/* that file, of an image in a chain; NULL: none */
	unsigned snapshots, snapshots_lost;	/* internal ones; lost: their table is damaged */
	uint64_t snapshots_off;
	struct image_snapshot *shown;	/* the one that is meant; NULL: the active state */
	unsigned bitmaps, bitmaps_lost;	/* stored; lost: their directory is damaged */
	uint64_t bitmaps_off;
	bool dirty, corrupt;
	bool lazy_refcounts, data_raw, zstd;	/* of qcow2 */
	unsigned refcount_bits;
	bool subclusters;		/* each 32nd of a cluster can be stored or not */
	bool is_device;			/* a block device */
	char cipher[80];		/* LUKS: "aes-xts-plain64", sha256; else "" */
	struct image_luks *luks;	/* what its LUKS header says; NULL: there is none */
	struct image *header;		/* a file with the header of this one; NULL: none */
};

int image_read(const char *filename, struct image **ret, struct error **errp);
/* The same of a file whose first bytes are not to be believed: raw. */
int image_read_raw(const char *filename, struct image **ret, struct error **errp);
void image_free(struct image *im);	/* takes NULL */
void image_freep(struct image **im);

const char *image_format_name(enum image_format f);

/* The path of what the header names, literally, from im's own folder.  Malloc'ed; NULL
 * on no memory. */
char *image_path_beside(const struct image *im, const char *name);

/* Each internal snapshot, or stored bitmap, in turn, until fn returns false: there may be
 * tens of MiB of them, so they are read anew and not kept.  What fn gets is good until it
 * returns.  -1: they cannot be read any more. */
typedef bool (*image_snapshot_fn)(void *user, const struct image_snapshot *s);
typedef bool (*image_bitmap_fn)(void *user, const struct image_bitmap *b);
int image_each_snapshot(const struct image *im, image_snapshot_fn fn, void *user);
int image_each_bitmap(const struct image *im, image_bitmap_fn fn, void *user);

/* Let im mean its disk as an internal snapshot has it.  want is an ID, else a name; or
 * snapshot.id=ID,snapshot.name=NAME, one of them or both. */
int image_choose_snapshot(struct image *im, const char *want, struct error **errp);

void image_describe_cipher(const struct image *im, struct image_cipher *ret);

/* A LUKS volume: can its data be where the header says? */
int image_luks_check(const struct image *im, struct error **errp);

/* An image with all that stands behind it, the topmost first. */
struct image_chain {
	struct image *layer[IMAGE_CHAIN_MAX];
	unsigned count;
};

/* Read filename's header and those of its backing files in turn, and find the data
 * files.  A recorded backing format is believed; where none is, the first bytes decide.
 * header: of the lowest image, which is a LUKS volume then; NULL: none is apart. */
int image_chain_read(const char *filename, const char *header, struct image_chain *ret,
		     struct error **errp);

/* All files that are read for a chain, its images and what they keep elsewhere.  NULL:
 * there are no more than i. */
const struct image *image_chain_file(const struct image_chain *chain, unsigned i);
/* The one of them that this is; NULL: none. */
const struct image *image_chain_find(const struct image_chain *chain, dev_t dev, ino_t ino);
/* Is every file as it was when the chain was read, by its size and time?  What has another
 * name by now, or none, is not looked at, and devices tell nothing. */
int image_chain_check_same(const struct image_chain *chain, struct error **errp);
void image_chain_done(struct image_chain *chain);	/* takes one of zero bytes */

#endif
