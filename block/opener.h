/* SPDX-License-Identifier: Apache-2.0 */
/* block/opener.h - one node_open() under way; for open.c and refuse.c. */
#ifndef BLOCK_OPENER_H
#define BLOCK_OPENER_H

#include <stdbool.h>

#include "base/list.h"
#include "block/open.h"

struct BlockdevOptions;
struct edge;
struct error;
struct node;

/* How deep a backing chain may be. */
enum { OPENER_DEPTH_MAX = 200 };

/* An encrypted layer that was met. */
struct refusal {
	struct list link;
	char *filename;
	char *header;		/* a LUKS header that is apart; NULL: none */
	char *overlay;		/* the image whose backing file it is; NULL: none */
	enum cipher_kind kind;
	int depth;
};

struct opener {
	const struct open_policy *policy;
	const char *top_name;	/* the node that the client names */
	int depth;		/* of the layer being opened; 0: what the client named */
	const char *overlay;	/* the image that named this layer; NULL: none */
	struct list refusals;	/* topmost first */
	bool refused;		/* also where there was no memory for the list */
};

/* ---- open.c, for named.c ---- */

/* Open what options describe as a child of parent: one reference, the caller's. */
int opener_definition(struct opener *op, struct node *parent,
		      const struct BlockdevOptions *options, unsigned role,
		      struct node **ret_node, struct error **errp);
/* Attach the child that was opened or found, taking over its one reference;
 * result says whether it was, and *errp gets a text in front where it was not. */
int opener_adopt(int result, struct node *n, struct node *child, const char *edge_name,
		 unsigned role, struct edge **ret_edge, struct error **errp);
/* The path of the image that n, still opening, is the format of; "" if unknown. */
const char *opener_image_name(const struct node *n);

/* ---- refuse.c ---- */

int refuse_record(struct opener *op, const struct crypt_layer *layer);
/* Set *errp to the one sentence that says it all. */
int refuse_answer(struct opener *op, struct error **errp);
void refuse_forget(struct opener *op);

/* Tell how to get at the data of one encrypted image: the rescue command for the
 * file, quoted for a shell; malloc'ed, NULL on no memory.  options: words that stand in
 * front, with a NULL behind the last.  The target is beside the source, or in the current
 * folder if it cannot be, and is nothing that is there now. */
char *refuse_rescue_command(const char *filename, const char *const *options);

#endif
