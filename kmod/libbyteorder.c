// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "byteorder": integers between the host's byte order and others.
 */
#include <linux/types.h>
#include <asm/byteorder.h>

#include "library.h"

/* The argument, which has the unsigned range up to @max; raises. */
static u64 order_check(lua_State *L, u64 max)
{
	u64 value = luaL_checkinteger(L, 1);

	luaL_argcheck(L, value <= max, 1, "the integer has more bits");
	return value;
}

/* Both directions are one function; 64 bits are those of Lua's integer. */
#define CONVERT(name, type, convert)					\
static int convert_##name(lua_State *L)					\
{									\
	type value = order_check(L, (type)~0ULL);			\
									\
	lua_pushinteger(L, (__force type)convert(value));		\
	return 1;							\
}

CONVERT(be16, u16, cpu_to_be16)
CONVERT(be32, u32, cpu_to_be32)
CONVERT(be64, u64, cpu_to_be64)
CONVERT(le16, u16, cpu_to_le16)
CONVERT(le32, u32, cpu_to_le32)
CONVERT(le64, u64, cpu_to_le64)

static const luaL_Reg byteorder_functions[] = {
	{ "hton16", convert_be16 },
	{ "hton32", convert_be32 },
	{ "hton64", convert_be64 },
	{ "ntoh16", convert_be16 },
	{ "ntoh32", convert_be32 },
	{ "ntoh64", convert_be64 },
	{ "htobe16", convert_be16 },
	{ "htobe32", convert_be32 },
	{ "htobe64", convert_be64 },
	{ "be16toh", convert_be16 },
	{ "be32toh", convert_be32 },
	{ "be64toh", convert_be64 },
	{ "htole16", convert_le16 },
	{ "htole32", convert_le32 },
	{ "htole64", convert_le64 },
	{ "le16toh", convert_le16 },
	{ "le32toh", convert_le32 },
	{ "le64toh", convert_le64 },
	{ NULL, NULL }
};

int lunatik_open_byteorder(lua_State *L)
{
	luaL_newlib(L, byteorder_functions);
	return 1;
}
