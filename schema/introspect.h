/* SPDX-License-Identifier: Apache-2.0 */
/* schema/introspect.h - what query-qmp-schema says, as JSON text. */
#ifndef SCHEMA_INTROSPECT_H
#define SCHEMA_INTROSPECT_H

extern const char schema_introspection[];

#endif
