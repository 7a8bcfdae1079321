/* SPDX-License-Identifier: Apache-2.0 */
/* tests/support/snapview.h - what an internal snapshot shows.
 *
 * Context    coroutine; nothing else is under way on the node.
 */
#ifndef TESTS_SUPPORT_SNAPVIEW_H
#define TESTS_SUPPORT_SNAPVIEW_H

#include <stdint.h>

struct node;
struct qcow2_snapshot;

/* The first len bytes of snapshot s of the open image n.  0 or -errno. */
int snapview_read(struct node *n, const struct qcow2_snapshot *s, uint8_t *buf, uint64_t len);

#endif
