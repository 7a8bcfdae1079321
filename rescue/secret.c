/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/secret.h"

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Stands in front of what the caller sees, and keeps it aligned. */
struct head {
	size_t mapped;
} __attribute__((aligned(64)));

#define VECTORS	"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
	"xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

static atomic_bool lock_failed;

/* What hashes and ciphers take, and a signal's frame below them, with room to spare. */
enum { STACK = 16 * 1024 };

/* All are the callee's to use, so whoever calls this has nothing of its own in them. */
#ifdef __x86_64__
void
secret_clear_registers(void)
{
	if (__builtin_cpu_supports("avx512f"))
		__asm__ volatile(".irp n, 16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
				 "vpxorq %%zmm\\n, %%zmm\\n, %%zmm\\n\n"
				 ".endr" ::: VECTORS);
	if (__builtin_cpu_supports("avx"))
		__asm__ volatile("vzeroall" ::: VECTORS);
	else
		__asm__ volatile(".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
				 "pxor %%xmm\\n, %%xmm\\n\n"
				 ".endr" ::: VECTORS);
}
#else
#if __has_attribute(zero_call_used_regs)
__attribute__((zero_call_used_regs("all")))
#endif
void
secret_clear_registers(void)
{
	__asm__ volatile("");	/* without it, there would be nothing to call */
}
#endif

__attribute__((noinline)) void
secret_clear_traces(void)
{
	uint8_t frames[STACK];

	explicit_bzero(frames, sizeof(frames));
	secret_clear_registers();
}

void *
secret_alloc(size_t len)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), mapped;
	struct head *h;

	if (len > SIZE_MAX / 2)
		return NULL;
	mapped = (sizeof(*h) + len + page - 1) / page * page;
	h = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (h == MAP_FAILED)
		return NULL;
	if (mlock(h, mapped) < 0)
		atomic_store(&lock_failed, true);
	(void)madvise(h, mapped, MADV_DONTDUMP);
	(void)madvise(h, mapped, MADV_DONTFORK);
	h->mapped = mapped;
	return h + 1;
}

void
secret_free(void *p)
{
	struct head *h = p;
	size_t mapped;

	if (!p)
		return;
	h--;
	mapped = h->mapped;
	explicit_bzero(h, mapped);
	munmap(h, mapped);
	secret_clear_traces();
}

void
secret_freep(void *p)
{
	secret_free(*(void **)p);
	*(void **)p = NULL;
}

bool
secret_all_locked(void)
{
	return !atomic_load(&lock_failed);
}
