/* SPDX-License-Identifier: Apache-2.0 */
#include "block/drivers.h"

#include <string.h>

#include "base/cleanup.h"
#include "block/driver.h"

static const struct driver *const drivers[] = {
	&driver_compress,
	&driver_copy_before_write,
	&driver_file,
	&driver_host_device,
	&driver_luks,
#ifdef HAVE_LIBNBD
	&driver_nbd,
#endif
	&driver_null_co,
	&driver_qcow,
	&driver_qcow2,
	&driver_raw,
	&driver_snapshot_access,
};

const struct driver *
driver_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(drivers); i++)
		if (!strcmp(drivers[i]->name, name))
			return drivers[i];
	return NULL;
}
