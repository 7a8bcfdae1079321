/* SPDX-License-Identifier: Apache-2.0 */
#include "base/bytes.h"

bool
bytes_are_zero(const void *buf, size_t len)
{
	const unsigned char *p = buf;
	size_t head = len < 16 ? len : 16;

	for (size_t i = 0; i < head; i++)
		if (p[i])
			return false;
	/* The first 16 bytes are zero; the rest is if it equals itself, moved by 16. */
	return len <= 16 || !memcmp(p, p + 16, len - 16);
}
