// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "lunatik": runtimes that create and drive runtimes.
 */
#include <linux/slab.h>
#include <net/net_namespace.h>

#include "library.h"
#include "object.h"
#include "runtime.h"

/**
 * struct child - what the handle of a runtime stands for
 * @object: head
 * @rt: the runtime, with a reference, or NULL while it is being created
 */
struct child {
	struct lunatik_object object;
	struct lunatik_runtime *rt;
};

/* Only sleepable runtimes have such handles, so this is process context. */
static void child_release(struct lunatik_object *object)
{
	struct child *child = container_of(object, struct child, object);

	if (child->rt)
		lunatik_runtime_collect(child->rt);
}

static struct lunatik_runtime *runtime_check(lua_State *L)
{
	return container_of(lunatik_object_check(L, 1, &lunatik_runtime_class),
			    struct child, object)->rt;
}

static int protected_push_values(lua_State *L)
{
	const struct lunatik_values *values = lua_touserdata(L, 1);

	lunatik_values_push(L, values);
	return values->count;
}

static int protected_push_error(lua_State *L)
{
	const struct lunatik_error *error = lua_touserdata(L, 1);

	if (error->value)
		lunatik_values_push(L, error->value);
	else
		lua_pushstring(L, error->text ?: "not enough memory");
	return 1;
}

/* Raise an error, which is freed. */
static int raise(lua_State *L, struct lunatik_error *error)
{
	lunatik_protected(L, protected_push_error, error);
	lunatik_error_free(error);
	return lua_error(L);
}

/* runtime:resume(...): what the script yields or returns next; raises */
static int runtime_resume(lua_State *L)
{
	struct lunatik_runtime *rt = runtime_check(L);
	struct lunatik_values *args, *results = NULL;
	int top = lua_gettop(L), status = LUA_OK;
	struct lunatik_error error = {};
	int errno;

	lunatik_check_stack(L);
	args = lunatik_values_get(L, L, 2, top - 1, LUNATIK_TO_RUNTIME,
				  GFP_KERNEL);
	errno = lunatik_runtime_resume(rt, lunatik_instance_of(L), args,
				       &results, &error);
	lunatik_values_free(args);
	if (errno)
		return raise(L, &error);
	if (results)
		status = lunatik_protected(L, protected_push_values, results);
	lunatik_values_free(results);
	return status == LUA_OK ? lua_gettop(L) - top : lua_error(L);
}

/* runtime:stop(): nothing; stopping twice is harmless; raises */
static int runtime_stop(lua_State *L)
{
	struct lunatik_runtime *rt = runtime_check(L);
	struct lunatik_error error = {};

	lunatik_check_stack(L);
	if (lunatik_runtime_stop(rt, true, LUNATIK_STOP_REQUESTED, &error))
		return raise(L, &error);
	return 0;
}

static const luaL_Reg runtime_methods[] = {
	{ "resume", runtime_resume },
	{ "stop", runtime_stop },
	{ NULL, NULL }
};

static const luaL_Reg runtime_metamethods[] = {
	{ "__close", runtime_stop },
	{ NULL, NULL }
};

const struct lunatik_class lunatik_runtime_class = {
	.name = "runtime",
	.size = sizeof(struct child),
	.methods = runtime_methods,
	.metamethods = runtime_metamethods,
	.stays = true,
	.release = child_release,
};

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
	struct lunatik_error error = {};
	struct child *child;

	if (!owner->sleep)
		return luaL_error(L, "lunatik.runtime: creating a runtime sleeps, and this runtime is not sleepable");
	lunatik_check_stack(L);
	child = container_of(lunatik_object_new(L, &lunatik_runtime_class),
			     struct child, object);
	spec.net = owner->net ? maybe_get_net(owner->net) : NULL;
	if (!spec.net)
		return luaL_error(L, "lunatik.runtime: the network namespace is gone");
	child->rt = lunatik_runtime_create(&spec, &error);
	put_net(spec.net);
	return child->rt ? 1 : raise(L, &error);
}

static const luaL_Reg lunatik_functions[] = {
	{ "runtime", lunatik_lua_runtime },
	{ NULL, NULL }
};

int lunatik_open_lunatik(lua_State *L)
{
	luaL_newlib(L, lunatik_functions);
	lunatik_env_push(L);
	lua_setfield(L, -2, "_ENV");
	return 1;
}
