// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "fifo": queues of bytes, or of messages, that runtimes share. What
 * is taken out is not lost to an error: it leaves the queue when it is a string in
 * Lua, unless somebody else has taken something meanwhile; then we try again.
 */
#include <linux/minmax.h>
#include <linux/spinlock.h>
#include <linux/string.h>

#include "library.h"
#include "object.h"

#define FIFO_MAX	(64 * 1024)
/* Bytes that are copied on the kernel's stack. */
#define SMALL		128

/**
 * struct fifo - a queue of bytes
 * @object: head
 * @lock: of everything below, bottom halves off
 * @size: bytes it has room for
 * @start: index of the first byte in @bytes
 * @used: bytes that are queued
 * @taken: how often something was taken out
 * @bytes: a ring, or NULL when closed
 */
struct fifo {
	struct lunatik_object object;
	spinlock_t lock;
	size_t size;
	size_t start;
	size_t used;
	u64 taken;
	u8 *bytes;
};

static void fifo_release(struct lunatik_object *object)
{
	struct fifo *fifo = container_of(object, struct fifo, object);

	lunatik_object_free(fifo->bytes, fifo->size);
}

static struct fifo *fifo_check(lua_State *L)
{
	return container_of(lunatik_object_check(L, 1, &lunatik_fifo_class),
			    struct fifo, object);
}

/* The functions down to fifo_reserve() are called with the lock held. */

static void fifo_write(struct fifo *fifo, const void *from, size_t len)
{
	size_t end = (fifo->start + fifo->used) % fifo->size;
	size_t first = min(len, fifo->size - end);

	memcpy(fifo->bytes + end, from, first);
	memcpy(fifo->bytes, from + first, len - first);
	fifo->used += len;
}

/* Copy bytes that stay queued, behind so many others. */
static void fifo_peek(const struct fifo *fifo, size_t skip, void *to, size_t len)
{
	size_t start = (fifo->start + skip) % fifo->size;
	size_t first = min(len, fifo->size - start);

	memcpy(to, fifo->bytes + start, first);
	memcpy(to + first, fifo->bytes, len - first);
}

static void fifo_drop(struct fifo *fifo, size_t len)
{
	fifo->start = (fifo->start + len) % fifo->size;
	fifo->used -= len;
	fifo->taken++;
}

/* Queue a string, behind its length if it is to be a message; raises. */
static int fifo_queue(lua_State *L, bool message)
{
	struct fifo *fifo = fifo_check(L);
	size_t len, need, free;
	const char *s = luaL_checklstring(L, 2, &len);
	u32 head = len;
	bool closed;

	need = len + (message ? sizeof(head) : 0);
	spin_lock_bh(&fifo->lock);
	closed = !fifo->bytes;
	free = fifo->size - fifo->used;
	if (!closed && need <= free) {
		if (message)
			fifo_write(fifo, &head, sizeof(head));
		fifo_write(fifo, s, len);
	}
	spin_unlock_bh(&fifo->lock);
	if (closed)
		return luaL_error(L, "the fifo is closed");
	if (need > free)
		return luaL_error(L, "the fifo has no room for %I bytes: %I of %I are free",
				  (lua_Integer)need, (lua_Integer)free,
				  (lua_Integer)fifo->size);
	return 0;
}

/**
 * struct taking - what is to be taken out
 * @message: the first message, else bytes
 * @head: bytes before it that go too
 * @len: of it; the most that is wanted at first
 * @taken: of the fifo, when it was looked at
 */
struct taking {
	bool message;
	size_t head;
	size_t len;
	u64 taken;
};

/* Look how much there is to take; false if there is no message. Raises. */
static bool taking_look(lua_State *L, struct fifo *fifo, struct taking *taking)
{
	bool closed, broken = false;
	size_t used;
	u32 len;

	spin_lock_bh(&fifo->lock);
	closed = !fifo->bytes;
	used = fifo->used;
	taking->taken = fifo->taken;
	if (!closed && taking->message && used) {
		taking->head = sizeof(len);
		broken = used < sizeof(len);
		if (!broken) {
			fifo_peek(fifo, 0, &len, sizeof(len));
			taking->len = len;
			broken = len > used - sizeof(len);
		}
	}
	spin_unlock_bh(&fifo->lock);
	if (closed)
		luaL_error(L, "the fifo is closed");
	if (broken)
		luaL_error(L, "the fifo holds bytes that are no message: push and send do not mix");
	if (!taking->message)
		taking->len = min(taking->len, used);
	return !taking->message || used;
}

/* Copy it, if the fifo still is as it was; without a buffer take it out. */
static bool taking_step(struct fifo *fifo, const struct taking *taking, char *buf)
{
	bool same;

	spin_lock_bh(&fifo->lock);
	same = fifo->bytes && fifo->taken == taking->taken;
	if (same && buf)
		fifo_peek(fifo, taking->head, buf, taking->len);
	else if (same)
		fifo_drop(fifo, taking->head + taking->len);
	spin_unlock_bh(&fifo->lock);
	return same;
}

/* Push what is taken out, as a string; false if there is no message. Raises. */
static bool fifo_take(lua_State *L, struct fifo *fifo, struct taking *taking)
{
	size_t wanted = taking->len;
	int top = lua_gettop(L);
	char small[SMALL], *room;

	for (;;) {
		taking->len = wanted;
		if (!taking_look(L, fifo, taking))
			return false;
		room = taking->len <= sizeof(small) ? small :
			lua_newuserdatauv(L, taking->len, 0);
		if (taking_step(fifo, taking, room)) {
			lua_pushlstring(L, room, taking->len);
			if (taking_step(fifo, taking, NULL))
				return true;
		}
		lua_settop(L, top);
		lunatik_checkpoint(L);
	}
}

/* fifo:push(s): queue bytes, all or none; raises where there is no room */
static int fifo_push(lua_State *L)
{
	return fifo_queue(L, false);
}

/* fifo:send(s): queue a message */
static int fifo_send(lua_State *L)
{
	return fifo_queue(L, true);
}

/* fifo:pop(n): up to so many bytes, and how many these are */
static int fifo_pop(lua_State *L)
{
	struct fifo *fifo = fifo_check(L);
	lua_Integer wanted = luaL_checkinteger(L, 2);
	struct taking taking = {};

	luaL_argcheck(L, wanted >= 0, 2, "a number of bytes is not negative");
	taking.len = min_t(lua_Integer, wanted, FIFO_MAX);
	fifo_take(L, fifo, &taking);
	lua_pushinteger(L, taking.len);
	return 2;
}

/* fifo:receive(): the first message, or nil */
static int fifo_receive(lua_State *L)
{
	struct fifo *fifo = fifo_check(L);
	struct taking taking = { .message = true };

	if (!fifo_take(L, fifo, &taking))
		lua_pushnil(L);
	return 1;
}

/* fifo:close(): for all that share it; closing twice is harmless */
static int fifo_close(lua_State *L)
{
	struct fifo *fifo = fifo_check(L);
	u8 *bytes;

	spin_lock_bh(&fifo->lock);
	bytes = fifo->bytes;
	fifo->bytes = NULL;
	spin_unlock_bh(&fifo->lock);
	lunatik_object_free(bytes, fifo->size);
	return 0;
}

/* fifo.new(size): an empty fifo with room for so many bytes */
static int fifo_new(lua_State *L)
{
	lua_Integer size = luaL_checkinteger(L, 1);
	struct lunatik_object *object;
	struct fifo *fifo;

	luaL_argcheck(L, size > 0 && size <= FIFO_MAX, 1,
		      "a fifo has 1 to 65536 bytes");
	object = lunatik_object_new(L, &lunatik_fifo_class);
	fifo = container_of(object, struct fifo, object);
	spin_lock_init(&fifo->lock);
	fifo->bytes = lunatik_object_alloc(L, size);
	fifo->size = size;
	return 1;
}

static const luaL_Reg fifo_methods[] = {
	{ "close", fifo_close },
	{ "pop", fifo_pop },
	{ "push", fifo_push },
	{ "receive", fifo_receive },
	{ "send", fifo_send },
	{ NULL, NULL }
};

const struct lunatik_class lunatik_fifo_class = {
	.name = "fifo",
	.size = sizeof(struct fifo),
	.methods = fifo_methods,
	.release = fifo_release,
};

static const luaL_Reg fifo_functions[] = {
	{ "new", fifo_new },
	{ NULL, NULL }
};

int lunatik_open_fifo(lua_State *L)
{
	luaL_newlib(L, fifo_functions);
	return 1;
}
