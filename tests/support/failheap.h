/* SPDX-License-Identifier: Apache-2.0 */
/* tests/support/failheap.h - a heap that fails when told to.
 *
 * For programs linked with $(WRAP_HEAP): the project's own calls of
 * malloc(), calloc(), realloc(), strdup() and posix_memalign() come here.
 *
 * Context    counts on the thread that armed it only.
 */
#ifndef TESTS_SUPPORT_FAILHEAP_H
#define TESTS_SUPPORT_FAILHEAP_H

#include <stdbool.h>
#include <stddef.h>

/* The n-th call from now fails (1: the next); 0: none does. */
void failheap_arm(unsigned nth);
/* So do all behind it. */
void failheap_arm_for_good(unsigned nth);
bool failheap_failed(void);		/* has a call? */
/* Disarm; has a call failed? */
bool failheap_disarm(void);

/* realloc() for a test's own needs: it does not count, and does not fail. */
void *failheap_own(void *p, size_t size);

#endif
