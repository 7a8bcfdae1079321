/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded into qemu-img: its threads believe that whatever they do takes a
 * second of CPU time.  Its LUKS, which measures how many iterations of key
 * derivation take the time it shall spend, is done with the first try then, and
 * content with the least that it allows. */
#include <string.h>
#include <sys/resource.h>

int
getrusage(__rusage_who_t who, struct rusage *usage)
{
	static _Atomic int calls;

	(void)who;
	memset(usage, 0, sizeof(*usage));
	usage->ru_utime.tv_sec = ++calls;
	return 0;
}
