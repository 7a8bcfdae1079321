# SPDX-License-Identifier: Apache-2.0
"""Looks for keys in the memory of a running quoin rescue.

Whoever copies a key copies it whole, or in registers of at least eight bytes; so each is
looked for in pieces of that size.

Keys     .legacy(password), .luks(image, password): add what can be computed from them, all
         without a line of quoin's.  .pieces is what to look for, with names for people;
         .in_use are the names of those that must be there while a disk is decrypted.
Traced   a process that can be looked at with all its memory at its very end, when it has
         freed what it frees.
hunt     where in a stopped process' writable memory the pieces are.
"""
import collections
import ctypes
import hashlib
import os
import re
import struct
import subprocess

PIECE = 8
PAGE = os.sysconf('SC_PAGESIZE')


# ---- AES' schedules ----

def _double(a):
    return a << 1 ^ (0x11b if a & 0x80 else 0)


def _times(a, b):
    r = 0
    while b:
        r ^= a if b & 1 else 0
        a, b = _double(a), b >> 1
    return r


def _sbox():
    """Each byte's inverse in GF(2^8), x^254, put through the affine map."""
    box = []
    for x in range(256):
        inv = 1
        for _ in range(254):
            inv = _times(inv, x)
        rotated = [(inv << n | inv >> (8 - n)) & 255 for n in range(5)]
        box.append(rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4] ^ 0x63)
    return box


SBOX = _sbox()


def _round_keys(key):
    """FIPS 197's key expansion, in pieces of 16 bytes."""
    n = len(key) // 4
    words = [key[i * 4:i * 4 + 4] for i in range(n)]
    rcon = 1
    for i in range(n, 4 * (n + 7)):
        t = words[-1]
        if i % n == 0:
            t = bytes(SBOX[b] for b in t[1:] + t[:1])
            t = bytes([t[0] ^ rcon]) + t[1:]
            rcon = _double(rcon)
        elif n > 6 and i % n == 4:
            t = bytes(SBOX[b] for b in t)
        words.append(bytes(a ^ b for a, b in zip(words[i - n], t)))
    return [b''.join(words[i:i + 4]) for i in range(0, len(words), 4)]


def _unmix(key):
    """InvMixColumns, which the inner round keys of decryption have gone through."""
    out = b''
    for c in range(0, 16, 4):
        for r in range(4):
            out += bytes([_times(key[c + r], 14) ^ _times(key[c + (r + 1) % 4], 11) ^
                          _times(key[c + (r + 2) % 4], 13) ^ _times(key[c + (r + 3) % 4], 9)])
    return out


def _aes_ecb(key, data, decrypt):
    return subprocess.run(['openssl', 'enc', '-aes-%d-ecb' % (len(key) * 8), '-K', key.hex(),
                           '-nopad', *(['-d'] if decrypt else [])],
                          input=data, capture_output=True, check=True).stdout


def _xor(a, b):
    return (int.from_bytes(a, 'little') ^ int.from_bytes(b, 'little')).to_bytes(len(a), 'little')


def _tweaks(key, sectors):
    """XTS's, of all blocks of the first sectors."""
    numbers = b''.join(struct.pack('<QQ', s, 0) for s in range(sectors))
    first = _aes_ecb(key, numbers, decrypt=False)
    out = []
    for s in range(sectors):
        t = int.from_bytes(first[s * 16:s * 16 + 16], 'little')
        for _ in range(32):
            out.append(t.to_bytes(16, 'little'))
            t = t << 1 ^ (1 << 128 | 0x87 if t >> 127 else 0)
    return b''.join(out)


def _decrypt_xts(key, data):
    half = len(key) // 2
    tweaks = _tweaks(key[half:], len(data) // 512)
    return _xor(_aes_ecb(key[:half], _xor(data, tweaks), decrypt=True), tweaks)


def _decrypt_cbc_essiv(key, data, ivhash):
    numbers = b''.join(struct.pack('<QQ', s, 0) for s in range(len(data) // 512))
    ivs = _aes_ecb(hashlib.new(ivhash, key).digest(), numbers, decrypt=False)
    before = b''.join(ivs[s * 16:s * 16 + 16] + data[s * 512:s * 512 + 496]
                      for s in range(len(data) // 512))
    return _xor(_aes_ecb(key, data, decrypt=True), before)


# ---- what is secret ----

def _diffuse(name, key):
    h = hashlib.new(name)
    return b''.join(hashlib.new(name, struct.pack('>I', i) + key[at:at + h.digest_size]).digest()
                    [:len(key) - at] for i, at in enumerate(range(0, len(key), h.digest_size)))


class Keys:
    def __init__(self):
        self.pieces = {}
        self.in_use = set()     # what must be there while data is decrypted

    def add(self, name, data, step=PIECE):
        for at in range(0, len(data) - PIECE + 1, step):
            self.pieces[data[at:at + PIECE]] = name

    def hashed(self, name, data):
        """What goes into a hash or an HMAC: as it is, as big-endian words, and padded."""
        self.add(name, data, 4)
        whole = data[:len(data) & ~3]
        self.add(name + ' in words', b''.join(whole[i:i + 4][::-1]
                                              for i in range(0, len(whole), 4)), 4)
        for pad in (0x36, 0x5c):
            self.add('%s ^ %#x' % (name, pad), bytes(b ^ pad for b in data))

    def aes(self, name, key, used=True):
        keys = _round_keys(key)
        for i, k in enumerate(keys):
            self.add('%s, round key %d' % (name, i), k)
            if 0 < i < len(keys) - 1:
                self.add('%s, round key %d to decrypt' % (name, i), _unmix(k))
        if used:
            self.in_use |= {'%s, round key %d' % (name, i) for i in (0, len(keys) - 1)}

    def legacy(self, password):
        """qcow's AES, with the password as it is."""
        self.hashed('password', password)
        self.aes('qcow key', password[:16].ljust(16, b'\0'))
        return self

    def cipher(self, name, key, mode, used):
        """LUKS's AES."""
        halves = [key] if mode.startswith('cbc') else [key[:len(key) // 2], key[len(key) // 2:]]
        for i, half in enumerate(halves):
            self.aes('%s, part %d' % (name, i), half, used)
        if 'essiv' in mode:
            self.aes(name + ', essiv', hashlib.new(mode.split(':')[1], key).digest(), used)

    def luks(self, path, password, offset=0):
        """All that unlocking the first slot comes by.  What other ciphers than AES hide is
        not computed: there it is the password and what opens the slot."""
        with open(path, 'rb') as f:
            f.seek(offset)
            head = f.read(592)
            alg, mode, name = (head[a:a + 32].rstrip(b'\0').decode() for a in (8, 40, 72))
            key_len = struct.unpack('>I', head[108:112])[0]
            iterations, salt, at, stripes = struct.unpack('>I32sII', head[212:256])
            f.seek(offset + at * 512)
            stored = f.read((key_len * stripes + 511) & ~511)
        self.hashed('password', password)
        slot = hashlib.pbkdf2_hmac(name, password, salt, iterations, key_len)
        self.add('slot key', slot)
        if alg != 'aes':
            return self
        self.cipher('slot key', slot, mode, used=False)
        split = (_decrypt_xts(slot, stored) if mode.startswith('xts') else
                 _decrypt_cbc_essiv(slot, stored, mode.split(':')[1]))
        for s in (0, 1, stripes // 2, stripes - 1):
            self.add('key material, stripe %d' % s, split[s * key_len:(s + 1) * key_len])
        key = bytes(key_len)
        for s in range(stripes - 1):
            key = _diffuse(name, _xor(key, split[s * key_len:(s + 1) * key_len]))
        self.add('last but one state of the merge', key)
        key = _xor(key, split[(stripes - 1) * key_len:stripes * key_len])
        digest, digest_salt, digest_iterations = struct.unpack('>20s32sI', head[112:168])
        assert digest == hashlib.pbkdf2_hmac(name, key, digest_salt, digest_iterations, 20)
        self.hashed('master key', key)
        self.cipher('master key', key, mode, used=True)
        return self


# ---- the memory of a process ----

Mapping = collections.namedtuple('Mapping', 'start end flags name')
Found = collections.namedtuple('Found', 'what address flags name')


def _mappings(pid):
    """Those that can be written and have pages."""
    with open('/proc/%d/smaps' % pid) as f:
        text = f.read()
    for m in re.finditer(r'^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)\n((?:[A-Z].*\n)*)',
                         text, re.M):
        rss, swap = (int(re.search(r'^%s: +(\d+)' % k, m[5], re.M)[1]) for k in ('Rss', 'Swap'))
        if 'w' in m[3] and rss + swap:
            yield Mapping(int(m[1], 16), int(m[2], 16),
                          re.search(r'^VmFlags: (.*)', m[5], re.M)[1].split(), m[4])


def _pages(pid, m):
    """The bytes of runs of pages that are there."""
    with open('/proc/%d/pagemap' % pid, 'rb') as f:
        f.seek(m.start // PAGE * 8)
        n = (m.end - m.start) // PAGE
        there = [e >> 62 != 0 for e in struct.unpack('<%dQ' % n, f.read(8 * n))]
    with open('/proc/%d/mem' % pid, 'rb', buffering=0) as f:
        at = 0
        while True in there[at:]:
            at = there.index(True, at)
            end = there.index(False, at) if False in there[at:] else n
            f.seek(m.start + at * PAGE)
            yield m.start + at * PAGE, f.read((end - at) * PAGE)
            at = end


def hunt(pid, pieces):
    """Where each is, all times."""
    found = []
    for m in _mappings(pid):
        for start, data in _pages(pid, m):
            for piece, what in pieces.items():
                at = data.find(piece)
                while at >= 0:
                    found.append(Found(what, start + at, m.flags, m.name))
                    at = data.find(piece, at + 1)
    return found


def describe(found):
    """For people: what, where, how often."""
    return sorted(collections.Counter((f.what, f.name or 'anonymous') for f in found).items())


# ---- the end of a process ----

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
TRACEME, CONT, DETACH, SETOPTIONS = 0, 7, 17, 0x4200
EVENT_EXIT, TRACEEXIT, EXITKILL = 6, 1 << 6, 1 << 20


def _ptrace(request, pid=0, data=0):
    if _libc.ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), 'ptrace')


def trace_me():
    """For Popen's preexec_fn."""
    _ptrace(TRACEME)


class Traced:
    """Takes hold of a child that called trace_me()."""

    def __init__(self, pid):
        self.pid = pid
        os.waitpid(pid, 0)      # at its exec
        _ptrace(SETOPTIONS, pid, TRACEEXIT | EXITKILL)
        _ptrace(CONT, pid)

    def until_end(self):
        """Wait until it has called exit or a signal ends it; its memory is there as yet."""
        while True:
            _, status = os.waitpid(self.pid, 0)
            assert os.WIFSTOPPED(status), 'it ended'
            if status >> 16 == EVENT_EXIT:
                return
            _ptrace(CONT, self.pid, os.WSTOPSIG(status))

    def release(self):
        _ptrace(DETACH, self.pid)
