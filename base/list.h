/* SPDX-License-Identifier: Apache-2.0 */
/* base/list.h - intrusive doubly linked lists.
 *
 * A struct list is a head or a link; an empty head points at itself, and so
 * does a link that is on no list once list_init() or list_remove() made it.
 */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include <stdbool.h>

#include "base/cleanup.h"

struct list {
	struct list *prev, *next;
};

#define LIST_INIT(l) { &(l), &(l) }

static inline void
list_init(struct list *l)
{
	l->prev = l->next = l;
}

static inline bool
list_empty(const struct list *l)
{
	return l->next == l;
}

/* Insert link behind at. */
static inline void
list_insert(struct list *at, struct list *link)
{
	link->prev = at;
	link->next = at->next;
	at->next->prev = link;
	at->next = link;
}

static inline void
list_push(struct list *head, struct list *link)
{
	list_insert(head, link);
}

static inline void
list_append(struct list *head, struct list *link)
{
	list_insert(head->prev, link);
}

/* Harmless for a link on no list. */
static inline void
list_remove(struct list *link)
{
	link->prev->next = link->next;
	link->next->prev = link->prev;
	list_init(link);
}

/* Move all of from's links to the end of to. */
static inline void
list_splice(struct list *to, struct list *from)
{
	if (list_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	list_init(from);
}

#define LIST_ENTRY(link, type, member) CONTAINER_OF(link, type, member)

/* The first entry, or NULL. */
#define LIST_FIRST(head, type, member)                                         \
	(list_empty(head) ? NULL : LIST_ENTRY((head)->next, type, member))

#define LIST_FOREACH(it, head, member)                                         \
	for ((it) = LIST_ENTRY((head)->next, __typeof__(*(it)), member);       \
	     &(it)->member != (head);                                          \
	     (it) = LIST_ENTRY((it)->member.next, __typeof__(*(it)), member))

/* The body may remove (and free) it. */
#define LIST_FOREACH_SAFE(it, tmp, head, member)                               \
	for ((it) = LIST_ENTRY((head)->next, __typeof__(*(it)), member),       \
	     (tmp) = LIST_ENTRY((it)->member.next, __typeof__(*(it)), member); \
	     &(it)->member != (head);                                          \
	     (it) = (tmp),                                                     \
	     (tmp) = LIST_ENTRY((it)->member.next, __typeof__(*(it)), member))

#endif
