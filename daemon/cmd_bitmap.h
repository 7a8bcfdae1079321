/* SPDX-License-Identifier: Apache-2.0 */
/* daemon/cmd_bitmap.h - events on dirty bitmaps. */
#ifndef DAEMON_CMD_BITMAP_H
#define DAEMON_CMD_BITMAP_H

/* From now on clients and the log hear of bitmaps that could not be stored. */
void cmd_bitmap_init(void);

#endif
