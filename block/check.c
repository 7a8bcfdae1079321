/* SPDX-License-Identifier: Apache-2.0 */
#include "block/check.h"

#include <errno.h>
#include <string.h>

#include "block/driver.h"

int
node_check(struct node *n, unsigned fix, const struct check_report *report,
	   struct check_result *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (!n->driver->check)
		return -ENOTSUP;
	return n->driver->check(n, fix, report, ret);
}
