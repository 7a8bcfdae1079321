# SPDX-License-Identifier: Apache-2.0
"""quoin rescue --json: the report is what the manual page says it is; and progress."""
import hashlib
import json
import os
import re
import signal
import subprocess

import peers
import pytest
import quoin
from rescuekit import (MIB, PASSWORD, break_entry, content, create, encrypt, image_opts, noise,
                       rescue, standard, write)

pytestmark = pytest.mark.skipif(not peers.QEMU_IMG, reason='no qemu-img is installed')

# member: (type, is it always there?)
LOST = {'offset': (int, True), 'length': (int, True), 'filename': (str, True),
        'reason': (str, True)}
COPY = {'target': (str, True), 'format': (str, True), 'layer': (int, True), 'size': (int, True),
        'data-bytes': (int, True), 'resumed-at': (int, True), 'lost-bytes': (int, True),
        'lost': ([LOST], True), 'sha256': (str, False), 'verified': (str, False),
        'backing-filename': (str, False)}
STRUCTURE = {'name': (str, True), 'offset': (int, True)}
EVIDENCE = {'verdict': (str, True), 'sampled-sectors': (int, True), 'noise-sectors': (int, True),
            'odd-sectors': (int, True), 'clear-sectors': (int, True), 'zero-sectors': (int, True),
            'text-sectors': (int, True), 'unencrypted-sectors': (int, True),
            'places': (int, True), 'boot-mark': (bool, True), 'structures': ([STRUCTURE], True)}
KEY = {'state': (str, True), 'tried': (int, True), 'origin': (str, False), 'form': (str, False),
       'slot': (int, False), 'evidence': (EVIDENCE, False)}
MIXED = {'offset': (int, True), 'length': (int, True), 'reading': (str, True)}
SNAPSHOT = {'id': (str, True), 'name': (str, True), 'virtual-size': (int, True),
            'vm-state-size': (int, True), 'date-sec': (int, True), 'date-nsec': (int, True),
            'vm-clock-sec': (int, True), 'vm-clock-nsec': (int, True), 'icount': (int, False)}
BITMAP = {'name': (str, True), 'granularity': (int, True), 'flags': ([str], True)}
SLOT = {'active': (bool, True), 'key-offset': (int, True), 'iters': (int, False),
        'stripes': (int, False)}
ENCRYPT = {'format': (str, True), 'cipher-alg': (str, False), 'cipher-mode': (str, False),
           'ivgen-alg': (str, False), 'ivgen-hash-alg': (str, False), 'hash-alg': (str, False),
           'uuid': (str, False), 'payload-offset': (int, False), 'master-key-iters': (int, False),
           'detached-header': (bool, False), 'slots': ([SLOT], False)}
LAYER = {'filename': (str, True), 'format': (str, True), 'virtual-size': (int, True),
         'file-size': (int, True), 'actual-size': (int, True), 'encrypted': (bool, True),
         'dirty-flag': (bool, True), 'corrupt': (bool, True), 'version': (int, False),
         'cluster-size': (int, False), 'encryption': (str, False), 'cipher': (str, False),
         'backing-filename': (str, False), 'backing-filename-format': (str, False),
         'data-file': (str, False), 'snapshots': ([SNAPSHOT], False), 'snapshot': (int, False),
         'full-backing-filename': (str, False), 'encrypt': (ENCRYPT, False),
         'compat': (str, False), 'compression-type': (str, False), 'refcount-bits': (int, False),
         'lazy-refcounts': (bool, False), 'extended-l2': (bool, False),
         'data-file-raw': (bool, False), 'bitmaps': ([BITMAP], False),
         'header': (str, False), 'key': (KEY, False), 'mixed': ([MIXED], False),
         'suspect-sectors': (int, False)}
REPORT = {'version': (str, True), 'started': (str, True), 'seconds': (float, True),
          'status': (str, True), 'exit-status': (int, True), 'messages': ([str], True),
          'source': (str, False), 'target': (str, False), 'layers': ([LAYER], False),
          'copies': ([COPY], False), 'error': (str, False)}
STATES = {0: 'complete', 1: 'failed', 3: 'wrong-key', 4: 'not-judged', 5: 'incomplete'}


def read_manual(name):
    with open(os.path.join(quoin.TOP, 'docs', name)) as f:
        return f.read().replace('\\-', '-')


def check(value, kind, where='report'):
    if isinstance(kind, list):
        assert isinstance(value, list), where
        for i, v in enumerate(value):
            check(v, kind[0], '%s[%d]' % (where, i))
    elif isinstance(kind, dict):
        assert isinstance(value, dict), where
        assert value.keys() <= kind.keys(), where
        for name, (k, always) in kind.items():
            assert name in value or not always, '%s.%s' % (where, name)
            if name in value:
                check(value[name], k, '%s.%s' % (where, name))
    else:
        assert type(value) is kind, where


def report(tmp, *argv, **kw):
    """The report of a run, which is checked, and its Result."""
    r = rescue(tmp, '--json', *argv, **kw)
    j = json.loads(r.out)
    check(j, REPORT)
    assert j['exit-status'] == r.status and j['status'] == STATES[r.status]
    return j, r


def test_the_manual_names_every_member():
    rescue_1, info_1 = (read_manual(m) for m in ('quoin-rescue.1', 'quoin-info.1'))
    for struct in (LOST, COPY, STRUCTURE, EVIDENCE, KEY, MIXED, REPORT):
        for name in struct:
            assert re.search(r'^\.B %s$' % name, rescue_1, re.M), name
    for name in {**LAYER, **SNAPSHOT, **BITMAP, **ENCRYPT, **SLOT}:
        assert re.search(r'^\.B %s$' % name, info_1 + rescue_1, re.M), name


@pytest.mark.parametrize('kind', ['qcow', 'qcow2-luks'])
def test_a_report_of_success(tmp, kind):
    plain, image = standard(tmp, kind)
    j, r = report(tmp, '--verify', image, tmp / 'out')
    assert j['source'] == str(image) and j['target'] == str(tmp / 'out')
    layer, = j['layers']
    assert layer['encrypted'] and layer['virtual-size'] == 4 * MIB
    copy, = j['copies']
    assert copy['sha256'] == hashlib.sha256(content(plain)).hexdigest()
    assert copy['size'] == 4 * MIB and 0 < copy['data-bytes'] <= 4 * MIB
    assert copy['lost'] == [] and 'cache' in copy['verified']
    assert any('fits: ' in m for m in j['messages']) and 'error' not in j
    assert j['seconds'] > 0 and re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', j['started'])


def test_the_digest_is_of_holes_too(tmp):
    image = create(tmp, 'qcow2', tmp / 'image', '200M')
    write(tmp, image_opts('qcow2', image), 'write -P 65 100M 1M')
    j, _ = report(tmp, '--target-format', 'qcow2', image, tmp / 'out')
    want = hashlib.sha256(bytes(100 * MIB) + b'A' * MIB + bytes(99 * MIB)).hexdigest()
    assert j['copies'][0]['sha256'] == want
    assert 'sha256' not in report(tmp, '--no-digest', image, tmp / 'two')[0]['copies'][0]


def test_a_report_of_losses(tmp):
    image = encrypt(tmp, 'qcow2', noise(tmp / 'noise', 4 * MIB), tmp / 'image')
    break_entry(image, 3)
    j, _ = report(tmp, '--salvage', '--accept-unverified-key', image, tmp / 'out')
    copy, = j['copies']
    assert copy['lost-bytes'] == 65536
    lost, = copy['lost']
    assert (lost['offset'], lost['length'], lost['filename']) == (3 * 65536, 65536, str(image))
    assert 'tables' in lost['reason']
    assert copy['sha256'] == hashlib.sha256(content(tmp / 'out')).hexdigest()


def test_a_report_of_a_kept_chain(tmp):
    image = standard(tmp, 'qcow2')[1]
    top = create(tmp, 'qcow2', tmp / 'top', '4M',
                 more=',backing_file=%s,backing_fmt=qcow2' % image)
    j, _ = report(tmp, '--keep-chain', top, tmp / 'out')
    assert [c['target'] for c in j['copies']] == [str(tmp / 'out' / n) for n in ('image', 'top')]
    assert [c['layer'] for c in j['copies']] == [1, 0]
    assert j['copies'][1]['backing-filename'] == 'image'


def test_reports_of_failures(tmp):
    image = standard(tmp, 'qcow2')[1]
    j, _ = report(tmp, image, tmp / 'out', key='wrong')
    assert 'the key is wrong' in j['error'] and j['copies'] == []
    (tmp / 'out').write_text('precious')
    j, _ = report(tmp, image, tmp / 'out')
    assert '--force' in j['error']
    rescue(tmp, '--json', tmp / 'none', tmp / 'out')


def test_a_list_as_a_report(tmp):
    image = standard(tmp, 'luks')[1]
    j, r = report(tmp, '--list', image)
    assert j['layers'][0]['format'] == 'luks' and 'target' not in j
    assert any('key slot 0' in m for m in j['messages'])


def test_names_that_are_no_utf8(tmp):
    image = standard(tmp, 'qcow2')[1]
    odd = os.fsencode(tmp) + b'/\xff"\n'
    os.rename(image, odd)
    j, _ = report(tmp, os.fsdecode(odd), tmp / 'out')
    assert j['source'].endswith('/?"\n')


def test_a_report_and_a_disk_do_not_mix(tmp):
    image = standard(tmp, 'qcow2')[1]
    r = rescue(tmp, '--json', image, '-')
    assert r.status == 2 and r.out == ''


def test_an_interrupted_run_reports(tmp):
    image = encrypt(tmp, 'qcow', noise(tmp / 'plain', 64 * MIB), tmp / 'image')
    (tmp / 'key').write_text(PASSWORD)
    p = subprocess.Popen([quoin.QUOIN, 'rescue', '--json', '--resume', '--accept-unverified-key',
                          '--key-file', tmp / 'key', image, tmp / 'out'], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, env=quoin.environment(tmp))
    while p.poll() is None and not os.path.exists(tmp / '.out.rescue'):
        pass
    p.send_signal(signal.SIGTERM)
    out, err = p.communicate(timeout=quoin.LIMIT)
    if p.returncode == 0:
        pytest.skip('it had ended before the signal could be sent')
    j = json.loads(out)
    check(j, REPORT)
    assert j['status'] == 'interrupted' and j['exit-status'] == 128 + signal.SIGTERM


# ---- progress ----

def test_lines_come_with_every_tenth_and_for_each_pass(tmp):
    image = encrypt(tmp, 'qcow', noise(tmp / 'plain', 64 * MIB), tmp / 'image')
    r = rescue(tmp, '--accept-unverified-key', '--verify', image, tmp / 'out')
    assert r.status == 0, r.err
    lines = re.findall(r'^(verify: |)(\d+)% \(.* of 64 MiB, .*/s(?:, \d+:\d\d left|)\)$', r.err,
                       re.M)
    assert ('', '100') in lines and ('verify: ', '100') in lines
    for what in ('', 'verify: '):
        seen = [int(n) for w, n in lines if w == what]
        assert seen == sorted(set(seen)) and len(seen) <= 10
