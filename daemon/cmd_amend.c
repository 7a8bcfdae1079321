/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_amend.c - x-blockdev-amend.
 *
 * Of a running image only encryption can be amended, in QEMU 10.0 as well; no image
 * here has any.  What is left is the job, and its answer. */
#include <stddef.h>
#include <string.h>

#include "base/error.h"
#include "block/driver.h"
#include "block/node.h"
#include "job/job.h"
#include "schema/commands.h"
#include "schema/types.h"

struct amend_job {
	struct job job;		/* first member */
	bool encrypt;
};

static int
amend_run(struct job *j, struct error **errp)
{
	int r = 0;

	job_progress_set(j, 0, 1);
	if (CONTAINER_OF(j, struct amend_job, job)->encrypt)
		r = error_set(errp, "image is not encrypted, can't amend");
	job_progress_add(j, 1);
	return r;
}

static const struct job_kind amend_kind = {
	.type = JOB_TYPE_AMEND,
	.size = sizeof(struct amend_job),
	.run = amend_run,
};

int
qmp_x_blockdev_amend(const struct x_blockdev_amend_args *args, struct error **errp)
{
	const char *name = BlockdevDriver_str(args->options->driver);
	const struct job_options options = { .id = args->job_id, .manual_dismiss = true };
	struct node *n = node_find(args->node_name);
	struct job *j;

	if (!n)
		return error_set(errp, "Cannot find device='' nor node-name='%s'",
				 args->node_name);
	if (!driver_find(name))
		return error_set(errp, "Block driver '%s' not found or not supported", name);
	if (strcmp(node_driver_name(n), name) != 0)
		return error_set(errp, "x-blockdev-amend doesn't support changing the block driver");
	if (args->options->driver != BLOCKDEV_DRIVER_QCOW2)
		return error_set(errp, "Driver does not support x-blockdev-amend");
	if (job_new(&amend_kind, &options, &j, errp) < 0)
		return -1;
	CONTAINER_OF(j, struct amend_job, job)->encrypt = args->options->u.qcow2.encrypt;
	return job_start(j, errp);
}
