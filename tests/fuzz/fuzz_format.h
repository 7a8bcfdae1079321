/* SPDX-License-Identifier: Apache-2.0 */
/* tests/fuzz/fuzz_format.h - an image of any bytes, put to every use.
 *
 * It is opened as clients open it, for reading and for writing, read and written
 * at both ends and in the middle; and it is opened to be checked, checked and
 * repaired.  A repair that says that all is well has to be right. */
#ifndef TESTS_FUZZ_FUZZ_FORMAT_H
#define TESTS_FUZZ_FUZZ_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "schema/types.h"

/* To be called in LLVMFuzzerInitialize(). */
int fuzz_format_start(void);
void fuzz_format(enum BlockdevDriver driver, const uint8_t *data, size_t len);

#endif
