/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/options.h - blockdev options for what rescue opens and makes.
 *
 * Every layer and every format is stated, so that nothing is left for an image
 * to decide.
 *
 * Context    any thread.
 * Ownership  callers own what they get: BlockdevOptions_free() and kin.
 * Errors     NULL on no memory.
 */
#ifndef RESCUE_OPTIONS_H
#define RESCUE_OPTIONS_H

#include <stdint.h>

struct BlockdevCreateOptions;
struct BlockdevOptions;
struct image_chain;

/* A chain, to be read only. */
struct BlockdevOptions *options_for_chain(const struct image_chain *chain);

/* A new qcow2 image of this virtual size in the file at path, and the same to be
 * written. */
struct BlockdevCreateOptions *options_create_qcow2(const char *path, uint64_t size);
struct BlockdevOptions *options_open_qcow2(const char *path);

#endif
