/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/device.h - block devices that are to be overwritten, and all the ways by which
 * writing to one thing changes another.
 *
 * Context    any thread; blocks.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_DEVICE_H
#define RESCUE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct image;
struct image_chain;

bool device_is(const char *path);

/* Claim it for this process, so that nobody mounts it meanwhile; until the fd is
 * closed.  In use already, or too small: an error. */
int device_claim(const char *path, uint64_t size, int *ret_fd, struct error **errp);

/* What of chain writing to path, whatever that is, would change: the same file or device,
 * by whatever name; a file through a loop device, or a loop device through its file; a disk
 * that a device is a partition of or made of, or the reverse.  NULL: nothing. */
const struct image *device_find_source(const struct image_chain *chain, const char *path);

/* Finding something is an error. */
int device_check_source(const struct image_chain *chain, const char *path,
			struct error **errp);

/* The same for what is printed on standard output and standard error, which are pointed to
 * nowhere if so. */
int device_check_streams(const struct image_chain *chain, struct error **errp);

#endif
