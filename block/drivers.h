/* SPDX-License-Identifier: Apache-2.0 */
/* block/drivers.h - the drivers there are, by name of their definition. */
#ifndef BLOCK_DRIVERS_H
#define BLOCK_DRIVERS_H

struct driver;

extern const struct driver driver_compress;
extern const struct driver driver_copy_before_write;
extern const struct driver driver_file;
extern const struct driver driver_host_device;
extern const struct driver driver_luks;
extern const struct driver driver_nbd;
extern const struct driver driver_null_co;
extern const struct driver driver_qcow;
extern const struct driver driver_qcow2;
extern const struct driver driver_raw;
extern const struct driver driver_snapshot_access;


#endif
