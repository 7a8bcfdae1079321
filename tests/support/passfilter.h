/* SPDX-License-Identifier: Apache-2.0 */
/* tests/support/passfilter.h - a filter that does nothing but pass requests on.
 *
 * Context    coroutine on loop 0.
 */
#ifndef TESTS_SUPPORT_PASSFILTER_H
#define TESTS_SUPPORT_PASSFILTER_H

struct error;
struct node;

/* A filter over on, with one reference, not inserted yet. */
int passfilter_open(struct node *on, const char *name, struct node **ret_node,
		    struct error **errp);

#endif
