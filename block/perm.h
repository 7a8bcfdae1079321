/* SPDX-License-Identifier: Apache-2.0 */
/* block/perm.h - who may do what on a node, and what he tolerates in others.
 *
 * Each edge and each root carries two sets: what it does (perm) and what it
 * lets the other users of the node do (shared).  A graph is legal when for any
 * two users a and b of a node, a's perm lies within b's shared.  The sums over
 * a file's users are mirrored to locks on the image file (block/lock.h).
 *
 * The bits and their byte offsets in lock files are QEMU's (qemu,
 * include/block/block-common.h and block/file-posix.c), so that the two
 * programs respect each other.
 */
#ifndef BLOCK_PERM_H
#define BLOCK_PERM_H

#include <stdint.h>

enum perm {
	PERM_CONSISTENT_READ = 1 << 0,	/* what is read is what the guest wrote */
	PERM_WRITE	     = 1 << 1,
	PERM_WRITE_UNCHANGED = 1 << 2,	/* writes that change no visible content */
	PERM_RESIZE	     = 1 << 3,
	PERM_ALL	     = (1 << 4) - 1,
};

typedef uint32_t perm_set;	/* of enum perm */

/* What an edge is to its parent; drives the permissions of a child. */
enum edge_role {
	ROLE_DATA     = 1 << 0,	/* guest data lies there */
	ROLE_METADATA = 1 << 1,	/* the format's metadata lies there */
	ROLE_FILTERED = 1 << 2,	/* the parent is a filter over this child */
	ROLE_COW      = 1 << 3,	/* the backing file */
	ROLE_PRIMARY  = 1 << 4,	/* where the parent's file name comes from */
	ROLE_INSTANT  = 1 << 5,	/* what the child keeps, rather than what it shows */
	ROLE_IMAGE    = ROLE_DATA | ROLE_METADATA | ROLE_PRIMARY,
};

struct node;

/* QEMU's words: "consistent read", "write", ... */
const char *perm_name(perm_set one);
enum { PERM_NAMES_SIZE = 64 };
void perm_names(perm_set set, char buf[PERM_NAMES_SIZE]);	/* with ", " between */

/* What n claims on a child of this role, given what is asked of n itself: for
 * drivers whose child_perm only differs in a detail. */
void perm_default(const struct node *n, unsigned role, perm_set perm, perm_set shared,
		  perm_set *ret_perm, perm_set *ret_shared);

#endif
