// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "linux": time, random numbers, interfaces, the kernel log.
 */
#include <linux/jiffies.h>
#include <linux/math64.h>
#include <linux/netdevice.h>
#include <linux/printk.h>
#include <linux/random.h>
#include <linux/ratelimit.h>
#include <linux/sched/signal.h>
#include <linux/string.h>
#include <linux/timekeeping.h>

#include "library.h"
#include "runtime.h"

/* linux.time(): nanoseconds since 1970, UTC */
static int linux_time(lua_State *L)
{
	lua_pushinteger(L, ktime_get_real_ns());
	return 1;
}

/* linux.difftime(later, earlier): nanoseconds between two times */
static int linux_difftime(lua_State *L)
{
	lua_pushinteger(L, luaL_checkinteger(L, 1) - luaL_checkinteger(L, 2));
	return 1;
}

#define SCHEDULE_MAX_MS	10000

/*
 * linux.schedule([ms]): sleep, or just let others run; only where that is allowed.
 * The runtime is busy meanwhile, for whoever wants to stop it too, hence the limits:
 * on one sleep, and on all that a call sleeps and waits.
 */
static int linux_schedule(lua_State *L)
{
	const struct lunatik_instance *instance = lunatik_instance_of(L);
	lua_Integer ms = luaL_optinteger(L, 1, 0);
	long timeout, left;

	if (!instance->sleep)
		return luaL_error(L, "linux.schedule: only a sleepable runtime can sleep");
	luaL_argcheck(L, ms >= 0 && ms <= SCHEDULE_MAX_MS, 1,
		      "0 to 10000 milliseconds");
	lunatik_check_stack(L);
	timeout = msecs_to_jiffies(ms);
	left = max(0L, (long)(instance->wait_end - jiffies));
	if (timeout)
		schedule_timeout_killable(min(timeout, left));
	else
		cond_resched();
	if (fatal_signal_pending(current))
		return luaL_error(L, "killed");
	if (timeout > left)
		return luaL_error(L, "linux.schedule: the call has waited as long as it may (body_wait): sleep for less, or yield in between");
	return 0;
}

/**
 * lunatik_ifindex_of() - find an interface
 * @net: namespace
 * @name: of the interface, or NULL
 * @index: of the interface, where there is no name
 *
 * Context: any.
 * Return: its index, or 0 where there is none.
 */
int lunatik_ifindex_of(struct net *net, const char *name, lua_Integer index)
{
	struct net_device *dev = NULL;
	int found = 0;

	rcu_read_lock();
	if (name)
		dev = dev_get_by_name_rcu(net, name);
	else if (index > 0 && index <= INT_MAX)
		dev = dev_get_by_index_rcu(net, index);
	if (dev)
		found = dev->ifindex;
	rcu_read_unlock();
	return found;
}

/* linux.ifindex(name): index of an interface in the runtime's namespace, or nil */
static int linux_ifindex(lua_State *L)
{
	int index = lunatik_ifindex_of(lunatik_runtime_of(L)->net,
				       luaL_checkstring(L, 1), 0);

	if (index)
		lua_pushinteger(L, index);
	else
		lua_pushnil(L);
	return 1;
}

/* linux.ifname(index): name of an interface in the runtime's namespace, or nil */
static int linux_ifname(lua_State *L)
{
	lua_Integer index = luaL_checkinteger(L, 1);
	struct net_device *dev = NULL;
	char name[IFNAMSIZ] = "";

	rcu_read_lock();
	if (index > 0 && index <= INT_MAX)
		dev = dev_get_by_index_rcu(lunatik_runtime_of(L)->net, index);
	if (dev)
		strscpy(name, dev->name, sizeof(name));
	rcu_read_unlock();
	if (dev)
		lua_pushstring(L, name);
	else
		lua_pushnil(L);
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
	struct lunatik_name name;

	if (!__ratelimit(&limit))
		return;
	name = lunatik_runtime_name(rt);
	switch (level) {
	case LUNATIK_LOG_DEBUG:
		pr_debug(LINE, rt->id, name.text, text);
		break;
	case LUNATIK_LOG_INFO:
		pr_info(LINE, rt->id, name.text, text);
		break;
	case LUNATIK_LOG_NOTICE:
		pr_notice(LINE, rt->id, name.text, text);
		break;
	case LUNATIK_LOG_WARN:
		pr_warn(LINE, rt->id, name.text, text);
		break;
	default:
		pr_err(LINE, rt->id, name.text, text);
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
	{ "difftime", linux_difftime },
	{ "ifindex", linux_ifindex },
	{ "ifname", linux_ifname },
	{ "log", linux_log },
	{ "random", lunatik_random },
	{ "schedule", linux_schedule },
	{ "time", linux_time },
	{ NULL, NULL }
};

int lunatik_open_linux(lua_State *L)
{
	luaL_newlib(L, linux_functions);
	return 1;
}
