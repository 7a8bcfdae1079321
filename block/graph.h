/* SPDX-License-Identifier: Apache-2.0 */
/* block/graph.h - nodes and edges as data; for the files of block/ only.
 *
 * Nothing here checks permissions or waits: that is block/change.h.
 *
 * Context    loop 0.
 */
#ifndef BLOCK_GRAPH_H
#define BLOCK_GRAPH_H

#include <stdbool.h>

#include "base/list.h"

struct driver;
struct edge;
struct error;
struct node;

extern struct list graph_nodes;		/* struct node in_all: every node there is */

/* A node in the state NODE_OPENING with one reference, which reserves its name;
 * NULL: a name is made up.  Released by graph_node_free(). */
struct node *graph_node_new(const struct driver *drv, const char *name,
			    struct error **errp);
void graph_node_free(struct node *n);

/* Make an edge (linked to parent, not yet to a child), and destroy one that has
 * no child.  NULL: no memory. */
struct edge *graph_edge_new(struct node *parent, const char *name, unsigned role);
void graph_edge_free(struct edge *e);

/* Point e at child (NULL: at nothing); references are the caller's affair. */
void graph_edge_point(struct edge *e, struct node *child);

/* Is there a way down from one to the other, or are they one? */
bool graph_reaches(const struct node *from, const struct node *to);

/* Number of a walk: nodes whose mark equals it were visited. */
unsigned graph_mark(void);

#endif
