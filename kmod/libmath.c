// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "math", as far as integers need it.
 */
#include <linux/kernel.h>

#include "library.h"

static int math_abs(lua_State *L)
{
	lua_Integer n = luaL_checkinteger(L, 1);

	lua_pushinteger(L, n < 0 ? (lua_Integer)(0ULL - (lua_Unsigned)n) : n);
	return 1;
}

static int math_max(lua_State *L)
{
	lua_Integer best = luaL_checkinteger(L, 1);
	int i;

	for (i = 2; i <= lua_gettop(L); i++)
		best = max(best, luaL_checkinteger(L, i));
	lua_pushinteger(L, best);
	return 1;
}

static int math_min(lua_State *L)
{
	lua_Integer best = luaL_checkinteger(L, 1);
	int i;

	for (i = 2; i <= lua_gettop(L); i++)
		best = min(best, luaL_checkinteger(L, i));
	lua_pushinteger(L, best);
	return 1;
}

static int math_tointeger(lua_State *L)
{
	int is_integer;
	lua_Integer n = lua_tointegerx(L, 1, &is_integer);

	luaL_checkany(L, 1);
	if (is_integer)
		lua_pushinteger(L, n);
	else
		lua_pushnil(L);
	return 1;
}

static int math_type(lua_State *L)
{
	luaL_checkany(L, 1);
	if (lua_isinteger(L, 1))
		lua_pushliteral(L, "integer");
	else
		lua_pushnil(L);
	return 1;
}

static int math_ult(lua_State *L)
{
	lua_pushboolean(L, (lua_Unsigned)luaL_checkinteger(L, 1) <
			   (lua_Unsigned)luaL_checkinteger(L, 2));
	return 1;
}

static const luaL_Reg math_functions[] = {
	{ "abs", math_abs },
	{ "max", math_max },
	{ "min", math_min },
	{ "random", lunatik_random },
	{ "tointeger", math_tointeger },
	{ "type", math_type },
	{ "ult", math_ult },
	{ NULL, NULL }
};

int lunatik_open_math(lua_State *L)
{
	luaL_newlib(L, math_functions);
	lua_pushinteger(L, LUA_MAXINTEGER);
	lua_setfield(L, -2, "maxinteger");
	lua_pushinteger(L, LUA_MININTEGER);
	lua_setfield(L, -2, "mininteger");
	return 1;
}
