/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * An instance: one Lua state with its allocator, lock, limits and hooks. A runtime
 * has one, or one per CPU, and gets new ones when its script is replaced.
 *
 * Lifetime. A reference (lunatik_instance_get/put) keeps the structure. The Lua
 * state lives until lunatik_instance_destroy(); whoever enters it holds the lock
 * and has seen that it is not closed.
 *
 * Locks: mutex for a sleepable runtime, else spinlock with bottom halves off. The
 * body of an instance that is being created needs none, because nobody else knows
 * it yet.
 */
#ifndef _LUNATIK_INSTANCE_H
#define _LUNATIK_INSTANCE_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/types.h>

#include "lunatik.h"
#include "uapi/lunatik.h"
#include "value.h"

#include "lua.h"
#include "lauxlib.h"

struct lunatik_runtime;
struct lunatik_spec;
struct watchdog;

/**
 * struct lunatik_error - what became of a request, for whoever made it
 * @errno: negative errno
 * @text: message and traceback, kmalloc'ed, or NULL; see lunatik_error_free()
 * @value: the error value itself, where the caller is Lua and it may cross, or NULL
 * @ran: the script ran as asked, and what it yielded or returned is lost
 */
struct lunatik_error {
	int errno;
	char *text;
	struct lunatik_values *value;
	bool ran;
};

/* Begins the text of an error that is @ran. */
#define LUNATIK_RESULTS_LOST	"the script ran, but its results are lost: "

__printf(4, 5)
int lunatik_error_set(struct lunatik_error *error, gfp_t gfp, int errno,
		      const char *fmt, ...);
void lunatik_error_free(struct lunatik_error *error);

/**
 * struct lunatik_instance - see the top of this file
 * @limits: for luaconf.h; protected by the lock
 * @runtime: that it belongs to; valid as long as the state
 * @sleep: sleepable
 * @armed: the body has returned or yielded once and callbacks may run
 * @closed: stopped or replaced: nobody may enter; written under the lock
 * @broken: its callbacks failed too often in a row; written under the lock
 * @failures: callbacks that failed in a row
 * @state: enum lunatik_state of the body; written under the lock, read anywhere
 * @gfp: flags of every allocation of the Lua state
 * @memory: bytes the Lua state holds
 * @share: bytes of the total it has taken, @memory or more
 * @memory_limit: bytes it may hold
 * @budget: Lua instructions a call from atomic context may run
 * @trapped: the instructions of the running call are counted
 * @exceeded: the running call was ended for running too long
 * @late: ticks of the watchdog that have seen the running call
 * @wait_end: jiffies that a call in process context may wait until
 * @cpu_end: CPU time of the running task, in ns, that a call in process context ends at
 * @mutex: see Locks
 * @spinlock: see Locks
 * @owner: task that runs in a sleepable instance
 * @owner_cpu: CPU that runs in a non-sleepable one, or -1
 * @dog: watchdog that watches the running callback
 * @caller: instance whose script called this one, or NULL
 * @outer: instance that the watchdog of this CPU watched before
 * @task: that runs in the instance in process context, see watchdog.c
 * @running: in the watchdog's list of such instances
 * @L: main thread; callbacks run here
 * @body: thread of the script's body
 * @hooks: struct lunatik_hook; grows while the body first runs
 * @hook_count: length of @hooks, less those that are off
 * @handles: references to shared objects
 * @libraries: references to modules whose libraries are open
 * @refs: references
 */
struct lunatik_instance {
	struct lunatik_limits limits;
	struct lunatik_runtime *runtime;
	bool sleep;
	bool armed;
	bool closed;
	bool broken;
	u32 failures;
	u8 state;
	gfp_t gfp;
	size_t memory;
	size_t share;
	size_t memory_limit;
	u32 budget;
	bool trapped;
	bool exceeded;
	u16 late;
	unsigned long wait_end;
	u64 cpu_end;
	struct mutex mutex;
	spinlock_t spinlock;
	struct task_struct *owner;
	int owner_cpu;
	struct watchdog *dog;
	struct lunatik_instance *caller;
	struct lunatik_instance *outer;
	struct task_struct *task;
	struct list_head running;
	lua_State *L;
	lua_State *body;
	struct list_head hooks;
	u32 hook_count;
	struct list_head handles;
	struct list_head libraries;
	struct kref refs;
};

/* The instance that owns @L. Any context. */
static inline struct lunatik_instance *lunatik_instance_of(lua_State *L)
{
	return container_of(lunatik_thread_of(L)->limits,
			    struct lunatik_instance, limits);
}

/* The runtime that owns @L. Any context. */
static inline struct lunatik_runtime *lunatik_runtime_of(lua_State *L)
{
	return lunatik_instance_of(L)->runtime;
}

/* Whether the body may still register hooks and require libraries. */
static inline bool lunatik_is_setup(lua_State *L)
{
	struct lunatik_instance *instance = lunatik_instance_of(L);

	return instance->sleep || !instance->armed;
}

struct lunatik_instance *
lunatik_instance_create(struct lunatik_runtime *rt,
			const struct lunatik_spec *spec,
			struct lunatik_error *error);
size_t lunatik_instance_destroy(struct lunatik_instance *instance);
void lunatik_instance_put(struct lunatik_instance *instance);

int lunatik_instance_lock(struct lunatik_instance *instance, bool nested,
			  struct lunatik_error *error);
void lunatik_instance_unlock(struct lunatik_instance *instance);

int lunatik_instance_resume(struct lunatik_instance *instance,
			    struct lunatik_instance *outer,
			    const struct lunatik_values *args,
			    struct lunatik_values **results,
			    struct lunatik_error *error);
int lunatik_instance_call(struct lunatik_instance *instance, const char *global,
			  const struct lunatik_values *args,
			  struct lunatik_values **results,
			  struct lunatik_error *error);
void lunatik_instance_failed(struct lunatik_instance *instance, u32 hook,
			     const char *message, bool exceeded);

u64 lunatik_memory_taken(u64 *limit);
unsigned long lunatik_stack_floor(void);
void lunatik_budget_start(struct lunatik_instance *instance, u32 instructions);
void lunatik_budget_exhaust(struct lunatik_instance *instance);
bool lunatik_budget_end(struct lunatik_instance *instance);
const char *lunatik_message(lua_State *L, int index);

#endif /* _LUNATIK_INSTANCE_H */
