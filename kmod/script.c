// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Scripts: find, read and compile, see script.h.
 */
#include <linux/ctype.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/namei.h>

#include "memory.h"
#include "runtime.h"
#include "script.h"

#define SCRIPT_MAX	(1024 * 1024)

static char *root = "/lib/modules/lua";
module_param(root, charp, 0444);
MODULE_PARM_DESC(root, "directory that scripts are looked up in (default /lib/modules/lua)");

/**
 * lunatik_script_root() - the Lua root
 *
 * Return: its path.
 */
const char *lunatik_script_root(void)
{
	return root;
}

/* "foo.bar" and "foo/bar" name foo/bar.lua. Leaves the path on the Lua stack. */
static const char *script_path(lua_State *L, const char *name)
{
	const char *s;

	if (!*name || strlen(name) >= LUNATIK_NAME_MAX)
		luaL_error(L, "a script's name has 1 to %d bytes",
			   LUNATIK_NAME_MAX - 1);
	for (s = name; *s; s++) {
		bool separator = *s == '.' || *s == '/';

		if (!separator && !isalnum(*s) && *s != '_' && *s != '-')
			luaL_error(L, "bad script name '%s': letters, digits, '_', '-', and '.' or '/' between directories",
				   name);
		if (separator && (s == name || !s[1] || s[1] == '.' || s[1] == '/'))
			luaL_error(L, "bad script name '%s': it leads below the Lua root, so no part of it is empty",
				   name);
	}
	lua_pushfstring(L, "%s.lua", luaL_gsub(L, name, ".", "/"));
	lua_remove(L, -2);
	return lua_tostring(L, -1);
}

/*
 * The path is looked up as if the Lua root were the root directory, so neither
 * links nor anything in the path lead out of it.
 */
static struct file *script_open(const char *relative)
{
	struct file *file;
	struct path top;
	int err;

	err = kern_path(root, LOOKUP_FOLLOW | LOOKUP_DIRECTORY, &top);
	if (err)
		return ERR_PTR(err);
	file = file_open_root(&top, relative, O_RDONLY | O_NONBLOCK, 0);
	path_put(&top);
	return file;
}

/* The text of an open file, for kvfree(), or NULL; its length or an errno. */
static char *script_read(struct file *file, ssize_t *len)
{
	loff_t size = i_size_read(file_inode(file)), position = 0;
	char *text = NULL;
	ssize_t n;

	*len = -EINVAL;
	if (!S_ISREG(file_inode(file)->i_mode))
		return NULL;
	*len = -EFBIG;
	if (size > SCRIPT_MAX)
		return NULL;
	text = lunatik_kvmalloc(size + 1, GFP_KERNEL_ACCOUNT);
	*len = -ENOMEM;
	if (!text)
		return NULL;
	do {
		n = kernel_read(file, text + position, size - position, &position);
	} while (n > 0 && position < size);
	*len = n < 0 ? n : position;
	return text;
}

struct script_text {
	const char *text;
	size_t len;
};

static const char *script_reader(lua_State *L, void *data, size_t *len)
{
	struct script_text *text = data;
	const char *piece = text->len ? text->text : NULL;

	*len = text->len;
	text->len = 0;
	return piece;
}

/**
 * lunatik_script_compile() - compile a text
 * @L: gets the function, or the message
 * @text: source, never bytecode
 * @len: bytes of @text
 * @chunkname: "@file" or "=name"
 *
 * Context: inside a protected call; does not raise.
 * Return: 0, or a Lua status.
 */
int lunatik_script_compile(lua_State *L, const char *text, size_t len,
			   const char *chunkname)
{
	struct lunatik_limits *limits = lunatik_thread_of(L)->limits;
	struct script_text data = { text, len };
	int status;

	limits->compiling++;
	status = lua_load(L, script_reader, &data, chunkname, "t");
	limits->compiling--;
	return status;
}

/**
 * lunatik_script_explain() - say what Lua's lexer cannot know
 * @L: has the message of a failed lunatik_script_compile() on its top
 *
 * Context: inside a protected call; raises when memory runs out.
 */
void lunatik_script_explain(lua_State *L)
{
	if (strstr(lua_tostring(L, -1), "malformed number")) {
		lua_pushliteral(L, " (Lua in the kernel has 64-bit integers only)");
		lua_concat(L, 2);
	}
}

/**
 * lunatik_script_find() - find, read and compile a script below the Lua root
 * @L: gets the function, or the message
 * @name: "foo.bar" or "foo/bar"
 *
 * Context: inside a protected call, process, may sleep; raises for a bad name.
 * Return: 0, or a negative errno: -ENOENT for a missing script, -ENOEXEC for one
 * that cannot be read or does not compile.
 */
int lunatik_script_find(lua_State *L, const char *name)
{
	const char *path = script_path(L, name);
	/* made first: while the file or its text is held, nothing may raise */
	const char *chunkname = lua_pushfstring(L, "@%s", path);
	struct file *file = script_open(path);
	char *text = NULL;
	ssize_t len;
	int status;

	if (file == ERR_PTR(-ENOENT) || file == ERR_PTR(-ENOTDIR)) {
		lua_pushfstring(L, "script '%s' not found: no file %s/%s",
				name, root, path);
		return -ENOENT;
	}
	len = PTR_ERR(file);
	if (!IS_ERR(file)) {
		text = script_read(file, &len);
		fput(file);
	}
	status = len < 0 ? 0 : lunatik_script_compile(L, text, len, chunkname);
	kvfree(text);
	if (len < 0) {
		lua_pushfstring(L, "cannot read %s/%s: errno %d", root, path,
				(int)-len);
		return -ENOEXEC;
	}
	if (!status)
		return 0;
	lunatik_script_explain(L);
	return -ENOEXEC;
}

/**
 * lunatik_script_load() - compile what a runtime is to run
 * @L: gets the function, or the message
 * @spec: what to create
 *
 * Context: inside a protected call, process, may sleep; raises for a bad name.
 * Return: 0, or a negative errno.
 */
int lunatik_script_load(lua_State *L, const struct lunatik_spec *spec)
{
	if (!spec->source)
		return lunatik_script_find(L, spec->name);
	lua_pushfstring(L, "=%s", spec->name);
	if (!lunatik_script_compile(L, spec->source, spec->source_len,
				    lua_tostring(L, -1)))
		return 0;
	lunatik_script_explain(L);
	return -ENOEXEC;
}
