// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "data": buffers of bytes that runtimes share. Their fields are read
 * and written by the methods of bytes.c.
 */
#include <linux/minmax.h>
#include <linux/spinlock.h>
#include <linux/string.h>

#include "bytes.h"
#include "library.h"
#include "object.h"

#define DATA_MAX	(64 * 1024)

/**
 * struct data - a buffer of bytes
 * @object: head
 * @lock: held for every access, so that none meets half of another one
 * @size: bytes at @bytes
 * @bytes: the content, or NULL where there is none
 */
struct data {
	struct lunatik_object object;
	spinlock_t lock;
	size_t size;
	u8 *bytes;
};

static void data_release(struct lunatik_object *object)
{
	struct data *data = container_of(object, struct data, object);

	lunatik_object_free(data->bytes, data->size);
}

static struct data *data_check(lua_State *L)
{
	return container_of(lunatik_object_check(L, 1, &lunatik_data_class),
			    struct data, object);
}

static size_t data_size_argument(lua_State *L, int arg)
{
	lua_Integer size = luaL_checkinteger(L, arg);

	luaL_argcheck(L, size >= 0 && size <= DATA_MAX, arg,
		      "a data has 0 to 65536 bytes");
	return size;
}

/**
 * lunatik_data_new() - push a new data object of zeros
 * @L: thread
 * @size: of the object in bytes; an error is raised for more than it can have
 *
 * Context: inside a protected call.
 * Return: its bytes, to be filled in before anybody else has the object.
 */
void *lunatik_data_new(lua_State *L, size_t size)
{
	struct lunatik_object *object;
	struct data *data;

	if (size > DATA_MAX)
		luaL_error(L, "%I bytes are too many: a data has 0 to 65536",
			   (lua_Integer)size);
	object = lunatik_object_new(L, &lunatik_data_class);
	data = container_of(object, struct data, object);
	spin_lock_init(&data->lock);
	if (size)
		data->bytes = lunatik_object_alloc(L, size);
	data->size = size;
	return data->bytes;
}

/* data.new(size): zeros */
static int data_new(lua_State *L)
{
	lunatik_data_new(L, data_size_argument(L, 1));
	return 1;
}

/* data:resize(size): cut off at the end, or zeros added there */
static int data_resize(lua_State *L)
{
	struct data *data = data_check(L);
	size_t size = data_size_argument(L, 2);
	u8 *bytes = size ? lunatik_object_alloc(L, size) : NULL;
	size_t old_size;
	u8 *old;

	spin_lock_bh(&data->lock);
	old = data->bytes;
	old_size = data->size;
	if (old && bytes)
		memcpy(bytes, old, min(size, old_size));
	data->bytes = bytes;
	data->size = size;
	spin_unlock_bh(&data->lock);
	lunatik_object_free(old, old_size);
	return 0;
}

/* As a kind of bytes. */

static struct data *data_of(lua_State *L, void *self)
{
	return container_of(lunatik_object_of(L, self), struct data, object);
}

static size_t data_bytes_size(lua_State *L, void *self)
{
	return READ_ONCE(data_of(L, self)->size);
}

static bool data_bytes_read(lua_State *L, void *self, size_t offset, void *buf,
			    size_t len)
{
	struct data *data = data_of(L, self);
	bool inside;

	spin_lock_bh(&data->lock);
	inside = offset <= data->size && len <= data->size - offset;
	if (inside && len)
		memcpy(buf, data->bytes + offset, len);
	spin_unlock_bh(&data->lock);
	return inside;
}

static bool data_bytes_write(lua_State *L, void *self, size_t offset,
			     const void *buf, size_t len)
{
	struct data *data = data_of(L, self);
	bool inside;

	spin_lock_bh(&data->lock);
	inside = offset <= data->size && len <= data->size - offset;
	if (inside && len)
		memcpy(data->bytes + offset, buf, len);
	spin_unlock_bh(&data->lock);
	return inside;
}

static const struct lunatik_bytes_ops data_ops = {
	.name = "data",
	.size = data_bytes_size,
	.read = data_bytes_read,
	.write = data_bytes_write,
};

static const luaL_Reg data_methods[] = {
	{ "resize", data_resize },
	{ NULL, NULL }
};

const struct lunatik_class lunatik_data_class = {
	.name = "data",
	.size = sizeof(struct data),
	.methods = data_methods,
	.bytes = &data_ops,
	.release = data_release,
};

static const luaL_Reg data_functions[] = {
	{ "new", data_new },
	{ NULL, NULL }
};

int lunatik_open_data(lua_State *L)
{
	luaL_newlib(L, data_functions);
	return 1;
}
