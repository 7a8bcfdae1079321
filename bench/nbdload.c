/* SPDX-License-Identifier: Apache-2.0 */
/* bench/nbdload.c - a lean NBD load generator.
 *
 * Each client is a thread with one connection and a fixed number of requests
 * in flight.  It receives in bulk, makes one new request for each reply that
 * it found, and sends all of them with one call, so that on a machine with few
 * cores most of the time goes to the server, whose work is to be measured.
 *
 * The server's CPU time is read from its process clock (--server-pid), which
 * counts all of its threads, io_uring's own included, in nanoseconds.
 *
 * Prints one line for people, or with --json one object.  It stands alone: no
 * library of this project, so that it judges any server alike.
 */
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
	CMD_READ = 0,
	CMD_WRITE = 1,
	CMD_FLUSH = 3,

	REQUEST_SIZE = 28,
	SIMPLE_SIZE = 16,
	CHUNK_SIZE = 20,

	DEPTH_MAX = 1024,
	CLIENTS_MAX = 64,
	EXPORTS_MAX = 16,
	RECV_SIZE = 1 << 20,

	/* Latencies: 64 linear steps in each power of two of nanoseconds. */
	HIST_SUB = 64,
	HIST_SIZE = 40 * HIST_SUB,
};

#define NBD_MAGIC	 UINT64_C(0x4e42444d41474943)
#define OPT_MAGIC	 UINT64_C(0x49484156454f5054)
#define REP_MAGIC	 UINT64_C(0x0003e889045565a9)
#define REQUEST_MAGIC	 UINT32_C(0x25609513)
#define SIMPLE_MAGIC	 UINT32_C(0x67446698)
#define STRUCTURED_MAGIC UINT32_C(0x668e33ef)

static struct options {
	const char *path, *exports[EXPORTS_MAX];
	unsigned n_exports, clients, depth;
	uint32_t block;
	unsigned write_percent;
	unsigned flush_every;	/* a flush after so many writes; 0: never */
	bool sequential, structured, busy, json;
	double seconds;
	uint64_t count;		/* requests of each client; 0: until seconds are over */
	uint64_t region;	/* bytes from the start that are used; 0: all */
	pid_t server;
	unsigned seed;
} opt = {
	.exports = { "" }, .clients = 1, .depth = 1, .block = 4096,
	.seconds = 5, .seed = 1,
};

static atomic_bool stop;
static pthread_barrier_t start_line;

struct slot {
	int64_t started;
	uint16_t type;
};

struct client {
	pthread_t thread;
	unsigned index;
	int fd;
	uint64_t size;		/* of the export */
	uint64_t rng, next;	/* random state; sequential position in blocks */
	struct slot slots[DEPTH_MAX];
	unsigned idle[DEPTH_MAX], n_idle;	/* slots without a request */

	/* Receiving: what of a reply came already. */
	char *in;
	size_t in_len;
	uint64_t skip;		/* bytes of payload still to be thrown away */
	unsigned done_after_skip;	/* slot that ends with that payload, or DEPTH_MAX */

	/* Sending: headers of the batch, and where it stands. */
	char headers[DEPTH_MAX][REQUEST_SIZE];
	struct iovec out[2 * DEPTH_MAX];
	unsigned out_first, out_count;

	uint64_t made, done, reads, writes, flushes, writes_since_flush;
	uint64_t errors;
	uint64_t hist[HIST_SIZE];
};

static char *payload;		/* what writes write */

static void
die(const char *what)
{
	fprintf(stderr, "nbdload: %s%s%s\n", what, errno ? ": " : "",
		errno ? strerror(errno) : "");
	exit(1);
}

static int64_t
now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int64_t
server_cpu_ns(void)
{
	clockid_t clock;
	struct timespec ts;

	if (!opt.server || clock_getcpuclockid(opt.server, &clock) ||
	    clock_gettime(clock, &ts))
		return -1;
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ---- handshake: blocking, plain ---- */

static void
get_all(int fd, void *buf, size_t len)
{
	errno = 0;
	if (recv(fd, buf, len, MSG_WAITALL) != (ssize_t)len)
		die("handshake: the server hung up");
}

static void
put_all(int fd, const void *buf, size_t len)
{
	if (send(fd, buf, len, MSG_NOSIGNAL) != (ssize_t)len)
		die("handshake: send");
}

static void
send_option(int fd, uint32_t option, const void *data, uint32_t len)
{
	struct {
		uint64_t magic;
		uint32_t option, len;
	} head = { htobe64(OPT_MAGIC), htobe32(option), htobe32(len) };

	put_all(fd, &head, sizeof(head));
	if (len)
		put_all(fd, data, len);
}

/* Read replies to an option up to the final one; take the size on the way. */
static void
read_replies(int fd, uint64_t *size)
{
	struct {
		uint64_t magic;
		uint32_t option, type, len;
	} __attribute__((packed)) head;
	char data[4096];

	do {
		get_all(fd, &head, sizeof(head));
		if (be64toh(head.magic) != REP_MAGIC || be32toh(head.len) > sizeof(data))
			die("handshake: not an NBD server");
		if (head.len)
			get_all(fd, data, be32toh(head.len));
		if (be32toh(head.type) & 0x80000000) {
			fprintf(stderr, "nbdload: the server refused option %u: %.*s\n",
				be32toh(head.option), (int)be32toh(head.len), data);
			exit(1);
		}
		/* NBD_REP_INFO with NBD_INFO_EXPORT */
		if (be32toh(head.type) == 3 && be32toh(head.len) >= 12 && !data[0] && !data[1]) {
			memcpy(size, data + 2, 8);
			*size = be64toh(*size);
		}
	} while (be32toh(head.type) != 1);
}

static int
connect_to_server(const char *export_name, uint64_t *size)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char buf[18], go[4096 + 6];
	size_t len = strlen(export_name);
	uint32_t be = htobe32(3);
	int fd;

	if (strlen(opt.path) >= sizeof(addr.sun_path) || len > 4096)
		die("socket path or export name too long");
	memcpy(addr.sun_path, opt.path, strlen(opt.path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		die(opt.path);
	get_all(fd, buf, sizeof(buf));
	if (be64toh(*(uint64_t *)buf) != NBD_MAGIC)
		die("not an NBD server");
	put_all(fd, &be, sizeof(be));
	if (opt.structured) {
		send_option(fd, 8, NULL, 0);
		read_replies(fd, size);
	}
	be = htobe32((uint32_t)len);
	memcpy(go, &be, 4);
	memcpy(go + 4, export_name, len);
	memset(go + 4 + len, 0, 2);
	send_option(fd, 7, go, (uint32_t)len + 6);
	read_replies(fd, size);
	return fd;
}

/* ---- requests ---- */

static uint64_t
random_next(struct client *c)
{
	c->rng ^= c->rng << 13;
	c->rng ^= c->rng >> 7;
	c->rng ^= c->rng << 17;
	return c->rng;
}

static uint64_t
pick_offset(struct client *c, uint64_t blocks)
{
	uint64_t n;

	if (!opt.sequential)
		return random_next(c) % blocks * opt.block;
	n = c->next++;
	/* Each client walks its own share, and starts again at its end. */
	if (blocks >= opt.clients) {
		blocks /= opt.clients;
		return (c->index * blocks + n % blocks) * opt.block;
	}
	return n % blocks * opt.block;
}

static uint16_t
pick_type(struct client *c)
{
	if (opt.flush_every && c->writes_since_flush >= opt.flush_every) {
		c->writes_since_flush = 0;
		return CMD_FLUSH;
	}
	if (opt.write_percent && random_next(c) % 100 < opt.write_percent) {
		c->writes_since_flush++;
		return CMD_WRITE;
	}
	return CMD_READ;
}

/* Fill every idle slot with a request, as one batch to be sent. */
static void
make_batch(struct client *c)
{
	uint64_t region = opt.region && opt.region < c->size ? opt.region : c->size;
	uint64_t blocks = region / opt.block;
	int64_t t = now_ns();

	c->out_first = c->out_count = 0;
	for (unsigned i = 0; c->n_idle; i++) {
		unsigned s = c->idle[--c->n_idle];
		struct {
			uint32_t magic;
			uint16_t flags, type;
			uint64_t cookie, offset;
			uint32_t len;
		} __attribute__((packed)) req = { .magic = htobe32(REQUEST_MAGIC) };

		c->slots[s] = (struct slot){ t, pick_type(c) };
		req.type = htobe16(c->slots[s].type);
		req.cookie = htobe64(s);
		if (c->slots[s].type != CMD_FLUSH) {
			req.offset = htobe64(pick_offset(c, blocks));
			req.len = htobe32(opt.block);
		}
		memcpy(c->headers[i], &req, REQUEST_SIZE);
		c->out[c->out_count++] = (struct iovec){ c->headers[i], REQUEST_SIZE };
		if (c->slots[s].type == CMD_WRITE)
			c->out[c->out_count++] = (struct iovec){ payload, opt.block };
		c->made++;
	}
}

/* Send what can be sent of the batch; false while a rest remains. */
static bool
send_batch(struct client *c)
{
	while (c->out_first < c->out_count) {
		struct msghdr msg = { .msg_iov = c->out + c->out_first };
		ssize_t n;

		msg.msg_iovlen = c->out_count - c->out_first;
		if (msg.msg_iovlen > 1024)
			msg.msg_iovlen = 1024;
		n = sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0) {
			if (errno == EAGAIN || errno == EINTR)
				return false;
			die("send");
		}
		while (c->out_first < c->out_count &&
		       (size_t)n >= c->out[c->out_first].iov_len)
			n -= (ssize_t)c->out[c->out_first++].iov_len;
		if (n) {
			struct iovec *v = &c->out[c->out_first];

			v->iov_base = (char *)v->iov_base + n;
			v->iov_len -= (size_t)n;
		}
	}
	return true;
}

/* ---- replies ---- */

static void
record(struct client *c, int64_t ns)
{
	uint64_t v = ns > 0 ? (uint64_t)ns : 0, slot = v;

	if (v >= HIST_SUB) {
		unsigned shift = 63 - (unsigned)__builtin_clzll(v) - 6;

		slot = (shift + 1) * HIST_SUB + ((v >> shift) - HIST_SUB);
	}
	c->hist[slot < HIST_SIZE ? slot : HIST_SIZE - 1]++;
}

static void
slot_done(struct client *c, unsigned s, int64_t t)
{
	static uint64_t *const no_counter;
	uint64_t *by_type[] = { &c->reads, &c->writes, no_counter, &c->flushes };

	record(c, t - c->slots[s].started);
	++*by_type[c->slots[s].type];
	c->idle[c->n_idle++] = s;
	c->done++;
}

static unsigned
slot_of(const char *at)
{
	uint64_t cookie;

	memcpy(&cookie, at, 8);
	cookie = be64toh(cookie);
	if (cookie >= opt.depth) {
		errno = 0;
		die("a reply to a request that was never made");
	}
	return (unsigned)cookie;
}

static uint32_t
be32_at(const char *at)
{
	uint32_t v;

	memcpy(&v, at, 4);
	return be32toh(v);
}

/* Take one reply header from the n bytes at p: its size, or 0 if incomplete. */
static size_t
parse_header(struct client *c, const char *p, size_t n, int64_t t)
{
	unsigned s;

	if (n < SIMPLE_SIZE)
		return 0;
	if (be32_at(p) == SIMPLE_MAGIC) {
		s = slot_of(p + 8);
		if (be32_at(p + 4)) {
			c->errors++;
		} else if (c->slots[s].type == CMD_READ) {
			c->skip = opt.block;
			c->done_after_skip = s;
			return SIMPLE_SIZE;
		}
		slot_done(c, s, t);
		return SIMPLE_SIZE;
	}
	if (be32_at(p) != STRUCTURED_MAGIC) {
		errno = 0;
		die("a reply with a wrong magic");
	}
	if (n < CHUNK_SIZE)
		return 0;
	s = slot_of(p + 8);
	if (p[6] & 0x80)
		c->errors++;
	c->skip = be32_at(p + 16);
	c->done_after_skip = p[5] & 1 ? s : DEPTH_MAX;
	if (!c->skip && c->done_after_skip < DEPTH_MAX) {
		slot_done(c, s, t);
		c->done_after_skip = DEPTH_MAX;
	}
	return CHUNK_SIZE;
}

static void
parse_replies(struct client *c)
{
	int64_t t = now_ns();
	size_t at = 0, n;

	while (at < c->in_len) {
		if (c->skip) {
			n = c->in_len - at < c->skip ? c->in_len - at : c->skip;
			at += n;
			c->skip -= n;
			if (!c->skip && c->done_after_skip < DEPTH_MAX) {
				slot_done(c, c->done_after_skip, t);
				c->done_after_skip = DEPTH_MAX;
			}
			continue;
		}
		n = parse_header(c, c->in + at, c->in_len - at, t);
		if (!n)
			break;
		at += n;
	}
	memmove(c->in, c->in + at, c->in_len - at);
	c->in_len -= at;
}

static void
receive(struct client *c, int flags)
{
	ssize_t n = recv(c->fd, c->in + c->in_len, RECV_SIZE - c->in_len, flags);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		die("the server hung up");
	c->in_len += (size_t)n;
	parse_replies(c);
}

static void *
run_client(void *arg)
{
	struct client *c = arg;
	bool more = true;

	for (unsigned i = 0; i < opt.depth; i++)
		c->idle[c->n_idle++] = i;
	pthread_barrier_wait(&start_line);
	while (more || c->n_idle < opt.depth) {
		more = more && !atomic_load_explicit(&stop, memory_order_relaxed) &&
		       (!opt.count || c->made < opt.count);
		if (more && c->n_idle)
			make_batch(c);
		/* Both ways at once, where a batch is larger than the socket. */
		while (!send_batch(c)) {
			struct pollfd p = { .fd = c->fd, .events = POLLIN | POLLOUT };

			poll(&p, 1, -1);
			if (p.revents & (POLLIN | POLLHUP))
				receive(c, MSG_DONTWAIT);
		}
		if (c->n_idle < opt.depth)
			receive(c, opt.busy ? MSG_DONTWAIT : 0);
	}
	return NULL;
}

/* ---- the whole ---- */

static double
percentile_us(const uint64_t *hist, uint64_t total, double p)
{
	uint64_t want = (uint64_t)((double)total * p), seen = 0;

	for (unsigned i = 0; i < HIST_SIZE; i++) {
		seen += hist[i];
		if (seen > want) {
			if (i < HIST_SUB)
				return i / 1000.0;
			return (double)((uint64_t)(HIST_SUB + i % HIST_SUB)
					<< (i / HIST_SUB - 1)) / 1000.0;
		}
	}
	return 0;
}

static void
report(struct client *all, double seconds, int64_t cpu_ns)
{
	struct client sum = { 0 };
	double iops, mib, cpu_us;

	for (unsigned i = 0; i < opt.clients; i++) {
		sum.done += all[i].done;
		sum.reads += all[i].reads;
		sum.writes += all[i].writes;
		sum.flushes += all[i].flushes;
		sum.errors += all[i].errors;
		for (unsigned h = 0; h < HIST_SIZE; h++)
			sum.hist[h] += all[i].hist[h];
	}
	iops = (double)sum.done / seconds;
	mib = (double)(sum.reads + sum.writes) * opt.block / seconds / (1 << 20);
	cpu_us = cpu_ns >= 0 && sum.done ? (double)cpu_ns / 1000.0 / (double)sum.done : 0;
	printf(opt.json ? "{\"requests\": %" PRIu64 ", \"reads\": %" PRIu64
			  ", \"writes\": %" PRIu64 ", \"flushes\": %" PRIu64
			  ", \"errors\": %" PRIu64 ", \"seconds\": %.3f, \"iops\": %.0f"
			  ", \"mib_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f"
			  ", \"server_cpu_us\": %.3f}\n"
			: "%" PRIu64 " requests (%" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64
			  " flushes, %" PRIu64 " errors) in %.3f s: %.0f/s, %.1f MiB/s,"
			  " p50 %.1f us, p99 %.1f us, server CPU %.3f us each\n",
	       sum.done, sum.reads, sum.writes, sum.flushes, sum.errors, seconds, iops, mib,
	       percentile_us(sum.hist, sum.done, 0.5), percentile_us(sum.hist, sum.done, 0.99),
	       cpu_us);
	if (sum.errors)
		exit(2);
}

static uint64_t
size_arg(const char *s)
{
	char *end;
	uint64_t v = strtoull(s, &end, 0);

	switch (*end) {
	case 'K': case 'k': return v << 10;
	case 'M': case 'm': return v << 20;
	case 'G': case 'g': return v << 30;
	}
	return v;
}

static const char usage_text[] =
	"usage: nbdload [options] SOCKET\n"
	"  --export NAME      default \"\"; given again: the clients take them in turn\n"
	"  --clients N        connections, one thread each (1)\n"
	"  --depth N          requests in flight on each (1)\n"
	"  --block SIZE       bytes of a request (4096)\n"
	"  --write PERCENT    writes among the requests (0)\n"
	"  --flush-every N    a flush after N writes (0: never)\n"
	"  --sequential       each client walks through its share of the disk\n"
	"  --structured       negotiate structured replies\n"
	"  --busy             ask the socket again and again instead of sleeping: what\n"
	"                     a round trip costs without the client's own wake\n"
	"  --region SIZE      use the first SIZE bytes only\n"
	"  --seconds S        stop after S seconds (5)\n"
	"  --count N          stop after N requests of each client\n"
	"  --seed N           of the random offsets (1)\n"
	"  --server-pid PID   report this process's CPU time for each request\n"
	"  --json             one JSON object instead of a line\n";

static void
add_export(const char *name)
{
	if (opt.n_exports == EXPORTS_MAX)
		die("too many exports");
	opt.exports[opt.n_exports++] = name;
}

static void
parse_options(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "export", 1, NULL, 'e' },	 { "clients", 1, NULL, 'c' },
		{ "depth", 1, NULL, 'd' },	 { "block", 1, NULL, 'b' },
		{ "write", 1, NULL, 'w' },	 { "flush-every", 1, NULL, 'f' },
		{ "sequential", 0, NULL, 's' },	 { "structured", 0, NULL, 'S' },
		{ "region", 1, NULL, 'r' },	 { "seconds", 1, NULL, 't' },
		{ "count", 1, NULL, 'n' },	 { "seed", 1, NULL, 'x' },
		{ "server-pid", 1, NULL, 'p' },	 { "json", 0, NULL, 'j' },
		{ "busy", 0, NULL, 'B' },	 { "help", 0, NULL, 'h' },
		{ 0 },
	};
	int o;

	while ((o = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
		switch (o) {
		case 'e': add_export(optarg); break;
		case 'c': opt.clients = (unsigned)atoi(optarg); break;
		case 'd': opt.depth = (unsigned)atoi(optarg); break;
		case 'b': opt.block = (uint32_t)size_arg(optarg); break;
		case 'w': opt.write_percent = (unsigned)atoi(optarg); break;
		case 'f': opt.flush_every = (unsigned)atoi(optarg); break;
		case 's': opt.sequential = true; break;
		case 'S': opt.structured = true; break;
		case 'B': opt.busy = true; break;
		case 'r': opt.region = size_arg(optarg); break;
		case 't': opt.seconds = atof(optarg); break;
		case 'n': opt.count = size_arg(optarg); break;
		case 'x': opt.seed = (unsigned)atoi(optarg); break;
		case 'p': opt.server = atoi(optarg); break;
		case 'j': opt.json = true; break;
		case 'h': fputs(usage_text, stdout); exit(0);
		default: fputs(usage_text, stderr); exit(1);
		}
	}
	if (optind != argc - 1 || !opt.clients || opt.clients > CLIENTS_MAX || !opt.depth ||
	    opt.depth > DEPTH_MAX || !opt.block || opt.block > 32 << 20) {
		fputs(usage_text, stderr);
		exit(1);
	}
	opt.path = argv[optind];
}

static void
wait_for_end(struct client *all)
{
	struct timespec nap = { (time_t)opt.seconds,
				(long)((opt.seconds - (double)(time_t)opt.seconds) * 1e9) };

	if (!opt.count) {
		nanosleep(&nap, NULL);
		atomic_store(&stop, true);
	}
	for (unsigned i = 0; i < opt.clients; i++)
		pthread_join(all[i].thread, NULL);
}

int
main(int argc, char **argv)
{
	struct client *all;
	int64_t t, cpu;

	parse_options(argc, argv);
	all = calloc(opt.clients, sizeof(*all));
	payload = malloc(opt.block);
	if (!all || !payload || pthread_barrier_init(&start_line, NULL, opt.clients + 1))
		die("no memory");
	memset(payload, 0xa5, opt.block);
	for (unsigned i = 0; i < opt.clients; i++) {
		struct client *c = &all[i];

		c->index = i;
		c->rng = (opt.seed * UINT64_C(0x9e3779b97f4a7c15)) ^ (i + 1) * UINT64_C(0x2545f4914f6cdd1d);
		c->done_after_skip = DEPTH_MAX;
		c->in = malloc(RECV_SIZE);
		c->fd = connect_to_server(opt.exports[opt.n_exports ? i % opt.n_exports : 0], &c->size);
		errno = 0;
		if (!c->in || c->size < opt.block)
			die("the export is smaller than one block");
		if (pthread_create(&c->thread, NULL, run_client, c))
			die("thread");
	}
	cpu = server_cpu_ns();
	t = now_ns();
	pthread_barrier_wait(&start_line);
	wait_for_end(all);
	t = now_ns() - t;
	if (cpu >= 0)
		cpu = server_cpu_ns() - cpu;
	report(all, (double)t / 1e9, cpu);
	return 0;
}
