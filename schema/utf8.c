/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/utf8.h"

bool
utf8_valid(int32_t cp)
{
	if (cp < 0 || cp > 0x10ffff)
		return false;
	if (cp >= 0xd800 && cp <= 0xdfff)
		return false;
	return !(cp >= 0xfdd0 && cp <= 0xfdef) && (cp & 0xfffe) != 0xfffe;
}

int32_t
utf8_next(const char **s, const char *end)
{
	static const int32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	const unsigned char *p = (const unsigned char *)*s;
	unsigned char c = *p++;
	unsigned len = c < 0x80 ? 1 : c < 0xc0 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 :
		       c < 0xf8 ? 4 : 0;
	int32_t cp = len <= 1 ? c : c & (0x7f >> len);
	unsigned i;

	for (i = 1; i < len && (const char *)p < end && (*p & 0xc0) == 0x80; i++)
		cp = cp << 6 | (*p++ & 0x3f);
	*s = (const char *)p;
	if (len == 0 || i < len || !utf8_valid(cp))
		return -1;
	if (cp < least[len] && !(cp == 0 && len == 2))
		return -1;
	return cp;
}

unsigned
utf8_put(char *to, int32_t cp)
{
	unsigned len = cp == 0 ? 2 : cp < 0x80 ? 1 : cp < 0x800 ? 2 :
		       cp < 0x10000 ? 3 : 4;
	static const unsigned char lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };

	for (unsigned i = len; i-- > 1; cp >>= 6)
		to[i] = (char)(0x80 | (cp & 0x3f));
	to[0] = (char)(lead[len] | cp);
	return len;
}
