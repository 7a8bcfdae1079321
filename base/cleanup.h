/* SPDX-License-Identifier: Apache-2.0 */
/* base/cleanup.h - what is always released when a scope ends.
 *
 * CLEANUP(fn) marks a local variable: fn(&variable) runs when its scope ends,
 * whatever way it ends.  Such functions take a pointer to the variable and
 * accept NULL in it.  What is undone only on failure goes on a goto ladder.
 */
#ifndef BASE_CLEANUP_H
#define BASE_CLEANUP_H

#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#define CLEANUP(fn) __attribute__((cleanup(fn)))

/* For malloc'ed memory of any pointer type. */
static inline void
cleanup_free(void *p)
{
	free(*(void **)p);
}

/* For file descriptors; -1 is none. */
static inline void
cleanup_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

/* Hand a CLEANUP pointer over to somebody else: the scope forgets it. */
#define STEAL(p)                                                               \
	({                                                                     \
		__typeof__(p) steal_ = (p);                                    \
		(p) = NULL;                                                    \
		steal_;                                                        \
	})

#define CONTAINER_OF(ptr, type, member)                                        \
	((type *)((char *)(ptr)-offsetof(type, member)))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#endif
