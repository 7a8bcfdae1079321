/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/device.h - a block device that is to be overwritten.
 *
 * Context    any thread; blocks.
 * Errors     0 or -1 with *errp.
 */
#ifndef RESCUE_DEVICE_H
#define RESCUE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

struct error;
struct image_chain;

bool device_is(const char *path);

/* Claim it for this process, so that nobody mounts it meanwhile; until the fd is
 * closed.  In use already, or too small: an error. */
int device_claim(const char *path, uint64_t size, int *ret_fd, struct error **errp);

/* An error if a file of chain is on it: the same device, by whatever name; the disk
 * that it is a partition of, or the reverse; a file that is made a device by a loop. */
int device_check_source(const char *path, const struct image_chain *chain,
			struct error **errp);

#endif
