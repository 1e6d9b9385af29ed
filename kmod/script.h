/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Scripts: find, read and compile. Text only, and only below the Lua root.
 */
#ifndef _LUNATIK_SCRIPT_H
#define _LUNATIK_SCRIPT_H

#include "lua.h"

struct lunatik_spec;

const char *lunatik_script_root(void);
int lunatik_script_load(lua_State *L, const struct lunatik_spec *spec);
int lunatik_script_find(lua_State *L, const char *name);
int lunatik_script_compile(lua_State *L, const char *text, size_t len,
			   const char *chunkname);
void lunatik_script_explain(lua_State *L);

#endif /* _LUNATIK_SCRIPT_H */
