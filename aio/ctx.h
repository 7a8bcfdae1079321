/* SPDX-License-Identifier: Apache-2.0 */
/* aio/ctx.h - the machine's part of coroutines: a stack and a way to switch.
 *
 * x86-64 and aarch64 save what a called function must preserve and change the
 * stack pointer; everything else goes through ucontext, which is slower by a
 * system call for the signal mask.  The floating-point control words are not
 * switched: nobody here changes them.
 *
 * Context    the thread that the contexts belong to.
 */
#ifndef AIO_CTX_H
#define AIO_CTX_H

#include <stddef.h>

#if (defined(__x86_64__) && defined(__LP64__)) || defined(__aarch64__)
#ifndef CTX_UCONTEXT
#define CTX_ASM 1
#endif
#endif

#ifndef CTX_ASM
#include <ucontext.h>
#endif

struct ctx {
#ifdef CTX_ASM
	void *sp;
#else
	ucontext_t uc;
#endif
};

/* Make the first switch to c call entry on the stack of size bytes whose low
 * end is stack.  entry never returns. */
void ctx_init(struct ctx *c, void *stack, size_t size, void (*entry)(void));

/* Save where we are in from, go on where to was saved. */
void ctx_switch(struct ctx *from, const struct ctx *to);

#endif
