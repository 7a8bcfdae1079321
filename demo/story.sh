#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# demo/story.sh - Quoin's main job on real images, shown step by step.
#
# `./dev demo` runs it.  $QUOIND and $QUOIN name the programs; QEMU's tools make
# the images and judge the results.  It works in a folder of its own, which it
# removes, and exits with 0 only if every step did what it says.
set -euo pipefail

QUOIND=${QUOIND:-build/quoind}
QUOIN=${QUOIN:-build/quoin}
QEMU_IMG=${QEMU_IMG:-qemu-img}
QEMU_IO=${QEMU_IO:-qemu-io}
dir=$(mktemp -d)
daemon=

cleanup() {
	[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
	[ -z "$daemon" ] || wait "$daemon" 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; else bold='' dim='' off=''; fi
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$off"; }
# A command line as one would type it: programs and files without their folders.
show() {
	local text=${*//$dir\//}
	printf '%s$ %s%s\n' "$dim" "${1##*/} ${text#* }" "$off"
}
fail() { echo "demo: FAILED: $*" >&2; exit 1; }

# Run a command, shown; paths are shown without the folder.
run() {
	show "$@"
	"$@" 2>&1 | sed "s|$dir/||g"
	return "${PIPESTATUS[0]}"
}
qmp() { run "$QUOIN" qmp "$dir/qmp.sock" "$@"; }
quiet_qmp() { "$QUOIN" qmp "$dir/qmp.sock" "$@"; }
must_fail() {
	if run "$@"; then fail "'${*//$dir\//}' should have been refused"; fi
}

# Ask until no job is left, or the job is in this state; bounded.
wait_jobs() {
	local want=$1 jobs
	for _ in $(seq 300); do
		jobs=$(quiet_qmp query-jobs)
		case $jobs in *"$want"*) return ;; esac
		sleep 0.1
	done
	fail "jobs: $jobs"
}

say "Images: a plain backing file, an encrypted overlay, a plain overlay"
printf 'secret' >"$dir/key"
head -c 3145728 /dev/urandom | base64 -w 79 >"$dir/text"
head -c 4194304 "$dir/text" >"$dir/backing.img"
run "$QEMU_IMG" create -q -f qcow2 --object "secret,id=s,file=$dir/key" \
	-o encrypt.format=aes,encrypt.key-secret=s \
	-b "$dir/backing.img" -F raw "$dir/geheim.qcow2"
run "$QEMU_IO" --object "secret,id=s,file=$dir/key" \
	--image-opts "driver=qcow2,file.filename=$dir/geheim.qcow2,encrypt.format=aes,encrypt.key-secret=s" \
	-c 'write -P 0x53 1M 512k' >"$dir/log" || fail "qemu-io: $(cat "$dir/log")"
run "$QEMU_IMG" create -q -f qcow2 -b "$dir/backing.img" -F raw "$dir/normal.qcow2"
run "$QEMU_IMG" create -q -f qcow2 "$dir/copy.qcow2" 4M

say "The daemon serves the plain overlay over NBD"
show quoind --qmp qmp.sock --pidfile pid --daemonize --blockdev ... --nbd-server ... --export ...
"$QUOIND" --qmp "$dir/qmp.sock" --pidfile "$dir/pid" --daemonize \
	--blockdev "driver=qcow2,node-name=normal,file.driver=file,file.filename=$dir/normal.qcow2" \
	--nbd-server "addr.type=unix,addr.path=$dir/nbd.sock" \
	--export nbd,id=disk,node-name=normal,writable=on
daemon=$(cat "$dir/pid")
client() { "$QEMU_IO" -f raw "nbd+unix:///normal?socket=$dir/nbd.sock" "$@"; }
client -c 'write -P 0x41 0 64k' -c flush >"$dir/log" || fail "client: $(cat "$dir/log")"
sed -n 1p "$dir/log"

say "The encrypted image is refused, on itself and below another"
must_fail "$QUOIN" qmp "$dir/qmp.sock" blockdev-add driver=qcow2 node-name=geheim \
	file.driver=file "file.filename=$dir/geheim.qcow2"
"$QEMU_IMG" create -q -u -f qcow2 -b "$dir/geheim.qcow2" -F qcow2 "$dir/over.qcow2" 4M
must_fail "$QUOIN" qmp "$dir/qmp.sock" blockdev-add driver=qcow2 node-name=over \
	file.driver=file "file.filename=$dir/over.qcow2"

say "A backup while the client writes"
qmp blockdev-add driver=qcow2 node-name=copy file.driver=file "file.filename=$dir/copy.qcow2"
qmp blockdev-backup job-id=backup device=normal target=copy sync=full
client -c 'write -P 0x42 2M 64k' -c flush >"$dir/log" || fail "client: $(cat "$dir/log")"
wait_jobs '[]'
qmp blockdev-del node-name=copy
run "$QEMU_IMG" check "$dir/copy.qcow2"

say "The overlay is committed into its backing file, under way"
qmp block-commit job-id=commit device=normal
wait_jobs '"ready"'
client -c 'write -P 0x43 3M 64k' -c flush >"$dir/log" || fail "client: $(cat "$dir/log")"
qmp job-complete id=commit
wait_jobs '[]'
qmp quit
tail --pid="$daemon" -f /dev/null
daemon=
for at in 0:41 2097152:42 3145728:43; do
	got=$(od -An -tx1 -j "${at%:*}" -N 1 "$dir/backing.img")
	[ "$got" = " ${at#*:}" ] || fail "backing.img at ${at%:*}: $got"
done
echo "backing.img holds what the client wrote"
if cmp -s <(head -c 1572864 "$dir/backing.img" | tail -c 524288) \
	<(head -c 1572864 "$dir/geheim.qcow2" | tail -c 524288); then
	fail "backing.img holds what geheim.qcow2 holds"
fi
LC_ALL=C grep -qP '[^\x0a\x20-\x7e]' <(head -c 4194304 "$dir/backing.img" | tail -c +65537) &&
	fail "backing.img holds bytes that nobody wrote in plain"
echo "and no byte of ciphertext"

say "The secret comes out by quoin rescue; a wrong key does not"
printf 'wrong' >"$dir/wrong"
must_fail "$QUOIN" rescue --key-file "$dir/wrong" "$dir/geheim.qcow2" "$dir/geheim.raw"
[ ! -e "$dir/geheim.raw" ] || fail "a wrong key left a target"
run "$QUOIN" rescue --key-file "$dir/key" "$dir/geheim.qcow2" "$dir/geheim.raw"
run "$QEMU_IMG" convert --object "secret,id=s,file=$dir/key" --image-opts \
	"driver=qcow2,file.filename=$dir/geheim.qcow2,encrypt.format=aes,encrypt.key-secret=s" \
	-O raw "$dir/judge.raw"
cmp "$dir/geheim.raw" "$dir/judge.raw"
echo "what it wrote equals what qemu-img convert gets, byte for byte"

say "Done: nothing encrypted was served, nothing was lost"
