/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * What lunatik.ko offers other modules: a way to add a Lua library.
 */
#ifndef _LUNATIK_H
#define _LUNATIK_H

#include <linux/list.h>
#include <linux/module.h>

struct lua_State;

/**
 * struct lunatik_function - one function of a library
 * @name: its field in the library's table
 * @call: a lua_CFunction; pops nothing, returns the number of results it pushed
 */
struct lunatik_function {
	const char *name;
	int (*call)(struct lua_State *L);
};

/**
 * struct lunatik_library - a table of functions that scripts reach by require
 * @name: the name given to require
 * @functions: ended by a NULL name
 * @owner: THIS_MODULE; every runtime that has the library open holds a reference
 * @list: private
 */
struct lunatik_library {
	const char *name;
	const struct lunatik_function *functions;
	struct module *owner;
	struct list_head list;
};

int lunatik_library_register(struct lunatik_library *library);
void lunatik_library_unregister(struct lunatik_library *library);

#endif /* _LUNATIK_H */
