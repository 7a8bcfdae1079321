# SPDX-License-Identifier: Apache-2.0
"""Read schema files: QAPI's syntax, and the doc comments between.

A file is a row of objects in JSON with single quotes and # comments.  A
comment that begins and ends with a line "##" documents the next definition.
"""

import os
import re


class SchemaError(Exception):
    pass


class Doc:
    """A doc comment: what it is about, the text, and a text for each member."""

    def __init__(self, name):
        self.name = name
        self.text = []
        self.members = {}


_TOKEN = re.compile(r"\s*(?:(?P<punct>[{}\[\],:])|'(?P<str>[^'\\]*)'"
                    r"|(?P<word>true|false)|(?P<rest>\S))")


class Parser:
    def __init__(self, path):
        self.path = path
        with open(path, encoding='utf-8') as f:
            self.lines = f.read().split('\n')
        self.row = 0
        self.col = 0
        self.docs = {}

    def fail(self, text):
        raise SchemaError(f'{self.path}:{self.row + 1}: {text}')

    def parse(self):
        """All definitions of the file, each as (dict, line number)."""
        found = []
        while self._skip():
            line = self.row + 1
            expr = self._value()
            if not isinstance(expr, dict):
                self.fail('a definition must be an object')
            found.append((expr, line))
        return found

    def _skip(self):
        """Skip blank space and comments; False at the end of the file."""
        while self.row < len(self.lines):
            rest = self.lines[self.row][self.col:].strip()
            if rest == '##' and self.col == 0:
                self._doc()
            elif rest and not rest.startswith('#'):
                return True
            else:
                self.row, self.col = self.row + 1, 0
        return False

    def _token(self):
        if not self._skip():
            self.fail('the file ends within a definition')
        m = _TOKEN.match(self.lines[self.row], self.col)
        if m['rest']:
            self.fail(f"unexpected '{m['rest']}'")
        self.col = m.end()
        return m.lastgroup, m[m.lastgroup]

    def _value(self):
        kind, text = self._token()
        if kind == 'str':
            return text
        if kind == 'word':
            return text == 'true'
        if text == '{':
            return self._object()
        if text == '[':
            return self._array()
        return self.fail(f"unexpected '{text}'")

    def _object(self):
        members = {}
        kind, text = self._token()
        while (kind, text) != ('punct', '}'):
            if kind != 'str':
                self.fail("expected a name or '}'")
            if text in members:
                self.fail(f"'{text}' comes twice")
            name = text
            if self._token() != ('punct', ':'):
                self.fail("expected ':'")
            members[name] = self._value()
            kind, text = self._more('}')
        return members

    def _array(self):
        items = []
        row, col = self.row, self.col
        kind, text = self._token()
        while (kind, text) != ('punct', ']'):
            self.row, self.col = row, col
            items.append(self._value())
            kind, text = self._token()
            if (kind, text) == ('punct', ','):
                row, col = self.row, self.col
                kind, text = 'punct', ','
            elif (kind, text) != ('punct', ']'):
                self.fail("expected ',' or ']'")
        return items

    def _more(self, end):
        kind, text = self._token()
        if (kind, text) == ('punct', ','):
            return self._token()
        if (kind, text) != ('punct', end):
            self.fail(f"expected ',' or '{end}'")
        return kind, text

    def _doc(self):
        self.row += 1
        doc, member = None, None
        while self.row < len(self.lines):
            line = self.lines[self.row]
            self.row += 1
            if line == '##':
                self.col = 0
                if doc:
                    self.docs[doc.name] = doc
                return
            if not line.startswith('#'):
                self.fail("a doc comment must end with '##'")
            if line == '# Features:':
                continue
            m = re.match(r'#\s?@([\w-]+):\s*(.*)', line)
            if m and doc is None:
                doc = Doc(m[1])
            elif m:
                member = m[1]
                doc.members[member] = m[2]
            elif doc is None:
                self.fail('a doc comment must begin with @name:')
            elif member and line.startswith('#     '):
                doc.members[member] += ' ' + line[1:].strip()
            else:
                member = None
                doc.text.append(line[1:].strip())
        self.fail('a doc comment without an end')


def parse_files(path):
    """The definitions of path and of what it includes: [(expr, where, file)]
    and the docs by name."""
    found, docs, seen = [], {}, set()

    def visit(file):
        if file in seen:
            return
        seen.add(file)
        parser = Parser(file)
        for expr, line in parser.parse():
            if 'include' in expr:
                visit(os.path.join(os.path.dirname(file), expr['include']))
            else:
                found.append((expr, f'{file}:{line}', file))
        docs.update(parser.docs)

    visit(path)
    return found, docs
