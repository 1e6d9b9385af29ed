/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Shared objects: what several runtimes can hold at once.
 *
 * An object lives as long as somebody holds a reference: a handle in a Lua state, a
 * value on its way between runtimes, or an entry of an rcu table. The last reference
 * may be given back in any context.
 *
 * A handle is a userdata that points to a node of the state's list. The collector
 * gives the node back; where it cannot, because Lua skips a finalizer that finds no
 * stack or memory, whoever closes the state does (lunatik_handles_sweep()).
 *
 * What objects hold is charged to one account for all of them, and to the collector
 * of the state that asked: to it a handle is small, whatever is behind it.
 */
#ifndef _LUNATIK_OBJECT_H
#define _LUNATIK_OBJECT_H

#include <linux/list.h>
#include <linux/llist.h>
#include <linux/refcount.h>
#include <linux/types.h>

#include "lua.h"
#include "lauxlib.h"

struct lunatik_object;
struct lunatik_bytes_ops;

/**
 * struct lunatik_class - a kind of object
 * @name: what scripts and messages call it
 * @size: of the struct that begins with struct lunatik_object
 * @methods: found by indexing a handle, or NULL
 * @metamethods: of handles besides __gc, __eq and __index, or NULL
 * @bytes: the object is a run of bytes and has their methods too, or NULL
 * @stays: handles do not leave their runtime
 * @deferred: @release runs from a work item, because it takes long or releases others
 * @release: frees what the object holds, not the object itself; or NULL. Any context
 *	unless @deferred; what is zero was never set
 */
struct lunatik_class {
	const char *name;
	size_t size;
	const luaL_Reg *methods;
	const luaL_Reg *metamethods;
	const struct lunatik_bytes_ops *bytes;
	bool stays;
	bool deferred;
	void (*release)(struct lunatik_object *object);
};

/**
 * struct lunatik_object - what every object begins with
 * @class: its kind
 * @refs: references
 * @dead: in the list of objects to be released
 */
struct lunatik_object {
	const struct lunatik_class *class;
	refcount_t refs;
	struct llist_node dead;
};

extern const struct lunatik_class lunatik_completion_class;
extern const struct lunatik_class lunatik_counter_class;
extern const struct lunatik_class lunatik_data_class;
extern const struct lunatik_class lunatik_fifo_class;
extern const struct lunatik_class lunatik_rcu_class;
extern const struct lunatik_class lunatik_runtime_class;

/* For somebody who holds a reference, or in an RCU section met it in a table. */
static inline struct lunatik_object *lunatik_object_get(struct lunatik_object *object)
{
	refcount_inc(&object->refs);
	return object;
}

void lunatik_object_put(struct lunatik_object *object);

struct lunatik_object *lunatik_object_new(lua_State *L,
					  const struct lunatik_class *class);
void lunatik_object_push(lua_State *L, struct lunatik_object *object);
struct lunatik_object *lunatik_object_check(lua_State *L, int arg,
					    const struct lunatik_class *class);
struct lunatik_object *lunatik_object_of(lua_State *L, void *self);
struct lunatik_object *lunatik_object_at(lua_State *L, int index);
const struct lunatik_class *lunatik_class_at(lua_State *L, int index);

struct lunatik_object *lunatik_object_create(const struct lunatik_class *class,
					     gfp_t gfp);
bool lunatik_object_charge(size_t size);
void lunatik_object_uncharge(size_t size);
void *lunatik_object_alloc(lua_State *L, size_t size);
void *lunatik_object_tryalloc(size_t size, gfp_t gfp);
void lunatik_object_free(void *memory, size_t size);

int lunatik_protected(lua_State *L, lua_CFunction function, const void *data);
void lunatik_handles_sweep(struct list_head *handles);
void lunatik_objects_open(lua_State *L);

void lunatik_env_push(lua_State *L);
int lunatik_env_init(void);
void lunatik_env_exit(void);
int lunatik_object_init(void);
void lunatik_object_exit(void);

#endif /* _LUNATIK_OBJECT_H */
