/* SPDX-License-Identifier: Apache-2.0 */
/* base/log.h - what a program tells its operator on stderr.
 *
 * One line a call, "NAME: level: text"; under systemd's journal the level is a
 * "<N>" prefix instead (sd-daemon(3)).  Only programs log: library code
 * returns errors.
 *
 * Context    any thread; a line is written by one write(2).
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO };

/* Once, at start: the program's name (borrowed), and whether to write journal
 * prefixes: where stderr is the stream that $JOURNAL_STREAM names. */
void log_start(const char *program);

void log_line(enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif
