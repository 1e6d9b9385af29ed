// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "counter": sums that runtimes add to at once, each CPU in memory of
 * its own, so that nobody waits and nothing is lost.
 */
#include <linux/percpu.h>

#include "library.h"
#include "memory.h"
#include "object.h"
#include "runtime.h"

/**
 * struct counter - a sum
 * @object: head
 * @parts: what was added on each CPU
 */
struct counter {
	struct lunatik_object object;
	s64 __percpu *parts;
};

static size_t parts_size(void)
{
	return sizeof(s64) * num_possible_cpus();
}

static void counter_release(struct lunatik_object *object)
{
	struct counter *counter = container_of(object, struct counter, object);

	if (!counter->parts)
		return;
	free_percpu(counter->parts);
	lunatik_object_uncharge(parts_size());
}

static struct counter *counter_check(lua_State *L)
{
	return container_of(lunatik_object_check(L, 1, &lunatik_counter_class),
			    struct counter, object);
}

/* counter:add([n]): 1 by default; the sum wraps around as integers of Lua do */
static int counter_add(lua_State *L)
{
	struct counter *counter = counter_check(L);

	this_cpu_add(*counter->parts, luaL_optinteger(L, 2, 1));
	return 0;
}

/* counter:get(): the sum */
static int counter_get(lua_State *L)
{
	struct counter *counter = counter_check(L);
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(*per_cpu_ptr(counter->parts, cpu));
	lua_pushinteger(L, sum);
	return 1;
}

/* counter.new(): 0 */
static int counter_new(lua_State *L)
{
	gfp_t gfp = lunatik_instance_of(L)->gfp;
	struct lunatik_object *object;
	struct counter *counter;

	object = lunatik_object_new(L, &lunatik_counter_class);
	counter = container_of(object, struct counter, object);
	if (lunatik_object_charge(parts_size())) {
		counter->parts = lunatik_memory_fails() ? NULL :
			alloc_percpu_gfp(s64, gfp);
		if (counter->parts)
			return 1;
		lunatik_object_uncharge(parts_size());
	}
	return luaL_error(L, "not enough memory");
}

static const luaL_Reg counter_methods[] = {
	{ "add", counter_add },
	{ "get", counter_get },
	{ NULL, NULL }
};

const struct lunatik_class lunatik_counter_class = {
	.name = "counter",
	.size = sizeof(struct counter),
	.methods = counter_methods,
	.release = counter_release,
};

static const luaL_Reg counter_functions[] = {
	{ "new", counter_new },
	{ NULL, NULL }
};

int lunatik_open_counter(lua_State *L)
{
	luaL_newlib(L, counter_functions);
	return 1;
}
