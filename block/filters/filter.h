/* SPDX-License-Identifier: Apache-2.0 */
/* block/filters/filter.h - filters that jobs put into the graph themselves.
 *
 * Context    coroutine on loop 0.
 */
#ifndef BLOCK_FILTERS_FILTER_H
#define BLOCK_FILTERS_FILTER_H

struct driver;
struct edge;
struct error;
struct node;

/* Make a node of driver drv over `on`, with `other` as a further child under the
 * name "target", and give the caller a reference.  driver->open is not called:
 * init sets the state up before the children are attached.  name NULL: one is made
 * up.  Nobody uses the node yet: node_insert_above(). */
int filter_new(const struct driver *drv, const char *name, struct node *on,
	       struct node *other, void (*init)(struct node *n, const void *arg),
	       const void *arg, struct node **ret_node, struct error **errp);

#endif
