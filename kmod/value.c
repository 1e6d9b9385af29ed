// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Copies of Lua values, see value.h.
 */
#include <linux/string.h>

#include "memory.h"
#include "object.h"
#include "value.h"
#include "lauxlib.h"

/**
 * lunatik_values_alloc() - a list of nils with room for strings
 * @count: values
 * @bytes: room for the bytes of all strings
 * @gfp: allocation flags
 *
 * Return: the list, for lunatik_values_free(), or NULL.
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

/**
 * lunatik_values_free() - free a list, and give back its references
 * @values: list, or NULL
 *
 * Context: any.
 */
void lunatik_values_free(struct lunatik_values *values)
{
	u32 i;

	for (i = 0; values && i < values->count; i++)
		if (values->value[i].object)
			lunatik_object_put(values->value[i].object);
	kfree(values);
}

/**
 * lunatik_value_typename() - what to call the type of a value in a message
 * @L: thread whose stack keeps the name
 * @from: thread that holds the value
 * @index: absolute index of the value
 *
 * Context: inside a protected call; raises a Lua error.
 * Return: the name.
 */
const char *lunatik_value_typename(lua_State *L, lua_State *from, int index)
{
	if (lua_type(from, index) == LUA_TUSERDATA && lua_checkstack(from, 1)) {
		lua_pushvalue(from, index);
		lua_xmove(from, L, 1);
		if (luaL_getmetafield(L, -1, "__name") == LUA_TSTRING)
			return lua_tostring(L, -1);
	}
	return luaL_typename(from, index);
}

static void value_refuse(lua_State *L, lua_State *from, int index, int position,
			 bool crosses_runtimes)
{
	const char *name = lunatik_value_typename(L, from, index);

	if (crosses_runtimes)
		luaL_error(L, "value #%d is a %s, and shared objects cross between runtimes only, not to user space",
			   position, name);
	luaL_error(L, "value #%d is a %s, and only nil, booleans, integers, strings and shared objects cross runtimes",
		   position, name);
}

/* The object that may cross runtimes, or NULL. The stack has two free slots. */
static struct lunatik_object *value_object(lua_State *L, int index)
{
	const struct lunatik_class *class = lunatik_class_at(L, index);

	return class && !class->stays ? lunatik_object_at(L, index) : NULL;
}

/**
 * lunatik_value_crosses() - whether a value may cross runtimes
 * @L: thread with two free slots
 * @index: absolute index of the value
 *
 * Context: does not raise.
 * Return: whether lunatik_values_get() takes it.
 */
bool lunatik_value_crosses(lua_State *L, int index)
{
	size_t len;

	switch (lua_type(L, index)) {
	case LUA_TNIL:
	case LUA_TBOOLEAN:
	case LUA_TNUMBER:
		return true;
	case LUA_TSTRING:
		lua_tolstring(L, index, &len);
		return len <= LUNATIK_VALUES_BYTES;
	default:
		return value_object(L, index);
	}
}

static size_t values_measure(lua_State *L, lua_State *from, int first, int count,
			     enum lunatik_crossing crossing)
{
	size_t len, bytes = 0;
	int i;

	if (count > LUNATIK_VALUES_MAX)
		luaL_error(L, "%d values are too many, at most %d cross runtimes",
			   count, LUNATIK_VALUES_MAX);
	if (!lua_checkstack(from, 2)) /* for a look at metatables */
		luaL_error(L, "not enough memory");
	for (i = 0; i < count; i++) {
		if (lua_type(from, first + i) == LUA_TSTRING) {
			lua_tolstring(from, first + i, &len);
			bytes += len;
		} else if (!lunatik_value_crosses(from, first + i)) {
			value_refuse(L, from, first + i, i + 1, false);
		} else if (lua_type(from, first + i) == LUA_TUSERDATA &&
			   crossing == LUNATIK_TO_USER) {
			value_refuse(L, from, first + i, i + 1, true);
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
 * @crossing: what may be among them
 * @gfp: allocation flags
 *
 * Context: inside a protected call; raises a Lua error.
 * Return: the copies, for lunatik_values_free().
 */
struct lunatik_values *lunatik_values_get(lua_State *L, lua_State *from,
					  int first, int count,
					  enum lunatik_crossing crossing,
					  gfp_t gfp)
{
	size_t bytes = values_measure(L, from, first, count, crossing);
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
		} else if (value->type == LUA_TUSERDATA) {
			value->object = lunatik_object_get(value_object(from, first + i));
		}
	}
	return values;
}

/**
 * lunatik_values_push() - copy values onto a Lua stack
 * @L: thread that gets them
 * @values: not consumed, also if this raises
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
		case LUA_TUSERDATA:
			lunatik_object_push(L, value->object);
			break;
		default:
			lua_pushnil(L);
		}
	}
}
