# SPDX-License-Identifier: Apache-2.0
"""qcow2's cache options: which sizes are taken, and the peer's texts for the others."""
import random

import images

VALUES = {
    'cache-size': [0, 1, 65536, 1 << 20, (1 << 63) - 1, -1],
    'l2-cache-size': [0, 1, 65536, 1 << 20, 1 << 30, (1 << 63) - 1, -1],
    'refcount-cache-size': [0, 65536, 1 << 20, (1 << 63) - 1, -1],
    'cache-clean-interval': [0, 1, (1 << 32) - 1, 1 << 32, -1],
    'l2-cache-entry-size': [0, 256, 512, 4096, 65536, 131072, 3000, -512, 1 << 40],
}


def test_sizes(pair):
    pair.prepare(lambda folder: images.qcow2(folder / 'i.qcow2', '1G'))
    pair.ask('blockdev-add', {'driver': 'file', 'node-name': 'f', 'filename': 'DIR/i.qcow2'})
    rng = random.Random(3)
    each = [{k: v} for k, values in VALUES.items() for v in values]
    sets = each + [dict((k, rng.choice(VALUES[k])) for k in rng.sample(
        list(VALUES), rng.randrange(2, 5))) for _ in range(150)]
    for options in sets:
        # Of two that are out of range, the peer names the one it comes across first.
        if sum(v < 0 and k != 'cache-clean-interval' for k, v in options.items()) > 1:
            continue
        reply = pair.ask('blockdev-add', dict({'driver': 'qcow2', 'node-name': 'n', 'file': 'f'},
                                              **options))
        if 'return' in reply:
            pair.ask('blockdev-del', {'node-name': 'n'})
