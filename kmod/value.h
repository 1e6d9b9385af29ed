/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Values on their way from one Lua state to another, or to and from user space.
 * They are copied, so that no two states share memory and no lock is held on
 * both sides; of a shared object a reference is taken. Objects do not cross to user
 * space.
 */
#ifndef _LUNATIK_VALUE_H
#define _LUNATIK_VALUE_H

#include <linux/types.h>

#include "lua.h"

#define LUNATIK_VALUES_MAX	64
#define LUNATIK_VALUES_BYTES	(60 * 1024)

struct lunatik_object;

/**
 * struct lunatik_value - nil, a boolean, an integer, a string or a shared object
 * @type: LUA_TNIL, LUA_TBOOLEAN, LUA_TNUMBER, LUA_TSTRING or LUA_TUSERDATA
 * @integer: the integer, or 0 or 1
 * @bytes: of a string, in the memory of the struct lunatik_values
 * @len: of a string, in bytes
 * @object: a reference
 */
struct lunatik_value {
	int type;
	s64 integer;
	const char *bytes;
	size_t len;
	struct lunatik_object *object;
};

/* What may cross: between runtimes objects too. */
enum lunatik_crossing {
	LUNATIK_TO_USER,
	LUNATIK_TO_RUNTIME,
};

/**
 * struct lunatik_values - a list of values, in one allocation
 * @count: of @value
 * @value: in order
 */
struct lunatik_values {
	u32 count;
	struct lunatik_value value[];
};

struct lunatik_values *lunatik_values_alloc(u32 count, size_t bytes, gfp_t gfp);
void lunatik_values_free(struct lunatik_values *values);
char *lunatik_values_bytes(struct lunatik_values *values);
const char *lunatik_value_typename(lua_State *L, lua_State *from, int index);
bool lunatik_value_crosses(lua_State *L, int index);
struct lunatik_values *lunatik_values_get(lua_State *L, lua_State *from,
					  int first, int count,
					  enum lunatik_crossing crossing,
					  gfp_t gfp);
void lunatik_values_push(lua_State *L, const struct lunatik_values *values);

#endif /* _LUNATIK_VALUE_H */
