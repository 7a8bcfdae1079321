/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target: a qcow2 image, opened, read, written to, checked and repaired. */
#include "tests/fuzz/fuzz_format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return fuzz_format_start();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	fuzz_format(BLOCKDEV_DRIVER_QCOW2, data, len);
	return 0;
}
