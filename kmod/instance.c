// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Instances: one Lua state each; see instance.h for lifetimes and locks.
 */
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/version.h>

#include <asm/current.h>

#include "hook.h"
#include "instance.h"
#include "library.h"
#include "memory.h"
#include "object.h"
#include "runtime.h"
#include "script.h"
#include "trace.h"
#include "watchdog.h"

/* What one level of C may use below the last check of the stack, in bytes. */
#ifdef CONFIG_KASAN /* stacks are twice as large, and calls take more than that of them */
#define STACK_RESERVE		(10 * 1024)
#else
#define STACK_RESERVE		3072
#endif
/* What Lua may use of an interrupt stack, where we are not told its end, in bytes. */
#define STACK_INTERRUPT		(7 * 1024)

static unsigned long memory_limit = 1024 * 1024;
module_param(memory_limit, ulong, 0644);
MODULE_PARM_DESC(memory_limit, "bytes a runtime may hold (default 1 MiB)");

static unsigned long total_memory = 256 * 1024 * 1024;
module_param(total_memory, ulong, 0644);
MODULE_PARM_DESC(total_memory, "bytes all Lua states together may hold (default 256 MiB)");

static unsigned int budget = 100 * 1000;
module_param(budget, uint, 0644);
MODULE_PARM_DESC(budget, "Lua instructions a call in atomic context may run (default 100,000)");

static unsigned int body_budget = 10 * 1000 * 1000;
module_param(body_budget, uint, 0644);
MODULE_PARM_DESC(body_budget, "Lua instructions a call in process context may run (default 10,000,000)");

static unsigned int body_time = 10 * MSEC_PER_SEC;
module_param(body_time, uint, 0644);
MODULE_PARM_DESC(body_time, "milliseconds of CPU a call in process context may take (default 10,000)");

/* Generic netlink is locked meanwhile for who registers with it, so it has an end. */
static unsigned int body_wait = 10 * MSEC_PER_SEC;
module_param(body_wait, uint, 0644);
MODULE_PARM_DESC(body_wait, "milliseconds a call in process context may sleep and wait for completions, all together (default 10,000)");

/**
 * lunatik_error_set() - say what went wrong
 * @error: to fill in; what was there is freed
 * @gfp: allocation flags for the text; without memory there is none
 * @errno: negative errno
 * @fmt: printf format of the text
 *
 * Return: @errno.
 */
int lunatik_error_set(struct lunatik_error *error, gfp_t gfp, int errno,
		      const char *fmt, ...)
{
	va_list args;

	lunatik_error_free(error);
	va_start(args, fmt);
	error->text = lunatik_memory_fails() ? NULL :
		kvasprintf(gfp | __GFP_NOWARN, fmt, args);
	va_end(args);
	error->errno = errno;
	return errno;
}

/**
 * lunatik_error_free() - free the text and the value of an error
 * @error: may have none
 */
void lunatik_error_free(struct lunatik_error *error)
{
	kfree(error->text);
	lunatik_values_free(error->value);
	error->text = NULL;
	error->value = NULL;
}

/* Memory */

/* States take their share of the total by so many bytes: one atomic operation each. */
#define SHARE	(16 * 1024)

static atomic_long_t total_taken;

static bool take_share(struct lunatik_instance *instance, size_t bytes)
{
	long limit = min_t(unsigned long, READ_ONCE(total_memory), LONG_MAX);

	if (atomic_long_add_return(bytes, &total_taken) > limit) {
		atomic_long_sub(bytes, &total_taken);
		return false;
	}
	instance->share += bytes;
	return true;
}

static void return_share(struct lunatik_instance *instance, size_t bytes)
{
	instance->share -= bytes;
	atomic_long_sub(bytes, &total_taken);
}

/* Whether a state may hold so many bytes more. */
static bool may_grow(struct lunatik_instance *instance, size_t bytes)
{
	size_t room = instance->share - instance->memory;

	if (bytes > instance->memory_limit - instance->memory)
		return false;
	return bytes <= room || take_share(instance, bytes - room + SHARE) ||
		take_share(instance, bytes - room);
}

/**
 * lunatik_memory_taken() - bytes that all Lua states together have taken
 * @limit: how many they may take
 *
 * Return: that number; up to 32 KiB a state more than is in use.
 */
u64 lunatik_memory_taken(u64 *limit)
{
	*limit = READ_ONCE(total_memory);
	return atomic_long_read(&total_taken);
}

/*
 * krealloc() never gives memory back, so a block that was made much smaller would
 * be held whole and accounted small. Lua wants shrinking not to fail.
 */
static void *shrink(void *ptr, size_t old, size_t new, gfp_t gfp)
{
	void *copy;

	if (new > old / 2)
		return ptr;
	copy = lunatik_kmalloc(new, gfp);
	if (!copy)
		return ptr;
	memcpy(copy, ptr, new);
	kfree(ptr);
	return copy;
}

/*
 * The lua_Alloc of every runtime. noinline, so that a tracer can tell by its
 * arguments whose memory a block is.
 */
static noinline void *lunatik_allocate(void *ud, void *ptr, size_t osize,
				       size_t nsize)
{
	struct lunatik_instance *instance = ud;
	size_t old = ptr ? osize : 0; /* without a block osize is a type */
	void *new = NULL;

	if (nsize == 0) {
		kfree(ptr);
	} else {
		if (nsize > old && !may_grow(instance, nsize - old))
			return NULL;
		new = nsize < old ? shrink(ptr, old, nsize, instance->gfp) :
			lunatik_krealloc(ptr, nsize, instance->gfp);
		if (!new)
			return NULL;
	}
	instance->memory += nsize - old;
	if (instance->share - instance->memory > 2 * SHARE)
		return_share(instance, SHARE);
	trace_runtime_alloc(instance->runtime->id, old, nsize, instance->memory,
			    (__force u32)instance->gfp);
	return new;
}

/* The kernel stack, and interrupting Lua */

#if LINUX_VERSION_MAJOR == 6 && LINUX_VERSION_PATCHLEVEL == 12
/* The end of this CPU's interrupt stack, or 0 where we are not on it. */
static unsigned long interrupt_stack_end(unsigned long here)
{
	/* irq_init_percpu_irqstack(): one word below the top */
	unsigned long top = sizeof(long) +
		(unsigned long)this_cpu_read(pcpu_hot.hardirq_stack_ptr);

	return top - here < IRQ_STACK_SIZE ? top - IRQ_STACK_SIZE : 0;
}
#else
/* Linux 6.1 does not export where its interrupt stacks are. */
static unsigned long interrupt_stack_end(unsigned long here)
{
	return 0;
}
#endif

/**
 * lunatik_stack_floor() - the address Lua must stay above
 *
 * Context: any. On the task's stack its end is known. On an interrupt stack it is on
 * some kernels; on others Lua gets a fixed share of what is below us.
 *
 * Return: the address; more than the current stack pointer where nothing is left.
 */
unsigned long lunatik_stack_floor(void)
{
	unsigned long here = (unsigned long)__builtin_frame_address(0);
	unsigned long stack = (unsigned long)end_of_stack(current);

	if (here - stack < THREAD_SIZE)
		return stack + STACK_RESERVE;
	stack = interrupt_stack_end(here);
	return stack ? stack + STACK_RESERVE : here - STACK_INTERRUPT;
}

/* Whether Lua runs in process context, without a spinlock. */
static bool instance_is_preemptible(const struct lunatik_instance *instance)
{
	return instance->sleep || !instance->armed;
}

/*
 * Have a hook called after so many instructions in any thread, or none. Called by
 * the holder of the lock, or by an interrupt on the CPU that runs the instance:
 * lua_sethook() may be called asynchronously, and the list of threads is kept so
 * that an interrupt can walk it.
 */
static void instance_sethook(struct lunatik_instance *instance, lua_Hook hook,
			     int count)
{
	struct lunatik_thread *thread = lunatik_thread_of(instance->L);

	for (; thread; thread = READ_ONCE(thread->next))
		lua_sethook((lua_State *)((char *)thread + LUA_EXTRASPACE), hook,
			    hook ? LUA_MASKCOUNT : 0, count);
}

/* Called before every instruction once a call is over its limit: no pcall helps. */
static void instance_abandon(lua_State *L, lua_Debug *ar)
{
	if (fatal_signal_pending(current))
		lunatik_raise_from_hook(L, "killed");
	lunatik_instance_of(L)->exceeded = true;
	lunatik_raise_from_hook(L, "instruction budget exceeded");
}

static void instance_tick(lua_State *L, lua_Debug *ar)
{
	struct lunatik_instance *instance = lunatik_instance_of(L);
	bool preemptible = instance_is_preemptible(instance);

	if (instance->limits.left > LUNATIK_TICK) {
		instance->limits.left -= LUNATIK_TICK;
		if (!preemptible)
			return;
		cond_resched();
		if (!fatal_signal_pending(current) &&
		    current->se.sum_exec_runtime < instance->cpu_end)
			return;
	}
	instance_sethook(instance, instance_abandon, 1);
	instance_abandon(L, ar);
}

/**
 * lunatik_budget_start() - count instructions from here on, and end at a limit
 * @instance: that runs
 * @instructions: limit
 *
 * Context: holder of the lock, or an interrupt on the CPU that runs the instance.
 */
void lunatik_budget_start(struct lunatik_instance *instance, u32 instructions)
{
	instance->limits.left = instructions;
	instance_sethook(instance, instance_tick,
			 min_t(u32, instructions, LUNATIK_TICK));
}

/**
 * lunatik_budget_exhaust() - have the running call fail at its next instruction
 * @instance: that runs
 *
 * Context: an interrupt on the CPU that runs the instance, or the task that does.
 */
void lunatik_budget_exhaust(struct lunatik_instance *instance)
{
	instance->limits.left = 0;
	WRITE_ONCE(instance->limits.overdue, 1);
	instance_sethook(instance, instance_abandon, 1);
}

/**
 * lunatik_budget_end() - count instructions no longer
 * @instance: that runs
 *
 * Context: holder of the lock.
 * Return: whether the limit was reached.
 */
bool lunatik_budget_end(struct lunatik_instance *instance)
{
	bool exceeded = instance->exceeded || instance->limits.overdue ||
		instance->limits.left <= 0;

	instance->exceeded = false;
	WRITE_ONCE(instance->limits.overdue, 0);
	instance_sethook(instance, NULL, 0);
	return exceeded;
}

/* Locks */

/**
 * lunatik_instance_lock() - become the one who runs in an instance
 * @instance: the caller holds a reference
 * @nested: the caller runs in an instance itself, so it must not wait
 * @error: filled in on failure
 *
 * Context: process; atomic afterwards unless the instance is sleepable.
 * Return: 0, -EBUSY where somebody else runs it, -EDEADLK where we do.
 */
int lunatik_instance_lock(struct lunatik_instance *instance, bool nested,
			  struct lunatik_error *error)
{
	u32 id = instance->runtime->id;

	if (!instance->sleep) {
		spin_lock_bh(&instance->spinlock);
		__release(&instance->spinlock); /* sparse knows no conditional locks */
		instance->owner_cpu = smp_processor_id();
		return 0;
	}
	if (READ_ONCE(instance->owner) == current)
		return lunatik_error_set(error, GFP_KERNEL, -EDEADLK,
					 "runtime %u is running: it can neither resume nor stop itself",
					 id);
	if (nested ? !mutex_trylock(&instance->mutex) :
	    mutex_lock_killable(&instance->mutex))
		return lunatik_error_set(error, GFP_KERNEL, -EBUSY,
					 "runtime %u is busy: somebody else runs it",
					 id);
	WRITE_ONCE(instance->owner, current);
	return 0;
}

/**
 * lunatik_instance_unlock() - let others run in an instance
 * @instance: locked by lunatik_instance_lock()
 */
void lunatik_instance_unlock(struct lunatik_instance *instance)
{
	if (instance->sleep) {
		WRITE_ONCE(instance->owner, NULL);
		mutex_unlock(&instance->mutex);
	} else {
		instance->owner_cpu = -1;
		__acquire(&instance->spinlock);
		spin_unlock_bh(&instance->spinlock);
	}
}

/* Running the body and other functions of the script */

/**
 * struct instance_call - a call from outside, and what came of it
 * @spec: what to create
 * @global: name of the function to call, where it is not the body
 * @args: what it gets
 * @results: what it returned or yielded
 * @value: the error value, where it may cross to the caller
 * @nested: the caller is Lua, which wants the message without a traceback
 * @errno: what kept the script from being loaded
 * @ran: a resumed body gave control back without an error
 * @pending: results still on the body's stack
 */
struct instance_call {
	const struct lunatik_spec *spec;
	const char *global;
	const struct lunatik_values *args;
	struct lunatik_values *results;
	struct lunatik_values *value;
	bool nested;
	bool ran;
	int errno;
	int pending;
};

/* Push the text of the error value on the top. */
static void body_describe(lua_State *L)
{
	int index = lua_gettop(L);
	const char *text = luaL_tolstring(L, index, NULL);

	switch (lua_type(L, index)) {
	case LUA_TNIL:
	case LUA_TBOOLEAN:
	case LUA_TNUMBER:
	case LUA_TSTRING:
		break;
	default:
		lua_pushfstring(L, "%s (the error value is a %s)", text,
				lunatik_value_typename(L, L, index));
	}
}

/*
 * Turn the body's error into a message, for user space with a traceback, and close
 * the body. Lua gets the very value, if it may cross.
 */
static int body_raise(lua_State *L, lua_State *body, struct instance_call *call)
{
	lua_xmove(body, L, 1);
	if (call->nested && lunatik_value_crosses(L, lua_gettop(L)))
		call->value = lunatik_values_get(L, L, lua_gettop(L), 1,
						 LUNATIK_TO_RUNTIME,
						 lunatik_instance_of(L)->gfp);
	body_describe(L);
	if (!call->nested)
		luaL_traceback(L, body, lua_tostring(L, -1), 0);
	lua_closethread(body, L);
	return lua_error(L);
}

static void body_run(lua_State *L, struct instance_call *call, int nargs)
{
	struct lunatik_instance *instance = lunatik_instance_of(L);
	lua_State *body = instance->body;
	int status;

	WRITE_ONCE(instance->state, LUNATIK_STATE_RUNNING);
	status = lua_resume(body, L, nargs, &call->pending);
	/* whatever happens to the message */
	WRITE_ONCE(instance->state, LUNATIK_STATE_FAILED);
	if (status != LUA_OK && status != LUA_YIELD) {
		call->pending = 0;
		body_raise(L, body, call);
	}
	WRITE_ONCE(instance->state, status == LUA_YIELD ?
		   LUNATIK_STATE_YIELDED : LUNATIK_STATE_FINISHED);
	call->ran = !call->spec;
	/* what a body returns at its creation nobody sees */
	call->results = lunatik_values_get(L, body,
					   lua_gettop(body) - call->pending + 1,
					   call->pending,
					   call->nested || call->spec ?
					   LUNATIK_TO_RUNTIME : LUNATIK_TO_USER,
					   instance->gfp);
}

static int protected_resume(lua_State *L)
{
	struct instance_call *call = lua_touserdata(L, 1);
	lua_State *body = lunatik_instance_of(L)->body;

	/* An error on the body's own stack would unwind it; on this one it does not. */
	lunatik_values_push(L, call->args);
	if (!lua_checkstack(body, call->args->count))
		luaL_error(L, "not enough memory");
	lua_xmove(L, body, call->args->count);
	body_run(L, call, call->args->count);
	return 0;
}

static int protected_create(lua_State *L)
{
	struct instance_call *call = lua_touserdata(L, 1);
	struct lunatik_instance *instance = lunatik_instance_of(L);

	/*
	 * Lua makes this string when protection has just ended, where it must not
	 * run out of memory. While one exists, it need not.
	 */
	lua_pushliteral(L, "error in error handling");
	luaL_ref(L, LUA_REGISTRYINDEX);
	lunatik_library_open(L);
	instance->body = lua_newthread(L);
	luaL_ref(L, LUA_REGISTRYINDEX);
	call->errno = lunatik_script_load(L, call->spec);
	if (call->errno)
		return lua_error(L);
	lua_xmove(L, instance->body, 1);
	body_run(L, call, 0);
	return 0;
}

static int protected_call(lua_State *L)
{
	struct instance_call *call = lua_touserdata(L, 1);
	int type = lua_getglobal(L, call->global);

	if (type == LUA_TNIL)
		return 0;
	if (type != LUA_TFUNCTION)
		return luaL_error(L, "the global '%s' is a %s, not a function",
				  call->global, luaL_typename(L, -1));
	if (call->args)
		lunatik_values_push(L, call->args);
	lua_call(L, lua_gettop(L) - 2, LUA_MULTRET);
	call->results = lunatik_values_get(L, L, 2, lua_gettop(L) - 1,
					   LUNATIK_TO_RUNTIME,
					   lunatik_instance_of(L)->gfp);
	return 0;
}

/* What a call may run; one from Lua spends what its caller has. */
static u32 instance_begin(struct lunatik_instance *instance,
			  struct lunatik_instance *outer)
{
	u32 instructions = instance->budget;

	if (instance_is_preemptible(instance)) {
		instructions = max(READ_ONCE(body_budget), 1U);
		instance->cpu_end = current->se.sum_exec_runtime +
			(u64)READ_ONCE(body_time) * NSEC_PER_MSEC;
	}
	instance->wait_end = outer ? outer->wait_end :
		jiffies + msecs_to_jiffies(READ_ONCE(body_wait));
	if (outer) {
		instructions = clamp_t(s64, outer->limits.left, 1, instructions);
		instance->cpu_end = min(instance->cpu_end, outer->cpu_end);
	}
	instance->limits.stack_floor = lunatik_stack_floor();
	lunatik_budget_start(instance, instructions);
	return instructions;
}

static bool instance_end(struct lunatik_instance *instance,
			 struct lunatik_instance *outer, u32 instructions)
{
	bool exceeded = lunatik_budget_end(instance);

	if (outer)
		outer->limits.left -= instructions + LUNATIK_TICK -
			max(instance->limits.left, 0LL);
	return exceeded;
}

/*
 * Call a protected_*() function. Its error, if any, becomes @error. The lock is
 * held, or nobody else knows the instance.
 */
static int instance_enter(struct lunatik_instance *instance,
			  struct lunatik_instance *outer, lua_CFunction function,
			  struct instance_call *call, struct lunatik_error *error)
{
	bool preemptible = instance_is_preemptible(instance);
	lua_State *L = instance->L;
	u32 instructions;
	int status, errno = 0;
	bool exceeded = false;

	call->nested = outer;
	instance->caller = outer;
	instructions = instance_begin(instance, outer);
	lua_pushcfunction(L, function);
	lua_pushlightuserdata(L, call);
	if (preemptible) {
		lunatik_watchdog_enter_body(instance);
		status = lua_pcall(L, 1, 0, 0);
		lunatik_watchdog_leave_body(instance);
	} else {
		lunatik_watchdog_enter(instance);
		instance->trapped = true; /* it is counted already */
		status = lua_pcall(L, 1, 0, 0);
		exceeded = lunatik_watchdog_leave(instance);
	}
	exceeded |= instance_end(instance, outer, instructions);
	instance->caller = NULL;
	if (call->pending)
		lua_pop(instance->body, call->pending);
	if (status != LUA_OK) {
		errno = call->errno ?: status == LUA_ERRMEM ? -ENOMEM : -ENOEXEC;
		lunatik_instance_failed(instance, 0, lunatik_message(L, -1),
					exceeded);
		lunatik_error_set(error, preemptible ? GFP_KERNEL : GFP_ATOMIC,
				  errno, "%s%s",
				  call->ran ? LUNATIK_RESULTS_LOST : "",
				  lunatik_message(L, -1));
		error->value = call->value;
		error->ran = call->ran;
	}
	lua_settop(L, 0);
	return errno;
}

/**
 * lunatik_message() - text of an error value
 * @L: thread, outside any protected call
 * @index: of the error value
 *
 * Return: the message; valid while the value is on the stack.
 */
const char *lunatik_message(lua_State *L, int index)
{
	/* lua_tostring() would convert a number in place, and may raise */
	return lua_type(L, index) == LUA_TSTRING ? lua_tostring(L, index) :
		"the error value is not a string";
}

/**
 * lunatik_instance_failed() - keep, trace, tell and log a failure
 * @instance: whose script failed
 * @hook: number of the slot whose callback failed, or 0 for the body
 * @message: what Lua said
 * @exceeded: the call was ended for running too long
 *
 * Context: any; the instance's lock is held.
 */
void lunatik_instance_failed(struct lunatik_instance *instance, u32 hook,
			     const char *message, bool exceeded)
{
	struct lunatik_runtime *rt = instance->runtime;

	lunatik_runtime_keep_error(rt, message);
	trace_runtime_error(rt->id, hook, message);
	lunatik_event_failed(rt, hook, message, exceeded);
	if (hook)
		pr_warn_ratelimited("runtime %u (%s): %.*s\n", rt->id,
				    lunatik_runtime_name(rt).text,
				    LUNATIK_MESSAGE_MAX - 1, message);
}

/**
 * lunatik_instance_resume() - pass values to a body that yielded
 * @instance: locked, and not closed
 * @outer: instance whose script asks for it, or NULL
 * @args: what coroutine.yield() returns in the body
 * @results: what the body yielded or returned, for lunatik_values_free()
 * @error: filled in on failure
 *
 * Context: that of the lock.
 * Return: 0, -ENOEXEC for a Lua error, or -ENOMEM.
 */
int lunatik_instance_resume(struct lunatik_instance *instance,
			    struct lunatik_instance *outer,
			    const struct lunatik_values *args,
			    struct lunatik_values **results,
			    struct lunatik_error *error)
{
	struct instance_call call = { .args = args };
	int errno;

	errno = instance_enter(instance, outer, protected_resume, &call, error);
	*results = call.results;
	return errno;
}

/**
 * lunatik_instance_call() - call a global function of the script, if there is one
 * @instance: locked, or known to nobody else
 * @global: its name
 * @args: what it gets, or NULL
 * @results: what it returned, for lunatik_values_free(); NULL where there is no such function
 * @error: filled in on failure
 *
 * Context: that of the lock.
 * Return: 0, -ENOEXEC for a Lua error, or -ENOMEM.
 */
int lunatik_instance_call(struct lunatik_instance *instance, const char *global,
			  const struct lunatik_values *args,
			  struct lunatik_values **results,
			  struct lunatik_error *error)
{
	struct instance_call call = { .global = global, .args = args };
	int errno;

	errno = instance_enter(instance, NULL, protected_call, &call, error);
	*results = call.results;
	return errno;
}

/* Create and destroy */

static struct lunatik_instance *
instance_alloc(struct lunatik_runtime *rt)
{
	struct lunatik_instance *instance;

	instance = lunatik_kzalloc(sizeof(*instance), GFP_KERNEL);
	if (!instance)
		return NULL;
	kref_init(&instance->refs);
	mutex_init(&instance->mutex);
	spin_lock_init(&instance->spinlock);
	INIT_LIST_HEAD(&instance->hooks);
	INIT_LIST_HEAD(&instance->handles);
	INIT_LIST_HEAD(&instance->libraries);
	instance->runtime = rt;
	instance->sleep = rt->sleep;
	instance->state = LUNATIK_STATE_CREATING;
	/* What a callback allocates is not the memory of whoever sends the packet. */
	instance->gfp = (rt->sleep ? GFP_KERNEL_ACCOUNT : GFP_ATOMIC) | __GFP_NOWARN;
	instance->memory_limit = READ_ONCE(memory_limit);
	instance->budget = clamp(READ_ONCE(budget), 1U, (unsigned int)INT_MAX);
	instance->owner_cpu = -1;
	return instance;
}

static void instance_free(struct kref *refs)
{
	kfree(container_of(refs, struct lunatik_instance, refs));
}

/**
 * lunatik_instance_put() - give back a reference
 * @instance: may be freed by it, though not its Lua state
 *
 * Context: any.
 */
void lunatik_instance_put(struct lunatik_instance *instance)
{
	kref_put(&instance->refs, instance_free);
}

/**
 * lunatik_instance_create() - run a script's body once, in a new Lua state
 * @rt: runtime it is to belong to
 * @spec: the script
 * @error: filled in on failure
 *
 * The body runs in the caller's task. Its hooks are not in force yet.
 *
 * Context: process, may sleep.
 * Return: the instance, for lunatik_instance_destroy(), or NULL.
 */
struct lunatik_instance *
lunatik_instance_create(struct lunatik_runtime *rt,
			const struct lunatik_spec *spec,
			struct lunatik_error *error)
{
	struct lunatik_instance *instance = instance_alloc(rt);
	struct instance_call call = { .spec = spec };
	int errno;

	if (!instance) {
		lunatik_error_set(error, GFP_KERNEL, -ENOMEM, "not enough memory");
		return NULL;
	}
	instance->limits.stack_floor = lunatik_stack_floor();
	instance->L = lua_newstate(lunatik_allocate, instance);
	if (!instance->L) {
		lunatik_error_set(error, GFP_KERNEL, -ENOMEM,
				  "not enough memory for a Lua state (limit %zu bytes)",
				  instance->memory_limit);
		goto destroy;
	}
	*lunatik_thread_of(instance->L) =
		(struct lunatik_thread){ &instance->limits };
	errno = instance_enter(instance, spec->outer, protected_create, &call,
			       error);
	lunatik_values_free(call.results);
	if (errno)
		goto destroy;
	/* From here on callbacks may run, so the lock counts. */
	instance->armed = true;
	return instance;

destroy:
	lunatik_instance_destroy(instance);
	return NULL;
}

/**
 * lunatik_instance_destroy() - close the state and free every byte
 * @instance: closed, or never known to anybody; the creator's reference is consumed
 *
 * Context: process, may sleep; no callback runs any more.
 * Return: bytes the closed state still holds, which should be none.
 */
size_t lunatik_instance_destroy(struct lunatik_instance *instance)
{
	size_t leaked;

	if (instance->L) {
		instance->limits.stack_floor = lunatik_stack_floor();
		lua_close(instance->L);
		instance->L = NULL;
		instance->body = NULL;
	}
	lunatik_hooks_free(instance);
	lunatik_handles_sweep(&instance->handles);
	lunatik_library_close(instance);
	leaked = instance->memory;
	return_share(instance, instance->share);
	WARN_ON_ONCE(leaked);
	lunatik_instance_put(instance);
	return leaked;
}
