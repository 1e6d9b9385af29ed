/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * The methods of everything that is a run of bytes: data objects, and views of
 * packets. Offsets count from 0; a field never lies outside, not even in part.
 *
 * A kind of bytes has a struct lunatik_bytes_ops and a metatable that
 * lunatik_bytes_open() was given; the methods find the ops by way of the metatable,
 * so they work on every kind, and on nothing else.
 */
#ifndef _LUNATIK_BYTES_H
#define _LUNATIK_BYTES_H

#include <linux/types.h>

#include "lua.h"

/* More bytes than any kind has, so that no sum of offset and length overflows. */
#define LUNATIK_BYTES_MAX	(1 << 30)

/**
 * struct lunatik_bytes_ops - a kind of bytes
 * @name: in messages: "offset 70 with 4 bytes is outside the NAME of 64 bytes"
 * @size: how many bytes there are
 * @read: copy @len bytes at @offset to @buf; false if they are not all inside
 * @write: copy @buf to @len bytes at @offset; false if they are not all inside
 *
 * @self is the memory of the userdata. Offset and length are below
 * LUNATIK_BYTES_MAX. All may raise; the callers hold nothing. After a false from
 * @read or @write, @size is asked, which so may raise a better reason.
 */
struct lunatik_bytes_ops {
	const char *name;
	size_t (*size)(lua_State *L, void *self);
	bool (*read)(lua_State *L, void *self, size_t offset, void *buf, size_t len);
	bool (*write)(lua_State *L, void *self, size_t offset, const void *buf,
		      size_t len);
};

void lunatik_bytes_open(lua_State *L, const struct lunatik_bytes_ops *ops);

#endif /* _LUNATIK_BYTES_H */
