// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "lunatik": runtimes that create and drive runtimes.
 */
#include <linux/slab.h>
#include <net/net_namespace.h>

#include "library.h"
#include "runtime.h"

#define RUNTIME	"lunatik.runtime"
#define CALL	"lunatik.call"

/**
 * struct call - kernel memory of a call that may end in a Lua error
 * @args: or NULL
 * @results: or NULL
 * @error: may have a text
 *
 * It is a userdata, so that an error frees it by way of the collector.
 */
struct call {
	struct lunatik_values *args;
	struct lunatik_values *results;
	struct lunatik_error error;
};

static int call_free(lua_State *L)
{
	struct call *call = lua_touserdata(L, 1);

	kfree(call->args);
	kfree(call->results);
	lunatik_error_free(&call->error);
	memset(call, 0, sizeof(*call));
	return 0;
}

static struct call *call_new(lua_State *L)
{
	struct call *call = lua_newuserdatauv(L, sizeof(*call), 0);

	memset(call, 0, sizeof(*call));
	luaL_setmetatable(L, CALL);
	return call;
}

static int call_raise(lua_State *L, const struct call *call)
{
	lua_pushstring(L, call->error.text ?: "not enough memory");
	return lua_error(L);
}

static struct lunatik_runtime **runtime_box(lua_State *L)
{
	return luaL_checkudata(L, 1, RUNTIME);
}

static struct lunatik_runtime *runtime_check(lua_State *L)
{
	struct lunatik_runtime *rt = *runtime_box(L);

	if (!rt)
		luaL_error(L, "the runtime was never created");
	return rt;
}

/* runtime:resume(...): what the script yields or returns next; raises */
static int runtime_resume(lua_State *L)
{
	struct lunatik_runtime *rt = runtime_check(L);
	int nargs = lua_gettop(L) - 1;
	struct call *call = call_new(L);
	int errno;
	u32 count;

	lunatik_check_stack(L);
	call->args = lunatik_values_get(L, L, 2, nargs, GFP_KERNEL);
	errno = lunatik_runtime_resume(rt, lunatik_instance_of(L), call->args, &call->results,
				       &call->error);
	kfree(call->args);
	call->args = NULL;
	if (errno)
		return call_raise(L, call);
	count = call->results ? call->results->count : 0;
	if (count)
		lunatik_values_push(L, call->results);
	kfree(call->results);
	call->results = NULL;
	return count;
}

/* runtime:stop(): nothing; stopping twice is harmless; raises */
static int runtime_stop(lua_State *L)
{
	struct lunatik_runtime *rt = runtime_check(L);
	struct call *call = call_new(L);

	lunatik_check_stack(L);
	if (lunatik_runtime_stop(rt, true, LUNATIK_STOP_REQUESTED,
				 &call->error))
		return call_raise(L, call);
	return 0;
}

static int runtime_collect(lua_State *L)
{
	struct lunatik_runtime **box = runtime_box(L);

	if (*box)
		lunatik_runtime_collect(*box);
	*box = NULL;
	return 0;
}

static const luaL_Reg runtime_methods[] = {
	{ "resume", runtime_resume },
	{ "stop", runtime_stop },
	{ NULL, NULL }
};

static void runtime_push_box(lua_State *L)
{
	struct lunatik_runtime **box = lua_newuserdatauv(L, sizeof(*box), 0);

	*box = NULL;
	luaL_setmetatable(L, RUNTIME);
}

/*
 * The metatables are made while the state is: where memory runs out then, there is
 * no script that could go on with half of one.
 */
static void open_metatables(lua_State *L)
{
	luaL_newmetatable(L, CALL);
	lua_pushcfunction(L, call_free);
	lua_setfield(L, -2, "__gc");
	luaL_newmetatable(L, RUNTIME);
	luaL_newlib(L, runtime_methods);
	lua_setfield(L, -2, "__index");
	lua_pushcfunction(L, runtime_collect);
	lua_setfield(L, -2, "__gc");
	lua_pushcfunction(L, runtime_stop);
	lua_setfield(L, -2, "__close");
	lua_pushliteral(L, RUNTIME);
	lua_setfield(L, -2, "__metatable");
	lua_pop(L, 2);
}

/* The second argument: true or "process" to sleep, false or "softirq" not to. */
static bool check_sleep(lua_State *L)
{
	static const char * const contexts[] = { "process", "softirq", NULL };

	if (lua_isnoneornil(L, 2))
		return true;
	if (lua_isboolean(L, 2))
		return lua_toboolean(L, 2);
	return luaL_checkoption(L, 2, NULL, contexts) == 0;
}

/* lunatik.runtime(script [, sleep]): a runtime object; raises */
static int lunatik_lua_runtime(lua_State *L)
{
	struct lunatik_runtime *owner = lunatik_runtime_of(L);
	struct lunatik_spec spec = {
		.name = luaL_checkstring(L, 1),
		.sleep = check_sleep(L),
		.outer = lunatik_instance_of(L),
	};
	struct lunatik_runtime **box;
	struct call *call;

	if (!owner->sleep)
		return luaL_error(L, "lunatik.runtime: creating a runtime sleeps, and this runtime is not sleepable");
	lunatik_check_stack(L);
	call = call_new(L);
	runtime_push_box(L);
	box = lua_touserdata(L, -1);
	spec.net = owner->net ? maybe_get_net(owner->net) : NULL;
	if (!spec.net)
		return luaL_error(L, "lunatik.runtime: the network namespace is gone");
	*box = lunatik_runtime_create(&spec, &call->error);
	put_net(spec.net);
	return *box ? 1 : call_raise(L, call);
}

static const luaL_Reg lunatik_functions[] = {
	{ "runtime", lunatik_lua_runtime },
	{ NULL, NULL }
};

int lunatik_open_lunatik(lua_State *L)
{
	open_metatables(L);
	luaL_newlib(L, lunatik_functions);
	return 1;
}
