// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The methods of everything that is a run of bytes, see bytes.h.
 */
#include <asm/byteorder.h>
#include <linux/bitops.h>
#include <linux/minmax.h>
#include <net/checksum.h>

#include "bytes.h"
#include "lauxlib.h"

/* Bytes that are copied on the kernel's stack; even, so that the parts' sums add up. */
#define SMALL	128

/* Its address is the key of the ops in a metatable. */
static const char bytes_key;

/**
 * struct bytes - what argument 1 is
 * @ops: its kind
 * @self: its memory
 */
struct bytes {
	const struct lunatik_bytes_ops *ops;
	void *self;
};

static struct bytes bytes_check(lua_State *L)
{
	struct bytes bytes = {};

	if (lua_type(L, 1) == LUA_TUSERDATA && lua_getmetatable(L, 1)) {
		lua_rawgetp(L, -1, &bytes_key);
		bytes.ops = lua_touserdata(L, -1);
		bytes.self = lua_touserdata(L, 1);
		lua_pop(L, 2);
	}
	if (!bytes.ops)
		luaL_typeerror(L, 1, "data");
	return bytes;
}

static void bytes_outside(lua_State *L, struct bytes bytes, lua_Integer offset,
			  lua_Integer len)
{
	lua_Integer size = bytes.ops->size(L, bytes.self);

	luaL_error(L, "offset %I with %I bytes is outside the %s of %I bytes",
		   offset, len, bytes.ops->name, size);
}

static bool bytes_possible(lua_Integer offset, lua_Integer len)
{
	return offset >= 0 && offset < LUNATIK_BYTES_MAX &&
		len >= 0 && len < LUNATIK_BYTES_MAX;
}

static void bytes_read(lua_State *L, struct bytes bytes, lua_Integer offset,
		       void *buf, lua_Integer len)
{
	if (!bytes_possible(offset, len) ||
	    !bytes.ops->read(L, bytes.self, offset, buf, len))
		bytes_outside(L, bytes, offset, len);
}

static void bytes_write(lua_State *L, struct bytes bytes, lua_Integer offset,
			const void *buf, lua_Integer len)
{
	if (!bytes_possible(offset, len) ||
	    !bytes.ops->write(L, bytes.self, offset, buf, len))
		bytes_outside(L, bytes, offset, len);
}

/* Fields: the one at the offset in argument 2; a new value is argument 3. */

static void field_read(lua_State *L, void *field, size_t len)
{
	struct bytes bytes = bytes_check(L);

	bytes_read(L, bytes, luaL_checkinteger(L, 2), field, len);
}

static void field_does_not_fit(lua_State *L, lua_Integer value, size_t len,
			       bool is_signed)
{
	luaL_error(L, "%I does not fit %s %d-bit field", value,
		   is_signed ? "a signed" : "an unsigned", (int)(8 * len));
}

/* get_NAME and set_NAME of a field with @type's range that is stored as a @raw */
#define FIELD(name, type, raw, load, store)				\
static int get_##name(lua_State *L)					\
{									\
	raw field;							\
									\
	field_read(L, &field, sizeof(field));				\
	lua_pushinteger(L, (type)load(field));				\
	return 1;							\
}									\
									\
static int set_##name(lua_State *L)					\
{									\
	struct bytes bytes = bytes_check(L);				\
	lua_Integer offset = luaL_checkinteger(L, 2);			\
	lua_Integer value = luaL_checkinteger(L, 3);			\
	raw field = store(value);					\
									\
	if ((lua_Integer)(type)value != value)				\
		field_does_not_fit(L, value, sizeof(field),		\
				   (type)-1 < (type)1);			\
	bytes_write(L, bytes, offset, &field, sizeof(field));		\
	return 0;							\
}

#define as_is(field)		(field)

FIELD(int8, s8, u8, as_is, as_is)
FIELD(uint8, u8, u8, as_is, as_is)
FIELD(int16, s16, u16, as_is, as_is)
FIELD(uint16, u16, u16, as_is, as_is)
FIELD(int16be, s16, __be16, be16_to_cpu, cpu_to_be16)
FIELD(uint16be, u16, __be16, be16_to_cpu, cpu_to_be16)
FIELD(int16le, s16, __le16, le16_to_cpu, cpu_to_le16)
FIELD(uint16le, u16, __le16, le16_to_cpu, cpu_to_le16)
FIELD(int32, s32, u32, as_is, as_is)
FIELD(uint32, u32, u32, as_is, as_is)
FIELD(int32be, s32, __be32, be32_to_cpu, cpu_to_be32)
FIELD(uint32be, u32, __be32, be32_to_cpu, cpu_to_be32)
FIELD(int32le, s32, __le32, le32_to_cpu, cpu_to_le32)
FIELD(uint32le, u32, __le32, le32_to_cpu, cpu_to_le32)
FIELD(int64, s64, u64, as_is, as_is)
FIELD(uint64, u64, u64, as_is, as_is)
FIELD(int64be, s64, __be64, be64_to_cpu, cpu_to_be64)
FIELD(uint64be, u64, __be64, be64_to_cpu, cpu_to_be64)
FIELD(int64le, s64, __le64, le64_to_cpu, cpu_to_le64)
FIELD(uint64le, u64, __le64, le64_to_cpu, cpu_to_le64)

/* Strings and sums */

/* Offset and length in arguments 2 and 3, by default all, or all that follow. */
static lua_Integer range_check(lua_State *L, struct bytes bytes,
			       lua_Integer *offset)
{
	lua_Integer size = bytes.ops->size(L, bytes.self);
	lua_Integer len;

	*offset = luaL_optinteger(L, 2, 0);
	if (*offset < 0 || *offset > size)
		bytes_outside(L, bytes, *offset, luaL_optinteger(L, 3, 0));
	len = luaL_optinteger(L, 3, size - *offset);
	if (len < 0 || len > size - *offset)
		bytes_outside(L, bytes, *offset, len);
	return len;
}

/* getstring(offset [, len]): a string */
static int get_string(lua_State *L)
{
	struct bytes bytes = bytes_check(L);
	lua_Integer offset, len;
	char small[SMALL], *room = small;

	luaL_checkinteger(L, 2);
	len = range_check(L, bytes, &offset);
	if (len > (lua_Integer)sizeof(small))
		room = lua_newuserdatauv(L, len, 0);
	bytes_read(L, bytes, offset, room, len);
	lua_pushlstring(L, room, len);
	return 1;
}

/* setstring(offset, s) */
static int set_string(lua_State *L)
{
	struct bytes bytes = bytes_check(L);
	lua_Integer offset = luaL_checkinteger(L, 2);
	size_t len;
	const char *s = luaL_checklstring(L, 3, &len);

	bytes_write(L, bytes, offset, s, len);
	return 0;
}

/* checksum([offset [, len]]): the Internet checksum (RFC 1071) of those bytes */
static int checksum(lua_State *L)
{
	struct bytes bytes = bytes_check(L);
	lua_Integer offset, len;
	__wsum sum = 0;
	u8 part[SMALL];

	len = range_check(L, bytes, &offset);
	while (len > 0) {
		int n = min_t(lua_Integer, len, sizeof(part));

		bytes_read(L, bytes, offset, part, n);
		sum = csum_partial(part, n, sum);
		offset += n;
		len -= n;
	}
	lua_pushinteger(L, be16_to_cpu((__force __be16)csum_fold(sum)));
	return 1;
}

static int length(lua_State *L)
{
	struct bytes bytes = bytes_check(L);

	lua_pushinteger(L, bytes.ops->size(L, bytes.self));
	return 1;
}

static const luaL_Reg methods[] = {
	{ "getint8", get_int8 }, { "setint8", set_int8 },
	{ "getuint8", get_uint8 }, { "setuint8", set_uint8 },
	{ "getint16", get_int16 }, { "setint16", set_int16 },
	{ "getuint16", get_uint16 }, { "setuint16", set_uint16 },
	{ "getint16be", get_int16be }, { "setint16be", set_int16be },
	{ "getuint16be", get_uint16be }, { "setuint16be", set_uint16be },
	{ "getint16le", get_int16le }, { "setint16le", set_int16le },
	{ "getuint16le", get_uint16le }, { "setuint16le", set_uint16le },
	{ "getint32", get_int32 }, { "setint32", set_int32 },
	{ "getuint32", get_uint32 }, { "setuint32", set_uint32 },
	{ "getint32be", get_int32be }, { "setint32be", set_int32be },
	{ "getuint32be", get_uint32be }, { "setuint32be", set_uint32be },
	{ "getint32le", get_int32le }, { "setint32le", set_int32le },
	{ "getuint32le", get_uint32le }, { "setuint32le", set_uint32le },
	{ "getint64", get_int64 }, { "setint64", set_int64 },
	{ "getuint64", get_uint64 }, { "setuint64", set_uint64 },
	{ "getint64be", get_int64be }, { "setint64be", set_int64be },
	{ "getuint64be", get_uint64be }, { "setuint64be", set_uint64be },
	{ "getint64le", get_int64le }, { "setint64le", set_int64le },
	{ "getuint64le", get_uint64le }, { "setuint64le", set_uint64le },
	{ "getstring", get_string }, { "setstring", set_string },
	{ "getbyte", get_uint8 }, { "setbyte", set_uint8 },
	{ "getnumber", get_int64 }, { "setnumber", set_int64 },
	{ "checksum", checksum },
	{ NULL, NULL }
};

/**
 * lunatik_bytes_open() - make userdata with a metatable a kind of bytes
 * @L: has the metatable on its top; its __index is a table that gets the methods
 * @ops: stays valid
 *
 * Context: inside a protected call.
 */
void lunatik_bytes_open(lua_State *L, const struct lunatik_bytes_ops *ops)
{
	lua_pushlightuserdata(L, (void *)ops);
	lua_rawsetp(L, -2, &bytes_key);
	lua_pushcfunction(L, length);
	lua_setfield(L, -2, "__len");
	lua_getfield(L, -1, "__index");
	luaL_setfuncs(L, methods, 0);
	lua_pop(L, 1);
}
