/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * The jump behind Lua's errors: callee-saved registers, stack pointer and return
 * address. It leaves by "ret", never by an indirect jump, so that it needs no
 * landing pad under IBT and goes through the return thunk where there is one.
 */
#include <linux/linkage.h>
#include <asm/nospec-branch.h>

/* int lunatik_setjmp(lunatik_jmpbuf buf): 0, and 1 when it returns again */
SYM_FUNC_START(lunatik_setjmp)
	movq	(%rsp), %rax
	movq	%rbx, 0(%rdi)
	movq	%rbp, 8(%rdi)
	movq	%r12, 16(%rdi)
	movq	%r13, 24(%rdi)
	movq	%r14, 32(%rdi)
	movq	%r15, 40(%rdi)
	movq	%rsp, 48(%rdi)
	movq	%rax, 56(%rdi)
	xorl	%eax, %eax
	RET
SYM_FUNC_END(lunatik_setjmp)

/* void lunatik_longjmp(lunatik_jmpbuf buf) */
SYM_FUNC_START(lunatik_longjmp)
	movq	0(%rdi), %rbx
	movq	8(%rdi), %rbp
	movq	16(%rdi), %r12
	movq	24(%rdi), %r13
	movq	32(%rdi), %r14
	movq	40(%rdi), %r15
	movq	48(%rdi), %rsp
	movq	56(%rdi), %rax
	/* setjmp's frame is gone: put its return address back where it was */
	movq	%rax, (%rsp)
	movl	$1, %eax
	RET
SYM_FUNC_END(lunatik_longjmp)
