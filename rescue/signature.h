/* SPDX-License-Identifier: Apache-2.0 */
/* rescue/signature.h - what file systems and volumes leave at known places.
 *
 * Each signature is checked together with the ranges of fields beside it, so
 * that noise matches none of them with a probability above 2^-44.
 *
 * Units      offsets are 512-byte sectors of the guest disk.
 * Context    as the read function given.
 */
#ifndef RESCUE_SIGNATURE_H
#define RESCUE_SIGNATURE_H

#include <stdbool.h>
#include <stdint.h>

struct signature {
	const char *name;	/* "ext4 file system" */
	uint64_t base;		/* where the volume starts */
};

enum { SIGNATURE_MAX = 24 };

struct signatures {
	struct signature found[SIGNATURE_MAX];
	unsigned count;
	bool boot_mark;		/* sector 0 ends in 55 AA, which alone proves little */
};

/* Get one decrypted sector.  false: it is not there, or not encrypted here. */
typedef bool signature_read_fn(void *user, uint64_t sector, uint8_t data[512]);

/* Look at the start of a disk of this many sectors, and at the start of each
 * partition that a table there names. */
void signature_search(signature_read_fn *read, void *user, uint64_t sectors,
		      struct signatures *ret);

#endif
