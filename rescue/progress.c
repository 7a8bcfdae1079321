/* SPDX-License-Identifier: Apache-2.0 */
#include "rescue/progress.h"

#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "aio/timer.h"
#include "base/bytes.h"

enum { LINE = 256, BAR_MIN = 10, STEP_PERCENT = 10 };

void
progress_format_bytes(uint64_t bytes, char out[static PROGRESS_BYTES])
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	unsigned u = 0;
	uint64_t whole = bytes, tenths = 0;

	while (whole >= 1024) {
		tenths = whole % 1024 * 10 / 1024;
		whole /= 1024;
		u++;
	}
	if (tenths)
		snprintf(out, PROGRESS_BYTES, "%" PRIu64 ".%" PRIu64 " %s", whole, tenths, units[u]);
	else
		snprintf(out, PROGRESS_BYTES, "%" PRIu64 " %s", whole, units[u]);
}

static unsigned
percent(const struct progress *p)
{
	uint64_t done = atomic_load(&p->done);

	if (!p->total || done >= p->total)
		return 100;
	/* No overflow, whatever the image claims its size is. */
	return p->total > UINT64_MAX / 100 ? (unsigned)(done / (p->total / 100))
					   : (unsigned)(done * 100 / p->total);
}

/* "1.5 GiB of 4 GiB, 310 MiB/s, 0:08 left" */
static void
format_figures(const struct progress *p, char out[static LINE])
{
	char done_text[PROGRESS_BYTES], total_text[PROGRESS_BYTES], rate_text[PROGRESS_BYTES];
	uint64_t done = atomic_load(&p->done), ms, rate, left;

	ms = max_u64(1, (uint64_t)(clock_ns() - p->started) / 1000000);
	rate = done / ms * 1000 + done % ms * 1000 / ms;
	progress_format_bytes(done, done_text);
	progress_format_bytes(p->total, total_text);
	progress_format_bytes(rate, rate_text);
	left = rate && done < p->total ? (p->total - done) / rate : 0;
	if (done < p->total && rate)
		snprintf(out, LINE, "%s of %s, %s/s, %" PRIu64 ":%02u left", done_text, total_text,
			 rate_text, left / 60, (unsigned)(left % 60));
	else
		snprintf(out, LINE, "%s of %s, %s/s", done_text, total_text, rate_text);
}

static unsigned
columns(const struct progress *p)
{
	struct winsize w;

	if (ioctl(fileno(p->to), TIOCGWINSZ, &w) < 0 || !w.ws_col)
		return 80;
	return w.ws_col < LINE ? w.ws_col : LINE - 1;
}

static const char *
label(const struct progress *p)
{
	return p->what ? p->what : "";
}

static void
draw_bar(struct progress *p)
{
	char figures[LINE], bar[LINE];
	unsigned width = columns(p), used, full;

	format_figures(p, figures);
	used = (unsigned)(strlen(label(p)) + strlen(figures)) + 9;	/* "[] 100%  " */
	if (width < used + BAR_MIN) {
		fprintf(p->to, "\r%s%3u%%\033[K", label(p), percent(p));
	} else {
		width = width - used - 1;
		full = width * percent(p) / 100;
		memset(bar, '.', width);
		memset(bar, '#', full);
		fprintf(p->to, "\r%s[%.*s] %3u%%  %s\033[K", label(p), (int)width, bar,
			percent(p), figures);
	}
	fflush(p->to);
	p->drawn = true;
}

static void
print_line(const struct progress *p, FILE *to)
{
	char figures[LINE];

	format_figures(p, figures);
	fprintf(to, "%s%u%% (%s)\n", label(p), percent(p), figures);
	fflush(to);
}

void
progress_start(struct progress *p, FILE *to, const char *what, uint64_t total)
{
	p->what = what;
	p->to = to;
	p->bar = to && isatty(fileno(to));
	p->total = total;
	atomic_store(&p->done, 0);
	p->started = clock_ns();
	p->next_percent = STEP_PERCENT;
	p->drawn = false;
}

void
progress_add(struct progress *p, uint64_t bytes)
{
	atomic_fetch_add(&p->done, bytes);
}

void
progress_show(struct progress *p)
{
	if (!p->to)
		return;
	if (p->bar) {
		draw_bar(p);
	} else if (percent(p) >= p->next_percent) {
		print_line(p, p->to);
		p->next_percent = percent(p) / STEP_PERCENT * STEP_PERCENT + STEP_PERCENT;
	}
}

void
progress_print_status(struct progress *p)
{
	progress_clear(p);
	print_line(p, stderr);
}

void
progress_clear(struct progress *p)
{
	if (!p->drawn)
		return;
	fputs("\r\033[K", p->to);
	fflush(p->to);
	p->drawn = false;
}

void
progress_end(struct progress *p)
{
	progress_show(p);
	if (p->drawn)
		fputc('\n', p->to);
	p->drawn = false;
	p->to = NULL;
}
