/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/layer.h - the encrypted layers of a chain that is being opened.
 *
 * This is the one struct decryptor there is.  It lets the drivers open every
 * encrypted layer without a key at first.  Ciphertext can then be sampled
 * through the driver, which knows what is encrypted and what is not, and keys
 * be judged before one is set; until then nothing else can be read.
 *
 * Units      bytes, but where a name says sector.
 * Context    coroutine on loop 0; layer_decryptor's functions as block/open.h
 *            says.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_LAYER_H
#define RESCUE_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rescue/image.h"

struct cipher;
struct error;
struct judge_sample;
struct mixed;
struct node;

struct layer {
	const struct image *image;
	unsigned number;		/* its place in the chain; the topmost is 0 */
	struct node *node;		/* borrowed; once bound */
	struct cipher *cipher;		/* NULL: no key yet */
	struct node *stored;		/* borrowed; the file that has the data; once bound */
	struct node *file;		/* borrowed; where a LUKS header is */
	uint64_t header, header_len;	/* ... and at what offset */
	struct layer_capture *capture;	/* where ciphertext goes; NULL: nowhere */
	struct mixed *mixed;		/* owned; what is read otherwise; NULL: nothing */
	bool damaged;			/* some of it could not be read to sample it */
	bool watch;			/* count what seems to be stored otherwise */
	_Atomic uint64_t suspects;	/* such sectors, and the first one's offset */
	_Atomic uint64_t first_suspect;
};

enum { LAYER_CAPTURE = 128 };	/* sectors */

/* Sectors [first, first + count) as they are stored, where they are encrypted. */
struct layer_capture {
	uint64_t first;
	unsigned count;
	bool have[LAYER_CAPTURE];
	uint64_t file[LAYER_CAPTURE];	/* a sector's number in the image file */
	uint8_t data[LAYER_CAPTURE][512];
};

struct layers {
	struct layer layer[IMAGE_CHAIN_MAX];	/* the topmost first */
	unsigned count;
};

/* Hand &layer_decryptor and a struct layers to node_open(). */
extern const struct decryptor layer_decryptor;

/* The layers of chain that are encrypted; chain is borrowed as long as they are. */
void layer_init(struct layers *all, const struct image_chain *chain);
void layer_done(struct layers *all);

/* After node_open(): which node is which layer. */
int layer_bind(struct layers *all, const struct image_chain *chain, struct node *top,
	       struct error **errp);

/* Ciphertext sampled over all that this layer stores encrypted: at most
 * JUDGE_SAMPLES sectors.  Damaged places are passed over: whoever copies them will
 * say so.  The caller frees. */
int layer_sample(struct layer *l, struct judge_sample **ret, size_t *ret_n,
		 struct error **errp);

/* One sector's ciphertext, for struct judge_disk.  false: there is none. */
bool layer_fetch(void *layer, uint64_t sector, uint8_t data[512]);

/* The next range at or behind *off that this layer stores as data, which is encrypted
 * unless it is compressed; of no length at the end.  What cannot be looked up is passed
 * over.  0 or -errno. */
int layer_next_data(struct layer *l, uint64_t *off, uint64_t *ret_len);

/* Capture sectors from off on, at most LAYER_CAPTURE.  0 or -errno. */
int layer_capture(struct layer *l, uint64_t off, unsigned sectors, struct layer_capture *ret);

/* Read at off from the start of the layer's LUKS header; a luks_read_fn. */
int layer_read_luks(void *layer, uint64_t off, void *buf, size_t len);

/* Is it the old AES encryption, which keeps nothing to check a key by? */
bool layer_is_aes(const struct layer *l);

/* Decrypt with c from now on; c is taken over. */
void layer_set_cipher(struct layer *l, struct cipher *c);

#endif
