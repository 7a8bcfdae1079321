/* SPDX-License-Identifier: Apache-2.0 */
/* The crash tests' work_run(): the call is made here, some turns of the loop later, and
 * its caller goes on some turns after that.  Real threads would take another time in
 * each run, and a workload would not be the same one when it is played again. */
#include "aio/co.h"
#include "aio/work.h"
#include "tests/sim/disk.h"
#include "tests/sim/work.h"

int __wrap_work_run(int (*fn)(void *arg), void *arg);

static struct sim *timed_by;

void
sim_work_by(struct sim *s)
{
	timed_by = s;
}

int
__wrap_work_run(int (*fn)(void *arg), void *arg)
{
	int r;

	if (!timed_by || !co_self())
		return fn(arg);
	sim_take_time(timed_by);
	r = fn(arg);
	sim_take_time(timed_by);
	return r;
}
