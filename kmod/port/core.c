// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * What the stock Lua core calls and the kernel does not have.
 */
#include <linux/bug.h>
#include <linux/compiler.h>
#include <linux/random.h>

#include "lstate.h"
#include "lauxlib.h"
#include "ldebug.h"
#include "ldo.h"
#include "lundump.h"

unsigned int lunatik_seed(void)
{
	return get_random_u32();
}

/* Reached only by an error outside any protected call, which is our bug. */
void lunatik_abort(void)
{
	BUG();
	unreachable();
}

long long lunatik_no_float(lua_State *L, const char *what)
{
	luaG_runerror(L, "%s needs floats, and Lua in the kernel has integers only",
		      what);
	unreachable();
}

long long lunatik_fold_float(lua_State *L, const char *what)
{
	return lunatik_thread_of(L)->limits->compiling ?
		0 : lunatik_no_float(L, what);
}

/*
 * Raise an error from within a hook. Hooks are off there, and would stay off in the
 * message handler and, in a coroutine, in its __close functions; nothing could end
 * those. So hooks go on again, and no handler is called.
 */
void lunatik_raise_from_hook(lua_State *L, const char *message)
{
	L->allowhook = 1; /* first: without memory for the message, that raises */
	L->errfunc = 0;
	luaL_where(L, 0);
	lua_pushstring(L, message);
	lua_concat(L, 2);
	lua_error(L);
}

/* The string library is about to raise an error, or to give up for want of time. */
void lunatik_in_time(lua_State *L)
{
	if (lunatik_thread_of(L)->limits->overdue)
		luaL_error(L, "instruction budget exceeded");
}

/* An element of a table costs as much as an instruction. */
void lunatik_checkpoint(lua_State *L)
{
	struct lunatik_limits *limits = lunatik_thread_of(L)->limits;

	if (L->hookmask && (--limits->left <= 0 || limits->overdue))
		luaG_runerror(L, "instruction budget exceeded");
}

/*
 * An interrupt on this CPU may walk the list at any point of these two, forwards
 * only, so each changes what such a walk sees by one store.
 */
void lunatik_thread_init(lua_State *L, lua_State *thread)
{
	struct lunatik_thread *head = lunatik_thread_of(G(L)->mainthread);
	struct lunatik_thread *new = lunatik_thread_of(thread);

	new->limits = head->limits;
	new->prev = head;
	new->next = head->next;
	if (new->next)
		new->next->prev = new;
	/* the new thread is whole before a walk can meet it */
	smp_store_release(&head->next, new);
	/* an interrupt between L's hook being copied and here has missed it */
	if (READ_ONCE(L->hook) && !thread->hook)
		lua_sethook(thread, L->hook, L->hookmask, L->basehookcount);
	/*
	 * Each thread counts its own instructions up to a tick, so threads have to
	 * be paid for, or a script could run in ever new ones uncounted.
	 */
	if (L->hookmask) {
		new->limits->left -= LUNATIK_TICK;
		if (new->limits->left <= 0)
			luaG_runerror(L, "instruction budget exceeded");
	}
}

void lunatik_thread_exit(lua_State *thread)
{
	struct lunatik_thread *old = lunatik_thread_of(thread);

	if (old->next)
		old->next->prev = old->prev;
	/* a walk that is at the old thread goes on to the next */
	smp_store_release(&old->prev->next, old->next);
}

/* Bytecode is refused by every door: nothing is dumped, nothing is undumped. */
LClosure *luaU_undump(lua_State *L, ZIO *Z, const char *name)
{
	luaL_error(L, "%s is bytecode, and only text is loaded", name);
	unreachable();
}

int luaU_dump(lua_State *L, const Proto *f, lua_Writer w, void *data, int strip)
{
	return 1;
}
