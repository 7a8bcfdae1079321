/* SPDX-License-Identifier: Apache-2.0 */
#include "block/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"

enum {
	PERM_BASE     = 100,
	UNSHARED_BASE = 200,
	PERM_COUNT    = 4,
};

static int
set_byte(int fd, off_t byte, short type)
{
	struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = byte,
			    .l_len = 1 };
	int r;

	do
		r = fcntl(fd, F_OFD_SETLK, &fl);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

/* 0: nobody else has a lock there; -EAGAIN: somebody has; another -errno. */
static int
test_byte(int fd, off_t byte)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte,
			    .l_len = 1 };

	if (fcntl(fd, F_OFD_GETLK, &fl) < 0)
		return -errno;
	return fl.l_type == F_UNLCK ? 0 : -EAGAIN;
}

int
lock_probe(int fd)
{
	int r = test_byte(fd, PERM_BASE);

	return r == -EAGAIN ? 0 : r;
}

static int
take_bytes(int fd, off_t base, perm_set *held, perm_set want, struct error **errp)
{
	for (int i = 0; i < PERM_COUNT; i++) {
		perm_set bit = (perm_set)1 << i;
		int r;

		if (!(want & bit) || *held & bit)
			continue;
		r = set_byte(fd, base + i, F_RDLCK);
		if (r < 0)
			return error_set_errno(errp, r, "Failed to lock byte %d",
					       (int)base + i), -1;
		*held |= bit;
	}
	return 0;
}

int
lock_take(int fd, struct lock_set *held, struct lock_set want, struct error **errp)
{
	if (take_bytes(fd, PERM_BASE, &held->perm, want.perm, errp) < 0)
		return -1;
	return take_bytes(fd, UNSHARED_BASE, &held->unshared, want.unshared, errp);
}

static int
check_bytes(int fd, off_t base, perm_set want, const char *shared, struct error **errp)
{
	for (int i = 0; i < PERM_COUNT; i++) {
		perm_set bit = (perm_set)1 << i;
		int r;

		if (!(want & bit))
			continue;
		r = test_byte(fd, base + i);
		if (r == -EAGAIN)
			return error_set(errp, "Failed to get %s\"%s\" lock", shared,
					 perm_name(bit));
		if (r < 0)
			return error_set_errno(errp, r, "Failed to get %s\"%s\" lock",
					       shared, perm_name(bit)), -1;
	}
	return 0;
}

int
lock_check(int fd, struct lock_set want, const char *filename, struct error **errp)
{
	if (check_bytes(fd, UNSHARED_BASE, want.perm, "", errp) == 0 &&
	    check_bytes(fd, PERM_BASE, want.unshared, "shared ", errp) == 0)
		return 0;
	error_set_hint(errp, "Is another process using the image [%s]?", filename);
	return -1;
}

static void
drop_bytes(int fd, off_t base, perm_set *held, perm_set keep)
{
	for (int i = 0; i < PERM_COUNT; i++) {
		perm_set bit = (perm_set)1 << i;

		if ((*held & ~keep) & bit)
			(void)set_byte(fd, base + i, F_UNLCK);
	}
	*held &= keep;
}

void
lock_drop(int fd, struct lock_set *held, struct lock_set want)
{
	drop_bytes(fd, PERM_BASE, &held->perm, want.perm);
	drop_bytes(fd, UNSHARED_BASE, &held->unshared, want.unshared);
}
