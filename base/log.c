/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *log_name = "quoin";
static bool log_journal;

void
log_start(const char *program)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	log_name = program;
	log_journal = stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
		      !fstat(STDERR_FILENO, &st) && st.st_dev == dev && st.st_ino == ino;
}

void
log_line(enum log_level level, const char *fmt, ...)
{
	static const struct {
		const char *journal, *plain;
	} prefix[] = {
		[LOG_LEVEL_ERROR] = { "<3>", "" },
		[LOG_LEVEL_WARNING] = { "<4>", "warning: " },
		[LOG_LEVEL_INFO] = { "<6>", "info: " },
	};
	char *text, *line;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	if (log_journal)
		n = asprintf(&line, "%s%s\n", prefix[level].journal, text);
	else
		n = asprintf(&line, "%s: %s%s\n", log_name, prefix[level].plain, text);
	free(text);
	if (n < 0)
		return;
	/* Nobody can be told that stderr is gone. */
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		(void)0;
	free(line);
}
