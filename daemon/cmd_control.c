/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_control.c - commands on the daemon itself. */
#include "aio/loop.h"
#include "daemon/object.h"
#include "schema/commands.h"

int
qmp_quit(struct error **errp)
{
	(void)errp;
	loop_quit();
	return 0;
}

int
qmp_object_add(const struct ObjectOptions *args, struct error **errp)
{
	return object_add(args, errp);
}

int
qmp_object_del(const struct object_del_args *args, struct error **errp)
{
	return object_del(args->id, errp);
}
