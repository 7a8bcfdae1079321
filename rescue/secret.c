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

static atomic_bool lock_failed;

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
