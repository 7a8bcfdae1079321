# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys for tests of TLS, made by certtool.

    certs = tlskit.Authority(folder)        a CA in a folder of its own
    certs.server('srv'), certs.client('cli', cn='alice')   -> folders as QEMU has them
"""
import shutil
import ssl
import subprocess

import pytest


def need_certtool():
    if not shutil.which('certtool'):
        pytest.skip('certtool is not installed (Debian package: gnutls-bin)')


def certtool(*args):
    subprocess.run(['certtool', *map(str, args)], check=True, timeout=60,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


made = []


def private_key(path):
    """The same for all: making one takes long.  RSA, because a sanity check of QEMU's
    wants "key encipherment", which is nothing for other keys."""
    if not made:
        certtool('--generate-privkey', '--key-type=rsa', '--bits=2048', '--outfile', path)
        made.append(path.read_bytes())
    path.write_bytes(made[0])
    path.chmod(0o600)


class Authority:
    def __init__(self, folder, cn='Test CA', extra=('ca', 'cert_signing_key')):
        need_certtool()
        self.folder = folder
        folder.mkdir()
        self.key, self.cert = folder / 'key.pem', folder / 'ca-cert.pem'
        private_key(self.key)
        self.template = folder / 'template'
        self.fill(cn, *extra)
        certtool('--generate-self-signed', '--load-privkey', self.key, '--template',
                 self.template, '--outfile', self.cert)

    def fill(self, cn, *lines):
        lines = list(lines)
        if not any('activation' in line for line in lines):
            lines += ['expiration_days = 100']
        self.template.write_text('\n'.join([f'cn = "{cn}"', *lines]) + '\n')

    def sign(self, folder, role, cn, *lines):
        """A folder with role-cert.pem, role-key.pem and our own certificate."""
        folder.mkdir()
        key, cert = folder / f'{role}-key.pem', folder / f'{role}-cert.pem'
        private_key(key)
        self.fill(cn, *lines)
        certtool('--generate-certificate', '--load-ca-certificate', self.cert,
                 '--load-ca-privkey', self.key, '--load-privkey', key, '--template',
                 self.template, '--outfile', cert)
        shutil.copy(self.cert, folder / 'ca-cert.pem')
        return folder

    def server(self, name, *lines, cn='localhost'):
        return self.sign(self.folder.parent / name, 'server', cn,
                         *(lines or ('dns_name = "localhost"', 'ip_address = "127.0.0.1"',
                                     'tls_www_server', 'signing_key', 'encryption_key')))

    def client(self, name, *lines, cn='client'):
        return self.sign(self.folder.parent / name, 'client', cn,
                         *(lines or ('tls_www_client', 'signing_key', 'encryption_key')))


EXPIRED = ('activation_date = "2020-01-01 00:00:00"', 'expiration_date = "2020-02-01 00:00:00"')
FUTURE = ('activation_date = "2040-01-01 00:00:00"', 'expiration_date = "2041-02-01 00:00:00"')


def context(folder, version=None):
    """A client's context, with the certificate of a folder, if it has one."""
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    c.load_verify_locations(folder / 'ca-cert.pem')
    if (folder / 'client-cert.pem').exists():
        c.load_cert_chain(folder / 'client-cert.pem', folder / 'client-key.pem')
    if version:
        c.minimum_version = c.maximum_version = version
    return c
