#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare quoin rescue with qemu-img convert, side by side, in one run.

A disk of 1 GiB, three quarters of it noise, is encrypted in each way by qemu-img, read
once, and then decrypted by both programs in turn, several rounds over; in memory
(/dev/shm) if there is room, so that no disk decides.  In another --folder, quoin waits
until its target is on disk; qemu-img does not, as it is by default, and is run once more
with -t writeback, when it does too.  The table shows medians:
seconds, CPU seconds, MiB of memory at most; and how many times the seconds, and the
CPU seconds, of quoin each of the others took.  Before it stands what one core decrypts
by itself, and what OpenSSL, which knows this CPU best, makes of it.  `./dev bench`
calls this, `./dev bench rescue` this alone.
"""
import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests"))
import images  # noqa: E402
import peers  # noqa: E402

MIB = 1 << 20
PASSWORD = "a password"
LIMIT = 300
MEMORY = "/dev/shm"
SECRET = ["--object", "secret,id=s,data=" + PASSWORD]
# name: (qemu-img's format, its options to make it, its options to read it)
KINDS = {
    "qcow AES": ("qcow", "encrypt.format=aes,encrypt.key-secret=s",
                 "encrypt.format=aes,encrypt.key-secret=s"),
    "qcow2 AES": ("qcow2", "encrypt.format=aes,encrypt.key-secret=s",
                  "encrypt.format=aes,encrypt.key-secret=s"),
    "qcow2 LUKS": ("qcow2", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100",
                   "encrypt.format=luks,encrypt.key-secret=s"),
    "raw LUKS": ("luks", "key-secret=s,iter-time=100", "key-secret=s"),
}


def make_disk(path, size):
    """Text in the first MiB of every 64, then noise in three of four."""
    noise = random.Random(1)
    with open(path, "wb") as f:
        for at in range(0, size, MIB):
            f.seek(at)
            if at // MIB % 64 == 0:
                f.write(b"text " * (MIB // 5))
            elif at // MIB % 4:
                f.write(noise.randbytes(MIB))
        f.truncate(size)


def encrypt(kind, plain, image):
    fmt, make, _ = KINDS[kind]
    p = subprocess.run([peers.QEMU_IMG, "convert", "-f", "raw", "-O", fmt, *SECRET, "-o", make,
                        str(plain), str(image)], capture_output=True, text=True,
                       env=dict(os.environ, **images.quick_luks()))
    if p.returncode:
        sys.exit("bench: " + p.stderr.strip())


# ---- one core ----

def openssl_speed(cipher):
    """MiB/s of OpenSSL, in sectors of 512 bytes; None where it is not installed."""
    if not shutil.which("openssl"):
        return None
    p = subprocess.run(["openssl", "speed", "-seconds", "1", "-bytes", "512", "-decrypt", "-evp",
                        cipher], capture_output=True, text=True)
    last = p.stdout.split()[-1] if p.returncode == 0 and p.stdout else ""
    return float(last[:-1]) * 1000 / MIB if last.endswith("k") else None


def print_ciphers(program):
    p = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    print("%-16s  %-14s  %s" % ("one core, MiB/s", "quoin rescue", "OpenSSL"))
    for line in p.stdout.splitlines():
        name, speed = line.split()
        best = openssl_speed(name) if name.startswith("aes") else None
        print("%-16s  %-14s  %s" % (name, speed, "%.0f [%.1fx]" % (best, best / float(speed))
                                    if best else "-"), flush=True)


# ---- ----

# A child's peak of memory counts from its parent's on, so its parent is a small one.
MEASURE = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""


def measured(argv, target):
    """(seconds, CPU seconds, MiB) of one run, which makes target."""
    target.unlink(missing_ok=True)
    os.sync()
    start = time.monotonic()
    p = subprocess.run([sys.executable, "-ISc", MEASURE, *map(str, argv)], capture_output=True,
                       text=True)
    seconds = time.monotonic() - start
    if p.returncode or not p.stdout.startswith("0 "):
        sys.exit("bench: %s: %s" % (argv[0], p.stderr.strip()))
    _, cpu, kib = p.stdout.split()
    return seconds, float(cpu), int(kib) / 1024


def compare(kind, work, quoin, rounds, on_disk):
    fmt, _, read = KINDS[kind]
    plain, image, key = work / "plain", work / "image", work / "key"
    encrypt(kind, plain, image)
    source = "driver=%s,%s,file.driver=file,file.filename=%s" % (fmt, read, image)
    programs = {
        "quoin": [quoin, "rescue", "-q", "--key-file", key, image],
        "qemu-img": [peers.QEMU_IMG, "convert", *SECRET, "--image-opts", "-O", "raw", source],
    }
    if on_disk:
        programs["qemu-img-flushed"] = [peers.QEMU_IMG, "convert", "-t", "writeback", *SECRET,
                                        "--image-opts", "-O", "raw", source]
    times = {name: [] for name in programs}
    measured(programs["quoin"] + [work / "quoin"], work / "quoin")   # fills the page cache
    for _ in range(rounds):
        for name, argv in programs.items():
            times[name].append(measured(argv + [work / name], work / name))
    for name in programs:
        if subprocess.run(["cmp", "-s", plain, work / name]).returncode:
            sys.exit("bench: %s: %s got something else than was put in" % (kind, name))
    median = {name: [statistics.median(v) for v in zip(*t)] for name, t in times.items()}
    text = "%-10s " % kind
    for name, (seconds, cpu, memory) in median.items():
        text += "  %6.2f s %6.2f s CPU %3.0f MiB" % (seconds, cpu, memory)
        if name != "quoin":
            text += " [%.1fx, %.1fx]" % (seconds / median["quoin"][0], cpu / median["quoin"][1])
    print(text, flush=True)


def has_room(mib):
    """For images and targets in memory."""
    with open("/proc/meminfo") as f:
        free = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in f}
    return os.path.isdir(MEMORY) and 6 * mib * MIB < min(shutil.disk_usage(MEMORY).free,
                                                        free["MemAvailable"])


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--size", type=int, default=1024, help="of the disk, in MiB")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--folder", help="where the images go")
    args = p.parse_args()
    quoin = TOP / "build" / "quoin"
    if not quoin.exists() or not peers.QEMU_IMG:
        sys.exit("bench: no build/quoin, or no qemu-img: nothing to compare")
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    print("bench:", peers.describe())
    if not args.folder and has_room(args.size):
        args.folder = MEMORY
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        work = Path(folder)
        (work / "key").write_text(PASSWORD)
        make_disk(work / "plain", args.size * MIB)
        print_ciphers(TOP / "build" / "bench" / "cipherload")
        on_disk = args.folder != MEMORY
        print("%d MiB, in %s\n%-10s  %-29s  %-42s  %s" % (
            args.size, work.parent, "", "quoin rescue", "qemu-img convert",
            "qemu-img convert -t writeback" if on_disk else ""))
        for kind in KINDS:
            compare(kind, work, quoin, args.rounds, on_disk)


if __name__ == "__main__":
    main()
