/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/failheap.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>

static __thread unsigned countdown;
static __thread bool failed, for_good;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
char *__real_strdup(const char *s);
int __real_posix_memalign(void **ret, size_t align, size_t size);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
char *__wrap_strdup(const char *s);
int __wrap_posix_memalign(void **ret, size_t align, size_t size);

void
failheap_arm(unsigned nth)
{
	countdown = nth;
	failed = for_good = false;
}

void
failheap_arm_for_good(unsigned nth)
{
	failheap_arm(nth);
	for_good = true;
}

bool
failheap_failed(void)
{
	return failed;
}

bool
failheap_disarm(void)
{
	countdown = 0;
	return failed;
}

static bool
is_due(void)
{
	if (!countdown || --countdown)
		return false;
	if (for_good)
		countdown = 1;
	failed = true;
	errno = ENOMEM;
	return true;
}

void *
__wrap_malloc(size_t size)
{
	return is_due() ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t n, size_t size)
{
	return is_due() ? NULL : __real_calloc(n, size);
}

void *
__wrap_realloc(void *p, size_t size)
{
	return is_due() ? NULL : __real_realloc(p, size);
}

char *
__wrap_strdup(const char *s)
{
	return is_due() ? NULL : __real_strdup(s);
}

int
__wrap_posix_memalign(void **ret, size_t align, size_t size)
{
	return is_due() ? ENOMEM : __real_posix_memalign(ret, align, size);
}

void *
failheap_own(void *p, size_t size)
{
	p = __real_realloc(p, size ? size : 1);
	assert(p);
	return p;
}
