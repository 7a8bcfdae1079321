/* SPDX-License-Identifier: Apache-2.0 */
#include "aio/ctx.h"

#include <stdint.h>
#include <string.h>

#ifdef CTX_ASM

/* void ctx_switch(struct ctx *from, const struct ctx *to); sp is the first and
 * only member of either. */
#ifdef __x86_64__

__asm__(".text\n"
	".p2align 4\n"
	".globl ctx_switch\n"
	".hidden ctx_switch\n"
	".type ctx_switch, @function\n"
	"ctx_switch:\n"
	"	.cfi_startproc\n"
	"	endbr64\n"
	"	pushq %rbp\n"
	"	pushq %rbx\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	.cfi_adjust_cfa_offset 48\n"
	"	movq %rsp, (%rdi)\n"
	"	movq (%rsi), %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbx\n"
	"	popq %rbp\n"
	"	.cfi_adjust_cfa_offset -48\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size ctx_switch, .-ctx_switch\n");

/* Six registers and the return address; above it a zero where entry's own
 * return address would be, which ends a debugger's walk and leaves the stack
 * pointer as a call leaves it: 8 below a multiple of 16. */
enum { FRAME_WORDS = 8, FRAME_ENTRY = 6 };

#else /* aarch64 */

__asm__(".text\n"
	".p2align 4\n"
	".globl ctx_switch\n"
	".hidden ctx_switch\n"
	".type ctx_switch, %function\n"
	"ctx_switch:\n"
	"	hint #34\n"	/* bti c */
	"	sub sp, sp, #160\n"
	"	stp x19, x20, [sp, #0]\n"
	"	stp x21, x22, [sp, #16]\n"
	"	stp x23, x24, [sp, #32]\n"
	"	stp x25, x26, [sp, #48]\n"
	"	stp x27, x28, [sp, #64]\n"
	"	stp x29, x30, [sp, #80]\n"
	"	stp d8, d9, [sp, #96]\n"
	"	stp d10, d11, [sp, #112]\n"
	"	stp d12, d13, [sp, #128]\n"
	"	stp d14, d15, [sp, #144]\n"
	"	mov x9, sp\n"
	"	str x9, [x0]\n"
	"	ldr x9, [x1]\n"
	"	mov sp, x9\n"
	"	ldp x19, x20, [sp, #0]\n"
	"	ldp x21, x22, [sp, #16]\n"
	"	ldp x23, x24, [sp, #32]\n"
	"	ldp x25, x26, [sp, #48]\n"
	"	ldp x27, x28, [sp, #64]\n"
	"	ldp x29, x30, [sp, #80]\n"
	"	ldp d8, d9, [sp, #96]\n"
	"	ldp d10, d11, [sp, #112]\n"
	"	ldp d12, d13, [sp, #128]\n"
	"	ldp d14, d15, [sp, #144]\n"
	"	add sp, sp, #160\n"
	"	ret\n"
	".size ctx_switch, .-ctx_switch\n");

/* Twenty saved registers; x30, the return address, is the twelfth. */
enum { FRAME_WORDS = 20, FRAME_ENTRY = 11 };

#endif

void
ctx_init(struct ctx *c, void *stack, size_t size, void (*entry)(void))
{
	uintptr_t top = ((uintptr_t)stack + size) & ~(uintptr_t)15;
	uintptr_t *frame = (uintptr_t *)top - FRAME_WORDS;

	memset(frame, 0, FRAME_WORDS * sizeof(*frame));
	frame[FRAME_ENTRY] = (uintptr_t)entry;
	c->sp = frame;
}

#else

void
ctx_init(struct ctx *c, void *stack, size_t size, void (*entry)(void))
{
	/* getcontext() fails on no system that has it. */
	(void)getcontext(&c->uc);
	c->uc.uc_stack.ss_sp = stack;
	c->uc.uc_stack.ss_size = size;
	c->uc.uc_link = NULL;
	makecontext(&c->uc, entry, 0);
}

void
ctx_switch(struct ctx *from, const struct ctx *to)
{
	(void)swapcontext(&from->uc, &to->uc);
}

#endif
