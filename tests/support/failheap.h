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

/* The n-th call from now fails (1: the next); 0: none does. */
void failheap_arm(unsigned nth);
/* Disarm; has a call failed? */
bool failheap_disarm(void);

#endif
