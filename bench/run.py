#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare quoind with its peers, side by side, in one run.

Each case is measured on every server in turn, several rounds over, so that
whatever else the machine does hits all of them alike.  The table shows the
median of the rounds, and in brackets how quoind compares: 2.0x is twice as
good, whichever way good is for that figure.

The images lie in a folder of their own and are read once before the rounds, so
reads are answered from the page cache.  `./dev bench` calls this.
"""
import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests"))
import peers  # noqa: E402  (tests/peers.py finds QEMU's programs)

GIB = 1 << 30
START_LIMIT = 20  # seconds
JOB_LIMIT = 120


class Failure(Exception):
    pass


def run(*argv):
    subprocess.run([str(a) for a in argv], check=True, stdout=subprocess.DEVNULL)


class Qmp:
    """A QMP client that knows just enough to measure."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(JOB_LIMIT)
        self.sock.connect(str(path))
        self.lines = self.sock.makefile("rb")
        self.greeting = json.loads(self.lines.readline())
        self.events = []
        self.call("qmp_capabilities")

    def message(self):
        line = self.lines.readline()
        if not line:
            raise Failure("the server closed its monitor")
        try:
            return json.loads(line)
        except ValueError:
            raise Failure(f"the server said {line!r}") from None

    def call(self, command, **arguments):
        request = {"execute": command, "arguments": arguments}
        self.sock.sendall(json.dumps(request).encode())
        while True:
            reply = self.message()
            if "event" in reply:
                self.events.append(reply)
            elif "error" in reply:
                raise Failure(f"{command}: {reply['error']['desc']}")
            else:
                return reply["return"]

    def job_done(self, job):
        """Wait until the job has ended; complain if it failed."""
        while True:
            for event in self.events:
                data = event["data"]
                if event["event"] == "BLOCK_JOB_COMPLETED" and data["device"] == job:
                    if "error" in data:
                        raise Failure(f"job {job}: {data['error']}")
                    self.events.clear()
                    return
            self.events = [m for m in (self.message(),) if "event" in m]

    def round_trips(self, seconds):
        """The times of single commands, as fast as one client can send them."""
        times, end = [], time.monotonic() + seconds
        request = b'{"execute": "query-version"}'
        recv, send, clock = self.sock.recv, self.sock.sendall, time.perf_counter
        while time.monotonic() < end:
            start = clock()
            send(request)
            while not recv(65536).endswith(b"\n"):
                pass
            times.append(clock() - start)
        return times


class Server:
    """A process that serves NBD, and QMP where it can.

    What running() is told of how: direct, past the page cache; keys, a folder with
    the keys.psk of TLS; more, images that are exported beside, as e1, e2 and so on."""

    def __init__(self, name, argv, qmp=True, formats=("raw", "qcow2")):
        self.name, self.argv = name, argv
        self.has_qmp, self.formats = qmp, formats
        self.process = self.monitor = None

    def image_options(self, image):
        return []

    def node(self, name, image, direct):
        return ["--blockdev", json.dumps({
            "driver": image.suffix[1:], "node-name": name, "cache": {"direct": direct},
            "file": {"driver": "file", "filename": str(image), "cache": {"direct": direct},
                     **self.file_options}})]

    def extra_argv(self, image, work, direct=False, keys=None, more=()):
        argv = ["--chardev", f"socket,id=mon,path={work}/qmp,server=on,wait=off",
                "--monitor", "chardev=mon"]
        tls = ""
        if keys:
            argv += ["--object", f"tls-creds-psk,id=tls,endpoint=server,dir={keys}"]
            tls = ",tls-creds=tls"
        if image:
            argv += [*self.node("disk", image, direct),
                     "--nbd-server", f"addr.type=unix,addr.path={work}/nbd{tls}",
                     "--export", "nbd,id=e,node-name=disk,name=e,writable=on"]
        for i, other in enumerate(more, 1):
            argv += [*self.node(f"disk{i}", other, direct),
                     "--export", f"nbd,id=e{i},node-name=disk{i},name=e{i},writable=on"]
        return argv

    file_options = {}

    @contextlib.contextmanager
    def running(self, work, image=None, **how):
        for name in ("qmp", "nbd"):
            (work / name).unlink(missing_ok=True)
        argv = [str(a) for a in self.argv + self.extra_argv(image, work, **how)]
        with open(work / "stderr", "w+b") as stderr:
            self.process = subprocess.Popen(argv, stderr=stderr, stdin=subprocess.DEVNULL)
            try:
                self.wait_until_up(work, stderr, image)
                yield self
            finally:
                if self.monitor:
                    self.monitor.sock.close()
                    self.monitor = None
                self.process.terminate()
                try:
                    self.process.wait(START_LIMIT)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()

    def wait_until_up(self, work, stderr, image):
        path = work / ("nbd" if image else "qmp")
        end = time.monotonic() + START_LIMIT
        while not can_connect(path):
            if self.process.poll() is not None or time.monotonic() > end:
                stderr.seek(0)
                raise Failure(f"{self.name} does not start: "
                              + stderr.read().decode(errors="replace").strip())
            time.sleep(0.01)
        if self.has_qmp:
            self.monitor = Qmp(work / "qmp")


class Qsd(Server):
    def __init__(self, name, program, **file_options):
        super().__init__(name, [program])
        self.file_options = file_options


class Nbdkit(Server):
    def extra_argv(self, image, work, direct=False, keys=None):
        tls = ["--tls=require", f"--tls-psk={keys}/keys.psk"] if keys else []
        # Its cache=none gives pages back behind each request: no direct I/O.
        return [*tls, "-f", "-U", work / "nbd", "-e", "e", "file", image]


def can_connect(path):
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
            return True
        except OSError:
            return False


def rss_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise Failure("no VmRSS")


def cpu_ms(pid):
    """What the process and all of its threads have used, to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


class Bench:
    def __init__(self, args, work, tools):
        self.args, self.work, self.tools = args, work, tools
        self.disk = {"qcow2": work / "disk.qcow2", "raw": work / "disk.raw"}

    def prepare(self):
        for disk in self.disk.values():
            self.fill(disk, self.args.size)

    def fill(self, disk, size):
        """An image full of data, in the page cache."""
        raw = disk.with_suffix(".raw")
        block = os.urandom(1 << 20)
        with open(raw, "wb") as f:
            for _ in range(size >> 20):
                f.write(block)
        if disk != raw:
            self.convert(raw, disk)
        os.sync()
        with open(disk, "rb") as f:
            while f.read(1 << 22):
                pass

    def convert(self, source, target):
        run(self.tools["qemu-img"], "convert", "-f", "raw", "-O", "qcow2", source, target)

    def create(self, path, *options, size=None):
        path.unlink(missing_ok=True)
        run(self.tools["qemu-img"], "create", "-q", "-f", "qcow2", *options, path,
            str(size or self.args.size))

    # ---- the measurements: each takes a server, gives {figure: value} ----

    def load(self, fmt, *options, direct=False):
        def measure(server):
            if fmt not in server.formats or (direct and not server.has_qmp):
                return {}
            with server.running(self.work, self.disk[fmt], direct=direct):
                base = [self.tools["nbdload"], "--json", "--export", "e",
                        "--server-pid", server.process.pid, *options]
                # Fill its caches first.
                call(base + ["--seconds", min(0.3, self.args.seconds / 3), self.work / "nbd"])
                out = call(base + ["--seconds", self.args.seconds, self.work / "nbd"])
                return json.loads(out)
        return measure

    def bare_disk(self, server):
        """What the disk gives to nobody but fio: measured once, beside the first."""
        if server.name != "quoind" or not shutil.which("fio"):
            return {}
        out = call(["fio", "--name=bare", "--filename", self.disk["raw"], "--readonly", "--direct=1",
                    "--ioengine=io_uring", "--iodepth=32", "--rw=randread", "--bs=4k",
                    "--time_based", "--runtime", max(1, int(self.args.seconds)),
                    "--output-format=json"])
        job = json.loads(out[out.index(b"{"):])["jobs"][0]
        return {"iops": job["read"]["iops"]}

    def tls(self, server):
        """All of the disk through one connection, by a client that is the same for all."""
        keys = self.work / "keys"
        if not shutil.which("nbdcopy"):
            return {}
        keys.mkdir(exist_ok=True)
        (keys / "keys.psk").write_text("qemu:" + 64 * "5a" + "\n")
        (keys / "keys.psk").chmod(0o600)
        with server.running(self.work, self.disk["raw"], keys=keys):
            cpu, start = cpu_ms(server.process.pid), time.monotonic()
            call(["nbdcopy", "--connections=1", "--request-size=1048576",
                  f"nbds+unix://qemu@/e?socket={self.work}/nbd&tls-psk-file={keys}/keys.psk", "null:"])
            seconds = time.monotonic() - start
            mib = self.args.size / (1 << 20)
            return {"mib_s": mib / seconds,
                    "server_cpu_us": (cpu_ms(server.process.pid) - cpu) * 1000 / mib}

    def exports(self, fmt, count, *options):
        """As many clients as exports, each of an image of its own."""
        def measure(server):
            if not server.has_qmp:
                return {}
            disks = [self.work / f"part{i}.{fmt}" for i in range(count)]
            for disk in disks:
                if not disk.exists():
                    self.fill(disk, self.args.size // count)
            with server.running(self.work, disks[0], more=disks[1:]):
                names = ["e"] + [f"e{i}" for i in range(1, count)]
                out = call([self.tools["nbdload"], "--json", "--clients", count,
                            *[word for name in names for word in ("--export", name)],
                            "--server-pid", server.process.pid, *options,
                            "--seconds", self.args.seconds, self.work / "nbd"])
                return json.loads(out)
        return measure

    def allocate(self, count, *options, size=None, backing=False, create=()):
        """Writes into an image that has nothing of its own yet: so many, each row the
        same work for all.  size: of the disk, much more than is written, so that
        nearly every random write finds a cluster that is not there."""
        def measure(server):
            if "qcow2" not in server.formats:
                return {}
            image = self.work / "fresh.qcow2"
            base = ("-b", str(self.disk["raw"]), "-F", "raw") if backing else ()
            self.touch_memory()
            self.create(image, *create, *base, size=size)
            with server.running(self.work, image):
                out = call([self.tools["nbdload"], "--json", "--export", "e", "--write", "100",
                            "--server-pid", server.process.pid, "--count", count, *options,
                            self.work / "nbd"])
            image.unlink()
            return json.loads(out)
        return measure

    def touch_memory(self):
        """Let the page cache be handed pages that were used just now: in a virtual
        machine the first touch of others is the host's work, and whoever happens
        to come first would pay for it."""
        scratch = self.work / "scratch"
        with open(scratch, "wb") as f:
            for _ in range(self.args.size >> 20):
                f.write(bytes(1 << 20))
        scratch.unlink()

    def job(self, server, command, **arguments):
        """Run a job over all of the disk's data."""
        self.touch_memory()
        cpu, start = cpu_ms(server.process.pid), time.monotonic()
        server.monitor.call(command, **{k.replace("_", "-"): v for k, v in arguments.items()})
        server.monitor.job_done(arguments["job_id"])
        seconds = time.monotonic() - start
        return {"mib_s": self.args.size / (1 << 20) / seconds,
                "cpu_ms": cpu_ms(server.process.pid) - cpu}

    def backup(self, server):
        if not server.has_qmp:
            return {}
        target = self.work / "target.qcow2"
        self.create(target)
        with server.running(self.work, self.disk["qcow2"]):
            add_qcow2(server, "target", target)
            result = self.job(server, "blockdev-backup", job_id="job", device="disk",
                              target="target", sync="full")
        target.unlink()
        return result

    def commit(self, server):
        if not server.has_qmp:
            return {}
        base, top, active = (self.work / f"{n}.qcow2" for n in ("base", "top", "active"))
        self.create(base)
        if not top.exists():
            self.convert(self.disk["raw"], top)
            run(self.tools["qemu-img"], "rebase", "-u", "-f", "qcow2", "-F", "qcow2",
                "-b", base, top)
        self.create(active, "-b", str(top), "-F", "qcow2")
        with server.running(self.work):
            add_qcow2(server, "base", base, backing=None)
            add_qcow2(server, "top", top, backing="base")
            add_qcow2(server, "active", active, backing="top")
            result = self.job(server, "block-commit", job_id="job", device="active",
                              top_node="top", base_node="base")
        base.unlink()
        return result

    def start(self, server):
        if not server.has_qmp:
            return {}
        image = self.disk["qcow2"]
        options = {"driver": "qcow2", "node-name": "disk",
                   "file": {"driver": "file", "filename": str(image)}}
        argv = [str(server.argv[0]), "--blockdev", json.dumps(options),
                "--chardev", "stdio,id=mon", "--monitor", "chardev=mon"]
        times = []
        for _ in range(5):
            start = time.monotonic()
            with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                if b"QMP" not in process.stdout.readline():
                    raise Failure(f"{server.name}: no greeting")
                times.append(time.monotonic() - start)
                process.terminate()
        return {"ms": statistics.median(times) * 1000}

    def memory(self, server):
        if not server.has_qmp:
            return {}
        images = []
        for i in range(50):
            images.append(self.work / f"small{i}.qcow2")
            if not images[-1].exists():
                run(self.tools["qemu-img"], "create", "-q", "-f", "qcow2", images[-1], "64M")
        with server.running(self.work):
            idle = rss_mib(server.process.pid)
            for i, image in enumerate(images):
                add_qcow2(server, f"n{i}", image)
            return {"idle": idle, "nodes": rss_mib(server.process.pid)}

    def qmp_rate(self, server):
        if not server.has_qmp:
            return {}
        with server.running(self.work):
            times = server.monitor.round_trips(self.args.seconds)
            return {"rate": len(times) / sum(times)}

    def qmp_under_load(self, server):
        if not server.has_qmp:
            return {}
        with server.running(self.work, self.disk["qcow2"]):
            load = subprocess.Popen(
                [str(self.tools["nbdload"]), "--export", "e", "--clients", "4", "--depth", "16",
                 "--seconds", str(self.args.seconds + 1), str(self.work / "nbd")],
                stdout=subprocess.DEVNULL)
            times = sorted(server.monitor.round_trips(self.args.seconds))
            load.wait()
            return {"p99_ms": times[int(len(times) * 0.99)] * 1000}

    def cases(self):
        """(title, measure, [(figure, unit, format, higher is better)])"""
        rate = ("iops", "/s", "{:,.0f}", True)
        cpu = ("server_cpu_us", "us CPU each", "{:.2f}", False)
        mib = ("mib_s", "MiB/s", "{:,.0f}", True)
        job_cpu = ("cpu_ms", "ms CPU in all", "{:,.0f}", False)
        d1, d32 = ("--depth", "1"), ("--depth", "32")
        many1, many = ("--clients", "4", "--depth", "1"), ("--clients", "4", "--depth", "16")
        write, seq = ("--write", "100"), ("--block", "1M", "--sequential", "--depth", "4")
        load, allocate = self.load, self.allocate
        some, large = self.args.size // 65536, 64 * GIB
        seq64, extended = ("--block", "64K", "--sequential"), ("-o", "extended_l2=on")
        return [
            ("4K random read, depth 1", load("qcow2", *d1), [rate, cpu]),
            ("4K random read, depth 32", load("qcow2", *d32), [rate, cpu]),
            ("4K random read, depth 32, structured", load("qcow2", *d32, "--structured"),
             [rate, cpu]),
            ("4K random read, 4 clients, depth 1", load("qcow2", *many1), [rate, cpu]),
            ("4K random read, 4 clients, depth 16", load("qcow2", *many), [rate, cpu]),
            ("4K random read, 4 exports, depth 16",
             self.exports("qcow2", 4, "--depth", "16"), [rate, cpu]),
            ("4K random write, depth 1", load("qcow2", *d1, *write), [rate, cpu]),
            ("4K random write, depth 32", load("qcow2", *d32, *write), [rate, cpu]),
            ("4K random write, 4 clients, depth 1", load("qcow2", *many1, *write), [rate, cpu]),
            ("4K random write, 4 clients, depth 16", load("qcow2", *many, *write), [rate, cpu]),
            ("1M sequential read, depth 4", load("qcow2", *seq), [mib, cpu]),
            ("empty: 4K random write, depth 32", allocate(some, *d32, size=large), [rate, cpu]),
            ("empty: 64K sequential write, depth 8",
             allocate(some, *seq64, "--depth", "8"), [mib, cpu]),
            ("overlay: 4K random write, depth 32",
             allocate(some // 4, *d32, backing=True), [rate, cpu]),
            ("overlay, subclusters: 4K random write, depth 32",
             allocate(some // 4, *d32, backing=True, create=extended), [rate, cpu]),
            ("raw: 4K random read, depth 32", load("raw", *d32), [rate, cpu]),
            ("raw: 4K random read, 4 clients, depth 16", load("raw", *many), [rate, cpu]),
            ("raw: 4K random read, 4 exports, depth 16",
             self.exports("raw", 4, "--depth", "16"), [rate, cpu]),
            ("raw: 4K random write, depth 32", load("raw", *d32, *write), [rate, cpu]),
            ("raw: 1M sequential read, depth 4", load("raw", *seq), [mib, cpu]),
            ("direct: 4K random read, depth 32", load("qcow2", *d32, direct=True), [rate, cpu]),
            ("direct, raw: 4K random read, depth 32", load("raw", *d32, direct=True), [rate, cpu]),
            ("direct, the bare disk, by fio", self.bare_disk, [rate]),
            ("TLS, raw: 1M sequential read", self.tls, [mib, cpu]),
            ("backup, full", self.backup, [mib, job_cpu]),
            ("commit, middle layer", self.commit, [mib, job_cpu]),
            ("start to greeting", self.start, [("ms", "ms", "{:.1f}", False)]),
            ("resident memory", self.memory, [("idle", "MiB idle", "{:.1f}", False),
                                              ("nodes", "MiB, 100 nodes", "{:.1f}", False)]),
            ("QMP round trips", self.qmp_rate, [("rate", "/s", "{:,.0f}", True)]),
            ("QMP under 4 busy clients", self.qmp_under_load,
             [("p99_ms", "ms p99", "{:.2f}", False)]),
        ]


def call(argv):
    result = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, timeout=JOB_LIMIT)
    if result.returncode:
        raise Failure(result.stderr.decode(errors="replace").strip() or "nbdload failed")
    return result.stdout


def add_qcow2(server, name, path, **more):
    server.monitor.call("blockdev-add", **{
        "driver": "qcow2", "node-name": name, **more,
        "file": {"driver": "file", "filename": str(path), **server.file_options}})


def find_servers(args):
    """quoind, and whichever peers there are; and the tools that make images."""
    servers, tools = [], {"nbdload": args.build / "bench/nbdload"}
    quoind = args.build / "quoind"
    if quoind.exists():
        servers.append(Qsd("quoind", quoind))
    else:
        print(f"bench: no {quoind}: only the peers are measured")
    print("bench:", peers.describe())
    if peers.QSD:
        servers.append(Qsd("qsd", peers.QSD))
        servers.append(Qsd("qsd io_uring", peers.QSD, aio="io_uring"))
    if shutil.which("nbdkit"):
        servers.append(Nbdkit("nbdkit", ["nbdkit"], qmp=False, formats=("raw",)))
    else:
        print("bench: no nbdkit")
    tools["qemu-img"] = peers.QEMU_IMG
    if not peers.QEMU_IMG:
        sys.exit("bench: no qemu-img (Debian package: qemu-utils)")
    return servers, tools


def measure(case, servers, rounds):
    """{server name: {figure: median}} of one case."""
    title, fn, figures = case
    values = {s.name: {f[0]: [] for f in figures} for s in servers}
    for i in range(rounds):
        # Each is the first in turn: the one before leaves its marks on the caches.
        first = i % len(servers)
        for server in servers[first:] + servers[:first]:
            if values[server.name] is None:
                continue
            try:
                got = fn(server)
            except Failure as e:
                print(f"bench: {title}: {server.name}: {e}", file=sys.stderr)
                values[server.name] = None
                continue
            for figure, *_ in figures:
                if figure in got:
                    values[server.name][figure].append(got[figure])
    return {name: {f: statistics.median(v) for f, v in found.items() if v}
            for name, found in values.items() if found}


def cell(result, figure, fmt, up, own):
    value = result.get(figure)
    if value is None:
        return "-"
    text = fmt.format(value)
    if own and own is not result and figure in own and value and own[figure]:
        ratio = own[figure] / value if up else value / own[figure]
        text += f" [{ratio:.1f}x]"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=TOP / "build")
    parser.add_argument("--quick", action="store_true", help="one short round, 256 MiB images")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--size", type=int, default=GIB)
    parser.add_argument("--only", metavar="TEXT", help="cases whose title contains TEXT")
    parser.add_argument("--servers", metavar="NAMES", help="only these, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--dir", type=Path, help="where the images go (default: TMPDIR)")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.size = 1, 0.3, GIB >> 2

    servers, tools = find_servers(args)
    if args.servers:
        servers = [s for s in servers if s.name in args.servers.split(",")]
    widths = [42, 16] + [20] * len(servers)
    everything = {}
    with tempfile.TemporaryDirectory(prefix="quoin-bench-", dir=args.dir) as work:
        bench = Bench(args, Path(work), tools)
        bench.prepare()
        show(widths, ["", ""] + [s.name for s in servers])
        for case in bench.cases():
            if args.only and args.only not in case[0]:
                continue
            results = measure(case, servers, args.rounds)
            everything[case[0]] = results
            title = case[0]
            for figure, unit, fmt, up in case[2]:
                show(widths, [title, unit] + [
                    cell(results.get(s.name, {}), figure, fmt, up, results.get("quoind"))
                    for s in servers])
                title = ""
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1) + "\n")


def show(widths, cells):
    first, *rest = [f"{c:<{w}}" if i < 2 else f"{c:>{w}}"
                    for i, (c, w) in enumerate(zip(cells, widths))]
    print(first, *rest, flush=True)


if __name__ == "__main__":
    main()
