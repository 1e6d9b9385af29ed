// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Shared objects: references, handles, memory; see object.h.
 */
#include <linux/atomic.h>
#include <linux/moduleparam.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>

#include "bytes.h"
#include "library.h"
#include "memory.h"
#include "object.h"
#include "runtime.h"

static unsigned long object_memory = 16 * 1024 * 1024;
module_param(object_memory, ulong, 0644);
MODULE_PARM_DESC(object_memory, "bytes all shared objects together may hold (default 16 MiB)");

static atomic_long_t object_bytes;

static int object_bytes_get(char *text, const struct kernel_param *param)
{
	return sysfs_emit(text, "%ld\n", atomic_long_read(&object_bytes));
}

static const struct kernel_param_ops object_bytes_ops = {
	.get = object_bytes_get,
};

module_param_cb(object_bytes, &object_bytes_ops, NULL, 0444);
MODULE_PARM_DESC(object_bytes, "bytes all shared objects together hold (read only)");

static struct workqueue_struct *object_queue;
static LLIST_HEAD(object_dead);

/* Its address is the key of a class in the metatable of the class's handles. */
static const char class_key;

static const struct lunatik_class * const classes[] = {
	&lunatik_completion_class,
	&lunatik_counter_class,
	&lunatik_data_class,
	&lunatik_fifo_class,
	&lunatik_rcu_class,
	&lunatik_runtime_class,
};

/**
 * struct handle - a reference held by a Lua state
 * @list: in the state's handles
 * @object: NULL until there is one
 */
struct handle {
	struct list_head list;
	struct lunatik_object *object;
};

/* Memory */

/**
 * lunatik_object_charge() - account for memory of an object
 * @size: bytes
 *
 * Context: any.
 * Return: false where all objects together would hold too much.
 */
bool lunatik_object_charge(size_t size)
{
	if (atomic_long_add_return(size, &object_bytes) <=
	    (long)min_t(unsigned long, READ_ONCE(object_memory), LONG_MAX))
		return true;
	atomic_long_sub(size, &object_bytes);
	return false;
}

/**
 * lunatik_object_uncharge() - account for memory that is given back
 * @size: as it was charged
 *
 * Context: any.
 */
void lunatik_object_uncharge(size_t size)
{
	atomic_long_sub(size, &object_bytes);
}

/**
 * lunatik_object_tryalloc() - zeroed memory of an object, charged
 * @size: bytes
 * @gfp: allocation flags
 *
 * Context: as @gfp says.
 * Return: memory for lunatik_object_free(), or NULL.
 */
void *lunatik_object_tryalloc(size_t size, gfp_t gfp)
{
	void *memory;

	if (!lunatik_object_charge(size))
		return NULL;
	memory = lunatik_kvzalloc(size, gfp);
	if (!memory)
		lunatik_object_uncharge(size);
	return memory;
}

/**
 * lunatik_object_free() - give back what lunatik_object_tryalloc() gave
 * @memory: memory, or NULL
 * @size: its size
 *
 * Context: any.
 */
void lunatik_object_free(void *memory, size_t size)
{
	if (!memory)
		return;
	kvfree(memory);
	lunatik_object_uncharge(size);
}

/**
 * lunatik_object_alloc() - zeroed memory of an object, asked for by a script
 * @L: thread, whose garbage is collected if that may help
 * @size: bytes
 *
 * Context: inside a protected call; raises a Lua error.
 * Return: memory for lunatik_object_free().
 */
void *lunatik_object_alloc(lua_State *L, size_t size)
{
	gfp_t gfp = lunatik_instance_of(L)->gfp;
	void *memory;

	lua_gc(L, LUA_GCSTEP, (int)DIV_ROUND_UP(size, 1024));
	memory = lunatik_object_tryalloc(size, gfp);
	if (!memory) {
		lua_gc(L, LUA_GCCOLLECT);
		memory = lunatik_object_tryalloc(size, gfp);
	}
	if (!memory)
		luaL_error(L, "not enough memory");
	return memory;
}

/* References */

static void object_release(struct lunatik_object *object)
{
	const struct lunatik_class *class = object->class;

	if (class->release)
		class->release(object);
	lunatik_object_free(object, class->size);
}

static void object_release_dead(struct work_struct *work)
{
	struct llist_node *dead = llist_del_all(&object_dead);
	struct lunatik_object *object, *next;

	llist_for_each_entry_safe(object, next, dead, dead)
		object_release(object);
}

static DECLARE_WORK(object_work, object_release_dead);

/**
 * lunatik_object_put() - give back a reference
 * @object: not to be used any more
 *
 * Context: any.
 */
void lunatik_object_put(struct lunatik_object *object)
{
	if (!refcount_dec_and_test(&object->refs))
		return;
	if (!object->class->deferred) {
		object_release(object);
		return;
	}
	llist_add(&object->dead, &object_dead);
	queue_work(object_queue, &object_work);
}

/**
 * lunatik_object_create() - an object that no script asked for
 * @class: its kind
 * @gfp: allocation flags
 *
 * Context: as @gfp says.
 * Return: the object with a reference, zero beyond its head, or NULL.
 */
struct lunatik_object *lunatik_object_create(const struct lunatik_class *class,
					     gfp_t gfp)
{
	struct lunatik_object *object = lunatik_object_tryalloc(class->size, gfp);

	if (object) {
		object->class = class;
		refcount_set(&object->refs, 1);
	}
	return object;
}

/* Handles */

/* Push a handle of nothing yet; raises. */
static struct handle *handle_new(lua_State *L, const struct lunatik_class *class)
{
	struct lunatik_instance *instance = lunatik_instance_of(L);
	struct handle **box = lua_newuserdatauv(L, sizeof(*box), 0);
	struct handle *handle;

	*box = NULL;
	lua_rawgetp(L, LUA_REGISTRYINDEX, class);
	lua_setmetatable(L, -2);
	handle = lunatik_kmalloc(sizeof(*handle), instance->gfp);
	if (!handle) {
		luaL_error(L, "not enough memory");
		return NULL;
	}
	handle->object = NULL;
	list_add(&handle->list, &instance->handles);
	*box = handle;
	return handle;
}

static void handle_free(struct handle *handle)
{
	if (handle->object)
		lunatik_object_put(handle->object);
	list_del(&handle->list);
	kfree(handle);
}

static int handle_collect(lua_State *L)
{
	struct handle **box = lua_touserdata(L, 1);
	struct handle *handle = *box;

	*box = NULL;
	if (handle)
		handle_free(handle);
	return 0;
}

/**
 * lunatik_handles_sweep() - free the handles that a closed state left
 * @handles: list of a state whose Lua is gone
 *
 * Context: process.
 */
void lunatik_handles_sweep(struct list_head *handles)
{
	struct handle *handle, *next;

	list_for_each_entry_safe(handle, next, handles, list)
		handle_free(handle);
}

/**
 * lunatik_object_new() - push a handle of a new object
 * @L: thread
 * @class: its kind
 *
 * Context: inside a protected call; raises a Lua error.
 * Return: the object, zero beyond its head; it belongs to the handle.
 */
struct lunatik_object *lunatik_object_new(lua_State *L,
					  const struct lunatik_class *class)
{
	struct handle *handle = handle_new(L, class);
	struct lunatik_object *object = lunatik_object_alloc(L, class->size);

	object->class = class;
	refcount_set(&object->refs, 1);
	handle->object = object;
	return object;
}

/**
 * lunatik_object_push() - push a handle of an object
 * @L: thread
 * @object: somebody else keeps a reference meanwhile, also if this raises
 *
 * Context: inside a protected call; raises a Lua error.
 */
void lunatik_object_push(lua_State *L, struct lunatik_object *object)
{
	struct handle *handle = handle_new(L, object->class);

	handle->object = lunatik_object_get(object);
}

/**
 * lunatik_object_of() - the object of a handle
 * @L: thread
 * @self: the handle's memory
 *
 * Context: inside a protected call; raises a Lua error.
 * Return: the object, valid as long as the handle.
 */
struct lunatik_object *lunatik_object_of(lua_State *L, void *self)
{
	struct handle *handle = *(struct handle **)self;

	if (!handle)
		luaL_error(L, "the object has been collected");
	return handle->object;
}

/**
 * lunatik_class_at() - what kind of object a value is a handle of
 * @L: thread with two free slots
 * @index: absolute index of the value
 *
 * Context: does not raise.
 * Return: the class, or NULL for any other value.
 */
const struct lunatik_class *lunatik_class_at(lua_State *L, int index)
{
	const struct lunatik_class *class = NULL;

	if (lua_type(L, index) == LUA_TUSERDATA && lua_getmetatable(L, index)) {
		lua_rawgetp(L, -1, &class_key);
		class = lua_touserdata(L, -1);
		lua_pop(L, 2);
	}
	return class;
}

/**
 * lunatik_object_at() - the object that a value is a handle of
 * @L: thread with two free slots
 * @index: absolute index of the value
 *
 * Context: does not raise.
 * Return: the object, valid as long as the handle; NULL for any other value, and
 * for a handle that was collected already and still is a key of a weak table.
 */
struct lunatik_object *lunatik_object_at(lua_State *L, int index)
{
	struct handle **box;

	if (!lunatik_class_at(L, index))
		return NULL;
	box = lua_touserdata(L, index);
	return *box ? (*box)->object : NULL;
}

/**
 * lunatik_object_check() - the object of an argument
 * @L: thread
 * @arg: index of the argument
 * @class: the kind it has to be
 *
 * Context: inside a protected call; raises a Lua error.
 * Return: the object, valid as long as the handle.
 */
struct lunatik_object *lunatik_object_check(lua_State *L, int arg,
					    const struct lunatik_class *class)
{
	if (lunatik_class_at(L, arg) != class)
		luaL_typeerror(L, arg, class->name);
	return lunatik_object_of(L, lua_touserdata(L, arg));
}

/* Two handles are equal when they are handles of one object. */
static int handle_eq(lua_State *L)
{
	struct lunatik_object *object = lunatik_object_at(L, 1);

	lua_pushboolean(L, object && object == lunatik_object_at(L, 2));
	return 1;
}

static void class_open(lua_State *L, const struct lunatik_class *class)
{
	lua_newtable(L);
	lua_pushlightuserdata(L, (void *)class);
	lua_rawsetp(L, -2, &class_key);
	lua_pushstring(L, class->name);
	lua_pushvalue(L, -1);
	lua_setfield(L, -3, "__name");
	lua_setfield(L, -2, "__metatable");
	lua_pushcfunction(L, handle_collect);
	lua_setfield(L, -2, "__gc");
	lua_pushcfunction(L, handle_eq);
	lua_setfield(L, -2, "__eq");
	if (class->metamethods)
		luaL_setfuncs(L, class->metamethods, 0);
	if (class->methods) {
		lua_newtable(L);
		luaL_setfuncs(L, class->methods, 0);
		lua_setfield(L, -2, "__index");
	}
	if (class->bytes)
		lunatik_bytes_open(L, class->bytes);
	lua_rawsetp(L, LUA_REGISTRYINDEX, class);
}

/**
 * lunatik_objects_open() - make the metatables of all classes
 * @L: main thread of a new state, before any script runs
 *
 * Where memory runs out then, no script goes on with half of one.
 *
 * Context: inside a protected call.
 */
void lunatik_objects_open(lua_State *L)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(classes); i++)
		class_open(L, classes[i]);
}

/**
 * lunatik_protected() - call a C function whose errors the caller sees first
 * @L: thread
 * @function: gets @data as a light userdata
 * @data: for @function
 *
 * For callers that hold what an error would leave behind. They clean up, and then
 * raise the error again by lua_error().
 *
 * Context: inside a protected call; does not raise.
 * Return: a status of Lua; on the stack are the results of @function, or the error.
 */
int lunatik_protected(lua_State *L, lua_CFunction function, const void *data)
{
	lua_pushcfunction(L, function);
	lua_pushlightuserdata(L, (void *)data);
	return lua_pcall(L, 1, LUA_MULTRET, 0);
}

int __init lunatik_object_init(void)
{
	int errno;

	object_queue = lunatik_memory_fails() ? NULL :
		alloc_workqueue("lunatik_objects", WQ_UNBOUND, 0);
	if (!object_queue)
		return -ENOMEM;
	errno = lunatik_env_init();
	if (errno)
		destroy_workqueue(object_queue);
	return errno;
}

/*
 * No runtime is alive. The barrier waits for entries that tables have given up, and
 * these may have been the last to hold a table, which the queue releases.
 */
void lunatik_object_exit(void)
{
	lunatik_env_exit();
	rcu_barrier();
	destroy_workqueue(object_queue);
	WARN_ON_ONCE(atomic_long_read(&object_bytes));
}
