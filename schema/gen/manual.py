# SPDX-License-Identifier: Apache-2.0
"""schema/qmp.md: the reference manual, from the doc comments."""

import os
import re


def type_text(t):
    if t.kind == 'builtin':
        return t.name
    if t.kind == 'array':
        return 'array of ' + type_text(t.element)
    return f'[{t.name}](#{t.name.lower()})'


def member_rows(members, doc):
    out = []
    for m in members:
        text = doc.members.get(m.name, '') if doc else ''
        marks = ['optional'] if m.optional else []
        marks += m.features
        mark = f' ({", ".join(marks)})' if marks else ''
        out.append(f'- `{m.name}`: {type_text(m.type)}{mark}'
                   + (f' - {text}' if text else ''))
    return out


def fields(t, doc, schema):
    """The members of an object; those of a base have their text there."""
    if t is None:
        return []
    own = schema.docs.get(t.name)
    texts = {}
    for other in schema.types.values():
        if other.kind == 'object' and other.name in schema.docs:
            for m in other.members:
                text = schema.docs[other.name].members.get(m.name)
                if text and m in t.members:
                    texts[m.name] = text
    for d in (own, doc):
        texts.update(d.members if d else {})
    merged = type('', (), {'members': texts})
    out = member_rows(t.members, merged)
    for value, branch in t.branches.items():
        out.append(f'- where `{t.tag.name}` is `{value}`: the members of '
                   f'{type_text(branch)}')
    return out


def section(what, entity, schema):
    doc = schema.docs.get(entity.name)
    out = [f'### {entity.name}', '', f'*{what}*', '']
    if doc:
        out += [line for line in '\n'.join(doc.text).strip().split('\n')] + ['']
    return out, doc


def describe(entity, schema):
    kind = type(entity).__name__
    if kind == 'Command':
        out, doc = section('Command', entity, schema)
        rows = fields(entity.args, doc, schema)
        if rows:
            out += ['Arguments:', '', *rows, '']
        if entity.ret:
            out += [f'Returns: {type_text(entity.ret)}', '']
        for name in entity.features:
            why = doc.members.get(name, '') if doc else ''
            out += [f'Feature `{name}`' + (f': {why}' if why else ''), '']
        if entity.oob:
            out += ['May be executed out of band.', '']
        return out
    if kind == 'Event':
        out, doc = section('Event', entity, schema)
        rows = fields(entity.data, doc, schema)
        return out + (['Data:', '', *rows, ''] if rows else [])
    if kind == 'Enum':
        out, doc = section('Enumeration', entity, schema)
        for value, features in entity.values:
            text = doc.members.get(value, '') if doc else ''
            out.append(f'- `{value}`' + (f' - {text}' if text else ''))
        return out + ['']
    if kind == 'Alternate':
        out, doc = section('Alternate', entity, schema)
        for name, branch in entity.branches.items():
            text = doc.members.get(name, '') if doc else ''
            out.append(f'- {type_text(branch)}' + (f' - {text}' if text else ''))
        return out + ['']
    out, doc = section('Object', entity, schema)
    return out + [*fields(entity, doc, schema), '']


def text(schema):
    out = ['# QMP reference', '',
           'Commands, events and types of quoind, made from the schema.', '']
    last = None
    for file, entity in schema.order:
        if file != last:
            last = file
            out += [f'## {os.path.splitext(os.path.basename(file))[0]}', '']
        out += describe(entity, schema)
    return re.sub(r'@([\w-]+)', r'`\1`', '\n'.join(out)) + '\n'
