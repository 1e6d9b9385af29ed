// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Copies of Lua values, see value.h.
 */
#include <linux/string.h>

#include "memory.h"
#include "value.h"
#include "lauxlib.h"

/**
 * lunatik_values_alloc() - a list of nils with room for strings
 * @count: values
 * @bytes: room for the bytes of all strings
 * @gfp: allocation flags
 *
 * Return: the list, for kfree(), or NULL.
 */
struct lunatik_values *lunatik_values_alloc(u32 count, size_t bytes, gfp_t gfp)
{
	struct lunatik_values *values;

	values = lunatik_kzalloc(struct_size(values, value, count) + bytes, gfp);
	if (values)
		values->count = count;
	return values;
}

/**
 * lunatik_values_bytes() - the room for strings
 * @values: from lunatik_values_alloc()
 *
 * Return: its start.
 */
char *lunatik_values_bytes(struct lunatik_values *values)
{
	return (char *)&values->value[values->count];
}

static size_t values_measure(lua_State *L, lua_State *from, int first, int count)
{
	size_t len, bytes = 0;
	int i;

	if (count > LUNATIK_VALUES_MAX)
		luaL_error(L, "%d values are too many, at most %d cross runtimes",
			   count, LUNATIK_VALUES_MAX);
	for (i = 0; i < count; i++) {
		switch (lua_type(from, first + i)) {
		case LUA_TNIL:
		case LUA_TBOOLEAN:
		case LUA_TNUMBER:
			break;
		case LUA_TSTRING:
			lua_tolstring(from, first + i, &len);
			bytes += len;
			break;
		default:
			luaL_error(L, "value #%d is a %s, and only nil, booleans, integers and strings cross runtimes",
				   i + 1, luaL_typename(from, first + i));
		}
	}
	if (bytes > LUNATIK_VALUES_BYTES)
		luaL_error(L, "the strings are too long, at most %d bytes cross runtimes",
			   LUNATIK_VALUES_BYTES);
	return bytes;
}

/**
 * lunatik_values_get() - copy values off a Lua stack
 * @L: thread that errors are raised in
 * @from: thread that holds the values; they stay
 * @first: absolute index of the first
 * @count: how many
 * @gfp: allocation flags
 *
 * Context: inside a protected call; raises a Lua error.
 * Return: the copies, for kfree().
 */
struct lunatik_values *lunatik_values_get(lua_State *L, lua_State *from,
					  int first, int count, gfp_t gfp)
{
	size_t bytes = values_measure(L, from, first, count);
	struct lunatik_values *values = lunatik_values_alloc(count, bytes, gfp);
	char *room;
	int i;

	if (!values) {
		luaL_error(L, "not enough memory");
		return NULL;
	}
	room = lunatik_values_bytes(values);
	for (i = 0; i < count; i++) {
		struct lunatik_value *value = &values->value[i];
		const char *s;

		value->type = lua_type(from, first + i);
		if (value->type == LUA_TBOOLEAN) {
			value->integer = lua_toboolean(from, first + i);
		} else if (value->type == LUA_TNUMBER) {
			value->integer = lua_tointeger(from, first + i);
		} else if (value->type == LUA_TSTRING) {
			s = lua_tolstring(from, first + i, &value->len);
			value->bytes = memcpy(room, s, value->len);
			room += value->len;
		}
	}
	return values;
}

/**
 * lunatik_values_push() - copy values onto a Lua stack
 * @L: thread that gets them
 * @values: not consumed
 *
 * Context: inside a protected call; raises a Lua error.
 */
void lunatik_values_push(lua_State *L, const struct lunatik_values *values)
{
	u32 i;

	luaL_checkstack(L, values->count, "too many values");
	for (i = 0; i < values->count; i++) {
		const struct lunatik_value *value = &values->value[i];

		switch (value->type) {
		case LUA_TBOOLEAN:
			lua_pushboolean(L, value->integer);
			break;
		case LUA_TNUMBER:
			lua_pushinteger(L, value->integer);
			break;
		case LUA_TSTRING:
			lua_pushlstring(L, value->bytes, value->len);
			break;
		default:
			lua_pushnil(L);
		}
	}
}
