// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "completion": waiting, in a sleepable runtime, for what another
 * runtime does, also in a callback.
 *
 * Whoever waits holds the lock of its instance, and of those whose scripts have
 * called it. Stopping any of these ends the wait: see lunatik_runtime_stop(). And it
 * holds up whoever registers with generic netlink, so all waits of a call together
 * have a limit.
 */
#include <linux/atomic.h>
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/sched/signal.h>
#include <linux/wait.h>

#include "library.h"
#include "object.h"
#include "runtime.h"

/**
 * struct completion_object - a completion
 * @object: head
 * @done: how often it was completed, less the waits that has ended
 * @queue: those who wait
 */
struct completion_object {
	struct lunatik_object object;
	atomic_t done;
	wait_queue_head_t queue;
};

/* What ended a wait. */
enum wait_end {
	WAIT_DONE,
	WAIT_TIMEOUT,
	WAIT_INTERRUPT,
	WAIT_STOPPED,
	WAIT_LIMIT,
};

static struct completion_object *completion_check(lua_State *L)
{
	return container_of(lunatik_object_check(L, 1, &lunatik_completion_class),
			    struct completion_object, object);
}

/* Whether a wait is to end, and how; the caller will sleep otherwise. */
static bool wait_ends(struct completion_object *completion,
		      const struct lunatik_instance *instance, long timeout,
		      enum wait_end *end)
{
	if (atomic_dec_if_positive(&completion->done) >= 0)
		*end = WAIT_DONE;
	else if (lunatik_instance_is_stopping(instance))
		*end = WAIT_STOPPED;
	else if (signal_pending(current))
		*end = WAIT_INTERRUPT;
	else if (!timeout)
		*end = WAIT_TIMEOUT;
	else
		return false;
	return true;
}

static enum wait_end completion_sleep(struct completion_object *completion,
				      const struct lunatik_instance *instance,
				      long timeout)
{
	long limit = max(0L, (long)(instance->wait_end - jiffies));
	bool limited = timeout > limit;
	DEFINE_WAIT(for_completion);
	DEFINE_WAIT(for_stop);
	enum wait_end end;

	timeout = min(timeout, limit);
	for (;;) {
		prepare_to_wait(&completion->queue, &for_completion,
				TASK_INTERRUPTIBLE);
		prepare_to_wait(&lunatik_stopping, &for_stop, TASK_INTERRUPTIBLE);
		if (wait_ends(completion, instance, timeout, &end))
			break;
		timeout = schedule_timeout(timeout);
	}
	finish_wait(&lunatik_stopping, &for_stop);
	finish_wait(&completion->queue, &for_completion);
	return end == WAIT_TIMEOUT && limited ? WAIT_LIMIT : end;
}

/* completion:wait([ms]): true, or nil and "timeout" or "interrupt"; raises */
static int completion_wait(lua_State *L)
{
	struct completion_object *completion = completion_check(L);
	struct lunatik_instance *instance = lunatik_instance_of(L);
	long timeout = MAX_SCHEDULE_TIMEOUT;
	lua_Integer ms;

	if (!lua_isnoneornil(L, 2)) {
		ms = luaL_checkinteger(L, 2);
		luaL_argcheck(L, ms >= 0, 2, "a time is not negative");
		timeout = msecs_to_jiffies(min_t(lua_Integer, ms, INT_MAX));
	}
	if (!instance->sleep)
		return luaL_error(L, "completion:wait: waiting sleeps, and this runtime is not sleepable");
	lunatik_check_stack(L);
	switch (completion_sleep(completion, instance, timeout)) {
	case WAIT_DONE:
		lua_pushboolean(L, true);
		return 1;
	case WAIT_STOPPED:
		return luaL_error(L, "completion:wait: the runtime is being stopped");
	case WAIT_LIMIT:
		return luaL_error(L, "completion:wait: the call has waited as long as it may (body_wait): wait for less, or yield in between");
	case WAIT_INTERRUPT:
		lua_pushnil(L);
		lua_pushliteral(L, "interrupt");
		return 2;
	default:
		lua_pushnil(L);
		lua_pushliteral(L, "timeout");
		return 2;
	}
}

/* completion:complete(): end one wait, now or when it begins */
static int completion_complete(lua_State *L)
{
	struct completion_object *completion = completion_check(L);

	atomic_add_unless(&completion->done, 1, INT_MAX);
	wake_up(&completion->queue);
	return 0;
}

/* completion.new(): not completed yet */
static int completion_new(lua_State *L)
{
	struct lunatik_object *object;
	struct completion_object *completion;

	object = lunatik_object_new(L, &lunatik_completion_class);
	completion = container_of(object, struct completion_object, object);
	init_waitqueue_head(&completion->queue);
	return 1;
}

static const luaL_Reg completion_methods[] = {
	{ "complete", completion_complete },
	{ "wait", completion_wait },
	{ NULL, NULL }
};

const struct lunatik_class lunatik_completion_class = {
	.name = "completion",
	.size = sizeof(struct completion_object),
	.methods = completion_methods,
};

static const luaL_Reg completion_functions[] = {
	{ "new", completion_new },
	{ NULL, NULL }
};

int lunatik_open_completion(lua_State *L)
{
	luaL_newlib(L, completion_functions);
	return 1;
}
