// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Libraries: Lua's own, less what has no place in a kernel; ours; those of other
 * modules; and Lua files below the root.
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "library.h"
#include "lunatik.h"
#include "memory.h"
#include "object.h"
#include "runtime.h"
#include "script.h"

#include "lualib.h"

/* What looking up a file or waiting may use above the reserve, in bytes. */
#define STACK_FOR_KERNEL	(5 * 1024)

static LIST_HEAD(libraries);
static DEFINE_MUTEX(libraries_lock);

/**
 * struct library_use - a runtime's reference to another module's library
 * @owner: module
 * @list: in the runtime's libraries
 */
struct library_use {
	struct module *owner;
	struct list_head list;
};

/**
 * lunatik_library_register() - offer a library to scripts
 * @library: stays valid until it is unregistered
 *
 * Context: process, may sleep.
 * Return: 0, or -EEXIST when the name is taken.
 */
int lunatik_library_register(struct lunatik_library *library)
{
	struct lunatik_library *other;
	int errno = 0;

	mutex_lock(&libraries_lock);
	list_for_each_entry(other, &libraries, list)
		if (!strcmp(other->name, library->name))
			errno = -EEXIST;
	if (!errno)
		list_add(&library->list, &libraries);
	mutex_unlock(&libraries_lock);
	return errno;
}
EXPORT_SYMBOL_GPL(lunatik_library_register);

/**
 * lunatik_library_unregister() - take a library back
 * @library: registered; no runtime has it open, since each holds its module
 *
 * Context: process, may sleep.
 */
void lunatik_library_unregister(struct lunatik_library *library)
{
	mutex_lock(&libraries_lock);
	list_del(&library->list);
	mutex_unlock(&libraries_lock);
}
EXPORT_SYMBOL_GPL(lunatik_library_unregister);

/*
 * Find another module's library and hold its module for the runtime's life. NULL
 * where there is none of that name; raises without memory.
 */
static const struct lunatik_library *library_use(lua_State *L, const char *name)
{
	struct library_use *use = lunatik_kmalloc(sizeof(*use), GFP_KERNEL);
	struct lunatik_library *library, *found = NULL;

	if (!use) {
		luaL_error(L, "not enough memory");
		return NULL;
	}
	mutex_lock(&libraries_lock);
	list_for_each_entry(library, &libraries, list)
		if (!strcmp(library->name, name) && try_module_get(library->owner))
			found = library;
	mutex_unlock(&libraries_lock);
	if (!found) {
		kfree(use);
		return NULL;
	}
	use->owner = found->owner;
	list_add(&use->list, &lunatik_instance_of(L)->libraries);
	return found;
}

/**
 * lunatik_library_close() - drop the references to other modules' libraries
 * @instance: whose state is closed
 *
 * Context: process.
 */
void lunatik_library_close(struct lunatik_instance *instance)
{
	struct library_use *use, *next;

	list_for_each_entry_safe(use, next, &instance->libraries, list) {
		list_del(&use->list);
		module_put(use->owner);
		kfree(use);
	}
}

/**
 * lunatik_constants() - set a field of the table on the top to a table of integers
 * @L: thread
 * @field: name of the field
 * @constants: names and values
 * @count: of @constants
 */
void lunatik_constants(lua_State *L, const char *field,
		       const struct lunatik_constant *constants, size_t count)
{
	size_t i;

	lua_createtable(L, 0, count);
	for (i = 0; i < count; i++) {
		lua_pushinteger(L, constants[i].value);
		lua_setfield(L, -2, constants[i].name);
	}
	lua_setfield(L, -2, field);
}

/**
 * lunatik_check_stack() - raise unless the kernel's own functions have stack enough
 * @L: thread that is about to open files, allocate or wait
 *
 * Context: process, inside a protected call.
 */
void lunatik_check_stack(lua_State *L)
{
	if (lunatik_stack_left(L) < STACK_FOR_KERNEL)
		luaL_error(L, "C stack overflow");
}

/* require */

static const luaL_Reg builtin[] = {
	{ "lunatik", lunatik_open_lunatik },
	{ "netfilter", lunatik_open_netfilter },
	{ "linux", lunatik_open_linux },
	{ "byteorder", lunatik_open_byteorder },
	{ "completion", lunatik_open_completion },
	{ "counter", lunatik_open_counter },
	{ "data", lunatik_open_data },
	{ "fifo", lunatik_open_fifo },
	{ "rcu", lunatik_open_rcu },
	{ "linux.nf", lunatik_open_nf },
	{ NULL, NULL }
};

static bool require_builtin(lua_State *L, const char *name)
{
	const luaL_Reg *lib;

	for (lib = builtin; lib->name; lib++) {
		if (strcmp(lib->name, name))
			continue;
		lua_pushcfunction(L, lib->func);
		lua_call(L, 0, 1);
		return true;
	}
	return false;
}

static bool require_module(lua_State *L, const char *name)
{
	const struct lunatik_function *f;
	const struct lunatik_library *library;

	library = library_use(L, name);
	if (!library)
		return false;
	lua_newtable(L);
	for (f = library->functions; f->name; f++) {
		lua_pushcfunction(L, f->call);
		lua_setfield(L, -2, f->name);
	}
	return true;
}

static void require_script(lua_State *L, const char *name)
{
	int errno = lunatik_script_find(L, name);

	if (errno == -ENOENT)
		luaL_error(L, "module '%s' not found: no library of that name, and no file %s/%s.lua",
			   name, lunatik_script_root(),
			   luaL_gsub(L, name, ".", "/"));
	if (errno)
		lua_error(L);
	lua_pushstring(L, name);
	lua_call(L, 1, 1);
	if (lua_isnil(L, -1))
		lua_pushboolean(L, true);
}

/* require(name): the library's value; loaded once, as in stock Lua */
static int library_require(lua_State *L)
{
	const char *name = luaL_checkstring(L, 1);

	lua_settop(L, 1);
	luaL_getsubtable(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
	if (lua_getfield(L, 2, name) != LUA_TNIL)
		return 1;
	if (!lunatik_is_setup(L))
		return luaL_error(L, "require '%s': a non-sleepable runtime loads its libraries while its script's body first runs",
				  name);
	if (!require_builtin(L, name) && !require_module(L, name)) {
		lunatik_check_stack(L);
		require_script(L, name);
	}
	lua_pushvalue(L, -1);
	lua_setfield(L, 2, name);
	return 1;
}

/* Replacements in Lua's own libraries */

/* load(chunk [, chunkname [, mode [, env]]]), text only */
static int library_load(lua_State *L)
{
	bool has_env = !lua_isnone(L, 4);
	size_t len;
	const char *text = luaL_checklstring(L, 1, &len);
	const char *name = luaL_optstring(L, 2, "=(load)");
	const char *mode = luaL_optstring(L, 3, "t");

	if (!strchr(mode, 't'))
		return luaL_error(L, "load: only text chunks are loaded");
	lua_settop(L, 4);
	if (lunatik_script_compile(L, text, len, name) != LUA_OK) {
		lunatik_script_explain(L);
		lua_pushnil(L);
		lua_insert(L, -2);
		return 2;
	}
	if (has_env) {
		lua_pushvalue(L, 4);
		if (!lua_setupvalue(L, -2, 1))
			lua_pop(L, 1);
	}
	return 1;
}

/* print(...): one line in the kernel log, rate-limited */
static int library_print(lua_State *L)
{
	int i, n = lua_gettop(L);
	luaL_Buffer b;

	luaL_buffinit(L, &b);
	for (i = 1; i <= n; i++) {
		if (i > 1)
			luaL_addchar(&b, '\t');
		luaL_tolstring(L, i, NULL);
		luaL_addvalue(&b);
	}
	luaL_pushresult(&b);
	lunatik_log(lunatik_runtime_of(L), LUNATIK_LOG_INFO, lua_tostring(L, -1));
	return 0;
}

/*
 * setmetatable(table, metatable). A finalizer written in Lua runs where hooks are
 * off, so nothing could end one that loops.
 */
static int library_setmetatable(lua_State *L)
{
	int type = lua_type(L, 2);

	luaL_checktype(L, 1, LUA_TTABLE);
	luaL_argexpected(L, type == LUA_TNIL || type == LUA_TTABLE, 2,
			 "nil or table");
	if (luaL_getmetafield(L, 1, "__metatable") != LUA_TNIL)
		return luaL_error(L, "cannot change a protected metatable");
	if (type == LUA_TTABLE) {
		lua_pushliteral(L, "__gc");
		if (lua_rawget(L, 2) != LUA_TNIL)
			return luaL_error(L, "a finalizer (__gc) cannot be written in Lua: the instruction budget would not hold for it; use __close");
	}
	lua_settop(L, 2);
	lua_setmetatable(L, 1);
	return 1;
}

/* string.pack and friends, without the options that stand for floats */
static int library_pack(lua_State *L)
{
	const char *format = luaL_checkstring(L, 1);
	const char *option = strpbrk(format, "fdn");
	lua_CFunction stock = lua_tocfunction(L, lua_upvalueindex(1));

	if (option)
		return luaL_error(L, "option '%c' needs floats, and Lua in the kernel has integers only",
				  *option);
	return stock(L);
}

/* string.rep(s, n [, sep]): stock Lua would copy nothing n times */
static int library_rep(lua_State *L)
{
	lua_CFunction stock = lua_tocfunction(L, lua_upvalueindex(1));
	size_t len, sep = 0;

	luaL_checklstring(L, 1, &len);
	luaL_optlstring(L, 3, "", &sep);
	if (len + sep > 0)
		return stock(L);
	luaL_checkinteger(L, 2);
	lua_pushliteral(L, "");
	return 1;
}

/* collectgarbage("count") is a float in stock Lua: KiB; here it is an integer */
static int library_collectgarbage(lua_State *L)
{
	lua_CFunction stock = lua_tocfunction(L, lua_upvalueindex(1));

	if (strcmp(luaL_optstring(L, 1, "collect"), "count"))
		return stock(L);
	lua_pushinteger(L, lua_gc(L, LUA_GCCOUNT));
	return 1;
}

/* Put a function of ours in front of a stock one of the table on the top. */
static void library_wrap(lua_State *L, const char *name, lua_CFunction wrapper)
{
	lua_getfield(L, -1, name);
	lua_pushcclosure(L, wrapper, 1);
	lua_setfield(L, -2, name);
}

static void library_drop(lua_State *L, const char *name)
{
	lua_pushnil(L);
	lua_setfield(L, -2, name);
}

static void library_open_string(lua_State *L)
{
	luaL_requiref(L, LUA_STRLIBNAME, luaopen_string, 1);
	library_drop(L, "dump");
	library_wrap(L, "pack", library_pack);
	library_wrap(L, "unpack", library_pack);
	library_wrap(L, "packsize", library_pack);
	library_wrap(L, "rep", library_rep);
	lua_pop(L, 1);
}

/*
 * Lua makes the metatable of large buffers when it first needs one. Were memory to run
 * out in the middle of that, half of it would stay, and no buffer be freed any more.
 */
static void library_open_buffers(lua_State *L)
{
	luaL_Buffer b;

	luaL_buffinitsize(L, &b, 2 * LUAL_BUFFERSIZE);
	luaL_pushresultsize(&b, 0);
	lua_pop(L, 1);
}

static const luaL_Reg globals[] = {
	{ "load", library_load },
	{ "print", library_print },
	{ "require", library_require },
	{ "setmetatable", library_setmetatable },
	{ NULL, NULL }
};

static void library_open_base(lua_State *L)
{
	luaL_requiref(L, LUA_GNAME, luaopen_base, 1);
	library_drop(L, "dofile");
	library_drop(L, "loadfile");
	library_wrap(L, "collectgarbage", library_collectgarbage);
	luaL_setfuncs(L, globals, 0);
	lua_pop(L, 1);
}

/**
 * lunatik_library_open() - give a new state its globals
 * @L: main thread
 *
 * Context: inside a protected call.
 */
void lunatik_library_open(lua_State *L)
{
	library_open_buffers(L);
	library_open_base(L);
	library_open_string(L);
	luaL_requiref(L, LUA_COLIBNAME, luaopen_coroutine, 1);
	luaL_requiref(L, LUA_TABLIBNAME, luaopen_table, 1);
	luaL_requiref(L, LUA_UTF8LIBNAME, luaopen_utf8, 1);
	luaL_requiref(L, LUA_MATHLIBNAME, lunatik_open_math, 1);
	lunatik_skb_open(L);
	lunatik_objects_open(L);
	luaL_requiref(L, "lunatik", lunatik_open_lunatik, 1);
	lua_settop(L, 1);
}
