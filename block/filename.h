/* SPDX-License-Identifier: Apache-2.0 */
/* block/filename.h - how a node's image is called in answers to clients.
 *
 * A path where opening that path again would give the same node; else, as QEMU
 * writes it, "json:" and the options that would.
 *
 * Context    loop 0.
 */
#ifndef BLOCK_FILENAME_H
#define BLOCK_FILENAME_H

struct ImageInfo;
struct node;

/* info: of n, as its driver filled it in, or NULL where it has none.  malloc'ed;
 * NULL: no memory. */
char *filename_of(struct node *n, const struct ImageInfo *info);

/* The full name of the backing file that the header of n names; "" if none. */
char *filename_of_named_backing(const struct node *n, const char *backing);

#endif
