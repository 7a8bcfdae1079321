/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/secret.h - memory for keys.
 *
 * Such memory is locked, so that it never reaches swap; it is left out of core
 * dumps and not inherited by children; it is wiped before it is given back.
 * Each piece takes pages of its own: this is for a handful of keys.
 *
 * Who works with a key leaves traces of it elsewhere: nettle and libc wipe neither their
 * stack frames nor the vector registers, and those reach a stack as soon as the dynamic
 * linker looks up a function, or a signal comes.  So traces are cleared behind the work.
 *
 * Context    any thread.
 * Errors     NULL on no memory.  A limit on locked memory that is too low is no
 *            error, but secret_all_locked() tells.
 */
#ifndef RESCUE_SECRET_H
#define RESCUE_SECRET_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed.  len may be 0: the pointer is good for nothing but secret_free(). */
void *secret_alloc(size_t len);
void secret_free(void *p);	/* takes NULL; clears traces, too */

/* For CLEANUP, with a pointer variable of any type. */
void secret_freep(void *p);

/* Clear what the calls before left below the caller's frame and in registers. */
void secret_clear_traces(void);

/* ... in vector registers only, which costs a few nanoseconds. */
void secret_clear_registers(void);

/* Was every piece so far locked? */
bool secret_all_locked(void);

#endif
