// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * The Lua library "rcu": tables that runtimes share, and the shared environment.
 *
 * Readers take no lock and wait for nobody, so there may be any number of them; each
 * writer holds the table's spinlock for a few stores. An entry never changes but for
 * an integer or boolean that is replaced by one of its type; it holds a reference to
 * the object it names until nobody can read it any more. So a reader within an RCU
 * section may take a reference to the entry, or to its object, and go on with that.
 *
 * Entries of a bucket are in the order of their numbers, highest first, and keep
 * their number when their value is replaced. So a walk knows by one number where it
 * was, whatever was removed or added since: it meets every entry that is there all
 * the time once, and no key twice.
 *
 * A table can hold only tables created after it. So no table holds itself, not even
 * by way of others, and what nobody can reach any more is released.
 */
#include <linux/atomic.h>
#include <linux/log2.h>
#include <linux/minmax.h>
#include <linux/random.h>
#include <linux/rculist.h>
#include <linux/siphash.h>
#include <linux/spinlock.h>
#include <linux/string.h>

#include "library.h"
#include "memory.h"
#include "object.h"
#include "runtime.h"

#define BUCKETS_MIN	64
#define BUCKETS_DEFAULT	256
#define BUCKETS_MAX	(64 * 1024)
#define KEY_MAX		255
#define STRING_MAX	(64 * 1024)
/* Strings up to this size are read without a reference to their entry. */
#define STRING_SHORT	128

/**
 * struct rcu_table - a table
 * @object: head
 * @serial: its place in the order of creation
 * @lock: of writers, bottom halves off
 * @last: number of the entry that was added last
 * @bucket_count: length of @buckets, a power of two
 * @buckets: lists of struct rcu_entry
 */
struct rcu_table {
	struct lunatik_object object;
	u64 serial;
	spinlock_t lock;
	u64 last;
	u32 bucket_count;
	struct hlist_head *buckets;
};

/**
 * struct rcu_key - what an entry is found by
 * @bytes: of a string, or NULL for an integer
 * @len: of a string, in bytes
 * @integer: the integer
 * @hash: of the key
 */
struct rcu_key {
	const char *bytes;
	size_t len;
	s64 integer;
	u64 hash;
};

/**
 * struct rcu_entry - a key and its value
 * @node: in its bucket
 * @number: of the entry in its table
 * @refs: of the table, until readers are through, and of whoever pushes the value
 * @rcu: for giving back the table's reference
 * @type: of the value: LUA_TBOOLEAN, LUA_TNUMBER, LUA_TSTRING or LUA_TUSERDATA
 * @string_key: the key is a string, at the start of @bytes
 * @key_len: its length
 * @len: of a value that is a string, behind the key
 * @key: a key that is an integer
 * @integer: value
 * @object: value
 * @bytes: of the strings
 */
struct rcu_entry {
	struct hlist_node node;
	u64 number;
	refcount_t refs;
	struct rcu_head rcu;
	u8 type;
	bool string_key;
	u8 key_len;
	u32 len;
	s64 key;
	union {
		s64 integer;
		struct lunatik_object *object;
	};
	char bytes[];
};

/**
 * struct rcu_cursor - where a walk is
 * @bucket: index
 * @below: the entries with a lower number are still to come
 */
struct rcu_cursor {
	u64 bucket;
	u64 below;
};

static siphash_key_t hash_key __ro_after_init;
static atomic64_t last_serial;
static struct rcu_table *env;

static struct rcu_table *table_of(struct lunatik_object *object)
{
	return container_of(object, struct rcu_table, object);
}

static struct rcu_table *table_check(lua_State *L, int arg)
{
	return table_of(lunatik_object_check(L, arg, &lunatik_rcu_class));
}

/* Entries */

static size_t entry_size(const struct rcu_entry *entry)
{
	return struct_size(entry, bytes, (size_t)entry->key_len + entry->len);
}

static void entry_put(struct rcu_entry *entry)
{
	if (!refcount_dec_and_test(&entry->refs))
		return;
	if (entry->type == LUA_TUSERDATA)
		lunatik_object_put(entry->object);
	lunatik_object_free(entry, entry_size(entry));
}

static void entry_put_rcu(struct rcu_head *rcu)
{
	entry_put(container_of(rcu, struct rcu_entry, rcu));
}

static const char *entry_string(const struct rcu_entry *entry)
{
	return entry->bytes + entry->key_len;
}

/* An entry of the key and of the value in argument 3; raises. */
static struct rcu_entry *entry_new(lua_State *L, const struct rcu_key *key)
{
	struct rcu_entry *entry;
	const char *s = NULL;
	size_t len = 0;

	if (lua_type(L, 3) == LUA_TSTRING)
		s = lua_tolstring(L, 3, &len);
	if (len > STRING_MAX)
		luaL_error(L, "a string in an rcu table has at most %d bytes",
			   STRING_MAX);
	entry = lunatik_object_alloc(L, struct_size(entry, bytes, key->len + len));
	refcount_set(&entry->refs, 1);
	entry->type = lua_type(L, 3);
	entry->string_key = key->bytes;
	entry->key_len = key->len;
	entry->key = key->integer;
	entry->len = len;
	if (key->bytes)
		memcpy(entry->bytes, key->bytes, key->len);
	if (s)
		memcpy(entry->bytes + key->len, s, len);
	if (entry->type == LUA_TUSERDATA)
		entry->object = lunatik_object_get(lunatik_object_at(L, 3));
	else if (entry->type == LUA_TBOOLEAN)
		entry->integer = lua_toboolean(L, 3);
	else if (entry->type == LUA_TNUMBER)
		entry->integer = lua_tointeger(L, 3);
	return entry;
}

static void push_key(lua_State *L, const struct rcu_entry *entry)
{
	if (entry->string_key)
		lua_pushlstring(L, entry->bytes, entry->key_len);
	else
		lua_pushinteger(L, entry->key);
}

static void push_value(lua_State *L, const struct rcu_entry *entry)
{
	switch (entry->type) {
	case LUA_TBOOLEAN:
		lua_pushboolean(L, READ_ONCE(entry->integer));
		break;
	case LUA_TNUMBER:
		lua_pushinteger(L, READ_ONCE(entry->integer));
		break;
	case LUA_TSTRING:
		lua_pushlstring(L, entry_string(entry), entry->len);
		break;
	default:
		lunatik_object_push(L, entry->object);
	}
}

static int protected_push_value(lua_State *L)
{
	push_value(L, lua_touserdata(L, 1));
	return 1;
}

static int protected_push_pair(lua_State *L)
{
	const struct rcu_entry *entry = lua_touserdata(L, 1);

	push_key(L, entry);
	push_value(L, entry);
	return 2;
}

/* Push what a function makes of an entry, whose reference is consumed; raises. */
static void entry_push(lua_State *L, lua_CFunction function,
		       struct rcu_entry *entry)
{
	int status = lunatik_protected(L, function, entry);

	entry_put(entry);
	if (status != LUA_OK)
		lua_error(L);
}

/* Tables */

/* The key in argument 2; false for a string that no entry has. Raises. */
static bool key_check(lua_State *L, struct rcu_key *key)
{
	*key = (struct rcu_key){};
	if (lua_type(L, 2) == LUA_TNUMBER) {
		key->integer = lua_tointeger(L, 2);
		key->hash = siphash_1u64(key->integer, &hash_key);
		return true;
	}
	if (lua_type(L, 2) != LUA_TSTRING)
		luaL_error(L, "a key of an rcu table is a string or an integer, not a %s",
			   luaL_typename(L, 2));
	key->bytes = lua_tolstring(L, 2, &key->len);
	if (key->len > KEY_MAX)
		return false;
	key->hash = siphash(key->bytes, key->len, &hash_key);
	return true;
}

static bool entry_has_key(const struct rcu_entry *entry,
			  const struct rcu_key *key)
{
	if (!key->bytes)
		return !entry->string_key && entry->key == key->integer;
	return entry->string_key && entry->key_len == key->len &&
		!memcmp(entry->bytes, key->bytes, key->len);
}

static struct hlist_head *table_bucket(struct rcu_table *table,
				       const struct rcu_key *key)
{
	return &table->buckets[key->hash & (table->bucket_count - 1)];
}

/* Within an RCU section, or by the holder of the lock. */
static struct rcu_entry *table_find(struct rcu_table *table,
				    const struct rcu_key *key)
{
	struct rcu_entry *entry;

	hlist_for_each_entry_rcu(entry, table_bucket(table, key), node,
				 lockdep_is_held(&table->lock))
		if (entry_has_key(entry, key))
			return entry;
	return NULL;
}

/* table[key] */
static int table_index(lua_State *L)
{
	struct rcu_table *table = table_check(L, 1);
	struct rcu_entry *entry, *held = NULL;
	char string[STRING_SHORT];
	struct rcu_key key;
	s64 integer = 0;
	size_t len = 0;
	int type;

	if (!key_check(L, &key)) {
		lua_pushnil(L);
		return 1;
	}
	rcu_read_lock();
	entry = table_find(table, &key);
	type = entry ? entry->type : LUA_TNIL;
	if (type == LUA_TBOOLEAN || type == LUA_TNUMBER) {
		integer = READ_ONCE(entry->integer);
	} else if (type == LUA_TSTRING && entry->len <= STRING_SHORT) {
		len = entry->len;
		memcpy(string, entry_string(entry), len);
	} else if (entry) {
		refcount_inc(&entry->refs);
		held = entry;
	}
	rcu_read_unlock();

	if (held)
		entry_push(L, protected_push_value, held);
	else if (type == LUA_TNUMBER)
		lua_pushinteger(L, integer);
	else if (type == LUA_TBOOLEAN)
		lua_pushboolean(L, integer);
	else if (type == LUA_TSTRING)
		lua_pushlstring(L, string, len);
	else
		lua_pushnil(L);
	return 1;
}

/* Raise unless the value in argument 3 may be in the table. */
static void value_check(lua_State *L, const struct rcu_table *table)
{
	const struct lunatik_class *class = lunatik_class_at(L, 3);
	struct lunatik_object *object = lunatik_object_at(L, 3);
	int type = lua_type(L, 3);

	if (type == LUA_TNIL || type == LUA_TBOOLEAN || type == LUA_TNUMBER ||
	    type == LUA_TSTRING)
		return;
	if (!object || class->stays)
		luaL_error(L, "an rcu table holds booleans, integers, strings and shared objects, not a %s",
			   class ? class->name : luaL_typename(L, 3));
	if (class == &lunatik_rcu_class && table_of(object)->serial <= table->serial)
		luaL_error(L, "an rcu table can hold only tables created after it, so that none holds itself");
}

/* Store an integer or a boolean where one of its type is: nothing is allocated. */
static bool table_store(struct rcu_table *table, const struct rcu_key *key,
			int type, s64 integer)
{
	struct rcu_entry *entry;
	bool found;

	spin_lock_bh(&table->lock);
	entry = table_find(table, key);
	found = entry && entry->type == type;
	if (found)
		WRITE_ONCE(entry->integer, integer);
	spin_unlock_bh(&table->lock);
	return found;
}

/* Put an entry in the place of the one with its key; without one, only remove. */
static void table_replace(struct rcu_table *table, const struct rcu_key *key,
			  struct rcu_entry *entry)
{
	struct rcu_entry *old;

	spin_lock_bh(&table->lock);
	old = table_find(table, key);
	if (entry && old) {
		entry->number = old->number;
		hlist_replace_rcu(&old->node, &entry->node);
	} else if (entry) {
		entry->number = ++table->last;
		hlist_add_head_rcu(&entry->node, table_bucket(table, key));
	} else if (old) {
		hlist_del_rcu(&old->node);
	}
	spin_unlock_bh(&table->lock);
	if (old)
		call_rcu(&old->rcu, entry_put_rcu);
}

/* table[key] = value */
static int table_newindex(lua_State *L)
{
	struct rcu_table *table = table_check(L, 1);
	int type = lua_type(L, 3);
	struct rcu_key key;

	if (!key_check(L, &key))
		return luaL_error(L, "a key of an rcu table has at most %d bytes",
				  KEY_MAX);
	value_check(L, table);
	if (type == LUA_TBOOLEAN || type == LUA_TNUMBER) {
		s64 integer = type == LUA_TNUMBER ? lua_tointeger(L, 3) :
			lua_toboolean(L, 3);

		if (table_store(table, &key, type, integer))
			return 0;
	}
	table_replace(table, &key, type == LUA_TNIL ? NULL : entry_new(L, &key));
	return 0;
}

/* Walks */

static const struct rcu_cursor cursor_start = { 0, U64_MAX };

/* The next entry, with a reference, or NULL at the end. */
static struct rcu_entry *table_next(struct rcu_table *table,
				    struct rcu_cursor *cursor)
{
	struct rcu_entry *entry;

	rcu_read_lock();
	for (; cursor->bucket < table->bucket_count; cursor->bucket++) {
		hlist_for_each_entry_rcu(entry, &table->buckets[cursor->bucket],
					 node) {
			if (entry->number >= cursor->below)
				continue;
			cursor->below = entry->number;
			refcount_inc(&entry->refs);
			rcu_read_unlock();
			return entry;
		}
		cursor->below = U64_MAX;
	}
	rcu_read_unlock();
	return NULL;
}

/* rcu.map(table, function): call the function with each key and value */
static int rcu_map(lua_State *L)
{
	struct rcu_table *table = table_check(L, 1);
	struct rcu_cursor cursor = cursor_start;
	struct rcu_entry *entry;

	luaL_checktype(L, 2, LUA_TFUNCTION);
	lua_settop(L, 2);
	while ((entry = table_next(table, &cursor))) {
		lua_pushvalue(L, 2);
		entry_push(L, protected_push_pair, entry);
		lua_call(L, 2, 0);
		lunatik_checkpoint(L);
	}
	return 0;
}

/* What pairs() calls. Its upvalues are the table and the cursor. */
static int pairs_next(lua_State *L)
{
	struct rcu_table *table = table_check(L, lua_upvalueindex(1));
	struct rcu_cursor cursor = {
		.bucket = lua_tointeger(L, lua_upvalueindex(2)),
		.below = lua_tointeger(L, lua_upvalueindex(3)),
	};
	struct rcu_entry *entry = table_next(table, &cursor);

	if (!entry) {
		lua_pushnil(L);
		return 1;
	}
	entry_push(L, protected_push_pair, entry);
	lua_pushinteger(L, cursor.bucket);
	lua_replace(L, lua_upvalueindex(2));
	lua_pushinteger(L, cursor.below);
	lua_replace(L, lua_upvalueindex(3));
	return 2;
}

/* pairs(table) */
static int table_pairs(lua_State *L)
{
	table_check(L, 1);
	lua_pushvalue(L, 1);
	lua_pushinteger(L, cursor_start.bucket);
	lua_pushinteger(L, cursor_start.below);
	lua_pushcclosure(L, pairs_next, 3);
	return 1;
}

/* Creating and releasing */

static size_t buckets_size(u32 count)
{
	return array_size(count, sizeof(struct hlist_head));
}

/* The object is released from a work item, so nobody is in the table any more. */
static void table_release(struct lunatik_object *object)
{
	struct rcu_table *table = table_of(object);
	struct rcu_entry *entry;
	struct hlist_node *next;
	u32 i;

	if (!table->buckets)
		return;
	for (i = 0; i < table->bucket_count; i++) {
		hlist_for_each_entry_safe(entry, next, &table->buckets[i], node)
			entry_put(entry);
		cond_resched();
	}
	lunatik_object_free(table->buckets, buckets_size(table->bucket_count));
}

static void table_init(struct rcu_table *table, struct hlist_head *buckets,
		       u32 count)
{
	spin_lock_init(&table->lock);
	table->serial = atomic64_inc_return(&last_serial);
	table->buckets = buckets;
	table->bucket_count = count;
}

/* rcu.table([buckets]): an empty table */
static int rcu_table(lua_State *L)
{
	lua_Integer wanted = luaL_optinteger(L, 1, BUCKETS_DEFAULT);
	struct lunatik_object *object;
	struct hlist_head *buckets;
	u32 count;

	luaL_argcheck(L, wanted > 0 && wanted <= BUCKETS_MAX, 1,
		      "an rcu table has 1 to 65536 buckets");
	count = roundup_pow_of_two(max_t(u32, wanted, BUCKETS_MIN));
	object = lunatik_object_new(L, &lunatik_rcu_class);
	buckets = lunatik_object_alloc(L, buckets_size(count));
	table_init(table_of(object), buckets, count);
	return 1;
}

static const luaL_Reg rcu_metamethods[] = {
	{ "__index", table_index },
	{ "__newindex", table_newindex },
	{ "__pairs", table_pairs },
	{ NULL, NULL }
};

const struct lunatik_class lunatik_rcu_class = {
	.name = "rcu.table",
	.size = sizeof(struct rcu_table),
	.metamethods = rcu_metamethods,
	.deferred = true,
	.release = table_release,
};

static const luaL_Reg rcu_functions[] = {
	{ "map", rcu_map },
	{ "table", rcu_table },
	{ NULL, NULL }
};

int lunatik_open_rcu(lua_State *L)
{
	luaL_newlib(L, rcu_functions);
	return 1;
}

/**
 * lunatik_env_push() - push a handle of the shared environment
 * @L: thread
 *
 * Context: inside a protected call; raises a Lua error.
 */
void lunatik_env_push(lua_State *L)
{
	lunatik_object_push(L, &env->object);
}

/* The environment is the oldest table, so every other one may be in it. */
int __init lunatik_env_init(void)
{
	struct lunatik_object *object;
	struct hlist_head *buckets;

	get_random_bytes(&hash_key, sizeof(hash_key));
	object = lunatik_object_create(&lunatik_rcu_class, GFP_KERNEL);
	buckets = lunatik_object_tryalloc(buckets_size(BUCKETS_DEFAULT), GFP_KERNEL);
	if (!object || !buckets) {
		lunatik_object_free(buckets, buckets_size(BUCKETS_DEFAULT));
		lunatik_object_free(object, sizeof(*env));
		return -ENOMEM;
	}
	env = table_of(object);
	table_init(env, buckets, BUCKETS_DEFAULT);
	return 0;
}

/* No runtime is alive, so nothing reads the environment any more. */
void lunatik_env_exit(void)
{
	lunatik_object_put(&env->object);
}
