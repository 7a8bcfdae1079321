/* SPDX-License-Identifier: Apache-2.0 */
#include "block/nbd/lib.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <string.h>

#include "aio/work.h"
#include "base/cleanup.h"
#include "base/error.h"

enum { LIB_TEXT_MAX = 300 };

struct lib lib;

static const struct {
	const char *name;
	size_t at;
} functions[] = {
#define LIB_ENTRY(function) { #function, offsetof(struct lib, function) },
	LIB_FUNCTIONS(LIB_ENTRY)
#undef LIB_ENTRY
};

/* Once loaded it stays.  Loading twice at a time gives the same. */
static int
load_work(void *arg)
{
	char *text = arg;
	void *dl = dlopen("libnbd.so.0", RTLD_NOW | RTLD_LOCAL);

	for (size_t i = 0; dl && i < ARRAY_SIZE(functions); i++) {
		void *fn = dlsym(dl, functions[i].name);

		if (!fn) {
			dlclose(dl);
			dl = NULL;
		} else {
			memcpy((char *)&lib + functions[i].at, &fn, sizeof(fn));
		}
	}
	if (dl)
		return 0;
	strncat(text, dlerror(), LIB_TEXT_MAX - 1);
	return -1;
}

int
lib_load(struct error **errp)
{
	static bool loaded;		/* loop 0 only */
	char text[LIB_TEXT_MAX] = "";

	if (loaded)
		return 0;
	if (work_run(load_work, text) < 0)
		return error_set(errp, "The driver 'nbd' needs libnbd: %s", text);
	loaded = true;
	return 0;
}
