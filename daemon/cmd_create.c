/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_create.c - blockdev-create: making an image is a job. */
#include <stddef.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "block/driver.h"
#include "job/job.h"
#include "schema/commands.h"
#include "schema/types.h"

struct create_job {
	struct job job;		/* first member */
	const struct driver *driver;
	struct BlockdevCreateOptions *options;
};

static int
create_run(struct job *j, struct error **errp)
{
	struct create_job *c = CONTAINER_OF(j, struct create_job, job);
	int r;

	job_progress_set(j, 0, 1);
	r = c->driver->create(c->options, errp);
	job_progress_add(j, 1);
	return r;
}

static void
create_free(struct job *j)
{
	BlockdevCreateOptions_free(CONTAINER_OF(j, struct create_job, job)->options);
}

static const struct job_kind create_kind = {
	.type = JOB_TYPE_CREATE,
	.size = sizeof(struct create_job),
	.run = create_run,
	.free = create_free,
};

/* Before there is a job, so that nothing is made that would have to vanish. */
static int
refuse_encryption(const struct BlockdevCreateOptions *o, struct error **errp)
{
	bool qcow2 = o->driver == BLOCKDEV_DRIVER_QCOW2 && o->u.qcow2.encrypt;
	bool qcow = o->driver == BLOCKDEV_DRIVER_QCOW && o->u.qcow.encrypt;

	if (!qcow2 && !qcow)
		return 0;
	return error_set(errp, "Quoin makes no encrypted images, because it serves none: "
			 "leave out 'encrypt', and encrypt the storage that the image lies "
			 "on instead");
}

int
qmp_blockdev_create(const struct blockdev_create_args *args, struct error **errp)
{
	const char *name = BlockdevDriver_str(args->options->driver);
	const struct job_options options = { .id = args->job_id, .manual_dismiss = true };
	const struct driver *driver = driver_find(name);
	struct create_job *c;
	struct job *j;

	if (!driver)
		return error_set(errp, "Block driver '%s' not found or not supported", name);
	if (!driver->create)
		return error_set(errp, "Driver does not support blockdev-create");
	if (refuse_encryption(args->options, errp) < 0)
		return -1;
	if (job_new(&create_kind, &options, &j, errp) < 0)
		return -1;
	c = CONTAINER_OF(j, struct create_job, job);
	c->driver = driver;
	c->options = BlockdevCreateOptions_clone(args->options);
	if (!c->options) {
		job_fail_early(j);
		return error_set(errp, "Cannot allocate memory");
	}
	return job_start(j, errp);
}
