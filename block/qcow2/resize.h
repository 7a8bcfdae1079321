/* SPDX-License-Identifier: Apache-2.0 */
/* block/qcow2/resize.h - giving places to guest clusters ahead of any write. */
#ifndef BLOCK_QCOW2_RESIZE_H
#define BLOCK_QCOW2_RESIZE_H

#include <stdbool.h>
#include <stdint.h>

struct qcow2;

/* Map all unallocated clusters of [from, to), reading as zeroes; nothing else
 * changes them meanwhile.  zeroed: the file does so already wherever it is free.
 * Coroutine; 0 or -errno. */
int qcow2_preallocate(struct qcow2 *q, uint64_t from, uint64_t to, bool zeroed);

#endif
