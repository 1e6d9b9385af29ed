// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "linux": the clock, random numbers, the kernel log.
 */
#include <linux/math64.h>
#include <linux/printk.h>
#include <linux/random.h>
#include <linux/ratelimit.h>
#include <linux/timekeeping.h>

#include "library.h"
#include "runtime.h"

/* linux.time(): nanoseconds since 1970, UTC */
static int linux_time(lua_State *L)
{
	lua_pushinteger(L, ktime_get_real_ns());
	return 1;
}

/*
 * linux.random([m [, n]]): any integer; 1 to m; m to n. Also math.random. The
 * kernel's generator, which needs no seed.
 */
int lunatik_random(lua_State *L)
{
	lua_Integer low = 1, high;
	u64 range;

	if (lua_gettop(L) == 0) {
		lua_pushinteger(L, get_random_u64());
		return 1;
	}
	high = luaL_checkinteger(L, 1);
	if (lua_gettop(L) > 1) {
		low = high;
		high = luaL_checkinteger(L, 2);
	}
	luaL_argcheck(L, low <= high, lua_gettop(L), "interval is empty");
	range = (u64)high - (u64)low + 1; /* 0 stands for 2^64 */
	lua_pushinteger(L, range ? (u64)low + mul_u64_u64_shr(get_random_u64(),
							      range, 64) :
			get_random_u64());
	return 1;
}

#define LINE	"runtime %u (%s): %.512s\n"

/**
 * lunatik_log() - print a script's line to the kernel log, if the rate allows it
 * @rt: runtime of the script
 * @level: enum lunatik_log_level
 * @text: what to print; at most 512 bytes of it are
 *
 * Context: any.
 */
void lunatik_log(const struct lunatik_runtime *rt, int level, const char *text)
{
	static DEFINE_RATELIMIT_STATE(limit, DEFAULT_RATELIMIT_INTERVAL, 100);

	if (!__ratelimit(&limit))
		return;
	switch (level) {
	case LUNATIK_LOG_DEBUG:
		pr_debug(LINE, rt->id, rt->name, text);
		break;
	case LUNATIK_LOG_INFO:
		pr_info(LINE, rt->id, rt->name, text);
		break;
	case LUNATIK_LOG_NOTICE:
		pr_notice(LINE, rt->id, rt->name, text);
		break;
	case LUNATIK_LOG_WARN:
		pr_warn(LINE, rt->id, rt->name, text);
		break;
	default:
		pr_err(LINE, rt->id, rt->name, text);
	}
}

/* linux.log([level,] message): a rate-limited line in the kernel log */
static int linux_log(lua_State *L)
{
	static const char * const names[] = {
		[LUNATIK_LOG_DEBUG] = "debug",
		[LUNATIK_LOG_INFO] = "info",
		[LUNATIK_LOG_NOTICE] = "notice",
		[LUNATIK_LOG_WARN] = "warn",
		[LUNATIK_LOG_ERR] = "err",
		NULL
	};
	int level = LUNATIK_LOG_INFO, argument = 1;

	if (lua_gettop(L) > 1) {
		level = luaL_checkoption(L, 1, NULL, names);
		argument = 2;
	}
	luaL_tolstring(L, argument, NULL);
	lunatik_log(lunatik_runtime_of(L), level, lua_tostring(L, -1));
	return 0;
}

static const luaL_Reg linux_functions[] = {
	{ "log", linux_log },
	{ "random", lunatik_random },
	{ "time", linux_time },
	{ NULL, NULL }
};

int lunatik_open_linux(lua_State *L)
{
	luaL_newlib(L, linux_functions);
	return 1;
}
