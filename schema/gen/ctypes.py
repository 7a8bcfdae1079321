# SPDX-License-Identifier: Apache-2.0
"""schema/types.h and schema/types.c: C types, and tables that describe them."""

from . import names

HEAD = '/* Made by schema/generate.py from the schema.  Do not edit. */\n'

TOP = '''\
/* schema/types.h - the types of the interface in C.
 *
 * struct X, enum X    as the schema names them; members' '-' becomes '_', and
 *                     reserved words get a "q_" in front.
 * Optional            strings, structs and lists are pointers, NULL if absent;
 *                     other types have a bool has_x before them.
 * Unions              the common members, the tag among them, then a union u
 *                     with a member for each value of the tag that has more.
 * Alternates          type says which member of u is there.
 * Lists               XList: count, and items: pointers to structs, strings or
 *                     lists, but scalars and enumerations by value.
 * any                 its JSON text.
 *
 * Ownership  a struct owns all that it points at.
 * X_free     frees x and all below; takes NULL.
 * X_clone    a deep copy, NULL if out of memory.
 * XList_add  takes item over if it returns 0; -ENOMEM.
 * X_str      the schema's name of an enumeration's value.
 * X_meta     for schema/meta.h and what is built on it.
 */
#ifndef SCHEMA_TYPES_H
#define SCHEMA_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "schema/meta.h"

'''


def ordered(schema):
    """All objects and alternates, those that others contain first."""
    done, out = set(), []

    def visit(t):
        if t.name in done:
            return
        done.add(t.name)
        for b in t.branches.values():
            if b.kind in ('object', 'alternate'):
                visit(b)
        out.append(t)

    for t in schema.types.values():
        if t.kind in ('object', 'alternate'):
            visit(t)
    return out


def lists(schema):
    """A list type for every type that the schema lists."""
    return schema.arrays.values()


def enum_decl(e):
    out = [f'enum {e.name} {{']
    out += [f'\t{names.constant(e, v)},' for v in e.value_names()]
    out += [f'\t{names.constant(e, "_MAX")},', '};', '']
    return out


def member_decl(m):
    name = names.member(m.name)
    out = []
    if m.optional and not names.is_pointer(m.type):
        out.append(f'\tbool has_{name};')
    text = names.declare(m.type, name)
    if text:
        out.append(f'\t{text};')
    return out


def object_decl(t):
    out = [f'struct {t.name} {{']
    for m in t.members:
        out += member_decl(m)
    if t.branches:
        out.append('\tunion {')
        for value, b in t.branches.items():
            out.append(f'\t\tstruct {b.name} {names.member(value)};')
        out.append('\t} u;')
    if not t.members and not t.branches:
        out.append('\tchar nothing;')
    return out + ['};', '']


def alternate_decl(t):
    out = [f'enum {t.name}Kind {{']
    out += [f'\t{names.alternate_constant(t, b)},' for b in t.branches]
    out += ['};', '', f'struct {t.name} {{', f'\tenum {t.name}Kind type;',
            '\tunion {']
    for branch, b in t.branches.items():
        if b.kind in ('object', 'alternate'):
            out.append(f'\t\tstruct {b.name} {names.member(branch)};')
        elif names.declare(b, ''):
            out.append(f'\t\t{names.declare(b, names.member(branch))};')
    return out + ['\t} u;', '};', '']


def item_type(t):
    """C type of a list's items."""
    return names.declare(t, '').rstrip()


def star(ctype):
    return ctype + ('' if ctype.endswith('*') else ' ')


def list_decl(a):
    item = item_type(a.element)
    return [f'struct {a.name} {{', '\tsize_t count;',
            f'\t{star(item)}*items;', '};', '']


def functions(t):
    name = t.name
    out = [f'extern const struct meta {name}_meta;', '']
    if t.kind == 'enum':
        return out + ['static inline const char *',
                      f'{name}_str(enum {name} value)', '{',
                      f'\treturn meta_enum_str(&{name}_meta, (int)value);',
                      '}', '']
    out += ['static inline void', f'{name}_free(struct {name} *p)', '{',
            f'\tmeta_free(&{name}_meta, p);', '}', '',
            'static inline void', f'{name}_freep(struct {name} **p)', '{',
            f'\tmeta_free(&{name}_meta, *p);', '}', '',
            f'static inline struct {name} *',
            f'{name}_clone(const struct {name} *p)', '{',
            f'\treturn meta_clone(&{name}_meta, p);', '}', '']
    if t.kind == 'array':
        out += ['static inline int',
                f'{name}_add(struct {name} *l, {star(item_type(t.element))}item)',
                '{', f'\treturn meta_list_add(&{name}_meta, l, &item);', '}',
                '']
    return out


def header(schema):
    out = []
    enums = [t for t in schema.types.values() if t.kind == 'enum']
    for e in enums:
        out += enum_decl(e)
    for t in ordered(schema):
        out.append(f'struct {t.name};')
    for a in lists(schema):
        out.append(f'struct {a.name};')
    out.append('')
    for t in ordered(schema):
        out += object_decl(t) if t.kind == 'object' else alternate_decl(t)
    for a in lists(schema):
        out += list_decl(a)
    for t in [*enums, *ordered(schema), *lists(schema)]:
        out += functions(t)
    return HEAD + TOP + '\n'.join(out) + '\n#endif\n'


def meta_ref(t):
    if t.kind == 'builtin':
        return f'&meta_{t.name}'
    return f'&{t.name}_meta'


def c_string(s):
    return '"' + s.replace('\\', '\\\\').replace('"', '\\"') + '"'


def enum_table(e):
    out = [f'static const char *const {e.name}_values[] = {{']
    out += [f'\t{c_string(v)},' for v in e.value_names()]
    return out + ['};', '', f'const struct meta {e.name}_meta = {{',
                  f'\t.name = "{e.name}",', '\t.kind = META_ENUM,',
                  f'\t.size = sizeof(enum {e.name}),',
                  f'\t.names = {e.name}_values,',
                  f'\t.count = {len(e.values)},', '};', '']


def member_row(t, m):
    name = names.member(m.name)
    fields = [f'.name = "{m.name}"', f'.type = {meta_ref(m.type)}']
    if names.declare(m.type, name):
        fields.append(f'.offset = offsetof(struct {t.name}, {name})')
    if m.optional:
        fields.append('.optional = true')
        if not names.is_pointer(m.type):
            fields.append(f'.has = offsetof(struct {t.name}, has_{name})')
    if not names.is_pointer(m.type):
        fields.append('.by_value = true')
    text = ', '.join(fields)
    return f'\t{{ {text} }},'


def object_table(t):
    out = []
    if t.members:
        out.append(f'static const struct meta_member {t.name}_members[] = {{')
        out += [member_row(t, m) for m in t.members]
        out += ['};', '']
    if t.branches:
        out.append(f'static const struct meta *const {t.name}_branches[] = {{')
        for value, b in t.branches.items():
            out.append(f'\t[{names.constant(t.tag.type, value)}] = '
                       f'{meta_ref(b)},')
        # The table has a row for every value of the tag.
        last = t.tag.type.value_names()[-1]
        if last not in t.branches:
            out.append(f'\t[{names.constant(t.tag.type, last)}] = NULL,')
        out += ['};', '']
    out += [f'const struct meta {t.name}_meta = {{', f'\t.name = "{t.name}",',
            '\t.kind = META_OBJECT,', f'\t.size = sizeof(struct {t.name}),']
    if t.members:
        out += [f'\t.members = {t.name}_members,',
                f'\t.count = {len(t.members)},']
    if t.tag:
        out.append(f'\t.tag = &{t.name}_members[{t.members.index(t.tag)}],')
    if t.branches:
        out += [f'\t.branches = {t.name}_branches,',
                f'\t.u = offsetof(struct {t.name}, u),']
    return out + ['};', '']


def alternate_table(t):
    out = [f'static const struct meta *const {t.name}_branches[] = {{']
    out += [f'\t{meta_ref(b)},' for b in t.branches.values()]
    return out + ['};', '', f'const struct meta {t.name}_meta = {{',
                  f'\t.name = "{t.name}",', '\t.kind = META_ALTERNATE,',
                  f'\t.size = sizeof(struct {t.name}),',
                  f'\t.branches = {t.name}_branches,',
                  f'\t.count = {len(t.branches)},',
                  f'\t.u = offsetof(struct {t.name}, u),', '};', '']


def list_table(a):
    return [f'const struct meta {a.name}_meta = {{', f'\t.name = "{a.name}",',
            '\t.kind = META_LIST,', f'\t.size = sizeof(struct {a.name}),',
            f'\t.element = {meta_ref(a.element)},', '};', '']


def source(schema):
    out = []
    for t in schema.types.values():
        if t.kind == 'enum':
            out += enum_table(t)
    for t in ordered(schema):
        out += object_table(t) if t.kind == 'object' else alternate_table(t)
    for a in lists(schema):
        out += list_table(a)
    return HEAD + '#include "schema/types.h"\n\n' + '\n'.join(out)
